"""Backup and restore killed at any moment, and on a full disk."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from shim.metadata.archive import backup, restore
from shim.metadata.store import Store
from tests.unit.store_hall import (
    GROUP,
    PREAMBLE,
    A,
    B,
    Hall,
    clock,
    copy,
    everything,
    hall,
    named,
    path,
    store,
)

__all__ = ["clock", "copy", "hall", "path", "store"]


SYSTEM = ("link", "unlink", "rename", "fsync", "replace", "chmod", "open", "chown")


def killed(act: Callable[[], object], calls: int) -> bool:
    """Whether a process that acts was killed at that call of the system, from 0; not if it makes fewer."""
    process = os.fork()
    if process == 0:
        left = itertools.count(calls, -1)

        def counted(real: Callable[..., object], *arguments: object, **options: object) -> object:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        code = 1
        try:
            for name in SYSTEM:
                setattr(os, name, partial(counted, getattr(os, name)))
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.root
class TestKilled:
    def test_at_any_moment_of_a_restore(self, hall: Hall, copy: Path) -> None:
        store = Store(hall.path, GROUP)
        store.put_document(A, named("old"))
        backup(hall.path, copy)
        store.close()
        found, reader, aliases = set(), hall.reader(), 0
        for calls in itertools.count():
            store = Store(hall.path, GROUP)
            last = store.put_document(A, named("new"))
            assert reader.ask(A) == [last, "new"]
            store.close()
            over = not killed(lambda: restore(copy, hall.path, GROUP), calls)
            answer = reader.ask(A)
            assert answer in ([last, "new"], [1, "old"]), answer
            if calls % 3 == 0 or over:
                late = hall.reader()
                assert late.ask(A) == answer
            store = Store(hall.path, GROUP)
            assert list(store.body(A)) == [answer[0], named(answer[1])]  # type: ignore[index]
            revision = store.put_document(A, named("after"))
            assert revision > last
            assert reader.ask(A) == late.ask(A) == [revision, "after"]
            store.close()
            found.add((answer[1], over))  # type: ignore[index]
            names = [name for name in hall.path.parent.iterdir() if "before-restore" in name.name]
            aliases += sum(name.samefile(hall.path) for name in names)
            if over:
                break
        assert aliases > 0, "a second name of the store in use was left now and then, and never for long"
        assert not any(name.samefile(hall.path) for name in names)
        assert found == {("new", False), ("old", False), ("old", True)}
        assert calls > 10

    def test_at_any_moment_over_one_that_was_killed(self, hall: Hall, copy: Path, tmp_path: Path) -> None:
        """Its last commits are in the log alone."""
        other = Store(tmp_path / "other.db")
        other.put_document(B, named("restored"))
        other.close()
        backup(tmp_path / "other.db", copy)
        writer = hall.writer(A, 5)
        assert [writer.hear(), writer.hear()] == ["writing", "done"]
        writer.kill()
        left = {Path(f"{hall.path}{end}"): Path(f"{hall.path}{end}").read_bytes() for end in ("", "-wal", "-shm")}
        assert all(left.values())
        for calls in itertools.count():
            for one in hall.path.parent.iterdir():
                one.unlink()
            for one, was in left.items():
                one.write_bytes(was)
            over = not killed(lambda: restore(copy, hall.path, GROUP), calls)
            store = Store(hall.path)
            name = store.document(A)[1]
            assert (name is not None and name.name == "n4") != (store.document(B)[1] is not None)
            store.delete_document(B)
            store.delete_document(A)
            store.close()
            if over:
                break
        assert calls > 10

    def test_at_any_moment_of_a_backup(self, store: Store, path: Path, copy: Path) -> None:
        backup(path, copy)
        before = copy.read_bytes()
        store.put_document(A, named("late"))
        store.close()
        for calls in itertools.count():
            over = not killed(lambda: backup(path, copy, overwrite=True), calls)
            whole = everything(copy)
            assert copy.read_bytes() == before or len(whole["documents"]) == 1
            if over:
                break
        assert len(whole["documents"]) == 1
        assert calls > 3


FULL = PREAMBLE + """
import subprocess
from shim.metadata.archive import backup, restore
from tests.unit.store_hall import A, everything, prepare
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", sys.argv[1]], check=True)
path, copy = folder / "metashim.db", folder / "copy.db"
store = Store(path)
prepare(store)
store.put_document(A, json.dumps({"vendor_data": "x" * 200_000}).encode())
backup(path, copy)
with store.transaction():
    for number in range(2_000):
        store.audit("me", "more", detail="x" * 80)
before = everything(path)
store.close()
names = sorted(name.name for name in folder.iterdir())
found, room = [], 0
while True:
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4_096)):
                pass
        except OSError:
            pass
    import os
    os.truncate(folder / "ballast", max(0, (folder / "ballast").stat().st_size - room))
    try:
        if sys.argv[2] == "backup":
            backup(path, folder / "other.db")
        else:
            restore(copy, path)
        break
    except StoreError as error:
        found.append([type(error).__name__, error.hint])
    (folder / "ballast").unlink()
    assert everything(path) == before
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    assert sorted(name.name for name in folder.iterdir()) == names, list(folder.iterdir())
    room += 8_192
store = Store(path)
trail = [row.what for row in store.audits(limit=9_999)]
whole = sys.argv[2] == "backup" or trail == ["prepared", *["more"] * 2_000, "restore"]
print(json.dumps([found, whole and len(store.values(A))]))
"""


@pytest.mark.root
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_a_full_disk(tmp_path: Path, verb: str) -> None:
    command = ["unshare", "-m", sys.executable, "-c", FULL, str(tmp_path), verb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, values = json.loads(done.stdout)
    assert len(found) > 20, "it was tried with ever more room"
    assert values == 3, "what succeeds is whole"
    assert all(hint for _, hint in found)
    assert {"StoreFullError"} <= {family for family, _ in found}
