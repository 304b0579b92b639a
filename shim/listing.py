"""What lies in a folder of sources: every file read, and what is not to be read told.

Root reads these files, and guests get them. So nobody else may write there: each folder and file must belong to root
or to whom we run as, and be writable to nobody else. Links to files are followed, but not out of the folder; links to
folders are not. A file that somebody has open for writing is not read, as half of it may be missing: it is closed some
time, which is an event.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shim.errors import InputError
from shim.metadata.folder import FILE_BYTES, OPTIONS, Fault, File, Listing, is_left_out, scope_of, shown

FILES_MAX = 10_000
ENTRIES_MAX = 4 * FILES_MAX
"""Folders, options and what is left out too."""
TOTAL_BYTES = 67_108_864

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_F_SETSIG = 10  # fcntl.h; Python has no name for it

_CHOWN = "chown it to root, and chmod go-w"
_READABLE = "see that root can read it"


def read(folder: Path, watch: Callable[[Path], None]) -> Listing:
    """All that is in `folder`. `watch` is called with every folder that matters before it is looked into: so what is
    made meanwhile is either in the listing, or an event."""
    reader = _Reader(folder, watch)
    try:
        reader.read_all()
    except (_UnfitError, _TooMuchError) as error:
        return Listing(lost=("",), faults=(error.fault,))
    except OSError as error:
        fault = Fault(f"{folder}: {error.strerror}", "see that it is there, for root to read")
        return Listing(lost=("",), faults=(fault,))
    return Listing(tuple(reader.files), tuple(reader.lost), tuple(reader.faults))


class _UnfitError(Exception):
    """A file or folder that is not to be read."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.fault = Fault(what, hint)


