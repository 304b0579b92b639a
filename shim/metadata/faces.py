"""From a guest's request to the face that answers it. PURE."""

from __future__ import annotations

import re
from uuid import UUID

from shim.core.exchange import Request, Response
from shim.metadata import ec2, openstack
from shim.metadata.document import Document
from shim.metadata.tree import TEXT, answer, plain

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def respond(instance: UUID, document: Document, request: Request) -> Response:
    """What the instance gets. GET and HEAD answer alike (the server leaves HEAD's body out); else 405."""
    if request.method not in (b"GET", b"HEAD"):
        headers = ((b"allow", b"GET, HEAD"), (b"content-type", TEXT))
        return Response(405, headers, b"method not allowed\n")
    try:
        segments = split(request.path)
    except ValueError:
        return plain(400, b"bad path\n")
    if segments[:1] == ("openstack",):
        return answer(openstack.find(instance, document, segments[1:]))
    return answer(ec2.find(instance, document, segments))


def split(path: bytes) -> tuple[str, ...]:
    """The segments of an absolute path, percent-decoded once; a trailing slash makes no difference.

    An empty or dotted segment stays as it is: nothing has such a name, so it is not found. Raises
    ValueError for a bad escape, what is not UTF-8, and control characters.
    """
    if not path.startswith(b"/"):
        raise ValueError("not an absolute path")
    raw = path[1:-1] if len(path) > 1 and path.endswith(b"/") else path[1:]
    return tuple(_decode(segment) for segment in raw.split(b"/")) if path != b"/" else ()


def _decode(segment: bytes) -> str:
    if _BAD_ESCAPE.search(segment):
        raise ValueError("bad escape")
    text = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), segment).decode()
    if any(ord(char) < 0x20 or char == "\x7f" for char in text):
        raise ValueError("control character")
    return text
