"""Common ground of the store's tests: two instances, a clock, and processes that read and write as another user."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.kv import Value
from shim.core.policy import Access, Policy
from shim.core.source import HOST, Reads, Source
from shim.metadata.store import Store

ROOT = Path(__file__).parents[2]
A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
B = UUID("c0ffee00-1111-4222-8333-444455556666")
NOBODY = 65_534
GROUP = 64_042
LEASE = 7


def prepare(store: Store) -> None:
    """Some of all that a store keeps."""
    store.put_document(A, named("a"))
    store.put_policy(A, Policy(closed=("kv",)))
    store.attach("", "tap1", A)
    for reads in Reads:
        store.put_source(Source(HOST, reads.value, b"x" * 100, reads=reads))
        store.put_value(A, Value(f"host/{reads.value}", b"x" * 100, reads))
    store.replace_directory([Source(HOST, "file", b"x")])
    store.spend(A, [one.item for one in store.sources() if one.name == "confirm"], LEASE)
    store.latch(A, "/latest/user-data")
    store.report(A, "ready")
    store.audit("me", "prepared")


def once(store: Store) -> str:
    """The item of the source that can be read once."""
    found = store.source(HOST, "once")
    assert found is not None
    return found.item


def spent(store: Store) -> str:
    """The item of the source that A used up."""
    found = store.source(HOST, "confirm")
    assert found is not None
    return found.item


WRITES: dict[str, Callable[[Store], object]] = {
    "put_document": lambda store: store.put_document(A, named("b")),
    "delete_document": lambda store: store.delete_document(A),
    "put_policy": lambda store: store.put_policy(A, Policy(Access.DROP)),
    "delete_policy": lambda store: store.delete_policy(A),
    "attach": lambda store: store.attach("", "tap2", B),
    "detach": lambda store: store.detach("", "tap1"),
    "put_source": lambda store: store.put_source(Source(HOST, "new", b"x" * 5_000)),
    "delete_source": lambda store: store.delete_source(HOST, "many"),
    "replace_directory": lambda store: store.replace_directory([Source(HOST, "other", b"x")]),
    "put_value": lambda store: store.put_value(A, Value("guest/new", b"x" * 5_000)),
    "delete_value": lambda store: store.delete_value(A, "host/many"),
    "spend": lambda store: store.spend(A, [once(store)]),
    "unspend": lambda store: store.unspend(A, [spent(store)], LEASE),
    "latch": lambda store: store.latch(A, "kv"),
    "unlatch": lambda store: store.unlatch(A, None),
    "report": lambda store: store.report(A, "read"),
    "forget_reports": lambda store: store.forget_reports(A),
    "audit": lambda store: store.audit("me", "did", A),
    "forget": lambda store: store.forget(A),
}
"""Every kind of write; each changes what `prepare` made."""

TABLES = (
    "counter", "documents", "policies", "attachments", "sources", "kv", "spent", "latches", "reports", "audit",
    "changes",
)  # fmt: skip


def everything(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows, as another connection reads them now."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return {table: sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES}
    finally:
        db.close()


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "metashim.db"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "safe").mkdir()
    return tmp_path / "safe" / "copy.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(path, clock=clock)
    yield store
    store.close()


def named(name: str) -> bytes:
    return json.dumps({"name": name}).encode()


def reopened(store: Store) -> Store:
    store.close()
    return Store(store.path)


PREAMBLE = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from uuid import UUID
from shim.errors import StoreError
from shim.metadata.reader import Reader
from shim.metadata.store import Store
"""

# After the imports, as in the proxy: who it becomes may not be able to read this checkout.
BECOME = f"""
import os
os.setgroups([])
os.setresgid({GROUP}, {GROUP}, {GROUP})
os.setresuid({{user}}, {{user}}, {{user}})
"""

READ = """
reader = Reader(Path(sys.argv[1]))
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    try:
        if line.strip() == "version":
            answer = repr(reader.version())
        else:
            revision, document = reader.document(UUID(line.strip()))
            answer = [revision, document and document.name]
    except StoreError as error:
        answer = {"error": str(error), "hint": error.hint}
    print(json.dumps(answer), flush=True)
"""

WRITE = """
store = Store(Path(sys.argv[1]), gid=int(sys.argv[2]))
instance = UUID(sys.argv[3])
first = True
for number in range(int(sys.argv[4])):
    store.put_document(instance, json.dumps({"name": f"n{number}"}).encode())
    if first:
        print(json.dumps("writing"), flush=True)
        first = False
print(json.dumps("done"), flush=True)
sys.stdin.readline()
"""


class Child:
    """A Python process that is asked by lines and answers in JSON lines, when it has become `user`."""

    def __init__(self, script: str, *arguments: object, user: int = 0, imports: str = "") -> None:
        become = BECOME.format(user=user) if user else ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + imports + become + script, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip

    def hear(self) -> object:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def ask(self, line: object) -> object:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.hear()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Hall:
    """A store's folder that root writes and GROUP reads, and the processes at work there."""

    def __init__(self) -> None:
        self.outer = Path(tempfile.mkdtemp(prefix="metashim-store-"))
        self.outer.chmod(0o755)
        self.path = self.outer / "state" / "metashim.db"
        self._children: list[Child] = []

    def child(self, script: str, *arguments: object, user: int = 0, imports: str = "") -> Child:
        child = Child(script, *arguments, user=user, imports=imports)
        self._children.append(child)
        return child

    def reader(self) -> Child:
        reader = self.child(READ, self.path, user=NOBODY)
        assert reader.hear() == "ready"
        return reader

    def writer(self, instance: UUID, count: int) -> Child:
        return self.child(WRITE, self.path, GROUP, instance, count)

    def leave(self) -> None:
        for child in self._children:
            child.kill()
        shutil.rmtree(self.outer)


@pytest.fixture
def hall() -> Iterator[Hall]:
    hall = Hall()
    yield hall
    hall.leave()


def names_beside(path: Path) -> set[str]:
    return {name.name for name in path.parent.iterdir()}
