# Invariants: whatever is written in whatever order, by either of two connections, in transactions of which parts fail,
# the store holds what a plain model holds, for the agent and for a worker; each write has a revision of its own; who
# asks what changed since it last asked is told every scope that was written, and no other; and a copy of the file and
# its log, taken at any moment, opens as the last committed state.
"""Fuzzing of the store against a model of dictionaries."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shim.core.ask import Outcome
from shim.core.kv import Value, etag
from shim.core.source import HOST, Reads, Scope, Source
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.fuzz.store_model import IDS, LIMITS, START, Model

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
SCOPES = [HOST, Scope("project", "p"), Scope("tag", "a=b/c"), Scope("instance", str(IDS[0]))]
KEYS = ["guest/a", "guest/a/b", "guest/a/b/c", "guest/ab", "host/a"]
PREFIXES = ["/", "kv", "/latest/user-data"]

instances = st.sampled_from(IDS)
keys = st.sampled_from(KEYS)
bodies = st.binary(max_size=10)
reads = st.sampled_from(Reads)
untils = st.none() | st.integers(0, 6).map(lambda late: START + late)
leases = st.integers(1, 2)
tags = st.lists(st.sampled_from(["*", etag(b""), etag(b"x"), "?"]), max_size=2).map(tuple)
conditions = st.integers(0, 4).flatmap(lambda one: tags if one == 1 else st.none())


@st.composite
def acts(draw: st.DrawFn, items: list[str]) -> tuple[Callable[[Store], object], Callable[[Model], object]]:
    """A write, for the store and for the model."""
    instance = draw(instances)
    some = draw(st.lists(st.sampled_from([*items, "source host/s0 0", "kv guest/a 0"]), max_size=3))
    lease, prefix, key = draw(leases), draw(st.sampled_from(PREFIXES)), draw(keys)
    match, none, limited = draw(conditions), draw(conditions), draw(st.booleans())
    source = Source(
        draw(st.sampled_from(SCOPES)), draw(st.sampled_from(["s0", "s1"])), draw(bodies), reads=draw(reads),
        until=draw(untils),
    )  # fmt: skip
    value = Value(key, draw(bodies), draw(reads), draw(untils))
    limits = LIMITS if limited else None
    raw = b'{"name": "n%d"}' % draw(st.integers(0, 3))
    names = draw(st.sets(st.sampled_from(["s0", "s1", "s2"])))
    others = [replace(source, name=name, body=draw(bodies)) for name in names]
    kinds: list[tuple[Callable[[Store], object], Callable[[Model], object]]] = [
        (lambda s: s.put_document(instance, raw), lambda m: m.put_document(instance, raw)),
        (lambda s: s.delete_document(instance), lambda m: m.delete_document(instance)),
        (lambda s: s.put_source(source), lambda m: m.put_source(source)),
        (lambda s: s.delete_source(source.scope, source.name), lambda m: m.delete_source(source.scope, source.name)),
        (
            lambda s: s.put_value(instance, value, if_match=match, if_none_match=none, limits=limits),
            lambda m: m.put_value(instance, value, match, none, limited),
        ),
        (lambda s: s.delete_value(instance, key, if_match=match), lambda m: m.delete_value(instance, key, match)),
        (lambda s: s.spend(instance, some, lease), lambda m: m.spend(instance, some, lease)),
        (lambda s: s.unspend(instance, some, lease), lambda m: m.unspend(instance, some, lease)),
        (lambda s: s.latch(instance, prefix), lambda m: m.latch(instance, prefix)),
        (lambda s: s.unlatch(instance, prefix), lambda m: m.unlatch(instance, prefix)),
        (lambda s: s.unlatch(instance, None), lambda m: m.unlatch(instance, None)),
        (lambda s: s.report(instance, "ready"), lambda m: m.report(instance)),
        (lambda s: s.forget(instance), lambda m: m.forget(instance)),
        (
            lambda s: (lambda r: (*r[:3], len(r.held)))(s.replace_directory(others)),
            lambda m: m.replace_directory(others),
        ),
    ]
    weights = [0, 1, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 5, 6, 6, 6, 6, 7, 8, 9, 10, 11, 12, 13, 13]
    return kinds[draw(st.sampled_from(weights))]


class Failing(Exception):
    """Raised in the middle of what is to be undone."""


class StoreMachine(RuleBasedStateMachine):
    """Two connections of the agent's, a worker's reader, and watchers that ask now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="metashim-fuzz-", dir=MEMORY))
        self.model, self.copies = Model(), 0
        self.items: list[str] = ["source host/s0 1"]
        self.seen = [0, 0]
        self._open(self.folder / "metashim.db")

    def _open(self, path: Path) -> None:
        clock = lambda: self.model.now  # noqa: E731
        self.path = path
        self.stores = [Store(path, clock=clock), Store(path, clock=clock, check=False)]
        self.reader = Reader(path, clock)

    def _close(self) -> None:
        for one in (*self.stores, self.reader):
            one.close()

    def teardown(self) -> None:
        self._close()
        shutil.rmtree(self.folder)

    def _learn(self) -> None:
        known = [one.item for one in (*self.model.sources.values(), *self.model.values.values())]
        self.items = list(dict.fromkeys([*known, *self.items]))[:40]

    def _act(self, data: st.DataObject, store: Store, model: Model) -> None:
        act, expected = data.draw(acts(self.items))
        done, should = act(store), expected(model)
        if isinstance(done, Outcome):
            assert isinstance(should, Outcome)
            assert replace_words(done) == should
            assert bool(done.words) == (done.fate != "done")
        else:
            assert done == should

    @rule(data=st.data(), which=st.sampled_from([0, 1]))
    def write(self, data: st.DataObject, which: int) -> None:
        self._act(data, self.stores[which], self.model)
        self._learn()

    @rule(data=st.data(), which=st.sampled_from([0, 1]), parts=st.lists(st.booleans(), min_size=1, max_size=5),
          whole=st.booleans(), crash=st.booleans())  # fmt: skip
    def batch(self, data: st.DataObject, which: int, parts: list[bool], whole: bool, crash: bool) -> None:
        """Several in one transaction; some fail alone, or all of it does."""
        store, trial = self.stores[which], copy.deepcopy(self.model)
        try:
            with store.transaction():
                for good in parts:
                    part = copy.deepcopy(trial)
                    try:
                        with store.savepoint():
                            self._act(data, store, part)
                            if not good:
                                raise Failing
                        trial = part
                    except Failing:
                        pass
                if crash:
                    self._compare_copy()  # what is not committed is not there
                if not whole:
                    raise Failing
            self.model = trial
        except Failing:
            pass
        self._learn()

    @rule(data=st.data(), instance=instances, lease=leases)
    def use_up(self, data: st.DataObject, instance: UUID, lease: int) -> None:
        """What can be: of all items that were, few still can."""
        live = self.model.unspent(instance, self.items)
        if live:
            items = data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=3))
            assert self.stores[0].spend(instance, items, lease) == self.model.spend(instance, items, lease)

    @rule(seconds=st.integers(1, 3))
    def later(self, seconds: int) -> None:
        self.model.now += seconds

    @rule(which=st.sampled_from([0, 1]), through=st.sampled_from(["reader", "first", "second"]))
    def watch(self, which: int, through: str) -> None:
        by: Reader | Store = {"reader": self.reader, "first": self.stores[0], "second": self.stores[1]}[through]
        revision, scopes = by.changes(self.seen[which])
        assert revision == self.model.last
        assert scopes == self.model.since(self.seen[which])
        self.seen[which] = revision

    @rule()
    def reopen(self) -> None:
        self._close()
        self._open(self.path)

    @rule()
    def crash(self) -> None:
        """Go on with what a kill leaves behind."""
        path = self._copy()
        self._close()
        self._open(path)

    def _copy(self) -> Path:
        self.copies += 1
        folder = self.folder / str(self.copies)
        folder.mkdir()
        for end in ("", "-wal"):
            if Path(f"{self.path}{end}").exists():
                shutil.copy(f"{self.path}{end}", folder / f"metashim.db{end}")
        return folder / "metashim.db"

    def _compare_copy(self) -> None:
        path = self._copy()
        store = Store(path, clock=lambda: self.model.now)
        try:
            self._compare(store)
        finally:
            store.close()
            shutil.rmtree(path.parent)

    @invariant()
    def agrees(self) -> None:
        self._compare(self.stores[0])
        model = self.model
        for instance in IDS:
            assert self.reader.values(instance) == model.live(instance)
            assert {one.item for one in self.reader.sources_for(SCOPES, instance)} == {
                one.item for one in model.sources.values() if (instance, one.revision) not in model.spent
            }

    def _compare(self, store: Store) -> None:
        model = self.model
        assert store.revision() == model.last
        assert store.changes(0) == (model.last, set(model.changed))
        assert {(one.scope, one.name): one for one in store.sources()} == model.sources
        revisions = [one.revision for one in (*model.sources.values(), *model.values.values())]
        assert len(revisions) == len(set(revisions))
        assert set(map(tuple, store._read("SELECT instance, revision, lease FROM spent"))) == {
            (str(instance), revision, lease) for (instance, revision), lease in model.spent.items()
        }
        assert store.latches() == {one: tuple(sorted(closed)) for one, closed in model.latches.items() if closed}
        assert store.kv_instances() == {instance for instance, _ in model.values}
        for instance in IDS:
            assert store.body(instance) == model.documents.get(instance, (0, None))
            assert store.values(instance) == model.live(instance)
            assert store.unspent(instance, self.items) == model.unspent(instance, self.items)
            assert bool(store.reports(instance)) == (instance in model.reported)


def replace_words(outcome: Outcome) -> Outcome:
    return Outcome(outcome.fate, outcome.etag, outcome.created)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip
