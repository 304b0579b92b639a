"""The face of Google's Compute Engine, `/computeMetadata/`: its rules of asking and its ways of showing. PURE.

A directory is asked for with a slash at its end, and lists its children one a line. `recursive=true` shows all below
it, as JSON unless `alt=text` says otherwise. The entity tag of a directory is that of all bytes below it, in whatever
form they are shown, as clients watch `/computeMetadata/v1/` as a whole. docs/gce.md lists what is served.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from shim.core.exchange import Request, Response
from shim.core.kv import etag
from shim.metadata import ec2, gce_tree
from shim.metadata.gce_tree import BASE, GUEST_ATTRIBUTES, Branch, Held, Named, Numbered, Thing, Words
from shim.metadata.target import Parameters, parameters, says, split
from shim.metadata.tree import TEXT, plain
from shim.metadata.view import Rendered, View

TOP = "computeMetadata"
VERSIONS = ("v1", "v1beta1")
"""What a version may be called; they are one, and the first is the one that is listed."""

FLAVOR = (b"metadata-flavor", b"Google")
_TEXT = b"application/text"  # as Google has it
_JSON = b"application/json"

# Of a query that a redirection repeats: what a client can be sent back without harm.
_HARMLESS = re.compile(rb"[A-Za-z0-9._~%=&+-]*")


def is_below(path: bytes) -> bool:
    """Whether a path, as sent, is one of this face's; one that cannot be read counts by how it begins."""
    if b"%" in path:
        try:
            return split(path)[0] == TOP
        except ValueError:
            pass
    return path.startswith(b"/computeMetadata/") or path == b"/computeMetadata"


def is_asked(request: Request) -> bool:
    """Whether it comes from one who means Google's service, and not by way of an open proxy."""
    return _is_flavored(request) and request.header(b"x-forwarded-for") is None


def flavored(response: Response) -> Response:
    """A response with the header by which Google's clients know the service."""
    return replace(response, headers=(*response.headers, FLAVOR))


def refusal(view: View, request: Request, segments: tuple[str, ...]) -> Response | None:
    """Why the path `/computeMetadata/` + segments may not be read or written at all; None if it may."""
    if request.header(b"x-forwarded-for") is not None:
        return _PROXIED
    if not _is_flavored(request):
        return _UNFLAVORED
    if segments[1:3] == ("instance", GUEST_ATTRIBUTES) and not gce_tree.allows_guest_attributes(view.document):
        return _SWITCHED_OFF
    return None


def root(view: View) -> Rendered:
    """`/`, where Google's clients knock: EC2's versions, and this face's directory."""
    names = ec2.versions(view)
    if not view.is_closed(f"/{TOP}"):
        names.append(f"{TOP}/")
    body = "\n".join(names).encode()
    return _shown(view, body, TEXT, etag(body))


def respond(view: View, request: Request, segments: tuple[str, ...]) -> Rendered:
    """What there is at `/computeMetadata/` + segments. Raises compose.Unready."""
    refused = refusal(view, request, segments)
    if refused is not None:
        return Rendered(refused)
    thing = _find(view, segments)
    if thing is None:
        return _NOT_FOUND
    query = parameters(request.query)
    if not isinstance(thing, Branch):
        return _leaf(view, thing, query)
    if not request.path.endswith(b"/"):
        return Rendered(_redirection(segments, request.query))
    return _directory(view, thing, query)


def _is_flavored(request: Request) -> bool:
    return request.header(FLAVOR[0]) == FLAVOR[1]


def _find(view: View, segments: tuple[str, ...]) -> Thing | None:
    """None too for what is closed."""
    if segments and segments[0] not in VERSIONS:
        return None
    thing: Thing | None = gce_tree.tree(view) if not view.is_closed(BASE) else None
    if not segments:
        return Branch(v1=thing) if thing is not None else Branch()
    for segment in segments[1:]:
        if not isinstance(thing, Branch):
            return None
        thing = gce_tree.made(thing.get(segment))
    return thing


def _redirection(segments: tuple[str, ...], query: bytes) -> Response:
    """To the directory itself. Its segments are names of ours; of the guest's query only what is harmless is kept."""
    place = "/".join(quote(segment, safe="") for segment in (TOP, *segments)).encode()
    asked = b"?" + query if query and _HARMLESS.fullmatch(query) else b""
    return flavored(plain(301, b"", (b"location", b"/" + place + b"/" + asked)))


