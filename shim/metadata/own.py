"""Our own face, `/metashim/v1/`, as far as it is read: docs/live.md has its table. PURE.

What decides an answer is the path and the query, and no header. The entity tag of a directory of `kv/` or `sources/`
is that of all below it, as guests watch it for what changes there.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from shim.core.exchange import Headers
from shim.core.kv import ROOTS, Value, etag
from shim.core.source import Kind, Reads, Source
from shim.metadata import compose, facts, leaves
from shim.metadata.compose import Unready
from shim.metadata.parts import Part, is_text
from shim.metadata.target import Parameters, parameters, says
from shim.metadata.tree import BINARY, JSON, NOT_FOUND, TEXT, Late, Leaf, answer, answered, by_value, found
from shim.metadata.view import Rendered, View

TOP = "metashim"
PATH = (TOP, "v1")
BASE = "/metashim/v1"

Segments = tuple[str, ...]

_SHARED_BYTES = 8_192


class Entry(msgspec.Struct, frozen=True):
    """A source as it is listed. Without a part it cannot be given now: a template that fails."""

    id: str
    owner: str
    kind: Kind
    order: int
    reads: Reads
    part: Part | None

    @property
    def tag(self) -> str | None:
        """Its entity tag."""
        return leaves.part_tag(self.part) if self.part is not None else None


def respond(view: View, query: bytes, segments: Segments) -> Rendered:
    """What there is at `/metashim/` + segments. Raises compose.Unready."""
    if not segments:
        return _listing(view, [] if view.is_closed(BASE) else ["v1/"])
    if segments[0] != PATH[1]:
        return NOT_FOUND
    path = segments[1:]
    if "" in path or view.is_closed("/".join((BASE, *path))):
        return NOT_FOUND
    if not path:
        return _listing(view, _index(view))
    if path[0] in _DIRECTORIES:
        return _DIRECTORIES[path[0]](view, path[1:], parameters(query))
    if len(path) == 1 and path[0] in _FILES:
        return answer(view, Late(lambda: _FILES[path[0]](view)))
    return NOT_FOUND


def _index(view: View) -> list[str]:
    names = [f"{name}/" for name in _DIRECTORIES] + list(_FILES)
    if not compose.has_user_data(view):
        names.remove("user-data")
    return [name for name in names if not view.is_closed(f"{BASE}/{name}".rstrip("/"))]


def _listing(view: View, names: list[str], tag: str = "") -> Rendered:
    """One a line, each once."""
    lines = sorted(dict.fromkeys(names), key=by_value)
    return found(view, "".join(f"{name}\n" for name in lines).encode(), TEXT, tag=tag)


def _names(paths: list[str], place: str) -> list[str]:
    """What a directory (`""`, or with a slash at its end) holds directly, of the paths of all."""
    below = [path[len(place) :].partition("/") for path in paths if path.startswith(place)]
    return [name + slash for name, slash, _ in below]


# Files.


def _meta_data(view: View) -> Leaf:
    """What is not known is not there; a guest's addresses are a list, be it empty."""
    document = view.document
    known = {
        "instance_id": str(view.instance),
        "project_id": view.project or None,
        "name": document.name,
        "hostname": document.full_host,
        "tags": document.tags if document.tags_in_metadata else None,
        "addresses": facts.addresses(view),
    }
    return Leaf(msgspec.json.encode({name: fact for name, fact in known.items() if fact is not None}), JSON)


def _lock(view: View) -> Leaf:
    """What is closed, by whomever, one prefix a line."""
    return Leaf("".join(f"{prefix}\n" for prefix in view.closed).encode())


_FILES: dict[str, Callable[[View], Leaf | None]] = {
    "lock": _lock,
    "meta-data": _meta_data,
    "user-data": leaves.user_data,
    "vendor-data": leaves.vendor_data,
}


# Sources.


