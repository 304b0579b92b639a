"""What a guest asks to have written, as a worker asks the agent for it, and what becomes of it. PURE.

A worker speaks for the owner of a slot and generation, never for an instance of its own choice. Whatever is here can
close and add, and nothing here opens what was closed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Key = Annotated[str, Meta(max_length=256)]
Item = Annotated[str, Meta(max_length=512)]
ITEMS_MAX = 64
Items = Annotated[tuple[Item, ...], Meta(max_length=ITEMS_MAX)]
Prefix = Annotated[str, Meta(max_length=256)]
Etags = Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=16)]
"""Of If-Match or If-None-Match, without quotes; `*` is any."""
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""Of a lease; 0 is none."""


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Write a key below guest/. A condition that is None was not given."""

    key: Key
    value: bytes
    if_match: Etags | None = None
    if_none_match: Etags | None = None


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Remove a key below guest/."""

    key: Key
    if_match: Etags | None = None


class Lock(msgspec.Struct, frozen=True, tag="lock"):
    """Close a prefix or topic for good (see shim.core.closure); `/` is all."""

    prefix: Prefix


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The guest says that it has what it needs."""


class Confirm(msgspec.Struct, frozen=True, tag="confirm"):
    """The guest has these items and will not read them again."""

    items: Items


class Read(msgspec.Struct, frozen=True, tag="read"):
    """The guest has read its user-data, to the last byte."""


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """These items are about to be read by one reader. Told when nobody else reads any of them: those that are still
    to be had, under a lease. An empty answer has none."""

    items: Items


class Spend(msgspec.Struct, frozen=True, tag="spend"):
    """All but the last byte has arrived: the lease's items count as read from now on. May be asked again."""

    lease: Number
    items: Items


class Release(msgspec.Struct, frozen=True, tag="release"):
    """The lease is over, and its last byte did not go out: its items can be read again."""

    lease: Number
    items: Items


Ask = Put | Delete | Lock | Ready | Confirm | Read | Claim | Spend | Release

Fate = Literal["done", "absent", "changed", "clash", "quota", "rate", "refused", "full", "unavailable"]
"""done; absent: no such key; changed: If-Match or If-None-Match (412); clash: a key is a folder of another; quota: too
large or too many; rate: too often; refused: this may not be; full: no room on the host; unavailable: not now."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of it. `etag` of a key that was written, `created` if it was not there before; `words` say why not,
    and hold nothing that a guest sent. `lease` and `items` answer a Claim; of a Confirm, a Spend and a Release `items`
    are those that it concerned in truth."""

    fate: Fate
    etag: str = ""
    created: bool = False
    words: str = ""
    lease: int = 0
    items: tuple[str, ...] = ()
