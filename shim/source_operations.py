"""What operators do with sources: see Operations for the methods.

Templates, and what operators wrote in YAML, are read by a child process without privileges alone (`shim.rehearsal`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec.structs import replace as struct_replace

from shim.control import live_shapes as live
from shim.core.policy import Composition
from shim.core.source import BACKEND, Reads, Scope, Source, in_order, scopes_of
from shim.errors import ConflictError, InputError, NotFoundError
from shim.fitting import Fitting, Load, Owner, breathed, check_view, load_of_document
from shim.forward.routes import compiled
from shim.forward.routes import find as backend_of
from shim.held import Held, to_its_end
from shim.metadata.document import Document
from shim.metadata.store_sources import DIRECTORY
from shim.metadata.view import View
from shim.rehearsal import Rehearsal, Rehearsed, Stage, rehearse
from shim.settings import EMBEDDED

OPERATOR = "operator"

SOURCE_BYTES = 262_144
"""The largest source."""

REHEARSED = 50
"""Instances that a template is tried for when it is written."""

Key = tuple[Scope, str]
Fault = tuple[str, str]
"""What is wrong, and what to do."""


class SourceOperations(Held):
    """See Operations for the methods. `freed` is called when an operator's source is gone, whose name somebody else may
    wait for."""

    freed: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._documents: dict[UUID, tuple[int, _Facts]] = {}

    def _view(self, instance: UUID, sources: list[Source] | None = None) -> View:
        """All that is known of an instance, as its guest would be shown it; with these sources, if they are given."""
        document = self._document(instance)
        policy = self.policy_of(instance)
        scopes = self._scopes(instance, document.project_id, document.image_id, document.tags)
        load = partial(self._store.sources_for, scopes, instance)
        return View(
            instance,
            document,
            now=time.time(),
            project=self._project(instance, document.project_id),
            load_sources=load if sources is None else lambda: self._unspent(instance, sources),
            load_values=lambda: self._store.values(instance),
            composition=policy.composition or Composition(self._config.sources.composition),
            limit=self._config.sources.limit_bytes,
        )

    def _unspent(self, instance: UUID, sources: list[Source]) -> list[Source]:
        """Those that the instance has not used up; one that is to be written (it has no revision yet) is new to it."""
        used = [one.item for one in sources if one.reads is not Reads.MANY and one.revision]
        left = frozenset(self._store.unspent(instance, used)) if used else frozenset()
        return [one for one in sources if one.reads is Reads.MANY or not one.revision or one.item in left]

    def _document(self, instance: UUID) -> Document:
        return self._store.document(instance)[1] or Document()

    def _project(self, instance: UUID, documented: str | None) -> str:
        said = next((port.project for port in self._enrolment.ports_of(instance) if port.project), "")
        return said or documented or ""

    def _scopes(
        self, instance: UUID, project: str | None, image: str | None, tags: Mapping[str, str]
    ) -> tuple[Scope, ...]:
        """Those that an instance is in whose document says this."""
        return scopes_of(instance, self._project(instance, project), image or "", tags)

    async def _owners(self, scopes: Collection[Scope]) -> dict[UUID, Owner]:
        """The known instances that may be in these scopes. What a document says is kept until it is written again."""
        begun = time.perf_counter()
        alone = all(scope.kind == "instance" for scope in scopes)
        stamps = self._store.documents()
        self._documents = {one: facts for one, facts in self._documents.items() if one in stamps}
        found = {}
        for instance in {UUID(one.value) for one in scopes} if alone else self._known():
            revision = stamps[instance].revision if instance in stamps else 0
            facts = self._facts(instance, revision)
            found[instance] = Owner(self._scopes(instance, facts.project, facts.image, facts.tags), facts.load)
            begun = await breathed(begun)
        return found

    def _facts(self, instance: UUID, revision: int) -> _Facts:
        """Of a document, by its revision; 0: there is none."""
        if not revision:
            return _UNDOCUMENTED
        known, facts = self._documents.get(instance, (0, _UNDOCUMENTED))
        if known != revision:
            document = self._document(instance)
            load = load_of_document(instance, document)
            facts = _Facts(document.project_id, document.image_id, document.tags, load)
            self._documents[instance] = revision, facts
        return facts

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

    @to_its_end
    async def put_source(self, source: Source, *, who: str) -> live.SourceWrittenView:
        if len(source.body) > SOURCE_BYTES:
            raise InputError(f"the source has {len(source.body)} bytes", f"{SOURCE_BYTES} are the most")
        if not source.body and source.reads is Reads.ONCE:
            raise InputError("a source to be read once is empty", "its last byte is what tells that it was read")
        source = replace(source, origin=OPERATOR, revision=0, changed=0.0)
        self._refuse_directorys(self._store.source(source.scope, source.name))
        problems = await self._rehearsed(source) if source.template else []
        async with self.composing:
            self._refuse_directorys(self._store.source(source.scope, source.name))
            fitting = await self._fitting([source.scope])
            before = fitting.put(source)
            await fitting.check([source.scope])
            async with self.writing:
                with self._store.transaction():
                    self._store.put_source(source)
                    self._store.audit(who, "source put", _instance_of(source.scope), _named(source))
                await self._published()
                kept = await self.source(source.scope, source.name)
        return live.SourceWrittenView(live.SourceView.of(kept), before is None, problems)

    @to_its_end
    async def delete_source(self, scope: Scope, name: str, *, who: str) -> None:
        async with self.composing, self.writing:
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
        async with self.composing:
            good, unfit = await self._fitted(good, before)
            async with self.writing:
                held = self._replaced(good)
                await self._published()
        words = "an operator has a source of that name: it holds"
        held_faults = [(f"{_named(one)}: {words}", "remove that one, or rename the file") for one in held]
        return [*faults, *unfit, *held_faults]

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
        """Has these be the folder's in the store; those that an operator's stand in the way of."""
        with self._store.transaction():
            done = self._store.replace_directory(wanted)
            if done.added or done.changed or done.removed:
                words = f"{done.added} added, {done.changed} changed, {done.removed} removed"
                self._store.audit("directory", "sources", None, words)
        return done.held

    async def _fitted(
        self, wanted: list[Source], before: Mapping[Key, Source]
    ) -> tuple[list[Source], list[Fault]]:
        """The sources with those that do not fit replaced by their formers: all are tried together, and if that is too
        much each on top of those that fit. One whose name an operator's source has is not tried."""
        others = {_key(one) for one in self._store.sources() if one.origin != DIRECTORY}
        changed = [one for one in wanted if _key(one) not in others and not _same(before.get(_key(one)), one)]
        fitting = await self._fitting({one.scope for one in changed})
        for key in before.keys() - {_key(one) for one in wanted}:
            fitting.remove(*key)
        for source in changed:
            fitting.put(source)
        try:
            await fitting.check({one.scope for one in changed})
            return wanted, []
        except InputError:
            for source in changed:
                _take_back(fitting, source, before)
            faults = await self._unfit(changed, before, fitting)
        good = [before.get(_key(one)) if _key(one) in faults else one for one in wanted]
        return [one for one in good if one is not None], list(faults.values())

    async def _unfit(
        self, changed: list[Source], before: Mapping[Key, Source], fitting: Fitting
    ) -> dict[Key, Fault]:
        """Why some do not fit."""
        faults: dict[Key, Fault] = {}
        for source in changed:
            fitting.put(source)
            try:
                await fitting.check([source.scope])
            except InputError as error:
                _take_back(fitting, source, before)
                faults[_key(source)] = f"{_named(source)}: {error}", error.hint
        return faults

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
            for name in sorted(one for one in backends if isinstance(one, str) and one != EMBEDDED)
        ]

    async def _rehearsed(self, source: Source) -> list[str]:
        """What does not go well with a template for the instances that it concerns, the first REHEARSED of them. Raises
        InputError: its syntax, or that it takes too much."""
        owners = await self._owners([source.scope])
        concerned = (one for one in sorted(owners, key=str) if source.scope in owners[one].scopes)
        stages = [self._stage(instance, source) for instance in islice(concerned, REHEARSED)]
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

    async def _fitting(self, scopes: Collection[Scope]) -> Fitting:
        """What tells whether a write of these scopes fits. Under `composing`."""
        owners = await self._owners(scopes)
        return Fitting(owners, self._store.sources(), self._view, self._config.sources.limit_bytes)

    def _refuse_unfit(self, instance: UUID) -> None:
        """Raises InputError if what an instance has as the store is now cannot be given to it."""
        check_view(self._view(instance))


class _Facts(NamedTuple):
    """What is to be known of a document when a source is written."""

    project: str | None
    image: str | None
    tags: Mapping[str, str]
    load: Load


_UNDOCUMENTED = _Facts(None, None, {}, Load())


def _key(source: Source) -> Key:
    return source.scope, source.name


def _take_back(fitting: Fitting, source: Source, before: Mapping[Key, Source]) -> None:
    """It is to be as it was before that source."""
    former = before.get(_key(source))
    if former is not None:
        fitting.put(former)
    else:
        fitting.remove(*_key(source))


def _same(before: Source | None, after: Source) -> bool:
    if before is None:
        return False
    return replace(after, revision=before.revision, changed=before.changed, origin=before.origin) == before


def _named(source: Source) -> str:
    return f"{source.scope.text}/{source.name}, {source.kind.value} data, {len(source.body)} bytes"


def _instance_of(scope: Scope) -> UUID | None:
    return UUID(scope.value) if scope.kind == "instance" else None
