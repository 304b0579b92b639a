"""A part: one contributor's piece of an instance's user-data or vendor data, and what kind of thing it is. PURE.

The kind is decided as cloud-init decides it: by gzip's magic, by a MIME head, else by how
the text begins, whatever its case and the white space before it.
"""

from __future__ import annotations

import re

import msgspec

from shim.core.source import ORDER_DEFAULT, Kind, Reads

GZIP = "application/gzip"
GZIP_MAGIC = b"\x1f\x8b"
CONFIG = "text/cloud-config"
JINJA = "text/jinja2"
PATCH = "text/cloud-config-jsonp"
ARCHIVE = "text/cloud-config-archive"
INCLUDES = ("text/x-include-url", "text/x-include-once-url")
SCRIPT = "text/x-shellscript"
TEXT = "text/plain"
BINARY = "application/octet-stream"
MESSAGE = "message/rfc822"
"""A MIME message of one body, which is no multipart."""

_BEGINNINGS = {
    "#cloud-config-archive": ARCHIVE,
    "#cloud-config-jsonp": PATCH,
    "## template: jinja": JINJA,
    "#cloud-boothook": "text/cloud-boothook",
    "#include-once": INCLUDES[1],
    "#part-handler": "text/part-handler",
    "#cloud-config": CONFIG,
    "#include": INCLUDES[0],
    "#!": SCRIPT,
}
"""The longer ones first: one is the beginning of another."""
_BEGINNING = re.compile("|".join(map(re.escape, _BEGINNINGS)))

MIME_VERSION = b"mime-version:"
MIME_VERSION_WITHIN = 4096
"""How far cloud-init looks for that header, in any case, to tell a message from other text."""
_MIME_HEAD = re.compile(rb"(?:mime-version|content-type):", re.IGNORECASE)
_FIELD = re.compile(rb"[!-9;-~]+:")
_MULTIPART_TYPE = re.compile(rb"^content-type:[ \t]*(?:\r?\n[ \t]+)?(multipart/[a-z0-9.+-]+)", re.IGNORECASE | re.M)
_HEAD_END = re.compile(rb"\r?\n\r?\n")


class Part(msgspec.Struct, frozen=True):
    """One part, ready to be composed.

    id     as guests see it: `host/base`, `instance/document`, `backend/user-data`
    kind   which of the two data it is put into (an instance's composition may make vendor data of user-data)
    type   `content_type`, as `content_type_of` has it
    body   of a template: rendered
    merge  cloud-init's merge type; empty: its own default
    item   Source.item; empty for the document's own and the backend's
    scope  as operators write it; empty for the document's own and the backend's. `name`, `until` as in Source
    """

    id: str
    owner: str
    kind: Kind
    order: int
    content_type: str
    body: bytes
    merge: str
    reads: Reads = Reads.MANY
    item: str = ""
    template: bool = False
    scope: str = ""
    name: str = ""
    until: float | None = None


def own(id: str, owner: str, kind: Kind, body: bytes, merge: str) -> Part:
    """A part that is no source of the store: the document's, or the backend's."""
    return Part(id, owner, kind, ORDER_DEFAULT, content_type_of(body), body, merge, name=id.partition("/")[2])


def content_type_of(body: bytes) -> str:
    """What a guest will take it for: its MIME type. Text that begins as no kind is text/plain, what is no text
    application/octet-stream: cloud-init ignores both."""
    if body.startswith(GZIP_MAGIC):
        return GZIP
    if is_mime(body):
        return _type_of_message(body)
    return beginning(body) or (TEXT if is_text(body) else BINARY)


def beginning(body: bytes) -> str | None:
    """The kind that a text's beginning says; None if it says none."""
    # What is lower-cased is text, not bytes: cloud-init takes Unicode's white space and cases into account.
    start = body[:256].decode("utf-8", "surrogateescape").lower().lstrip()
    if len(start) < 32 < len(body):
        start = body.decode("utf-8", "surrogateescape").lower().lstrip()
    found = _BEGINNING.match(start)
    return _BEGINNINGS[found[0]] if found else None


def is_mime(body: bytes) -> bool:
    """Whether it is a MIME message: it begins with one of MIME's headers, or with another and has MIME-Version."""
    if _MIME_HEAD.match(body):
        return True
    return MIME_VERSION in body[:MIME_VERSION_WITHIN].lower() and bool(_FIELD.match(body))


def says_mime(body: bytes) -> bool:
    """Whether cloud-init takes it for a message, if it is one."""
    return MIME_VERSION in body[:MIME_VERSION_WITHIN].lower()


def is_text(body: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _type_of_message(body: bytes) -> str:
    end = _HEAD_END.search(body)
    found = _MULTIPART_TYPE.search(body, 0, end.start() if end else len(body))
    return found[1].decode().lower() if found else MESSAGE
