"""A copy of the store while an agent runs, and putting one back while none does.

What guests did cannot be undone by putting a copy back: what they locked, what they used up of what is still the same,
and what they reported is taken over from the store that was there, and the audit trail goes on.

The order in which a store is put in place (the agent is stopped; workers may go on reading):

    1. All of the new one is made beside the old, and is on the disk.
    2. The old one's log is moved into its main file, which then is all of it.
    3. Its -shm and then its empty -wal are removed: with a file that is not theirs they would be its ruin.
    4. The old one gets a second name, under which it is kept; the new one gets the store's.

Killed before the end of 4 the old one is in place, and whole; then the new one is. Readers see 3 and 4 by inodes
(reader.py). A damaged store whose log cannot be moved keeps it, under the second name.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from shim.errors import ConflictError, InputError, StoreError
from shim.metadata.former import Former
from shim.metadata.schema import RESTORE, examine, explain, explained, is_fresh
from shim.metadata.store import Store

BUSY_SECONDS = 5.0
UNKNOWN_REVISIONS = 1_000_000_000
"""How far revisions go on where the last one of the store that was there cannot be read: beyond all of its own."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy is: its bytes, and the last revision in it."""

    bytes: int
    revision: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it.

    revision  of the store now
    kept      where the one that was there lies now; empty: there was none
    locks, used_up, reports, audit
              how much of these was taken over from that
    lost      what could not be read there, in words: nothing was taken over of that
    again     sources and keys (`host/base`, `UUID host/key`) that can be read only once, and that were written again or
              removed since the copy was made: who had read them can read them once more
    """

    revision: int
    kept: str = ""
    locks: int = 0
    used_up: int = 0
    reports: int = 0
    audit: int = 0
    lost: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


def backup(store: Path, target: Path, *, overwrite: bool = False) -> Copied:
    """Copy a store as of one moment to a file of its own (mode 0600), whether an agent runs or not, and check the copy.

    Raises ConflictError if `target` is there, StoreError if either cannot be used or the store is damaged; then
    `target` is as it was.
    """
    with explained(target):
        _may_be_written(target, store, overwrite)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(descriptor)
    partial = Path(name)
    try:
        revision = _copy(store, partial)
        with explained(target):
            _sync(partial)
            if overwrite:
                partial.replace(target)
            else:
                _give_name(partial, target)
            _sync(target.parent)
            return Copied(target.stat().st_size, revision)
    finally:
        _remove(partial)


def restore(
    source: Path, store: Path, gid: int | None = None, *, who: str = "operator", clock: Callable[[], float] = time.time
) -> Restored:
    """Put a backup in a store's place. Only while no agent runs: the caller holds its lock.

    `gid` as of Store. Raises ConflictError if somebody else holds the store, StoreError if the backup is none, is
    damaged or a newer metashim's, or if there is no room; then the store is as it was.
    """
    if not source.exists():
        raise InputError(f"there is no {source}", "name a file that `metashim backup` wrote")
    if store.exists() and store.samefile(source):
        raise ConflictError(f"{source} is the store itself", "name a file that `metashim backup` wrote")
    store = store.resolve()  # SQLite's own names for what belongs to it are beside the file itself
    fresh = Path(f"{store}.restoring")
    _clear_up(fresh, store)
    try:
        with explained(fresh):
            _make_folder(store.parent, gid)
            os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        _copy_in(source, fresh)
        former = Former.of(store)
        new = _New(fresh, gid, clock)
        try:
            restored = new.take_over(former, who, source)
            new.settle()
        finally:
            new.close()
        with explained(store):
            return _put_in_place(fresh, store, int(clock()), restored)
    finally:
        _remove(fresh)


def _clear_up(fresh: Path, store: Path) -> None:
    """What one that was killed left: half a copy, or a second name of the store that is in use still. Under that SQLite
    would give it a log of its own."""
    _remove(fresh)
    for name in store.parent.glob(f"{store.name}.before-restore-*"):
        if store.exists() and name.samefile(store):
            name.unlink()


def _make_folder(folder: Path, gid: int | None) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o750)
        if gid is not None:
            os.chown(folder, -1, gid)


def _copy_in(source: Path, fresh: Path) -> None:
    try:
        _copy(source, fresh)
    except StoreError as error:
        if error.hint != RESTORE:
            raise
        raise StoreError(str(error), "name another backup; nothing was changed") from error


class _New(Store):
    """The backup's copy, on its way to be the store."""

    def settle(self) -> None:
        """Have all of it in the main file: what closing does too, but silently fails at on a full disk."""
        self._read("PRAGMA wal_checkpoint(TRUNCATE)")

    def take_over(self, former: Former, who: str, source: Path) -> Restored:
        """What must not be undone; and revisions go on above both, at a point from where all must be looked at anew."""
        with self.transaction(), explained(self.path):
            last = self.revision()
            known = former.last if former.last is not None else last + UNKNOWN_REVISIONS * former.exists
            revision = max(last, known) + 1
            self._write("UPDATE counter SET last = ?, beginning = ?", revision, revision)
            used_up = self._take_over_spent(former) + self._take_over_files(former)
            restored = Restored(
                self.revision(),
                locks=self._each("INSERT OR IGNORE INTO latches VALUES (?, ?, ?)", former.latches),
                used_up=used_up,
                reports=self._each("INSERT OR IGNORE INTO reports VALUES (?, ?, ?)", former.reports),
                audit=self._take_over_audit(former),
                lost=former.lost,
                again=self._again(former),
            )
            self.audit(who, "restore", detail=f"the copy {source}")
        return restored

    def _each(self, statement: str, rows: list[tuple[object, ...]]) -> int:
        return sum(self._write(statement, *row) for row in rows)

    def _take_over_files(self, former: Former) -> int:
        """The watched folder is not as it was when the copy was made: what somebody has used up of it would come back
        as new at the agent's next start. An operator's source of that name holds."""
        count = 0
        for file in former.files:
            here = self.source(file.scope, file.name)
            if here is None or (here.origin == file.origin and here.revision != file.revision):
                revision = self.put_source(file)
                former.once.add(("", file.scope.text, file.name, revision))
                for one in former.spent:
                    if one.revision == file.revision and one.scope == file.scope.text:
                        put = "INSERT OR IGNORE INTO spent (instance, revision, at) VALUES (?, ?, ?)"
                        count += self._write(put, one.instance, revision, one.at)
        return count

    def _take_over_spent(self, former: Former) -> int:
        """Of what is the same here."""
        put = "INSERT OR IGNORE INTO spent (instance, revision, at) SELECT ?, revision, ? FROM"
        return sum(
            self._write(
                f"{put} sources WHERE scope = ? AND name = ? AND revision = ?",
                one.instance, one.at, one.scope, one.name, one.revision,
            )
            if one.scope
            else self._write(
                f"{put} kv WHERE instance = ? AND key = ? AND revision = ?",
                one.instance, one.at, one.instance, one.name, one.revision,
            )
            for one in former.spent
        )  # fmt: skip

    def _take_over_audit(self, former: Former) -> int:
        """The rows that are not here, each with its sequence where that is free, all others behind."""
        texts = "SELECT seq, at || who || coalesce(instance, '') || what || detail FROM audit"
        here: dict[int, str] = dict(self._read(texts))
        last, count = max(here, default=0), 0
        for seq, text, *row in former.audit:
            if here.get(seq) != text:
                last, count = max(seq, last + 1), count + 1
                self._write("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)", last, *row)
        return count

    def _again(self, former: Former) -> tuple[str, ...]:
        once = "reads <> 'many'"
        sources = self._read(f"SELECT '', scope, name, revision, scope || '/' || name FROM sources WHERE {once}")
        keys = self._read(f"SELECT instance, '', key, revision, instance || ' ' || key FROM kv WHERE {once}")
        return tuple(sorted(text for *thing, text in (*sources, *keys) if tuple(thing) not in former.once))


