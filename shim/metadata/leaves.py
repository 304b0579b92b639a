"""What several faces show: user-data and vendor data, as they are composed, single sources and keys. PURE.

Who knows the tag of a thing and can guess at the thing can tell whether the guess is right: by asking for it with
If-None-Match, say, which uses nothing up. So the tag of what is read once is made of its item, which is another one
after each write, and not of its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shim.core.kv import Value, etag
from shim.core.source import Kind, Reads
from shim.metadata import compose
from shim.metadata.parts import Part
from shim.metadata.tree import BINARY, JSON, Leaf
from shim.metadata.view import View

_ONCE = Reads.ONCE


def user_data(view: View, backend: bytes | None = None) -> Leaf | None:
    """The composed user-data, with what the backend answers, if any does; None where there is none. Raises
    compose.Unready."""
    composed = compose.user_data(view, backend)
    if composed is None:
        return None
    tag = _tag_of_parts(composed.parts) if composed.claims else ""
    return Leaf(composed.body, BINARY, composed.claims, tag)


def vendor_data(view: View) -> Leaf:
    """The composed vendor data; `{}` where there is none, as Nova answers. Raises compose.Unready."""
    return vendor_data_with(view, view.document.vendor_data)


def vendor_data_with(view: View, value: Any) -> Leaf:
    """The same, composed with `value`, any JSON or None, in the place of the document's. Raises compose.Unready."""
    made, claims = compose.vendor_data(view, value)
    tag = _tag_of_parts(compose.parts(view, Kind.VENDOR), value) if claims else ""
    return Leaf(msgspec.json.encode({} if made is None else made), JSON, claims, tag)


def key(value: Value) -> Leaf:
    """What a key holds."""
    once = value.reads is _ONCE
    return Leaf(value.body, BINARY, (value.item,) if once else (), key_tag(value))


def key_tag(value: Value) -> str:
    """A key's entity tag."""
    return etag(value.item.encode()) if value.reads is _ONCE else value.etag


def part(one: Part) -> Leaf:
    """A source as it is."""
    once = one.reads is _ONCE
    return Leaf(one.body, BINARY, (one.item,) if once else (), part_tag(one))


def part_tag(one: Part) -> str:
    """A source's entity tag."""
    return etag(one.item.encode()) if one.reads is _ONCE else etag(one.body)


def _tag_of_parts(parts: Iterable[Part], beside: Any = None) -> str:
    return etag(msgspec.json.encode(([(one.id, part_tag(one)) for one in parts], beside)))
