"""The live half of the Operations in memory: sources, keys, their changes, and the audit trail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from shim.control import live_shapes as live
from shim.control import shapes
from shim.control.operations import ChangedError, Keys
from shim.core.ask import Etags
from shim.core.kv import Value, clash
from shim.core.source import Kind, Scope, Source, in_order, scopes_of
from shim.errors import ConflictError, MetashimError, NotFoundError


class MemoryLive:
    """Sources by scope and name, values by instance and key. `tick` is what a waiting operation looks again after."""

    tick = 0.01

    def __init__(self) -> None:
        self.fail: MetashimError | None = None
        self.revision = 0
        self.kept: dict[tuple[str, str], Source] = {}
        self.stored: dict[tuple[UUID, str], Value] = {}
        self.changed: list[live.ChangeView] = []
        self.changes_awaited = 0
        self.forgotten = 0
        self.trail: list[shapes.AuditRow] = []
        self.problems: list[str] = []
        self.previews: dict[UUID, live.PreviewView] = {}

    def _begin(self) -> None:
        fail, self.fail = self.fail, None
        if fail:
            raise fail

    def note(self, who: str, instance: UUID | None, what: str, detail: str = "") -> None:
        """A row of the audit trail."""
        self.trail.append(shapes.AuditRow(len(self.trail) + 1, 1_790_000_000.5, who, instance, what, detail))

    async def sources(self, scope: Scope | None, instance: UUID | None) -> list[live.SourceView]:
        self._begin()
        scopes = scopes_of(instance, "", "", {}) if instance else None
        found = [s for s in self.kept.values() if scope in (None, s.scope) and (scopes is None or s.scope in scopes)]
        return [live.SourceView.of(source) for source in in_order(found)]

    async def source(self, scope: Scope, name: str) -> Source:
        self._begin()
        try:
            return self.kept[scope.text, name]
        except KeyError:
            raise NotFoundError(f"no source {scope.text}/{name}", "`metashim userdata list` shows them") from None

    async def put_source(self, source: Source, *, who: str) -> live.SourceWrittenView:
        self._begin()
        key = (source.scope.text, source.name)
        self._operators(key)
        self.revision += 1
        created = key not in self.kept
        self.kept[key] = replace(source, revision=self.revision, changed=1_790_000_000.0)
        self.note(who, None, "source put", "/".join(key))
        return live.SourceWrittenView(live.SourceView.of(self.kept[key]), created, self.problems)

    def _operators(self, key: tuple[str, str]) -> None:
        if key in self.kept and self.kept[key].origin == "directory":
            raise ConflictError(f"{'/'.join(key)} is a watched file", "change the file")

    async def delete_source(self, scope: Scope, name: str, *, who: str) -> None:
        source = await self.source(scope, name)
        self._operators((scope.text, name))
        del self.kept[source.scope.text, name]
        self.note(who, None, "source delete", f"{scope.text}/{name}")

    async def preview(self, instance: UUID) -> live.PreviewView:
        self._begin()
        if instance in self.previews:
            return self.previews[instance]
        found = in_order(s for s in self.kept.values() if s.scope in scopes_of(instance, "", "", {}))
        datas = [[_part(source) for source in found if source.kind is kind] for kind in Kind]
        user, vendor = (live.DataView(parts, bytes=sum(part.bytes for part in parts)) for parts in datas)
        return live.PreviewView(instance, "merged", 49149, user, vendor)

    async def kv(self, instance: UUID, prefix: str) -> Keys:
        self._begin()
        now = time.time()
        found = [
            value
            for (owner, key), value in sorted(self.stored.items())
            if owner == instance and _below(key, prefix) and (value.until is None or value.until > now)
        ]
        return Keys(tuple(found), len(self.changed))

    async def put_key(
        self, instance: UUID, value: Value, if_match: Etags | None, if_none_match: Etags | None, *, who: str
    ) -> live.KeyWrittenView:
        self._begin()
        before = self._held(instance, value.key, if_match)
        if if_none_match and before and ("*" in if_none_match or before.etag in if_none_match):
            raise ChangedError(f"{value.key} is there already", "leave If-None-Match out")
        if other := clash(value.key, [key for owner, key in self.stored if owner == instance]):
            raise ConflictError(f"{other} is there", "a key cannot be a folder too")
        self.revision += 1
        kept = self.stored[instance, value.key] = replace(value, revision=self.revision, changed=1_790_000_000.0)
        self._changed(instance, value.key, "put", kept.etag, len(kept.body))
        self.note(who, instance, "key put", value.key)
        return live.KeyWrittenView(value.key, kept.etag, self.revision, before is None)

    async def delete_key(self, instance: UUID, key: str, if_match: Etags | None, *, who: str) -> None:
        self._begin()
        if self._held(instance, key, if_match) is None:
            raise NotFoundError(f"no key {key}", "`metashim kv list` shows them")
        del self.stored[instance, key]
        self._changed(instance, key, "delete")
        self.note(who, instance, "key delete", key)

    def _held(self, instance: UUID, key: str, if_match: Etags | None) -> Value | None:
        before = self.stored.get((instance, key))
        if if_match is not None and (before is None or not {"*", before.etag} & set(if_match)):
            raise ChangedError(f"{key} is another by now", "read it again")
        return before

    def _changed(self, instance: UUID, key: str, op: str, etag: str = "", size: int = 0) -> None:
        self.changed.append(live.ChangeView(len(self.changed) + 1, 1_790_000_000.5, instance, key, op, etag, size))

    async def kv_changes(self, after: int, wait: float, instance: UUID | None, prefix: str) -> live.ChangesView:
        self.changes_awaited += wait > 0
        self._begin()

        def found() -> list[live.ChangeView]:
            told = [change for change in self.changed[self.forgotten :] if change.seq > after]
            return [c for c in told if instance in (None, c.instance) and _below(c.key, prefix)]

        after = after if after <= len(self.changed) else 0
        await self._until(lambda: bool(found()), wait)
        return live.ChangesView(found(), len(self.changed), max(0, self.forgotten - after))

    async def audit(self, instance: UUID | None, after: int | None, limit: int, wait: float) -> shapes.AuditView:
        self._begin()

        def found() -> list[shapes.AuditRow]:
            rows = [row for row in self.trail if instance in (None, row.instance) and row.seq > (after or 0)]
            return rows[-limit:] if after is None else rows[:limit]

        await self._until(lambda: bool(found()), wait)
        rows = found()
        return shapes.AuditView(rows, rows[-1].seq if rows else after or len(self.trail))

    async def _until(self, true: Callable[[], bool], wait: float) -> None:
        end = time.monotonic() + wait
        while not true() and time.monotonic() < end:
            await asyncio.sleep(self.tick)


def _below(key: str, prefix: str) -> bool:
    return not prefix or key == prefix or key.startswith(prefix + "/")


def _part(source: Source) -> live.PartView:
    text, _ = live.text_or_base64(source.body)
    return live.PartView(
        source.id, source.scope.text, source.name, source.owner, source.order, "text/cloud-config", source.merge,
        source.template, source.reads.value, source.until, len(source.body), text,
    )  # fmt: skip
