"""The store: what it keeps, what it refuses, and what is left after a crash. Reader cases that need another
user, a killed writer or a full disk use real processes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.policy import Access, Policy, Tokens
from shim.errors import ConflictError, InputError, StoreError
from shim.metadata import schema
from shim.metadata.document import Document
from shim.metadata.reader import Reader
from shim.metadata.store import Store

ROOT = Path(__file__).parents[2]
A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
B = UUID("c0ffee00-1111-4222-8333-444455556666")
NOBODY = 65_534
GROUP = 64_042


def named(name: str) -> bytes:
    return json.dumps({"name": name}).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "metashim.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, clock=lambda: 1_700_000_000.5)
    yield store
    store.close()


def reopened(store: Store) -> Store:
    store.close()
    return Store(store.path)


class TestDocuments:
    def test_is_kept_over_a_restart_byte_for_byte(self, store: Store) -> None:
        raw = b'{ "name" : "web-1" }'
        revision = store.put_document(A, raw)
        again = reopened(store)
        assert again.body(A) == (revision, raw)
        assert again.document(A) == (revision, Document(name="web-1"))
        again.close()

    def test_an_unknown_instance_has_none(self, store: Store) -> None:
        assert store.document(A) == (0, None)
        assert store.body(A) == (0, None)

    def test_revisions_grow_over_instances_and_deletions(self, store: Store) -> None:
        first = store.put_document(A, named("a"))
        second = store.put_document(B, named("b"))
        assert store.delete_document(A)
        third = store.put_document(A, named("a"))
        assert first < second < third

    def test_a_wrong_one_leaves_the_old_and_its_revision(self, store: Store) -> None:
        revision = store.put_document(A, named("a"))
        with pytest.raises(InputError, match="nmae"):
            store.put_document(A, b'{"nmae": "b"}')
        assert store.document(A) == (revision, Document(name="a"))
        assert store.put_document(A, named("b")) == revision + 1

    def test_listing_says_since_when(self, store: Store) -> None:
        revision = store.put_document(A, named("a"))
        stamp = store.documents()[A]
        assert (stamp.revision, stamp.changed) == (revision, 1_700_000_000.5)

    def test_deleting_says_whether_there_was_one(self, store: Store) -> None:
        store.put_document(A, named("a"))
        assert store.delete_document(A) is True
        assert store.delete_document(A) is False
        assert store.document(A) == (0, None)


class TestPoliciesAndAttachments:
    def test_policies_are_kept(self, store: Store) -> None:
        policy = Policy(Access.RESET, Access.FORBID, hop_limit=1)
        store.put_policy(A, policy)
        store.put_policy(B, Policy())
        store.put_policy(B, Policy(Access.DROP))
        again = reopened(store)
        assert again.policies() == {A: policy, B: Policy(Access.DROP)}
        assert again.delete_policy(A) is True
        assert again.delete_policy(A) is False
        assert set(again.policies()) == {B}
        again.close()

    def test_tokens_and_routes_are_kept(self, store: Store) -> None:
        routed = Policy(tokens=Tokens.REQUIRED, routes=(("/", "nova"), ("/latest/user-data", "embedded")))
        store.put_policy(A, routed)
        store.put_policy(B, Policy(tokens=Tokens.OFF))
        again = reopened(store)
        assert again.policies() == {A: routed, B: Policy(tokens=Tokens.OFF)}
        again.put_policy(A, Policy())
        assert again.policies()[A] == Policy()
        again.close()

    @pytest.mark.parametrize(("column", "value"), [("tokens", "ever"), ("routes", "{"), ("routes", '["/"]'),
                                                   ("routes", '{"/": 1}')])
    def test_what_makes_no_sense_is_refused(self, store: Store, column: str, value: str) -> None:
        store.put_policy(A, Policy())
        with sqlite3.connect(store.path) as db:
            db.execute(f"UPDATE policies SET {column} = ?", (value,))
        db.close()
        with pytest.raises(StoreError, match="cannot read"):
            store.policies()

    def test_attachments_are_by_namespace(self, store: Store) -> None:
        store.attach("", "tap1", A)
        store.attach("net1", "tap1", B)
        store.attach("", "tap1", A)
        assert store.attachments() == {("", "tap1"): A, ("net1", "tap1"): B}
        assert store.detach("", "tap1") is True
        assert store.detach("", "tap1") is False
        assert store.attachments() == {("net1", "tap1"): B}

    def test_attachments_are_read_again_after_every_write(self, store: Store) -> None:
        store.attach("", "tap1", A)
        known = store.attachments()
        assert store.attachments() is known, "asked for at every change of a link"
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("UPDATE attachments SET instance = ?", (str(B),))
        other.close()
        assert store.attachments() == {("", "tap1"): B}, "an operator's sqlite3"
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.attach("", "tap2", A)
            assert len(store.attachments()) == 2
            raise ZeroDivisionError
        assert len(store.attachments()) == 1

    def test_a_tap_is_not_taken_over(self, store: Store) -> None:
        store.attach("", "tap1", A)
        with pytest.raises(ConflictError, match=str(A)):
            store.attach("", "tap1", B)
        assert store.attachments() == {("", "tap1"): A}

    def test_instances_are_all_that_anything_is_known_of(self, store: Store) -> None:
        third = UUID(int=3)
        store.put_document(A, named("a"))
        store.put_policy(B, Policy())
        store.attach("", "tap1", third)
        store.attach("", "tap2", A)
        assert store.instances() == {A, B, third}


class TestTransaction:
    def test_what_the_kernel_refused_is_not_kept(self, store: Store) -> None:
        with pytest.raises(RuntimeError), store.transaction():
            store.put_policy(A, Policy(Access.RESET))
            store.put_document(A, named("a"))
            raise RuntimeError("the kernel said no")
        assert store.instances() == frozenset()
        with store.transaction():
            store.put_policy(A, Policy(Access.RESET))
        assert store.policies() == {A: Policy(Access.RESET)}

    def test_others_see_all_or_nothing(self, store: Store, path: Path) -> None:
        reader = Reader(path)
        with store.transaction():
            store.put_document(A, named("a"))
            assert reader.document(A) == (0, None)
        assert reader.document(A)[1] == Document(name="a")
        reader.close()

    def test_a_held_store_is_refused_before_anything_is_done(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shim.metadata.store_file.BUSY_SECONDS", 0.05)
        impatient = Store(store.path)
        entered = False
        refused = pytest.raises(StoreError, match="locked")
        with store.transaction(), refused as caught, impatient.transaction():
            entered = True
        assert not entered
        assert "second agent" in caught.value.hint
        impatient.put_policy(A, Policy())
        impatient.close()


class TestForeignFiles:
    def refused(self, path: Path) -> str:
        before = path.read_bytes()
        with pytest.raises(StoreError) as writing:
            Store(path)
        with pytest.raises(StoreError) as reading:
            Reader(path).document(A)
        assert writing.value.hint
        assert reading.value.hint
        assert path.read_bytes() == before
        return str(writing.value)

    def test_garbage(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        path.write_bytes(b"not a database, but long enough for SQLite to look at it\n" * 40)
        assert "not a database" in self.refused(path)

    def test_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE theirs (a)")
        db.close()
        assert "another program" in self.refused(path)

    def test_a_newer_schema(self, store: Store, path: Path) -> None:
        store.put_document(A, named("a"))
        store.close()
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
        db.close()
        assert f"newer metashim (schema {schema.SCHEMA + 1}" in self.refused(path)

    def test_a_truncated_store(self, store: Store, path: Path) -> None:
        store.put_document(A, named("a" * 200))
        store.close()
        os.truncate(path, 6_000)
        with pytest.raises(StoreError) as caught:
            Store(path).body(A)
        assert caught.value.hint

    def test_a_folder_in_the_files_place(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="unable to open"):
            Store(tmp_path)

    def test_a_row_edited_by_hand(self, store: Store, path: Path) -> None:
        store.put_policy(A, Policy())
        with sqlite3.connect(path) as db:
            db.execute("UPDATE policies SET v4 = 'ajar'")
        db.close()
        with pytest.raises(StoreError, match="ajar"):
            store.policies()

    def test_a_document_of_a_newer_version(self, store: Store, path: Path) -> None:
        store.put_document(A, named("a"))
        with sqlite3.connect(path) as db:
            db.execute("UPDATE documents SET body = ?", (b'{"novelty": 1}',))
        db.close()
        for read in (store.document, Reader(path).document):
            with pytest.raises(StoreError, match="novelty"):
                read(A)


SCHEMA_1 = (
    "CREATE TABLE counter (last INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (7)",
    """CREATE TABLE documents (
        instance TEXT PRIMARY KEY,
        body BLOB NOT NULL,
        revision INTEGER NOT NULL,
        changed REAL NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE policies (
        instance TEXT PRIMARY KEY,
        v4 TEXT NOT NULL,
        v6 TEXT NOT NULL,
        hop_limit INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE attachments (
        netns TEXT NOT NULL,
        tap TEXT NOT NULL,
        instance TEXT NOT NULL,
        PRIMARY KEY (netns, tap)
    ) WITHOUT ROWID""",
    f"INSERT INTO documents VALUES ('{A}', CAST('{{\"name\": \"a\"}}' AS BLOB), 7, 1.5)",
    f"INSERT INTO policies VALUES ('{A}', 'reset', '403', 2)",
    f"INSERT INTO attachments VALUES ('', 'tap1', '{B}')",
    "PRAGMA application_id = 1836279913",
    "PRAGMA user_version = 1",
)
"""What version 0.1.0 wrote at first, and some rows."""


class TestUpgrade:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        path = tmp_path / "old.db"
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        for statement in SCHEMA_1:
            db.execute(statement)
        db.close()
        return path

    def test_everything_is_brought_along(self, old: Path) -> None:
        store = Store(old)
        assert store.policies() == {A: Policy(Access.RESET, Access.FORBID, 2)}
        assert store.document(A) == (7, Document(name="a"))
        assert store.attachments() == {("", "tap1"): B}
        changed = Policy(Access.RESET, tokens=Tokens.OPTIONAL, routes=(("/", "embedded"),))
        store.put_policy(A, changed)
        again = reopened(store)
        assert again.policies() == {A: changed}, "and the second start has nothing to bring along"
        again.close()
        with sqlite3.connect(old) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA,)
        db.close()

    def test_it_looks_like_a_new_store_afterwards(self, old: Path, store: Store) -> None:
        Store(old).close()

        def columns(path: Path) -> list[tuple[object, ...]]:
            db = sqlite3.connect(path)
            found = db.execute("PRAGMA table_info(policies)").fetchall()
            db.close()
            return found

        assert columns(old) == columns(store.path)

    def test_a_reader_that_has_it_open_goes_on(self, old: Path) -> None:
        reader = Reader(old)
        assert reader.document(A)[0] == 7
        store = Store(old)
        assert reader.document(A)[0] == 7
        store.put_document(A, named("b"))
        assert reader.document(A)[1] == Document(name="b")
        reader.close()
        store.close()

    def test_all_of_it_or_nothing(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = old.read_bytes()
        monkeypatch.setitem(schema.MIGRATIONS, 1, (schema.MIGRATIONS[1][0], "ALTER TABLE nowhere ADD COLUMN a"))
        with pytest.raises(StoreError, match="nowhere"):
            Store(old)
        assert old.read_bytes() == before
        monkeypatch.undo()
        Store(old).close()

    def test_two_that_come_at_once_bring_it_along_once(self, old: Path) -> None:
        first, second = sqlite3.connect(old, isolation_level=None), sqlite3.connect(old, isolation_level=None)
        for db in (first, second):
            db.execute("BEGIN IMMEDIATE")
            schema.bring_along(db)
            db.execute("COMMIT")
            db.close()
        Store(old).close()


class TestModes:
    def test_a_new_store_is_for_its_group_whatever_the_umask(self, path: Path) -> None:
        before = os.umask(0o077)
        try:
            store = Store(path)
            store.put_document(A, named("a"))
        finally:
            os.umask(before)
        names = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
        assert [oct(name.stat().st_mode & 0o777) for name in names] == ["0o640"] * 3
        assert oct(path.parent.stat().st_mode & 0o777) == "0o750"
        store.close()

    def test_an_old_folder_keeps_its_mode_and_a_loose_file_is_tightened(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        path = tmp_path / "a.db"
        path.touch(0o666)
        path.chmod(0o666)
        Store(path).close()
        assert path.stat().st_mode & 0o777 == 0o640
        assert tmp_path.stat().st_mode & 0o777 == 0o755


class TestReader:
    def test_a_store_that_comes_later(self, path: Path) -> None:
        reader = Reader(path)
        for read in (reader.version, lambda: reader.document(A)):
            with pytest.raises(StoreError):
                read()
        store = Store(path)
        store.put_document(A, named("a"))
        assert reader.document(A)[1] == Document(name="a")
        store.close()

    def test_the_version_changes_with_every_write_and_only_then(self, store: Store) -> None:
        reader = Reader(store.path)
        seen = [reader.version()]
        writes: list[Callable[[], object]] = [
            lambda: store.put_document(A, named("a")),
            lambda: store.put_document(A, named("a")),
            lambda: store.put_policy(A, Policy()),
            lambda: store.delete_document(A),
        ]
        for write in writes:
            write()
            assert reader.version() not in seen
            seen.append(reader.version())
            assert reader.version() == seen[-1]

    def test_a_file_put_in_its_place_is_noticed(self, store: Store, tmp_path: Path) -> None:
        other = Store(tmp_path / "copy.db")
        other.put_document(A, named("restored"))
        other.close()
        store.put_document(A, named("a"))
        reader = Reader(store.path)
        assert reader.document(A)[1] == Document(name="a")
        before = reader.version()
        store.close()
        for left in (f"{store.path}-wal", f"{store.path}-shm"):
            Path(left).unlink(missing_ok=True)
        (tmp_path / "copy.db").rename(store.path)
        assert reader.version() != before
        assert reader.document(A)[1] == Document(name="restored")


# --- processes -------------------------------------------------------------------------------------

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

    def __init__(self, script: str, *arguments: object, user: int = 0) -> None:
        become = BECOME.format(user=user) if user else ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + become + script, *map(str, arguments)],
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

    def child(self, script: str, *arguments: object, user: int = 0) -> Child:
        child = Child(script, *arguments, user=user)
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


@pytest.mark.root
class TestUnprivilegedReader:
    def test_cannot_write_what_it_reads(self, hall: Hall) -> None:
        Store(hall.path, gid=GROUP).put_document(A, named("a"))
        script = READ.replace("reader = Reader", "open(sys.argv[1], 'r+b')\nreader = Reader")
        child = hall.child(script, hall.path, user=NOBODY)
        with pytest.raises(json.JSONDecodeError):  # it dies of PermissionError before it is ready
            child.hear()

    def test_reads_beside_a_writer(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        reader = hall.reader()
        assert reader.ask(A) == [0, None]
        for name in ("one", "two"):
            before = reader.ask("version")
            revision = store.put_document(A, named(name))
            assert reader.ask("version") != before
            assert reader.ask(A) == [revision, name]
        store.close()

    def test_sees_whole_commits_in_order_while_they_are_made(self, hall: Hall) -> None:
        readers = [hall.reader(), hall.reader()]
        writer = hall.writer(A, 3_000)
        assert writer.hear() == "writing"
        seen = []
        for _ in range(400):
            for reader in readers:
                answer = reader.ask(A)
                assert isinstance(answer, list), answer
                assert answer[1] == f"n{answer[0] - 1}"
                seen.append(answer[0])
        assert seen == sorted(seen)
        assert len(set(seen)) > 5, "the writer and the readers did not overlap"
        assert writer.hear() == "done"

    def test_a_checkpoint_goes_by_an_open_reader(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        reader = hall.reader()
        revision = store.put_document(A, named("a"))
        assert reader.ask(A) == [revision, "a"]
        with sqlite3.connect(hall.path) as db:
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        db.close()
        assert reader.ask(A) == [revision, "a"]
        revision = store.put_document(A, named("b"))
        assert reader.ask(A) == [revision, "b"]
        store.close()

    def test_a_killed_writer_leaves_its_last_commit(self, hall: Hall) -> None:
        early = hall.writer(A, 40)
        assert [early.hear(), early.hear()] == ["writing", "done"]
        reader = hall.reader()
        assert reader.ask(A) == [40, "n39"]
        early.kill()
        assert names_beside(hall.path) == {"metashim.db", "metashim.db-wal", "metashim.db-shm"}
        late = hall.reader()
        assert [reader.ask(A), late.ask(A)] == [[40, "n39"]] * 2
        store = Store(hall.path, gid=GROUP)
        assert store.put_document(A, named("after")) == 41
        assert [reader.ask(A), late.ask(A)] == [[41, "after"]] * 2
        store.close()

    def test_killed_at_any_moment(self, hall: Hall) -> None:
        reader, revision = None, 0
        for _ in range(8):
            writer = hall.writer(A, 100_000)
            assert writer.hear() == "writing"
            reader = reader or hall.reader()
            for _ in range(20):
                reader.ask(A)
            writer.kill()
            answer = reader.ask(A)
            assert isinstance(answer, list), answer
            assert answer[0] > revision
            revision = answer[0]

    def test_a_torn_index_is_left_alone(self, hall: Hall) -> None:
        writer = hall.writer(A, 3)
        assert [writer.hear(), writer.hear()] == ["writing", "done"]
        reader = hall.reader()
        assert reader.ask(A) == [3, "n2"]
        writer.kill()
        with Path(f"{hall.path}-shm").open("r+b") as index:
            index.write(b"\xff" * 96)  # both copies of its header (sqlite.org/walformat.html, 2.2)
        assert reader.ask(A) == [3, "n2"]
        assert hall.reader().ask(A) == [3, "n2"]

    def test_no_writer_and_no_log(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        revision = store.put_document(A, named("a"))
        store.close()
        assert names_beside(hall.path) == {"metashim.db"}
        reader = hall.reader()
        assert reader.ask(A) == [revision, "a"]
        rest = reader.ask("version")
        assert reader.ask("version") == rest
        assert names_beside(hall.path) == {"metashim.db"}
        again = Store(hall.path, gid=GROUP)
        revision = again.put_document(A, named("b"))
        assert reader.ask(A) == [revision, "b"]
        assert reader.ask("version") != rest
        again.close()
        assert reader.ask(A) == [revision, "b"]

    def test_a_writer_that_came_and_went_changed_the_version(self, hall: Hall) -> None:
        Store(hall.path, gid=GROUP).close()
        reader = hall.reader()
        rest = reader.ask("version")
        again = Store(hall.path, gid=GROUP)
        revision = again.put_document(A, named("b"))
        again.close()
        assert reader.ask("version") != rest
        assert reader.ask(A) == [revision, "b"]

    def test_a_store_that_it_may_not_read_or_that_is_away(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        revision = store.put_document(A, named("a"))
        reader = hall.reader()
        hall.path.parent.chmod(0o700)
        answer = reader.ask(A)
        assert isinstance(answer, dict)
        assert answer["hint"]
        hall.path.parent.chmod(0o750)
        assert reader.ask(A) == [revision, "a"]
        store.close()


FULL = PREAMBLE + """
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", sys.argv[1]], check=True)
path, ballast = Path(sys.argv[1], "metashim.db"), Path(sys.argv[1], "ballast")
ballast.write_bytes(bytes(200_000))
store, kept, failure = Store(path), {}, None
for number in range(100):
    instance = UUID(int=number)
    try:
        kept[store.put_document(instance, json.dumps({"vendor_data": "x" * 40_000}).encode())] = instance
    except StoreError as error:
        failure = error
        break
whole = {store.body(one)[0]: one for one in kept.values()} == kept and store.instances() == set(kept.values())
ballast.unlink()
small = store.put_document(UUID(int=1000), b"{}")
store.close()
again = Store(path)
print(json.dumps({
    "failure": str(failure), "hint": failure and failure.hint, "whole": whole, "kept": len(kept),
    "lasts": len(again.instances()), "small": small == max(kept) + 1,
}))
"""


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    command = ["unshare", "-m", sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "full" in found["failure"]
    assert "nothing was changed" in found["hint"]
    assert found["kept"] > 2
    assert found["whole"]
    assert found["small"]
    assert found["lasts"] == found["kept"] + 1