def _sources(view: View, path: Segments, query: Parameters) -> Rendered:
    name = "/".join(path)
    source = next((one for one in view.sources if one.id == name), None)
    if source is not None:
        if _is_shared(source):
            return _shared(source.item, source.owner, source.body)
        return _source(view, compose.source_part(view, source))
    entries = [one for one in _entries(view) if not view.is_closed(f"{BASE}/sources/{one.id}")]
    part = next((one.part for one in entries if one.id == name and one.part is not None), None)
    if part is not None:
        return _source(view, part)
    place = f"{name}/" if name else ""
    entries = [one for one in entries if one.id.startswith(place)]
    if not entries and name:
        return NOT_FOUND
    listed = msgspec.json.encode([_listed(one) for one in entries])
    tag = etag(listed)
    if says(query, "alt", "json"):
        return found(view, listed, JSON, tag=tag)
    return _listing(view, _names([one.id for one in entries], place), tag)


def _source(view: View, part: Part) -> Rendered:
    leaf = leaves.part(part)
    return found(view, leaf.body, BINARY, leaf.claims, leaf.tag, _owner(part.owner))


def _is_shared(source: Source) -> bool:
    """Whether it is small, and the same whoever reads it, whenever and however often."""
    plain = not source.template and source.reads is Reads.MANY and source.until is None
    return plain and len(source.body) <= _SHARED_BYTES


@lru_cache(256)
def _shared(_item: str, owner: str, body: bytes) -> Rendered:
    """A source that is the same to all who read it: thousands may, as soon as it is written."""
    return answered(body, BINARY, etag(body), _owner(owner))


def _owner(owner: str) -> Headers:
    return ((b"x-metashim-owner", "".join(char if " " <= char <= "~" else "?" for char in owner).encode()),)


def _entries(view: View) -> list[Entry]:
    """All sources, the document's own among them; those that cannot be given now are the last."""
    faults: list[Unready] = []
    parts = [one for kind in Kind for one in compose.parts(view, kind, faults=faults)]
    made = [Entry(one.id, one.owner, one.kind, one.order, one.reads, one) for one in parts]
    failed = {fault.source for fault in faults}
    return made + [
        Entry(one.id, one.owner, one.kind, one.order, one.reads, None) for one in view.sources if one.id in failed
    ]


def _listed(entry: Entry) -> dict[str, Any]:
    """As `?alt=json` lists it; what cannot be given now has neither tag nor size."""
    return {
        "id": entry.id,
        "owner": entry.owner,
        "kind": entry.kind.value,
        "order": entry.order,
        "etag": entry.tag,
        "reads": entry.reads.value,
        "bytes": len(entry.part.body) if entry.part is not None else None,
    }


# Keys.


def _kv(view: View, path: Segments, query: Parameters) -> Rendered:
    name = "/".join(path)
    values = {key: one for key, one in view.values.items() if not view.is_closed(f"{BASE}/kv/{key}")}
    if name in values:
        leaf = leaves.key(values[name])
        return found(view, leaf.body, BINARY, leaf.claims, leaf.tag)
    place = f"{name}/" if name else ""
    below = {key: one for key, one in values.items() if key.startswith(place)}
    if not below and name and name not in ROOTS:
        return NOT_FOUND
    tag = etag(msgspec.json.encode([(key, leaves.key_tag(one)) for key, one in below.items()]))
    if says(query, "recursive", "true"):
        shown = {key: _shown(one) for key, one in below.items()}
        return found(view, msgspec.json.encode(shown), JSON, tag=tag)
    roots = [] if name else [f"{root}/" for root in ROOTS if not view.is_closed(f"{BASE}/kv/{root}")]
    return _listing(view, roots + _names(list(below), place), tag)


def _shown(value: Value) -> dict[str, str]:
    """As a recursive answer has it. What is no text is in base64, and what is read once is not there."""
    tag = {"etag": leaves.key_tag(value)}
    if value.reads is Reads.ONCE:
        return tag
    if is_text(value.body):
        return {"value": value.body.decode(), **tag}
    return {"base64": b64encode(value.body).decode(), **tag}


_DIRECTORIES: dict[str, Callable[[View, Segments, Parameters], Rendered]] = {"kv": _kv, "sources": _sources}
