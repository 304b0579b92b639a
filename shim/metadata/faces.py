"""From a guest's request to the face that answers it. PURE."""

from __future__ import annotations

from msgspec.structs import replace

from shim.core.exchange import Request, Response
from shim.metadata import ec2, gce, openstack, own
from shim.metadata.target import split
from shim.metadata.tree import TEXT, answer, plain
from shim.metadata.view import Rendered, View

__all__ = ["respond", "split"]

_NOT_ALLOWED = Response(405, ((b"allow", b"GET, HEAD"), (b"content-type", TEXT)), b"method not allowed\n")


def respond(view: View, request: Request) -> Rendered:
    """What the instance gets: GET and HEAD are answered, others 405. Raises compose.Unready and nothing else.

    Of Rendered: see there. Errors and redirections have no etag. What a HEAD's answer would use up is neither claimed
    nor in it, and its body is empty then, with `length` telling what it would be.
    What is decided by headers: on GCE's face and at `/`, by Metadata-Flavor and X-Forwarded-For. By the query: on
    GCE's face and our own. What is closed is in no answer; whoever calls refuses requests for it.
    """
    if request.method == b"GET":
        return _respond(view, request)
    if request.method == b"HEAD":
        rendered = _respond(view, request)
        return nothing_used(rendered) if rendered.claims else rendered
    return Rendered(gce.flavored(_NOT_ALLOWED) if gce.is_below(request.path) else _NOT_ALLOWED)


def _respond(view: View, request: Request) -> Rendered:
    try:
        segments = split(request.path)
    except ValueError:
        refusal = plain(400, b"bad path\n")
        return Rendered(gce.flavored(refusal) if gce.is_below(request.path) else refusal)
    if not segments:
        return gce.root(view) if gce.is_asked(request) else answer(view, ec2.find(view, ()))
    top = segments[0]
    if top == "openstack":
        return answer(view, openstack.find(view, segments[1:]))
    if top == gce.TOP:
        return gce.respond(view, request, segments[1:])
    if top == own.TOP:
        return own.respond(view, request.query, segments[1:])
    return answer(view, ec2.find(view, segments))


def nothing_used(rendered: Rendered) -> Rendered:
    """A HEAD's answer of what a GET would use up: its head alone."""
    response = replace(rendered.response, body=b"", length=len(rendered.response.body))
    return replace(rendered, response=response, claims=())
