"""What cloud-init makes of the cloud-configs of all parts, whose values are in it, and what it leaves out. PURE.

To read YAML is for an unprivileged process: see shim.rehearse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from shim.metadata.entities import Entity, Unopened, entities
from shim.metadata.merge_type import DEFAULT, MergeFault, Mergers, named, take_named
from shim.metadata.parts import (
    ARCHIVE,
    BINARY,
    CONFIG,
    GZIP_MAGIC,
    INCLUDES,
    JINJA,
    PATCH,
    TEXT,
    Part,
    beginning,
    is_mime,
    says_mime,
)  # fmt: skip

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_IGNORED = (TEXT, BINARY, "text/x-not-multipart")
_UNSEEN = {
    JINJA: "the guest itself renders it: what it becomes is not in the merged configuration here",
    PATCH: "it is a JSON patch: what it changes is not in the merged configuration here",
    **dict.fromkeys(
        INCLUDES,
        "what it includes is not looked at here, and has cloud-init's own merging: its lists replace those before it",
    ),
}
_REPLACES = "an entry of its archive names no Merge-Type: its lists replace those before it"
_ALL_IS_LOST = "cloud-init gives up all user-data"


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a part (its id), or with all of them together (empty), in words. Not `grave`: it may be as it
    is meant to be."""

    id: str
    what: str
    grave: bool = True


class Merged(msgspec.Struct):
    """The outcome, and by top-level key the ids of the parts whose values are in it, in order (`winners`), and of
    those whose values are not (`lost`)."""

    config: dict[Any, Any]
    winners: dict[str, tuple[str, ...]]
    lost: dict[str, tuple[str, ...]]
    problems: list[Problem]


def merged(parts: Iterable[Part]) -> Merged:
    """Of parts in order, as they are composed. Raises nothing: what is wrong is among the problems."""
    every = tuple(parts)
    merging = _Merging()
    for part in every:
        try:
            for entity in entities(part, alone=len(every) == 1):
                merging.take(entity)
        except Unopened as error:
            merging.note(part.id, str(error))
        if is_mime(part.body) and not says_mime(part.body):
            merging.note(part.id, "it has no MIME-Version header, without which cloud-init takes it for no message")
    return merging.outcome()


class _Merging:
    """What was taken so far."""

    def __init__(self) -> None:
        self._config: dict[Any, Any] = {}
        self._winners: dict[Any, list[str]] = {}
        self._lost: dict[Any, list[str]] = {}
        self._problems: list[Problem] = []

    def outcome(self) -> Merged:
        """All of it."""
        return Merged(
            self._config,
            {str(key): tuple(ids) for key, ids in self._winners.items() if key in self._config},
            {str(key): tuple(ids) for key, ids in self._lost.items() if ids},
            self._problems,
        )

    def note(self, id: str, what: str, *, grave: bool = True) -> None:
        """Something is wrong; told once."""
        problem = Problem(id, what, grave)
        if problem not in self._problems:
            self._problems.append(problem)

    def take(self, entity: Entity) -> None:
        """The next one."""
        if entity.content_type == ARCHIVE:
            self._take_archive(entity)
        elif entity.content_type in INCLUDES:
            self.note(entity.part, _UNSEEN[entity.content_type], grave=False)
        else:
            self._handle(entity)

    def _handle(self, entity: Entity) -> None:
        """What is left to cloud-init's handlers."""
        kind = entity.content_type
        if kind == CONFIG:
            self._take_config(entity)
        elif kind in (JINJA, PATCH):
            self.note(entity.part, _UNSEEN[kind], grave=False)
        elif (kind in _IGNORED or kind in INCLUDES or kind == ARCHIVE) and entity.body.strip():
            self.note(entity.part, _why_ignored(entity.body))

    def _take_config(self, entity: Entity) -> None:
        from shim.metadata.cloud_config import ConfigFault, load

        try:
            new = load(entity.body)
            mergers = Mergers(take_named(new) + named(entity.merge) or named(DEFAULT))
            before, self._config = self._config, mergers.merge(self._config, new)
        except (ConfigFault, MergeFault) as fault:
            self.note(entity.part, f"cloud-init leaves its cloud-config out: {fault}")
            return
        if mergers.dicts is None:
            self.note(entity.part, "its merge type has no dict(): cloud-init leaves its cloud-config out")
        for key, value in new.items():
            self._account(entity.part, key, before, value)

    def _account(self, id: str, key: Any, before: dict[Any, Any], new: Any) -> None:
        """Whose the value of a key is, now that a part had its say."""
        winners, lost = self._winners.setdefault(key, []), self._lost.setdefault(key, [])
        if key not in self._config:
            _move(list(winners) if key in before else [id], winners, lost)
            return
        after = self._config[key]
        if key in before and _same(after, before[key]):
            if id not in winners:
                _move([id], *((lost, winners) if _same(after, new) else (winners, lost)))
            return
        if key in before and _same(after, new):
            _move(list(winners), winners, lost)
        _move([id], lost, winners)

    def _take_archive(self, entity: Entity) -> None:
        from shim.metadata.cloud_config import ConfigFault, load

        try:
            entries = load(entity.body, list)
        except ConfigFault as fault:
            self.note(entity.part, f"cloud-init leaves its archive out: {fault}")
            return
        try:
            for entry in _entries(entity.part, entries):
                if entry.content_type == CONFIG and not entry.merge:
                    self.note(entity.part, _REPLACES, grave=False)
                self._handle(entry)
        except ValueError as error:
            self.note(entity.part, f"{_ALL_IS_LOST}: {error}")


def _entries(part: str, entries: list[Any]) -> Iterator[Entity]:
    """Those of a cloud-config-archive. Raises ValueError: cloud-init breaks off at one."""
    for raw in entries:
        entry = {"content": raw} if isinstance(raw, str) else raw
        if not isinstance(entry, dict):
            continue
        content = entry.get("content", "")
        if not isinstance(content, str | bytes):
            raise ValueError("an entry of its archive has a content that is no text")
        body = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        kind = entry.get("type") or beginning(body) or (CONFIG if isinstance(content, str) else BINARY)
        if not isinstance(kind, str) or "/" not in kind:
            raise ValueError("an entry of its archive has a type that is none")
        merge = entry.get("Merge-Type") or entry.get("X-Merge-Type") or ""
        yield Entity(part, kind, body, str(merge) if kind == CONFIG else "")


def _move(ids: list[str], source: list[str], target: list[str]) -> None:
    """Take ids out of one list, and put them at the end of another."""
    for id in ids:
        for where in (source, target):
            if id in where:
                where.remove(id)
        target.append(id)


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _why_ignored(body: bytes) -> str:
    if body.startswith(GZIP_MAGIC):
        return "cloud-init leaves it out: its gzip is damaged, or what is in it is no text"
    if body.startswith(_BYTE_ORDER_MARK):
        return "cloud-init leaves it out: it begins with a byte order mark, which hides its first line; remove that"
    return "cloud-init leaves it out: its first line says no kind that it knows, as #cloud-config or #!/bin/sh do"