# Forms.


def _leaf(view: View, thing: str | int | Words | Held, query: Parameters) -> Rendered:
    by_default = says(query, "recursive", "true") or (isinstance(thing, Words) and thing.json)
    as_json = _as_json(query, by_default)
    body = msgspec.json.encode(_json(thing)) if as_json else _text(thing)
    held = thing if isinstance(thing, Held) else None
    tag = held.tag if held is not None else ""
    claims = held.claims if held is not None else ()
    return _shown(view, body, _JSON if as_json else _TEXT, tag or etag(body), claims)


def _directory(view: View, branch: Branch, query: Parameters) -> Rendered:
    tag = etag(msgspec.json.encode(_marks(branch)))
    recursive = says(query, "recursive", "true")
    if not recursive:
        names = [f"{name}/" if isinstance(one, Branch) else name for name, one in gce_tree.children(branch)]
        if _as_json(query, False):
            return _shown(view, msgspec.json.encode(names), _JSON, tag)
        return _shown(view, "".join(f"{name}\n" for name in names).encode(), _TEXT, tag)
    if _as_json(query, True):
        return _shown(view, msgspec.json.encode(_json(branch)), _JSON, tag)
    return _shown(view, b"".join(_lines("", branch)), _TEXT, tag)


def _as_json(query: Parameters, by_default: bool) -> bool:
    return says(query, "alt", "json") or (by_default and not says(query, "alt", "text"))


def _shown(view: View, body: bytes, content_type: bytes, tag: str, claims: tuple[str, ...] = ()) -> Rendered:
    headers = ((b"content-type", content_type), (b"etag", tag.encode()), FLAVOR)
    return Rendered(Response(200, headers, body), tag, claims, view.until)


def _text(thing: str | int | Words | Held) -> bytes:
    if isinstance(thing, Held):
        return thing.body
    if isinstance(thing, Words):
        return "".join(f"{word}\n" for word in thing.words).encode()
    return str(thing).encode()


def _json(thing: Thing) -> Any:
    """As JSON has it; what is no text has replacement characters there."""
    if isinstance(thing, Held):
        return thing.body.decode(errors="replace")
    if isinstance(thing, Words):
        return thing.words
    if not isinstance(thing, Branch):
        return thing
    if isinstance(thing, Numbered):
        return [_json(one) for _, one in _together(thing)]
    if isinstance(thing, Named):
        return {name: _json(one) for name, one in _together(thing)}
    return {_camel(name): _json(one) for name, one in _together(thing)}


def _lines(place: str, thing: Thing) -> Iterator[bytes]:
    """`path value`, a line each."""
    if isinstance(thing, Branch):
        for name, one in _together(thing):
            yield from _lines(f"{place}/{name}" if place else name, one)
    elif isinstance(thing, Words):
        for word in thing.words:
            yield f"{place} {word}\n".encode()
    else:
        yield place.encode() + b" " + _text(thing) + b"\n"


def _together(branch: Branch) -> list[tuple[str, Thing]]:
    """What a recursive answer shows: nothing that reading uses up."""
    found = gce_tree.children(branch)
    return [(name, one) for name, one in found if not (isinstance(one, Held) and (one.claims or one.apart))]


def _marks(thing: Thing) -> Any:
    """What the tag of a directory is made of."""
    if isinstance(thing, Branch):
        return {name: _marks(one) for name, one in gce_tree.children(thing)}
    if isinstance(thing, Held):
        return [thing.tag or etag(thing.body)]
    return thing.words if isinstance(thing, Words) else thing


def _camel(name: str) -> str:
    head, *rest = name.split("-")
    return head + "".join(word.capitalize() for word in rest)


_NOT_FOUND = Rendered(flavored(plain(404, b"not found\n")))
_PROXIED = flavored(plain(403, b"no metadata through a proxy\n"))
_UNFLAVORED = flavored(plain(403, b"Missing Metadata-Flavor:Google header.\n"))
# Clients know this one by its words.
_SWITCHED_OFF = flavored(plain(403, b"Guest attributes endpoint access is disabled.\n"))
