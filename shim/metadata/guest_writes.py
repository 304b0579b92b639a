"""What a guest asks to have written, on our own face and on GCE's, and the answers to that. PURE."""

from __future__ import annotations

from collections.abc import Callable

from shim.core.ask import Ask, Confirm, Delete, Fate, Lock, Outcome, Put, Ready
from shim.core.closure import WHOLE, fold, parse_prefix
from shim.core.exchange import Headers, Request, Response
from shim.core.kv import parse_key
from shim.core.source import Reads
from shim.metadata import gce, own
from shim.metadata.conditions import if_match, if_none_match
from shim.metadata.gce_tree import GUEST_ATTRIBUTES
from shim.metadata.target import parameters, split
from shim.metadata.tree import plain
from shim.metadata.view import View

GCE_KEY_BYTES = 127
VALUE_BYTES = 262_144
"""More than that kv.value_bytes cannot allow: nobody is asked."""

CONFIRMED_AT_ONCE = 64
"""As many items as a Confirm takes."""

_METHODS = frozenset((b"PUT", b"POST", b"DELETE"))
# An open proxy inside the guest adds these; whoever is behind it is not to write.
_FROM_A_PROXY = (b"x-forwarded-for", b"forwarded")

_BAD_PATH = plain(400, b"bad path\n")
_NOT_FOUND = plain(404, b"not found\n")
_NOT_TO_PROXIES = plain(403, b"nothing is written through a proxy\n")
_CLOSED = plain(403, b"this is closed\n")
_READ_ONLY = plain(403, b"guests write below guest/ alone\n")
_NO_CONFIRMATION = plain(409, b"this does not wait to be confirmed\n")
_TOO_MANY_WAIT = plain(409, b"too many wait to be confirmed: confirm them one by one\n")
_LOCK_TAKES = plain(400, b"lock takes ?prefix= once, or nothing at all, and no body\n")
_GCE_PATH = plain(400, b"guest attributes are at guest-attributes/NAMESPACE/KEY\n")
_GCE_KEY = plain(400, b"a namespace and a key have at most 127 bytes each\n")
_TOO_LARGE = plain(413, b"a value has at most 262144 bytes\n")
_DONE = Response(204)

_SAYS: dict[Fate, tuple[int, bytes, Headers]] = {
    "absent": (404, b"not found", ()),
    "changed": (412, b"it is not what the condition says", ()),
    "clash": (409, b"one key cannot be a folder of another", ()),
    "quota": (413, b"too large, or too many", ()),
    "rate": (429, b"too many writes", ((b"retry-after", b"1"),)),
    "refused": (403, b"this may not be", ()),
    "full": (507, b"no room", ()),
    "unavailable": (503, b"not now", ((b"retry-after", b"2"),)),
}
"""Status, words where the outcome has none, headers."""


def write_of(view: View, request: Request) -> Ask | Response | None:
    """What a request asks to have written, or its answer where that is no matter of the agent's; None if it is no
    request of ours to write (405). The body is to be whole. Raises nothing for what a guest sends."""
    if request.method not in _METHODS:
        return None
    is_gce = gce.is_below(request.path)
    try:
        segments = split(request.path)
    except ValueError:
        return gce.flavored(_BAD_PATH) if is_gce else _BAD_PATH
    if segments[:1] == (gce.TOP,):
        answer = _on_gce(view, request, segments)
        return gce.flavored(answer) if isinstance(answer, Response) else answer
    if segments[:2] == own.PATH:
        return _on_own(view, request, segments)
    return None


def told(ask: Ask, outcome: Outcome, request: Request) -> Response:
    """The answer to what a guest asked for, by what became of it."""
    is_gce = gce.is_below(request.path)
    response = _told(ask, outcome, is_gce)
    return gce.flavored(response) if is_gce else response


def _told(ask: Ask, outcome: Outcome, is_gce: bool) -> Response:
    if outcome.fate != "done":
        status, words, headers = _SAYS[outcome.fate]
        return plain(status, (outcome.words.encode() or words) + b"\n", *headers)
    if not isinstance(ask, Put):
        return Response(200) if is_gce and isinstance(ask, Delete) else _DONE
    tag = outcome.etag if is_gce else f'"{outcome.etag}"'
    headers = ((b"etag", tag.encode()),) if outcome.etag else ()
    return Response(200 if is_gce else 201 if outcome.created else 204, headers)