class _TooMuchError(Exception):
    """In all, whatever is the matter with the one file where that shows."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.fault = Fault(what, "keep fewer files there, or shorter ones")


class _Reader:
    """One look. `read_all` raises _UnfitError, _TooMuchError or OSError where none of the folder is to be believed."""

    def __init__(self, folder: Path, watch: Callable[[Path], None]) -> None:
        self.files: list[File] = []
        self.lost: list[str] = []
        self.faults: list[Fault] = []
        self._folder = folder
        self._real = folder
        self._watch = watch
        self._entries = 0
        self._bytes = 0

    def read_all(self) -> None:
        self._real = _real(self._folder)
        for path in (self._folder, *self._folder.parents, *self._real.parents):
            _trust_above(path)
        if not self._walk(""):
            hint = "if no source is to be there, keep an empty folder host in it"
            raise _UnfitError(f"{self._folder}: it is empty, as if what is mounted there were not", hint)

    def _walk(self, folder: str) -> bool:
        """Reads what is in a folder and below; whether that is anything."""
        path = self._real / folder
        self._watch(path)
        _trust(os.lstat(path), f"{shown(folder)}/" if folder else str(self._folder))
        with os.scandir(path) as found:
            names = {entry.name: entry for entry in self._counted(found) if not is_left_out(entry.name)}
        holds_files = bool(folder) and scope_of(folder) is not None
        for name, entry in sorted(names.items()):
            below = f"{folder}/{name}" if folder else name
            if entry.is_dir(follow_symlinks=False):
                self._enter(below)
            elif not holds_files and (path / name).is_dir():
                self._enter(below, link=True)
            elif not name.endswith(OPTIONS):
                self._take(below, has_options=name + OPTIONS in names)
            elif name.removesuffix(OPTIONS) not in names:
                what = f"{shown(below)}: there is no {shown(name.removesuffix(OPTIONS))}, whose options these are"
                self.faults.append(Fault(what, "rename or remove it"))
        return bool(names)

    def _counted(self, found: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in found:
            self._entries += 1
            if self._entries > ENTRIES_MAX:
                raise _TooMuchError(f"{self._folder}: more than {ENTRIES_MAX} files and folders")
            yield entry

    def _enter(self, folder: str, *, link: bool = False) -> None:
        """A folder within: what is wrong with it concerns nothing beside it."""
        try:
            scope_of(folder)
        except InputError as error:
            self.faults.append(Fault(str(error), error.hint))
            return
        try:
            if link:
                raise _UnfitError(f"{shown(folder)}: a link to a folder is not followed", "link the files in it, each")
            self._walk(folder)
        except FileNotFoundError:  # it went meanwhile
            pass
        except OSError as error:
            self._lose(folder, Fault(f"{shown(folder)}/: {error.strerror}", _READABLE))
        except _UnfitError as error:
            self._lose(folder, error.fault)

    def _lose(self, folder: str, fault: Fault) -> None:
        self.lost.append(folder)
        self.faults.append(Fault(f"{fault.what}; the last good versions of what is in it hold", fault.hint))

    def _take(self, path: str, *, has_options: bool) -> None:
        """A file, or what is wrong with it."""
        if len(self.files) >= FILES_MAX:
            raise _TooMuchError(f"{self._folder}: more than {FILES_MAX} files")
        body = self._tried(path)
        options = self._tried(path + OPTIONS) if has_options else None
        if isinstance(body, Fault):
            self.files.append(File(path, fault=body))
        elif isinstance(options, Fault) or (has_options and options is None):
            fault = options or Fault(f"{shown(path)}{OPTIONS}: it went just now", "put it back, or wait")
            self.files.append(File(path, fault=fault))
        elif body is not None:
            self.files.append(File(path, body, options))

    def _tried(self, path: str) -> bytes | Fault | None:
        """A file's bytes, or why they cannot be had; None: it went meanwhile."""
        try:
            return self._read(path)
        except _UnfitError as error:
            return error.fault
        except FileNotFoundError:
            return None
        except OSError as error:
            return Fault(f"{shown(path)}: {error.strerror}", _READABLE)

    def _read(self, path: str) -> bytes:
        """A file's bytes. Raises _UnfitError, OSError."""
        where, full = shown(path), self._real / path
        about = os.lstat(full)
        if stat.S_ISLNK(about.st_mode):
            full = self._followed(where, full)
            about = os.lstat(full)
        _check(about, where)
        with os.fdopen(os.open(full, _FLAGS), "rb") as file:
            _check(os.fstat(file.fileno()), where)
            body = file.read(FILE_BYTES + 1)
            if len(body) > FILE_BYTES:
                raise _UnfitError(f"{where}: larger than {FILE_BYTES} bytes", "shorten it, or make two of it")
            if _is_being_written(file.fileno()):
                raise _UnfitError(f"{where}: somebody has it open for writing", "it is read once it is closed")
        self._bytes += len(body)
        if self._bytes > TOTAL_BYTES:
            raise _TooMuchError(f"{self._folder}: more than {TOTAL_BYTES} bytes in all")
        return body

    def _followed(self, where: str, link: Path) -> Path:
        """The file that a link leads to; its folder is watched then."""
        try:
            target = _real(link)
        except OSError:
            raise _UnfitError(f"{where}: a link that leads nowhere", "remove it, or make what it leads to") from None
        if not target.is_relative_to(self._real):
            raise _UnfitError(f"{where}: a link that leads out of {self._folder}", "put the file itself there")
        self._watch(target.parent)
        for folder in target.relative_to(self._real).parents:
            _trust(os.lstat(self._real / folder), f"{where}: the folder {shown(str(folder))} where it leads")
        return target


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path, strict=True))


def _trust(about: os.stat_result, where: str, may_write: int = 0) -> None:
    """Raises _UnfitError where others than we and root could write it; `may_write` are bits that do not matter."""
    if about.st_uid not in (0, os.geteuid()):
        raise _UnfitError(f"{where}: it belongs to user {about.st_uid}", _CHOWN)
    if about.st_mode & _OTHERS & ~may_write:
        mode = stat.S_IMODE(about.st_mode)
        raise _UnfitError(f"{where}: others than its owner may write to it (mode {mode:04o})", _CHOWN)


def _trust_above(path: Path) -> None:
    """Raises _UnfitError where others could put another folder in the place of one that lies in this: not in a sticky
    one. A link's own mode says nothing."""
    about = os.lstat(path)
    exempt = stat.S_ISLNK(about.st_mode) or about.st_mode & stat.S_ISVTX
    _trust(about, str(path), _OTHERS if exempt else 0)


def _check(about: os.stat_result, where: str) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise _UnfitError(f"{where}: it is no file", "remove it")
    _trust(about, where)
    if about.st_size > FILE_BYTES:
        raise _UnfitError(f"{where}: {about.st_size} bytes; {FILE_BYTES} are the most", "shorten it, or make two of it")


def _is_being_written(fd: int) -> bool:
    """Whether anybody has the file open for writing: then the kernel gives no lease for reading it. The lease ends as
    the file is closed. A file system without leases does not tell."""
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)  # is ignored, where the usual SIGIO would end the process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
