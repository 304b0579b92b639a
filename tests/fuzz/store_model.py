"""What a store should hold, in dictionaries: as slow and plain as can be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from uuid import UUID

from shim.core.ask import Outcome
from shim.core.kv import KvLimits, Value, clash, etag
from shim.core.source import Reads, Scope, Source

LIMITS = KvLimits(keys=2, value_bytes=8, total_bytes=24)
START = 1_000_000.0
IDS = [UUID(int=1), UUID(int=2)]


@dataclass
class Model:
    """What the store should hold: sources and keys by scope and name, or instance and name."""

    last: int = 0
    now: float = START
    changed: dict[str, int] = field(default_factory=dict)
    documents: dict[UUID, tuple[int, bytes]] = field(default_factory=dict)
    sources: dict[tuple[Scope, str], Source] = field(default_factory=dict)
    values: dict[tuple[UUID, str], Value] = field(default_factory=dict)
    spent: dict[tuple[UUID, int], int] = field(default_factory=dict)
    latches: dict[UUID, set[str]] = field(default_factory=dict)
    reported: set[UUID] = field(default_factory=set)

    def note(self, scope: str) -> int:
        self.last += 1
        self.changed[scope] = self.last
        return self.last

    def since(self, revision: int) -> set[str]:
        return {scope for scope, at in self.changed.items() if at > revision}

    def fresh(self, until: float | None) -> bool:
        return until is None or until > self.now

    def live(self, instance: UUID) -> dict[str, Value]:
        return {
            key: value
            for (owner, key), value in sorted(self.values.items(), key=lambda one: one[0][1])
            if owner == instance and (instance, value.revision) not in self.spent and self.fresh(value.until)
        }

    def forget_spent(self, revision: int) -> None:
        self.spent = {mark: lease for mark, lease in self.spent.items() if mark[1] != revision}

    def thing(self, instance: UUID, item: str) -> Source | Value | None:
        others = {Scope("instance", str(one)) for one in IDS if one != instance}
        theirs = [one for one in self.sources.values() if one.scope not in others]
        own = [value for (owner, _), value in self.values.items() if owner == instance]
        return next((one for one in (*theirs, *own) if one.item == item), None)

    # The writes: each returns what the store's should.

    def put_document(self, instance: UUID, raw: bytes) -> int:
        self.documents[instance] = self.note(f"instance:{instance}"), raw
        return self.last

    def delete_document(self, instance: UUID) -> bool:
        found = self.documents.pop(instance, None) is not None
        if found:
            self.note(f"instance:{instance}")
        return found

    def put_source(self, source: Source) -> int:
        before = self.sources.pop((source.scope, source.name), None)
        if before is not None:
            self.forget_spent(before.revision)
        revision = self.note(source.scope.text)
        self.sources[source.scope, source.name] = replace(source, revision=revision, changed=self.now)
        return revision

    def delete_source(self, scope: Scope, name: str) -> bool:
        before = self.sources.pop((scope, name), None)
        if before is not None:
            self.forget_spent(before.revision)
            self.note(scope.text)
        return before is not None

    def put_value(
        self, instance: UUID, value: Value, match: tuple[str, ...] | None, none: tuple[str, ...] | None, limited: bool
    ) -> Outcome:
        live = self.live(instance)
        there = live.get(value.key)
        matches = lambda tags: there is not None and ("*" in tags or there.etag in tags)  # noqa: E731
        if (match is not None and not matches(match)) or (none is not None and matches(none)):
            return Outcome("changed")
        if clash(value.key, live):
            return Outcome("clash")
        if limited and value.key.startswith("guest/"):
            others = {key: one for key, one in live.items() if key.startswith("guest/") and key != value.key}
            total = sum(len(key) + len(one.body) for key, one in others.items()) + len(value.key) + len(value.body)
            grows = there is None or len(value.body) > len(there.body)
            if len(value.body) > 8 or (there is None and len(others) >= 2) or (grows and total > 24):
                return Outcome("quota")
        for owner, key in list(self.values):
            if owner == instance and (key == value.key or clash(key, [value.key])):
                self.forget_spent(self.values.pop((owner, key)).revision)
        revision = self.note(f"instance:{instance}")
        self.values[instance, value.key] = replace(value, revision=revision, changed=self.now)
        return Outcome("done", etag=etag(value.body), created=there is None)

    def delete_value(self, instance: UUID, key: str, match: tuple[str, ...] | None) -> Outcome:
        there, live = self.values.get((instance, key)), self.live(instance).get(key)
        if there is None:
            return Outcome("absent")
        if live is not None and match is not None and "*" not in match and live.etag not in match:
            return Outcome("changed")
        self.forget_spent(self.values.pop((instance, key)).revision)
        self.note(f"instance:{instance}")
        return Outcome("done" if live is not None else "absent")

    def spend(self, instance: UUID, items: list[str], lease: int) -> tuple[str, ...]:
        new = []
        for item in dict.fromkeys(items):
            thing = self.thing(instance, item)
            if thing is not None and thing.reads is not Reads.MANY and (instance, thing.revision) not in self.spent:
                self.spent[instance, thing.revision] = lease
                new.append(item)
        if new:
            self.note(f"instance:{instance}")
        return tuple(new)

    def unspend(self, instance: UUID, items: list[str], lease: int) -> tuple[str, ...]:
        back = []
        for item in dict.fromkeys(items):
            thing = self.thing(instance, item)
            if thing is not None and self.spent.get((instance, thing.revision)) == lease:
                del self.spent[instance, thing.revision]
                back.append(item)
        if back:
            self.note(f"instance:{instance}")
        return tuple(back)

    def unspent(self, instance: UUID, items: list[str]) -> tuple[str, ...]:
        return tuple(
            item
            for item in dict.fromkeys(items)
            if (thing := self.thing(instance, item)) is not None
            and (instance, thing.revision) not in self.spent
            and self.fresh(thing.until)
        )

    def latch(self, instance: UUID, prefix: str) -> bool:
        new = prefix not in self.latches.setdefault(instance, set())
        if new:
            self.latches[instance].add(prefix)
            self.note(f"instance:{instance}")
        return new

    def unlatch(self, instance: UUID, prefix: str | None) -> tuple[str, ...]:
        closed = self.latches.get(instance, set())
        opened = {one for one in closed if prefix in (None, one)}
        if opened:
            self.latches[instance] = closed - opened
            self.note(f"instance:{instance}")
        return tuple(sorted(opened))

    def report(self, instance: UUID) -> bool:
        new = instance not in self.reported
        self.reported.add(instance)
        return new

    def forget(self, instance: UUID) -> bool:
        own = Scope("instance", str(instance))
        marks = [mark for mark in self.spent if mark[0] == instance]
        keys = [key for key in self.values if key[0] == instance]
        sources = [key for key in self.sources if key[0] == own]
        found = bool(
            marks or keys or sources or self.latches.get(instance)
            or instance in self.reported or instance in self.documents
        )  # fmt: skip
        for mark in marks:
            del self.spent[mark]
        for key in keys:
            del self.values[key]
        for source in sources:
            del self.sources[source]
        self.latches.pop(instance, None)
        self.reported.discard(instance)
        self.documents.pop(instance, None)
        if found:
            self.note(f"instance:{instance}")
        return found

    def replace_directory(self, sources: list[Source]) -> tuple[int, int, int, int]:
        wanted = {(one.scope, one.name): replace(one, origin="directory") for one in sources}
        there = dict(self.sources)
        ours = {key for key, one in there.items() if one.origin == "directory"}
        gone = sorted(ours - wanted.keys(), key=lambda key: (key[0].text, key[1]))
        added = [one for key, one in wanted.items() if key not in there]
        changed = [
            one for key, one in wanted.items() if key in ours and replace(there[key], revision=0, changed=0.0) != one
        ]
        for key in gone:
            self.delete_source(*key)
        for one in (*added, *changed):
            self.put_source(one)
        return len(added), len(changed), len(gone), len(wanted.keys() & there.keys() - ours)