def _may_be_written(target: Path, store: Path, overwrite: bool) -> None:
    if not store.exists():
        raise StoreError(f"there is no store {store}", "the agent makes it: did it ever run, with this state_dir?")
    if target.is_dir():
        raise InputError(f"{target} is a folder", "name a file in it")
    if target.exists() and target.samefile(store):
        raise ConflictError(f"{target} is the store itself", "name another file")
    if target.name.removesuffix("-wal").removesuffix("-shm") == store.name and target.parent.samefile(store.parent):
        raise ConflictError(f"{target} is a part of the store", "name another file")
    if os.path.lexists(target) and not overwrite:
        raise ConflictError(f"{target} is there already", "name another file, or say that it is to be overwritten")


def _copy(source: Path, target: Path) -> int:
    """Copy and check; `target` is there, and empty. It is one file afterwards, without a log. The last revision."""
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        with explained(source), _reading(source) as db:
            if is_fresh(db, source):
                raise StoreError(f"{source} is empty", "nothing was changed; name another file")
            with explained(target):
                copy.execute("PRAGMA synchronous = OFF")  # nobody else's before it is synchronized
                db.backup(copy)
        with explained(target):
            copy.execute("PRAGMA journal_mode = DELETE")
        with explained(source):
            examine(copy, source, "integrity_check")
            return int(copy.execute("SELECT max(last) FROM counter").fetchone()[0] or 0)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody's store to be read, beside its writer; or at rest where nothing can be written."""
    db = _connected(path, "mode=ro")
    try:
        try:
            db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or _size(_log(path)):
                raise
            db.close()
            db = _connected(path, "mode=ro&immutable=1")
        yield db
    finally:
        db.close()


def _connected(path: Path, options: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _put_in_place(fresh: Path, store: Path, now: int, restored: Restored) -> Restored:
    _sync(fresh)
    there = store.exists()
    whole = there and _settle(store)
    kept = _free_name(store, now)
    if not whole:  # damaged; or it was moved away, and its log is not
        with contextlib.suppress(FileNotFoundError):
            os.link(_log(store), _log(kept))
    _sync(store.parent)
    Path(f"{store}-shm").unlink(missing_ok=True)
    _log(store).unlink(missing_ok=True)
    _sync(store.parent)
    if there:
        os.link(store, kept)
    _sync(store.parent)
    fresh.rename(store)
    _sync(store.parent)
    for old in (kept, _log(kept)):
        if old.exists():
            old.chmod(0o600)
    return replace(restored, kept=str(kept) if there else "")


def _settle(store: Path) -> bool:
    """Move a store's log into its main file; whether that can be done. Raises ConflictError where somebody holds it."""
    try:
        with contextlib.closing(_connected(store, "mode=rw")) as db:
            held = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            return False
        raise explain(store, error) from error
    if held or _size(_log(store)):
        raise ConflictError(f"another process holds the store {store}", "end it; is an sqlite3 shell at work?")
    return True


def _free_name(store: Path, now: int) -> Path:
    while os.path.lexists(f"{store}.before-restore-{now}"):
        now += 1
    return Path(f"{store}.before-restore-{now}")


def _give_name(partial: Path, target: Path) -> None:
    """Raises ConflictError if somebody else has it by now."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise ConflictError(f"{target} is there already", "name another file") from None
    except OSError:  # a file system without links
        partial.rename(target)


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{end}").unlink(missing_ok=True)
