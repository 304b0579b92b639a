"""User-data and vendor data: an instance's sources, its document's own and its backend's, made one. PURE.

One part alone is passed through byte for byte; several become an archive of all that they hold. Each cloud-config in
it carries a merge type, so that cloud-init ends up with the lists of all of them in order: what is in a MIME message
or in gzip too, unless it says itself how it is to be merged.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shim.core.ask import ITEMS_MAX
from shim.core.policy import Composition
from shim.core.source import BACKEND, DOCUMENT, MERGE_DEFAULT, Kind, Reads, Scope, Source
from shim.metadata import template
from shim.metadata.entities import Entity, Unopened, entities, pack, unpack
from shim.metadata.multipart import multipart
from shim.metadata.parts import GZIP_MAGIC, Part, content_type_of, is_text, own
from shim.metadata.view import View

VENDOR_BYTES = 1 << 20
"""The most that vendor data may be composed to: JSON's text has no gzip."""
COMPOSED_BYTES = 2 << 20
"""The most that is tried with gzip: it would have to make a fortieth of it."""
TEXTS_MAX = 256
"""Texts in the list that a document's or a backend's vendor data may be."""

_USER, _VENDOR = Kind.USER, Kind.VENDOR
_DOCUMENT_ID = f"instance/{DOCUMENT}"
_INSTANCE = Scope("instance").rank
_LAST = _INSTANCE + 1


class Unready(Exception):
    """There is something, and it cannot be given now. Which source and why, in words for the operator's log; `source`
    is its id, empty where it is about all of them together."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"{source}: {why}" if source else why)
        self.source = source
        self.why = why


class Composed(msgspec.Struct, frozen=True):
    """What a guest is given. claims: items of the parts in it that are read once; parts: those that are in it."""

    body: bytes
    claims: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    gzipped: bool = False


def parts(
    view: View, kind: Kind, backend: bytes | None = None, faults: list[Unready] | None = None
) -> tuple[Part, ...]:
    """All that one of the two data is composed of, in order. `backend`: what the backend answers as user-data.
    A template that fails raises Unready; with `faults` it is noted there and left out."""
    own_parts = _own_user(view, backend) if kind is _USER else _own_vendor(view, view.document.vendor_data)
    return _in_order(view, kind, own_parts, faults)


def source_part(view: View, source: Source) -> Part:
    """One source by itself, rendered. Raises Unready."""
    return _part(view, source, source.kind)


def has_user_data(view: View, backend: bytes | None = None) -> bool:
    """Whether there is any, be it one that cannot be given now."""
    document = view.document
    if backend is not None or document.user_data is not None or document.user_data_base64 is not None:
        return True
    merged = view.composition is Composition.MERGED
    return merged and any(source.kind is _USER for source in view.sources)


def user_data(view: View, backend: bytes | None = None) -> Composed | None:
    """The user-data, None if there is none at all. Raises Unready."""
    return compose_user(parts(view, _USER, backend), view.limit)


def compose_user(every: tuple[Part, ...], limit: int) -> Composed | None:
    """Parts in order, as user-data of at most `limit` bytes. Raises Unready."""
    if not every:
        return None
    used = said(every)
    body = used[0].body if len(used) == 1 else multipart(_opened(used))
    size = len(body)
    gzipped = limit < size <= COMPOSED_BYTES and not body.startswith(GZIP_MAGIC)
    if gzipped:
        body = pack(body)
    if len(body) > limit:
        packed = f", gzip'd {len(body)}" if gzipped else ""
        raise Unready("", f"the user-data does not fit: {size} bytes{packed}, sources.limit_bytes is {limit}")
    return Composed(body, _claims(used), used, gzipped)


def vendor_data(view: View, value: Any) -> tuple[Any, tuple[str, ...]]:
    """What vendor_data.json becomes, given the document's or the backend's own (any JSON, None for none), and its
    claims. Without any source of the store's it is `value` itself. Raises Unready."""
    composed = vendor_body(view, value) if _chosen(view, _VENDOR) else None
    if composed is None or all(not part.scope for part in composed.parts):
        return value, ()
    rest = value if isinstance(value, dict) else {}
    return {**rest, "cloud-init": composed.body.decode()}, composed.claims


def vendor_body(view: View, value: Any) -> Composed | None:
    """Vendor data by itself, as text in UTF-8; None if there is none. Raises Unready."""
    return compose_vendor(_in_order(view, _VENDOR, _own_vendor(view, value)))


def check_fit(view: View, backend: bytes | None = None) -> None:
    """Raises Unready if user-data or vendor data cannot be given as things are."""
    user_data(view, backend)
    vendor_body(view, view.document.vendor_data)


