"""What becomes of writes when the disk is full, fails or is read-only, and of reads meanwhile: real file systems of
their own, in processes with a mount namespace."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.store_hall import PREAMBLE, WRITES

pytestmark = pytest.mark.root

COMMON = PREAMBLE + """
import os, resource, signal, subprocess
from shim.metadata.schema import StoreFullError
from tests.unit.store_hall import A, GROUP, NOBODY, WRITES, everything, prepare

folder = Path(sys.argv[1])

def fill():
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(512)):
                pass
        except OSError:
            pass

def as_nobody(read):
    receive, send = os.pipe()
    process = os.fork()
    if process == 0:
        os.setgroups([])
        os.setresgid(GROUP, GROUP, GROUP)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.write(send, json.dumps(attempt(read) or read()).encode())
        os._exit(0)
    os.waitpid(process, 0)
    return json.loads(os.read(receive, 65_536))

def attempt(write):
    try:
        write()
    except StoreError as error:
        return [type(error).__name__, str(error), error.hint]
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may look for."""
    folder = Path(tempfile.mkdtemp(prefix="metashim-disk-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def run(folder: Path, script: str, *arguments: str) -> dict[str, object]:
    """What a script prints, of a fork of this process in a mount namespace of its own: an interpreter of its own would
    take ten times as long."""
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if process == 0:
            status = 1
            try:
                become_private()
                sys.argv = ["-c", str(folder), *arguments]
                sys.stdout = output
                exec(compile(COMMON + script, "script", "exec"), {"__name__": "script"})
                status = 0
            except BaseException:  # noqa: BLE001 - it is told to who forked
                traceback.print_exc(file=output)
            finally:
                output.flush()
                os._exit(status)
        _, status = os.waitpid(process, 0)
        output.seek(0)
        printed = output.read()
    assert status == 0, printed
    found = json.loads(printed)
    assert isinstance(found, dict)
    return found


def become_private() -> None:
    """What is mounted from now on is seen by this process alone: as unshare(1) with -m."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x00020000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWNS
    private = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
    assert libc.mount(b"none", b"/", None, private, None) == 0, os.strerror(ctypes.get_errno())


FULL = """
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


def test_a_full_disk(folder: Path) -> None:
    found = run(folder, FULL)
    assert "full" in str(found["failure"])
    assert "nothing was changed" in str(found["hint"])
    assert int(str(found["kept"])) > 2
    assert found["whole"]
    assert found["small"]
    assert found["lasts"] == int(str(found["kept"])) + 1


EACH = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", sys.argv[1]], check=True)
path = folder / "metashim.db"
store = Store(path)
prepare(store)
reader = Reader(path)
reader.document(A)
store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a log that has been longer has room for a while
before = everything(path)
fill()
write = WRITES[sys.argv[2]]
alone = attempt(lambda: write(store))

def batch():
    with store.transaction():
        for name in ("put_value", sys.argv[2]):
            with store.savepoint():
                WRITES[name](store)

batched = attempt(batch)
unchanged = everything(path) == before
late = Reader(path)
read = [reader.document(A)[1].name, len(late.values(A)), reader.changes(0)[0] == store.revision()]
(folder / "ballast").unlink()
works = attempt(lambda: write(store)), everything(path) != before
store.close()
Store(path).close()
print(json.dumps({"alone": alone, "batched": batched, "unchanged": unchanged, "read": read, "works": works}))
"""


@pytest.mark.parametrize("write", WRITES)
def test_each_write_on_a_full_disk(folder: Path, write: str) -> None:
    found = run(folder, EACH, write)
    for how in ("alone", "batched"):
        family, words, hint = found[how]  # type: ignore[misc]
        assert family == "StoreFullError"
        assert "full" in words
        assert "free some space" in hint
    assert found["unchanged"]
    assert found["read"] == ["a", 3, True]
    assert found["works"] == [None, True]


STARTS = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", sys.argv[1]], check=True)
path = folder / "metashim.db"
store = Store(path, GROUP)
prepare(store)
store.close()
folder.chmod(0o755)
before = path.read_bytes()
fill()
read = [as_nobody(lambda: Reader(path).document(A)[1].name)]
failure = attempt(lambda: Store(path, GROUP))
read.append(as_nobody(lambda: Reader(path).document(A)[1].name))
new = attempt(lambda: Store(folder / "new.db"))
(folder / "ballast").unlink()
Store(path).close()
print(json.dumps({"failure": failure, "new": new, "read": read, "same": path.read_bytes() == before}))
"""


def test_a_start_on_a_full_disk(folder: Path) -> None:
    found = run(folder, STARTS)
    assert found["read"] == ["a", "a"]
    assert found["same"]
    for case in ("failure", "new"):
        _, words, hint = found[case]  # type: ignore[misc]
        assert hint, (case, words)


# A limit on the size of files gives EFBIG, which SQLite takes for a fault of the disk.
FAULT = """
path = folder / "metashim.db"
store = Store(path)
prepare(store)
store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
before = everything(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
failure = attempt(lambda: WRITES[sys.argv[2]](store))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
unchanged = everything(path) == before
works = attempt(lambda: WRITES[sys.argv[2]](store)), everything(path) != before
print(json.dumps({"failure": failure, "unchanged": unchanged, "works": works}))
"""


@pytest.mark.parametrize("write", ["put_document", "put_source", "put_value", "spend", "latch", "forget"])
def test_a_fault_of_the_disk(folder: Path, write: str) -> None:
    found = run(folder, FAULT, write)
    family, words, hint = found["failure"]  # type: ignore[misc]
    assert (family, hint) == ("StoreError", "check the disk: is there room on it, and what does the kernel's log say?")
    assert "I/O" in words
    assert found["unchanged"]
    assert found["works"] == [None, True]


READ_ONLY = """
path = folder / "metashim.db"
store = Store(path)
prepare(store)
if sys.argv[2] == "killed":  # with a log that is not in the main file yet
    process = os.fork()
    if process == 0:
        Store(path).put_document(A, b'{"name": "late"}')
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    import shutil
    copy = folder / "copy"
    copy.mkdir()
    for end in ("", "-wal", "-shm"):
        shutil.copy(f"{path}{end}", copy / f"metashim.db{end}")
    folder, path = copy, copy / "metashim.db"
store.close()
subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
failure = attempt(lambda: Store(path))
reader = Reader(path)
print(json.dumps({"failure": failure, "read": [reader.document(A)[1].name, len(reader.values(A))]}))
"""


@pytest.mark.parametrize(("how", "name"), [("closed", "a"), ("killed", "late")])
def test_a_disk_that_is_read_only(folder: Path, how: str, name: str) -> None:
    found = run(folder, READ_ONLY, how)
    _, words, hint = found["failure"]  # type: ignore[misc]
    assert "mounted" in hint or "this user may use it" in hint, (words, hint)
    assert found["read"] == [name, 3]
