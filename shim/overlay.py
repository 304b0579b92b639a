"""A backend's own user-data and vendor data, composed with the sources that the store has for the instance.

Where there are none the backend's answer passes as it is, byte for byte. Where it is neither 200 nor 404 it passes
too: it is the backend's word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from msgspec.structs import replace

from shim.catalog import Catalog
from shim.core.closure import fold
from shim.core.exchange import Caller, Pending, Rendered, Request, Response
from shim.core.source import BACKEND
from shim.errors import BackendError
from shim.forward.identify import Entry
from shim.forward.routes import decode
from shim.forward.unavailable import broken_off
from shim.metadata.compose import has_user_data
from shim.metadata.faces import nothing_used
from shim.metadata.leaves import user_data, vendor_data_with
from shim.metadata.tree import BINARY, Leaf, found, plain
from shim.metadata.view import View
from shim.metadata.waits import wait_of
from shim.settings import EMBEDDED
from shim.waiting import collected, settled

BODY_BYTES = 1 << 20
"""The largest answer of a backend that is composed with others."""

_USER = frozenset(("/latest/user-data", "/openstack/latest/user_data"))
_VENDOR = "/openstack/latest/vendor_data.json"
_BY_ITSELF = "/metashim/v1/sources/backend/user-data"
_BESIDE = {
    "/metashim/v1/user-data": b"/openstack/latest/user_data",
    "/metashim/v1/vendor-data": _VENDOR.encode(),
    _BY_ITSELF: b"/openstack/latest/user_data",
}
"""Folded paths of our own face, and what a backend is asked for of them, if it answers that path."""
_NO_WAIT = replace(plain(400, b"nobody can wait for what a backend answers\n"), backend=EMBEDDED)
# A part of it, or that it has not changed, is of no use: it is not the guest's answer.
_LEFT_OUT = frozenset((b"if-none-match", b"if-modified-since", b"range", b"if-range", b"accept-encoding"))

Ask = Callable[[Request], Response | Pending]
"""Asks the backend."""
Look = Callable[[Entry], Rendered | Response]
Hand = Callable[[Caller, Request, Look], Response | Pending]
"""Hands a guest what a look at the store makes: Embedded.hand."""


class Overlay:
    """What the store has is in `catalog`; guests get it by `hand`."""

    def __init__(self, catalog: Catalog, hand: Hand) -> None:
        self._catalog = catalog
        self._hand = hand

    def beside(self, request: Request) -> bytes | None:
        """The path of a backend's that a request of our own face is about; None if there is none."""
        if b"data" not in request.path or request.method not in (b"GET", b"HEAD"):
            return None
        return _BESIDE.get(_folded(request.path))

    def concerns(self, entry: Entry, request: Request) -> bool:
        """Whether the backend's answer is to be composed with others. Raises StoreError."""
        path = request.path
        if (b"data" not in path and b"%" not in path) or request.method not in (b"GET", b"HEAD"):
            return False
        folded = _folded(path)
        if folded in _BESIDE:
            return True
        if folded in _USER and entry.policy.auto is not None and entry.policy.auto.on_read:
            return True  # somebody waits for it to be read
        if folded not in _USER and folded != _VENDOR:
            return False
        view = self._catalog.view(entry)
        return bool(view.sources) or (folded in _USER and has_user_data(view))

    def refusal(self, request: Request) -> Response | None:
        """What a guest gets that waits for what the backend is to answer."""
        return _NO_WAIT if self.beside(request) is not None and wait_of(request) is not None else None

    async def answer(self, caller: Caller, request: Request, ask: Ask) -> Response:
        """The composition of what the backend answers and what the store has."""
        refusal = self.refusal(request)
        if refusal is not None:
            return refusal
        beside = self.beside(request)
        headers = tuple(one for one in request.headers if one[0] not in _LEFT_OUT)
        path, query = (request.path, request.query) if beside is None else (beside, b"")
        theirs = await settled(ask(Request(b"GET", path, query, headers)))
        if theirs.status not in (200, 404):
            return theirs
        try:
            body = await collected(theirs.parts, theirs.body, BODY_BYTES)
        except BackendError as error:
            return broken_off(theirs.backend, late=error.late)
        if body is None:
            return replace(plain(502, b"the backend's answer is too large\n"), backend=theirs.backend)
        whole = replace(theirs, body=body, parts=None, length=None)
        return await settled(self._hand(caller, request, partial(self._composed, request, whole)))

    def _composed(self, request: Request, theirs: Response, entry: Entry) -> Rendered | Response:
        view = self._catalog.view(entry)
        body = theirs.body if theirs.status == 200 else None
        folded = _folded(request.path)
        if folded == _BY_ITSELF and body is not None:
            return found(view, body, BINARY, more=((b"x-metashim-owner", BACKEND.encode()),))
        is_vendor = _VENDOR in (folded, _BESIDE.get(folded, b"").decode())
        leaf = _vendor(view, body) if is_vendor else None if folded == _BY_ITSELF else user_data(view, body)
        if leaf is None:
            return theirs
        if leaf.body == body:
            return Rendered(theirs, _tag_of(theirs), (), view.until)
        made = found(view, leaf.body, leaf.content_type, leaf.claims, leaf.tag)
        answer = replace(made, response=replace(made.response, backend=EMBEDDED))
        return nothing_used(answer) if request.method == b"HEAD" and made.claims else answer


def _vendor(view: View, body: bytes | None) -> Leaf | None:
    """None where the backend's is its word alone: it is no JSON, or no source has a part in it."""
    try:
        theirs = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        return None
    made = vendor_data_with(view, theirs)
    return None if made.body == msgspec.json.encode({} if theirs is None else theirs) else made


def _tag_of(response: Response) -> str:
    """A backend's own entity tag, without quotes."""
    tags = (value for name, value in response.headers if name.lower() == b"etag")
    return next(tags, b"").decode("latin-1").removeprefix("W/").strip('"')


def _folded(path: bytes) -> str:
    try:
        return fold(decode(path).decode())
    except ValueError:
        return ""
