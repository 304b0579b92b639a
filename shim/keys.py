"""The agent's file of keys that session tokens are signed with: how they are made, kept, changed and forgotten.

A day's key signs; the one before it stays until all that it signed has expired. A new key is made LEAD_SECONDS before
it signs, so that every worker knows it by then. Only root may read the file. It is replaced whole (a temporary
file, fsync, rename), so a crash or a full disk leaves the old one; a file that cannot be read is never replaced
silently, for that would end every guest's session.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shim.errors import StoreError
from shim.forward.token import KEY_BYTES, TTL_MAX

DAY_SECONDS = 86_400.0
LEAD_SECONDS = 60.0
KEEP_SECONDS = TTL_MAX + 1 + LEAD_SECONDS
"""How long a key is kept after it ceased to sign: the longest life of a token, and time for workers to hear of it."""

Ring = tuple[tuple[int, bytes], ...]
"""(id, key), the one that signs first."""

_MODE = 0o600
_FILE_BYTES = 1 << 16
_KEYS_MAX = 64  # some two a day are kept; `rotate` again and again must not make the file grow for ever
_REMEDY = "restore it from a backup; or delete it and restart: guests then have to ask for new tokens"


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[int, Meta(ge=0, lt=1 << 32)]
    key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    begins: float

    def __repr__(self) -> str:
        return f"<key {self.id:08x}>"  # keys are never logged


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: Annotated[tuple[_Key, ...], Meta(min_length=1)]  # newest first


class KeyFile:
    """The keys in `path`, made at `now` (Unix time) if it is not there; its folder must be.

    Raises StoreError, which says what to do: the file is damaged, others could read it, or it cannot be made.
    """

    def __init__(self, path: Path, now: float) -> None:
        self.path = path
        found = _load(path)
        self._keys = found if found is not None else (_new((), now),)
        if found is None:
            _save(path, self._keys)

    def ring(self, now: float) -> Ring:
        """All keys that tokens hold by. What workers are to be told, whenever it is not what they were told last."""
        signing = next((key for key in self._keys if key.begins <= now), self._keys[-1])
        others = tuple(key for key in self._keys if key is not signing)
        return tuple((key.id, key.key) for key in (signing, *others))

    def turn(self, now: float) -> bool:
        """Make the next key if the day is over, forget those that nothing holds by. Whether the file changed.

        To be called every minute or so. Raises StoreError if the file cannot be written: all is as it was.
        """
        keys = self._keys
        if _is_due(keys[0], now):
            keys = (_new(keys, now + LEAD_SECONDS), *keys)
        keys = _needed(keys, now)
        if keys == self._keys:
            return False
        self._replace(keys)
        return True

    def rotate(self, now: float, *, drop_old: bool = False) -> None:
        """Make a new key. `drop_old`: nothing holds by another from now on, for when keys became known.

        Raises StoreError if the file cannot be written: all is as it was.
        """
        if drop_old:
            self._replace((_new(self._keys, now),))
        else:
            self._replace(_needed((_new(self._keys, now + LEAD_SECONDS), *self._keys), now))

    def _replace(self, keys: tuple[_Key, ...]) -> None:
        _save(self.path, keys)
        self._keys = keys


def _new(beside: tuple[_Key, ...], begins: float) -> _Key:
    taken = {key.id for key in beside}
    number = next(number for number in iter(lambda: secrets.randbits(32), None) if number not in taken)
    return _Key(number, secrets.token_bytes(KEY_BYTES), begins)


def _is_due(newest: _Key, now: float) -> bool:
    """Whether the newest key's day is over, or so far off that the clock was set back since."""
    return not newest.begins - DAY_SECONDS <= now < newest.begins + DAY_SECONDS - LEAD_SECONDS


def _needed(keys: tuple[_Key, ...], now: float) -> tuple[_Key, ...]:
    """Without those that ceased to sign, when the next newer one began, so long ago that no token of theirs is left."""
    pairs = pairwise(keys[:_KEYS_MAX])
    return (keys[0], *(older for newer, older in pairs if now < newer.begins + KEEP_SECONDS))


def _load(path: Path) -> tuple[_Key, ...] | None:
    """What the file holds; None where there is none."""
    try:
        raw = _read_private(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the token keys {path}: {error.strerror}", "see that root can read it") from error
    try:
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError):  # what they say may quote a key
        raise StoreError(f"the token keys {path}: the file is damaged", _REMEDY) from None
    if file.version != 1 or len({key.id for key in file.keys}) < len(file.keys):
        raise StoreError(f"the token keys {path}: the file is damaged, or of a newer metashim", _REMEDY)
    return file.keys


def _read_private(path: Path) -> bytes:
    """The bytes of a file that only we can have read or written."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        mode = stat.S_IMODE(about.st_mode)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or mode & 0o077:
            what = f"the token keys {path}: mode {mode:04o}, owner {about.st_uid}: others could read or change it"
            raise StoreError(what, "delete it and restart: guests then have to ask for new tokens")
        return file.read(_FILE_BYTES)


def _save(path: Path, keys: tuple[_Key, ...]) -> None:
    raw = msgspec.json.encode(_File(1, keys))
    beside = path.with_name(path.name + ".new")
    with _explained(path):
        try:
            _write(beside, raw)
            beside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        _sync_folder(path.parent)


def _write(path: Path, raw: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # a crash left it
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, _MODE), "wb") as file:
        os.fchmod(file.fileno(), _MODE)  # whatever the umask
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "see that its disk is there, writable and not full; until then the old keys stay in use"
        raise StoreError(f"the token keys {path} cannot be written: {error.strerror}", hint) from error
