"""The store's keys: written under conditions and within limits.

A key that cannot be read any more (used up, or after its deadline) is as if it were not there: it clashes with none,
counts for no limit, and is no match for a condition.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from shim.core.ask import Outcome
from shim.core.kv import KvLimits, Value, etag, parse_key
from shim.errors import InputError
from shim.metadata.reads import LIVE
from shim.metadata.schema import explained
from shim.metadata.store_file import StoreFile
from shim.metadata.store_sources import check_until

Etags = tuple[str, ...]

GUESTS = "guest/"

_HELD = f"""SELECT revision, {LIVE} AS live, length(body), CASE WHEN :whole THEN body END
    FROM kv WHERE instance = :instance AND key = :key"""
_IN_THE_WAY = f"""SELECT key, revision, {LIVE} AS live FROM kv
    WHERE instance = :instance AND (key > :key || '/' AND key < :key || '0' OR key IN ({{marks}}))"""
_TAKEN = f"""SELECT count(*), total(length(key) + length(body)) FROM kv
    WHERE instance = :instance AND key > 'guest/' AND key < 'guest0' AND key <> :key AND {LIVE}"""

ABSENT = Outcome("absent", words="there is no such key")
CHANGED = Outcome("changed", words="the key is not as the condition says")
CLASH = Outcome("clash", words="a key cannot be a folder of others as well")


class _Held(NamedTuple):
    """What is there: its revision, whether it can be read, and its bytes; `etag` where conditions ask for it."""

    revision: int
    live: bool
    size: int
    etag: str


class _InTheWay(NamedTuple):
    """A key that cannot be beside another; `live`: it can be read."""

    key: str
    revision: int
    live: bool


class KvStore(StoreFile):
    """See Store."""

    def put_value(
        self,
        instance: UUID,
        value: Value,
        *,
        if_match: Etags | None = None,
        if_none_match: Etags | None = None,
        limits: KvLimits | None = None,
    ) -> Outcome:
        """Keep what a key holds, if the conditions hold: entity tags without quotes, `*` for any.

        `limits` are looked at for keys below guest/ only; what is too large already may shrink. done (with `etag` and
        `created`), changed, clash or quota. Raises InputError for a key or deadline that cannot be.
        """
        _check(value)
        with self.transaction(), explained(self.path):
            held = self._held(instance, value.key, whole=if_match is not None or if_none_match is not None)
            live = held if held is not None and held.live else None
            tag = live.etag if live is not None else None
            if (if_match is not None and not _among(tag, if_match)) or _among(tag, if_none_match or ()):
                return CHANGED
            others = self._in_the_way(instance, value.key)
            if any(other.live for other in others):
                return CLASH
            if limits is not None and value.key.startswith(GUESTS):
                words = self._over(instance, value, live.size if live is not None else None, limits)
                if words:
                    return Outcome("quota", words=words)
            for other in others:
                self._forget_key(instance, other.key, other.revision)
            self._put(instance, value, held)
        return Outcome("done", etag=value.etag, created=live is None)

    def _put(self, instance: UUID, value: Value, held: _Held | None) -> None:
        if held is not None:
            self._write("DELETE FROM spent WHERE revision = ?", held.revision)
        revision = self._note(f"instance:{instance}")
        self._write(
            "INSERT OR REPLACE INTO kv (instance, key, reads, until, revision, changed, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            str(instance), value.key, value.reads.value, value.until, revision, self._clock(), value.body,
        )  # fmt: skip

    def delete_value(self, instance: UUID, key: str, *, if_match: Etags | None = None) -> Outcome:
        """Forget a key: done, absent (what could not be read any more is gone as well), or changed."""
        with self.transaction(), explained(self.path):
            held = self._held(instance, key, whole=if_match is not None) if key.isascii() else None
            if held is None:
                return ABSENT
            if held.live and if_match is not None and not _among(held.etag, if_match):
                return CHANGED
            self._forget_key(instance, key, held.revision)
            self._note(f"instance:{instance}")
        return Outcome("done") if held.live else ABSENT

    def _forget_key(self, instance: UUID, key: str, revision: int) -> None:
        self._write("DELETE FROM spent WHERE revision = ?", revision)
        self._write("DELETE FROM kv WHERE instance = ? AND key = ?", str(instance), key)

    def kv_instances(self) -> frozenset[UUID]:
        """The instances that have keys."""
        rows = self._read("SELECT DISTINCT instance FROM kv")
        with explained(self.path):
            return frozenset(UUID(instance) for (instance,) in rows)

    def _held(self, instance: UUID, key: str, *, whole: bool) -> _Held | None:
        given = {"instance": str(instance), "key": key, "now": self._clock(), "whole": whole}
        for revision, live, size, body in self._read(_HELD, given):
            return _Held(revision, bool(live), size, etag(body) if body is not None else "")
        return None

    def _in_the_way(self, instance: UUID, key: str) -> list[_InTheWay]:
        """The keys that are folders of this one, or have it as theirs."""
        segments = key.split("/")
        folders = {f"f{n}": "/".join(segments[:n]) for n in range(2, len(segments))}
        marks = ", ".join(f":{name}" for name in folders)
        given = {"instance": str(instance), "key": key, "now": self._clock(), **folders}
        return [_InTheWay(*row) for row in self._read(_IN_THE_WAY.format(marks=marks), given)]

    def _over(self, instance: UUID, value: Value, own: int | None, limits: KvLimits) -> str:
        """Why the limits do not allow it, empty if they do. `own`: bytes that the key held, None: it was not there."""
        size = len(value.body)
        if size > limits.value_bytes:
            return f"a value has at most {limits.value_bytes} bytes"
        given = {"instance": str(instance), "key": value.key, "now": self._clock()}
        ((keys, others),) = self._read(_TAKEN, given)
        if own is None and keys >= limits.keys:
            return f"there are at most {limits.keys} keys"
        if others + len(value.key) + size > limits.total_bytes and (own is None or size > own):
            return f"all keys and values have at most {limits.total_bytes} bytes"
        return ""


def _among(tag: str | None, etags: Etags) -> bool:
    """Whether what is there (None: nothing is) is one of them."""
    return tag is not None and (tag in etags or "*" in etags)


def _check(value: Value) -> None:
    try:
        parse_key(value.key)
    except ValueError as error:
        raise InputError(str(error), "write it as in guest/app/state") from None
    check_until(value.until)
