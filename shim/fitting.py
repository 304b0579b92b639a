"""Whether instances could be given what they would have after a write, before it is made: also thousands of them.

Theory of operation. What a part takes in an archive at most depends on that part alone, so a sum of such numbers clears
most instances. Only for the others is all composed, and once for those that would have the very same. Nothing of it is
written, so it may take its time, and others have their turn on the loop meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import NamedTuple
from uuid import UUID

import msgspec

from shim.core.ask import ITEMS_MAX
from shim.core.source import Kind, Reads, Scope, Source
from shim.errors import InputError
from shim.metadata.compose import Unready, check_fit, parts, source_part
from shim.metadata.document import Document
from shim.metadata.entities import Unopened, entities
from shim.metadata.multipart import multipart
from shim.metadata.parts import GZIP, MESSAGE, Part
from shim.metadata.view import View

SLICE_SECONDS = 0.004
"""How long this may keep others waiting, about."""

_HEAD = 1_024
"""Bytes of an archive's head and of a part's, but for its merge type, at most."""
_NUMBER = 8
"""Bytes that a part's number may be longer in an archive of many."""
_PLAIN = re.compile(rb"[\t\n -~]*")
"""What goes as it is; all else is in base64."""


class Load(NamedTuple):
    """What there is to be given: `size` in bytes, at least what it takes in any composition (inf: not known), and how
    many sources can be read once."""

    size: float = 0.0
    once: int = 0

    def with_(self, other: Load) -> Load:
        """Both of them."""
        return Load(self.size + other.size, self.once + other.once)


class Owner(NamedTuple):
    """An instance: the scopes that it is in, and what its document brings."""

    scopes: tuple[Scope, ...]
    document: Load


def load_of_document(instance: UUID, document: Document) -> Load:
    """What a document brings."""
    alone = View(instance, document, now=0.0)
    return Load(sum(size_of(part) for kind in Kind for part in parts(alone, kind)))


def load_of(sources: Iterable[Source]) -> Load:
    """What sources bring. What a template becomes is the rehearsal's matter."""
    nobody, found = View(UUID(int=0), Document(), now=0.0), Load()
    for source in sources:
        size = 0.0 if source.template else size_of(source_part(nobody, source))
        found = found.with_(Load(size, source.reads is Reads.ONCE))
    return found


def size_of(part: Part) -> float:
    """What a part takes at most, alone or in an archive; inf if it cannot be opened, which it need not be alone."""
    size, kind = len(part.body), part.content_type
    if kind not in (GZIP, MESSAGE) and not kind.startswith("multipart/"):
        return _HEAD + len(part.merge) + (size if _PLAIN.fullmatch(part.body) else size * 4 // 3 + size // 57 + 8)
    try:
        opened = list(entities(part))
    except Unopened:
        return inf
    return max(size, len(multipart(opened)) + _NUMBER * len(opened))


class Fitting:
    """For one write. `owners` are the instances that it may concern, `stored` are all sources that there are; `limit`
    is sources.limit_bytes. `view_of` makes the view of an instance that has these sources."""

    def __init__(
        self,
        owners: Mapping[UUID, Owner],
        stored: Iterable[Source],
        view_of: Callable[[UUID, list[Source]], View],
        limit: int,
    ) -> None:
        self._owners = owners
        self._view_of = view_of
        self._limit = limit
        self._loads: dict[Scope, Load] = {}
        self._sources: dict[Scope, dict[str, Source]] = {}
        for source in stored:
            self.put(source)

    def put(self, source: Source) -> Source | None:
        """It would be there, in the place of the one that is the answer."""
        self._loads.pop(source.scope, None)
        named = self._sources.setdefault(source.scope, {})
        before = named.get(source.name)
        named[source.name] = source
        return before

    def remove(self, scope: Scope, name: str) -> None:
        """It would not be there."""
        self._loads.pop(scope, None)
        self._sources.get(scope, {}).pop(name, None)

    async def check(self, scopes: Iterable[Scope]) -> None:
        """Raises InputError, which names one, if an instance of these scopes could not be given what it would have."""
        wanted = frozenset(scopes)
        composed: set[object] = set()
        begun = time.perf_counter()
        for instance, owner in self._owners.items():
            if not wanted.isdisjoint(owner.scopes) and not self._is_clear(owner):
                view = self._view_of(instance, [one for each in owner.scopes for one in self._in(each)])
                what = _identity(view)
                if what not in composed:
                    check_view(view)
                    composed.add(what)
            begun = await breathed(begun)

    def _in(self, scope: Scope) -> Iterable[Source]:
        return self._sources.get(scope, {}).values()

    def _is_clear(self, owner: Owner) -> bool:
        load = owner.document
        for scope in owner.scopes:
            load = load.with_(self._load(scope))
        return load.size <= self._limit and load.once <= ITEMS_MAX

    def _load(self, scope: Scope) -> Load:
        found = self._loads.get(scope)
        if found is None:
            found = self._loads[scope] = load_of(self._in(scope))
        return found


async def breathed(begun: float) -> float:
    """Lets others have their turn, if it is long since this began (time.perf_counter); since when it goes on."""
    if time.perf_counter() - begun < SLICE_SECONDS:
        return begun
    await asyncio.sleep(0)
    return time.perf_counter()


def _identity(view: View) -> object:
    """What a composition follows from: those who have the same in it are composed alike."""
    document = view.document
    vendor = msgspec.json.encode(document.vendor_data)
    return view.composition, tuple(map(id, view.sources)), document.user_bytes, vendor


def check_view(view: View) -> None:
    """Raises InputError if what an instance has cannot be given to it."""
    if any(source.template for source in view.sources):
        view = _without_templates(view)
    try:
        check_fit(view)
    except Unready as error:
        raise InputError(f"{view.instance}: {error}", "shorten a source, or let one #include the rest") from None


def _without_templates(view: View) -> View:
    """The same with all templates left out: what they render to is the rehearsal's matter."""
    return View(
        view.instance,
        view.document,
        now=view.now,
        project=view.project,
        load_sources=lambda: [one for one in view.sources if not one.template],
        composition=view.composition,
        limit=view.limit,
    )