def _part(view: View, source: Source, kind: Kind) -> Part:
    body = source.body
    if source.template:
        try:
            body = template.render(body, template.variables(view, body))
        except template.TemplateFault as fault:
            raise Unready(source.id, str(fault)) from None
    return Part(
        source.id, source.owner, kind, source.order, content_type_of(body), body, source.merge, source.reads,
        source.item, source.template, source.scope.text, source.name, source.until,
    )  # fmt: skip


def _chosen(view: View, kind: Kind) -> tuple[Source, ...]:
    """The sources that one of the two data is made of, in order."""
    if view.composition is Composition.MERGED:
        return tuple(source for source in view.sources if source.kind is kind)
    return view.sources if kind is _VENDOR else ()


def _in_order(
    view: View, kind: Kind, own_parts: list[tuple[int, Part]], faults: list[Unready] | None = None
) -> tuple[Part, ...]:
    """The sources' parts and those that are no source of the store's, each with its rank."""
    mine = Scope("instance", str(view.instance)).text
    ranked = [((part.order, rank, mine, part.name), part) for rank, part in own_parts]
    for source in _chosen(view, kind):
        try:
            part = _part(view, source, kind)
        except Unready as fault:
            if faults is None:
                raise
            faults.append(fault)
        else:
            ranked.append(((source.order, source.scope.rank, source.scope.text, source.name), part))
    ranked.sort(key=lambda one: one[0])
    return tuple(part for _, part in ranked)


def _own_user(view: View, backend: bytes | None) -> list[tuple[int, Part]]:
    own_body = view.document.user_bytes
    found = []
    if own_body is not None:
        found.append((_INSTANCE, own(_DOCUMENT_ID, "operator", _USER, own_body, MERGE_DEFAULT)))
    if backend is not None:
        found.append((_LAST, own(f"{BACKEND}/user-data", BACKEND, _USER, backend, MERGE_DEFAULT)))
    return found


def _own_vendor(view: View, value: Any) -> list[tuple[int, Part]]:
    """What cloud-init reads of a vendor_data.json: a text, or a list of texts, or such a member `cloud-init`. All
    else it refuses, so it is no part."""
    mine = value is view.document.vendor_data
    rank, name, owner = (_INSTANCE, _DOCUMENT_ID, "operator") if mine else (_LAST, f"{BACKEND}/vendor-data", BACKEND)
    if isinstance(value, dict):
        value = value.get("cloud-init")
    texts = value if isinstance(value, list) else [value]
    if len(texts) > TEXTS_MAX:
        raise Unready(name, f"its vendor data is a list of more than {TEXTS_MAX}")
    bodies = (text.encode(errors="replace") for text in texts if isinstance(text, str) and text)
    return [(rank, own(name, owner, _VENDOR, body, MERGE_DEFAULT)) for body in bodies]


def compose_vendor(every: tuple[Part, ...]) -> Composed | None:
    """Parts in order, as vendor data: text, which has neither gzip nor what is not UTF-8. Raises Unready."""
    if not every:
        return None
    used = said(every)
    body = _lone_text(used[0]) if len(used) == 1 else None
    if body is None:
        body = multipart(_opened(used))
    if len(body) > VENDOR_BYTES:
        raise Unready("", f"the vendor data does not fit: {len(body)} bytes, {VENDOR_BYTES} are the most")
    return Composed(body, _claims(used), used)


def _lone_text(part: Part) -> bytes | None:
    """One part as text; None if it is none."""
    body: bytes | None = part.body
    if part.body.startswith(GZIP_MAGIC):
        try:
            body = unpack(part.body)
        except Unopened as error:
            raise Unready(part.id, str(error)) from None
    return body if body is not None and is_text(body) else None


def said(every: tuple[Part, ...]) -> tuple[Part, ...]:
    """Those that say anything: a template may render to nothing. If none does, the first."""
    return tuple(part for part in every if part.body.strip()) or every[:1]


def _claims(used: tuple[Part, ...]) -> tuple[str, ...]:
    """Raises Unready if they are more than the agent can be asked for at once."""
    found = tuple(part.item for part in used if part.reads is Reads.ONCE)
    if len(found) > ITEMS_MAX:
        raise Unready("", f"it has {len(found)} parts that are read once, {ITEMS_MAX} are the most")
    return found


def _opened(used: tuple[Part, ...]) -> list[Entity]:
    found: list[Entity] = []
    size = 0
    for part in used:
        try:
            for entity in entities(part):
                found.append(entity)
                size += len(entity.body)
        except Unopened as error:
            raise Unready(part.id, str(error)) from None
        if size > COMPOSED_BYTES:
            raise Unready(part.id, f"with it the parts have more than {COMPOSED_BYTES} bytes")
    return found
