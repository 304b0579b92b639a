"""What operators do with sources: see Operations for the methods.

Templates, and what operators wrote in YAML, are read by a child process without privileges alone (`shim.rehearsal`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from uuid import UUID

import msgspec
from msgspec.structs import replace as struct_replace

from shim.control import live_shapes as live
from shim.core.ask import ITEMS_MAX
from shim.core.policy import Composition
from shim.core.source import BACKEND, Reads, Scope, Source, in_order, scopes_of
from shim.errors import ConflictError, InputError, NotFoundError
from shim.forward.routes import compiled
from shim.forward.routes import find as backend_of
from shim.held import Held
from shim.metadata.compose import Unready, check_fit
from shim.metadata.document import Document
from shim.metadata.store_sources import DIRECTORY
from shim.metadata.view import View
from shim.rehearsal import Rehearsal, Rehearsed, Stage, rehearse
from shim.settings import EMBEDDED

SOURCE_BYTES = 262_144
"""The largest source."""

REHEARSED = 50
"""Instances that a template is tried for when it is written."""

ROOM_BYTES = 1_024
"""What a part takes in an archive beside its bytes, at most."""


Key = tuple[Scope, str]
Fault = tuple[str, str]
"""What is wrong, and what to do."""


class SourceOperations(Held):
    """See Operations for the methods. `freed` is called when an operator's source is gone, whose name somebody else may
    wait for."""

    freed: Callable[[], None] = staticmethod(lambda: None)

    def _view(self, instance: UUID) -> View:
        """All that is known of an instance, as its guest would be shown it."""
        _, document = self._store.document(instance)
        document = document or Document()
        policy = self.policy_of(instance)
        scopes = self._scopes(instance, document)
        return View(
            instance,
            document,
            now=time.time(),
            project=self._project(instance, document),
            load_sources=lambda: self._store.sources_for(scopes, instance),
            load_values=lambda: self._store.values(instance),
            composition=policy.composition or Composition(self._config.sources.composition),
            limit=self._config.sources.limit_bytes,
        )

    def _project(self, instance: UUID, document: Document) -> str:
        said = next((port.project for port in self._enrolment.ports_of(instance) if port.project), "")
        return said or document.project_id or ""

    def _scopes(self, instance: UUID, document: Document) -> tuple[Scope, ...]:
        return scopes_of(instance, self._project(instance, document), document.image_id or "", document.tags)

    def _in_scope(self, scope: Scope) -> list[UUID]:
        """The known instances that a source of that scope concerns."""
        if scope.kind == "instance":
            return [UUID(scope.value)]
        known = sorted(self._known(), key=str)
        if scope.kind == "host":
            return known
        return [one for one in known if scope in self._scopes(one, self._store.document(one)[1] or Document())]

    async def sources(self, scope: Scope | None, instance: UUID | None = None) -> list[live.SourceView]:
        if instance is not None:
            return [live.SourceView.of(one) for one in self._view(instance).sources]
        return [live.SourceView.of(one) for one in in_order(self._store.sources(scope)) if self._is_there(one)]

    def _is_there(self, source: Source) -> bool:
        """Whether somebody can still read it."""
        if source.until is not None and source.until <= time.time():
            return False
        if source.scope.kind != "instance" or source.reads is Reads.MANY:
            return True
        return bool(self._store.unspent(UUID(source.scope.value), [source.item]))

    async def source(self, scope: Scope, name: str) -> Source:
        found = self._store.source(scope, name)
        if found is None:
            raise NotFoundError(f"{scope.text} has no source {name}", "`metashim userdata list` shows those there are")
        return found

    async def put_source(self, source: Source, *, who: str) -> live.SourceWrittenView:
        if len(source.body) > SOURCE_BYTES:
            raise InputError(f"the source has {len(source.body)} bytes", f"{SOURCE_BYTES} are the most")
        if not source.body and source.reads is Reads.ONCE:
            raise InputError("a source to be read once is empty", "its last byte is what tells that it was read")
        problems = await self._rehearsed(source) if source.template else []
        async with self.writing:
            before = self._store.source(source.scope, source.name)
            self._refuse_directorys(before)
            with self._store.transaction():
                self._store.put_source(source)
                self._refuse_unfit_in([source.scope])
                self._store.audit(who, "source put", _instance_of(source.scope), _named(source))
            await self._published()
            kept = await self.source(source.scope, source.name)
            return live.SourceWrittenView(live.SourceView.of(kept), before is None, problems)

    async def delete_source(self, scope: Scope, name: str, *, who: str) -> None:
        async with self.writing:
            found = await self.source(scope, name)
            self._refuse_directorys(found)
            with self._store.transaction():
                self._store.delete_source(scope, name)
                self._store.audit(who, "source remove", _instance_of(scope), _named(found))
            await self._published()
        self.freed()

    def _refuse_directorys(self, source: Source | None) -> None:
        """Raises ConflictError for a file's. Once no folder is watched any more, these are as all others."""
        if source is not None and source.origin == DIRECTORY and self._config.sources.directory:
            what = f"{source.scope.text}/{source.name} is a file of sources.directory"
            raise ConflictError(what, "change or remove the file")

    async def apply_directory(self, wanted: list[Source], _faults: list[Fault]) -> list[Fault]:
        """Lets the watched folder's sources be these, but for those that cannot be: of such a one the former stays, if
        there was one. What cannot be, and what to do. Raises MetashimError, nothing changed."""
        before = {_key(one): one for one in self._store.sources() if one.origin == DIRECTORY}
        good, faults = await self._compiled(wanted, before)  # by a child that takes its time: nobody waits for that
        async with self.writing:
            try:
                held = self._replaced(good)
            except InputError:
                good, unfit = self._fitting(good, before)
                faults += unfit
                held = self._replaced(good)
            await self._published()
        words = "an operator has a source of that name: it holds"
        return [*faults, *((f"{_named(one)}: {words}", "remove that one, or rename the file") for one in held)]

    async def _compiled(
        self, wanted: list[Source], before: Mapping[Key, Source]
    ) -> tuple[list[Source], list[Fault]]:
        """The sources with every template that is new and no template replaced by its former."""
        good: list[Source] = []
        faults: list[Fault] = []
        for source in wanted:
            former = before.get(_key(source))
            if source.template and not _same(former, source):
                try:
                    await self._rehearsed(source)
                except InputError as error:
                    faults.append((str(error), error.hint))
                    good += [former] if former is not None else []
                    continue
            good.append(source)
        return good, faults

    def _replaced(self, wanted: list[Source]) -> list[Source]:
        """Those that an operator's stand in the way of. Raises InputError if an instance's do not fit any more."""
        with self._store.transaction():
            done = self._store.replace_directory(wanted)
            if done.added or done.changed or done.removed:
                self._refuse_unfit_in({one.scope for one in wanted})
                words = f"{done.added} added, {done.changed} changed, {done.removed} removed"
                self._store.audit("directory", "sources", None, words)
        return done.held

    def _fitting(self, wanted: list[Source], before: Mapping[Key, Source]) -> tuple[list[Source], list[Fault]]:
        """The sources with those that do not fit replaced by their formers: each is tried on top of those that do."""
        good: list[Source] = []
        faults: list[Fault] = []
        with self._store.transaction(), self._store.undone():
            self._store.replace_directory([before[_key(one)] for one in wanted if _key(one) in before])
            for source in wanted:
                former = before.get(_key(source))
                try:
                    with self._store.savepoint():
                        if not _same(former, source):
                            self._store.put_source(source)
                            self._refuse_unfit_in([source.scope])
                    good.append(source)
                except InputError as error:
                    faults.append((f"{_named(source)}: {error}", error.hint))
                    good += [former] if former is not None else []
        return good, faults

    async def preview(self, instance: UUID) -> live.PreviewView:
        found = await self._tried(Rehearsal("preview", [self._stage(instance)]))
        (played,) = found.instances
        if played.preview is None:
            raise InputError(f"{instance}: {played.fault}", "`metashim show` has its document")
        shown = msgspec.convert(msgspec.to_builtins(played.preview), live.PreviewView)
        problems = [*shown.user.problems, *self._unseen(instance)]
        return struct_replace(shown, user=struct_replace(shown.user, problems=problems))

    def _unseen(self, instance: UUID) -> list[live.PartProblem]:
        """What is composed beside what the agent knows: the backend speaks to the workers alone."""
        routes = self.policy_of(instance).routes
        table = compiled(tuple(self._config.forward.routes.items()) if routes is None else routes)
        backends = {backend_of(path, table) for path in (b"/latest/user-data", b"/openstack/latest/user_data")}
        what = "answers this instance, and its own user-data comes in as {}: it is not in this preview"
        return [
            live.PartProblem(f"{BACKEND}/user-data", f"{name} {what.format(f'{BACKEND}/user-data')}")
            for name in sorted(str(one) for one in backends - {EMBEDDED})
        ]

    async def _rehearsed(self, source: Source) -> list[str]:
        """What does not go well with a template for the instances that it concerns, the first REHEARSED of them. Raises
        InputError: its syntax, or that it takes too much."""
        concerned = self._in_scope(source.scope)[:REHEARSED]
        stages = [self._stage(instance, source) for instance in concerned]
        found = await self._tried(Rehearsal("check", stages, source.body))
        if found.fault:
            raise InputError(f"{source.scope.text}/{source.name}: {found.fault}", "correct the template there")
        return [
            f"{played.instance}: {words}"
            for played in found.instances
            for words in ([played.fault] if played.fault else [f"{one.id}: {one.what}" for one in played.problems])
        ]

    async def _tried(self, work: Rehearsal) -> Rehearsed:
        """One at a time: each takes a process, and what memory that may have."""
        async with self.rehearsing:
            return await rehearse(work, *self._user)

    def _stage(self, instance: UUID, written: Source | None = None) -> Stage:
        """An instance as it would be with a source that is being written."""
        view = self._view(instance)
        _, raw = self._store.body(instance)
        sources = list(view.sources)
        if written is not None:
            key = written.scope, written.name
            sources = [*(one for one in sources if (one.scope, one.name) != key), written]
        return Stage(
            instance,
            view.now,
            view.limit,
            raw,
            view.project,
            sources,
            list(view.values.values()),
            view.composition,
        )

    # What fits.

    def _refuse_unfit_in(self, scopes: Iterable[Scope]) -> None:
        """Raises InputError if an instance of these scopes can no longer be given what it has. Most are cleared by
        numbers that cannot be too small, so that a write for thousands of them takes no longer than one for a few."""
        sizes, documents = self._store.sizes(), self._store.document_sizes()
        shared = [size for scope, size in sizes.items() if not scope.startswith("instance:")]
        common, others = sum(size for _, size in shared), sum(count for count, _ in shared)
        limit = self._config.sources.limit_bytes
        for instance in {one for scope in scopes for one in self._in_scope(scope)}:
            own, size = sizes.get(f"instance:{instance}", (0, 0))
            count = own + others
            room = (count + 1) * ROOM_BYTES
            if common + size + documents.get(instance, 0) + room > limit or count > ITEMS_MAX:
                self._refuse_unfit(instance)

    def _refuse_unfit(self, instance: UUID) -> None:
        """Raises InputError if what an instance has as the store is now cannot be given to it."""
        view = self._view(instance)
        if any(one.template for one in view.sources):
            view = _without_templates(view)  # what they render to is the rehearsal's matter
        try:
            check_fit(view)
        except Unready as error:
            raise InputError(f"{instance}: {error}", "shorten a source, or let one #include the rest") from None


def _key(source: Source) -> Key:
    return source.scope, source.name


def _same(before: Source | None, after: Source) -> bool:
    if before is None:
        return False
    return replace(after, revision=before.revision, changed=before.changed, origin=before.origin) == before


def _without_templates(view: View) -> View:
    """The same with all templates left out."""
    return View(
        view.instance,
        view.document,
        now=view.now,
        project=view.project,
        load_sources=lambda: [one for one in view.sources if not one.template],
        composition=view.composition,
        limit=view.limit,
    )


def _named(source: Source) -> str:
    return f"{source.scope.text}/{source.name}, {source.kind.value} data, {len(source.body)} bytes"


def _instance_of(scope: Scope) -> UUID | None:
    return UUID(scope.value) if scope.kind == "instance" else None