# GCE's guest attributes.


def _on_gce(view: View, request: Request, segments: tuple[str, ...]) -> Ask | Response | None:
    version, *path = segments[1:] or ("",)
    if version not in gce.VERSIONS or path[:2] != ["instance", GUEST_ATTRIBUTES] or request.method == b"POST":
        return None
    refused = _refusal(view, request, segments) or gce.refusal(view, request, segments[1:])
    if refused is not None:
        return refused
    if len(path) != 4:
        return _GCE_PATH
    if any(len(one.encode()) > GCE_KEY_BYTES for one in path[2:]):
        return _GCE_KEY
    return _key_written("/".join(("guest", *path[2:])), request, bare=True)


# Our own face.


def _on_own(view: View, request: Request, segments: tuple[str, ...]) -> Ask | Response | None:
    head, *rest = segments[2:] or ("",)
    if request.method == b"POST":
        is_ours = head in _POSTED if not rest else head in _SHOWN and rest[-1] == "confirm"
    else:
        is_ours = head == "kv"
    if not is_ours:
        return None
    refused = _refusal(view, request, segments)
    if refused is not None:
        return refused
    if request.method != b"POST":
        return _READ_ONLY if rest[:1] == ["host"] else _key_written("/".join(rest), request)
    if not rest:
        return _POSTED[head](view, request)
    return _confirmed_one(view, head, "/".join(rest[:-1]))


def _ready(_view: View, _request: Request) -> Ready:
    return Ready()


def _lock(_view: View, request: Request) -> Lock | Response:
    """Whatever is not understood is refused: a misspelt prefix must not lock everything for good."""
    query = parameters(request.query)
    prefixes = query.pop("prefix", [WHOLE])
    if query or len(prefixes) != 1 or request.body:
        return _LOCK_TAKES
    try:
        return Lock(parse_prefix(prefixes[0]))
    except ValueError as error:
        return _says(error)


def _confirmed_all(view: View, _request: Request) -> Confirm | Response:
    waiting = tuple(
        item
        for head in _SHOWN
        for name, reads, item in _SHOWN[head](view)
        if reads is Reads.CONFIRM and not view.is_closed(f"{own.BASE}/{head}/{name}")
    )
    if len(waiting) > CONFIRMED_AT_ONCE:
        return _TOO_MANY_WAIT
    return Confirm(waiting) if waiting else _DONE


def _confirmed_one(view: View, head: str, name: str) -> Confirm | Response:
    found = [(reads, item) for one, reads, item in _SHOWN[head](view) if one == name]
    waiting = tuple(item for reads, item in found if reads is Reads.CONFIRM)
    if not waiting:
        return _NO_CONFIRMATION if found else _NOT_FOUND
    return Confirm(waiting)


_SHOWN: dict[str, Callable[[View], list[tuple[str, Reads, str]]]] = {
    "sources": lambda view: [(one.id, one.reads, one.item) for one in view.sources],
    "kv": lambda view: [(key, one.reads, one.item) for key, one in view.values.items()],
}
"""What can be confirmed: its name on our own face, and its item."""

_POSTED: dict[str, Callable[[View, Request], Ask | Response]] = {
    "ready": _ready,
    "lock": _lock,
    "confirm": _confirmed_all,
}


# Both.


def _refusal(view: View, request: Request, segments: tuple[str, ...]) -> Response | None:
    if any(name in _FROM_A_PROXY for name, _ in request.headers):
        return _NOT_TO_PROXIES
    return _CLOSED if view.is_closed(fold("/" + "/".join(segments))) else None


def _key_written(key: str, request: Request, *, bare: bool = False) -> Put | Delete | Response:
    try:
        parse_key(key)
        match, none_match = if_match(request, bare=bare), if_none_match(request, bare=bare)
        if request.method == b"PUT":
            if len(request.body) > VALUE_BYTES:
                return _TOO_LARGE
            return Put(key, request.body, match, none_match)
        if none_match is not None:
            raise ValueError("DELETE takes If-Match, not If-None-Match")
        return Delete(key, match)
    except ValueError as error:
        return _says(error)


def _says(error: ValueError) -> Response:
    return plain(400, f"{error}\n".encode())
