"""The agent's side of the store: all that is kept of instances, in one SQLite file.

The write-ahead log lets the unprivileged proxy read (see reader.py) without ever waiting for a writer, and
leaves the last committed state behind a `kill -9` at any moment; FULL synchronous keeps it over a power cut.
One Store is for one thread; two may be open on one file, if they do not write at the same time. Failures are
StoreErrors (StoreFullError: there is no room), after which nothing is half done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from shim.core.closure import parse_prefix
from shim.core.policy import Access, Auto, Composition, Policy, Routes, Tokens
from shim.errors import ConflictError
from shim.metadata.document import decode
from shim.metadata.reads import Row
from shim.metadata.schema import explained
from shim.metadata.store_kv import KvStore
from shim.metadata.store_marks import MarkStore
from shim.metadata.store_sources import SourceStore, check_until

_POLICY = "v4, v6, hop_limit, tokens, routes, composition, closed, auto"
_OF_INSTANCES = ("documents", "policies", "attachments", "kv", "latches")
_FORGOTTEN = ("documents", "policies", "kv", "spent", "latches", "reports")


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a document was written: its revision, and the time in seconds since the epoch."""

    revision: int
    changed: float


class Store(SourceStore, KvStore, MarkStore):
    """A store, made if it is not there. See StoreFile for its file and transactions, Reading for what workers read too.

    What a write concerns is told by `changes`: of documents, policies, keys, latches and what is used up, the
    instance; of a source, its scope.
    """

    def __init__(
        self,
        path: Path,
        gid: int | None = None,
        clock: Callable[[], float] = time.time,
        check: bool = True,
    ) -> None:
        self._attached: dict[tuple[str, str], UUID] = {}
        self._attached_as_of: tuple[int, int] | None = None
        super().__init__(path, gid, clock, check)

    def put_document(self, instance: UUID, raw: bytes) -> int:
        """Keep an instance's document (JSON); its new revision. Raises InputError for a wrong one."""
        decode(raw)
        with self.transaction(), explained(self.path):
            revision = self._note(f"instance:{instance}")
            self._write(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", str(instance), raw, revision, self._clock()
            )
        return revision

    def documents(self) -> dict[UUID, Stamp]:
        """Which instances have a document, and since when."""
        rows = self._read("SELECT instance, revision, changed FROM documents")
        with explained(self.path):
            return {UUID(instance): Stamp(revision, changed) for instance, revision, changed in rows}

    def delete_document(self, instance: UUID) -> bool:
        """Forget a document; whether there was one."""
        return self._delete(instance, ("documents",))

    def instances(self) -> frozenset[UUID]:
        """All instances that anything is kept of."""
        statement = " UNION ".join(f"SELECT instance FROM {table}" for table in _OF_INSTANCES)
        own = "SELECT substr(scope, 10) FROM sources WHERE scope >= 'instance:' AND scope < 'instance;'"
        rows = self._read(f"{statement} UNION {own}")
        with explained(self.path):
            return frozenset(UUID(instance) for (instance,) in rows)

    def forget(self, instance: UUID) -> bool:
        """Forget all that is kept of an instance, but whose tap it is; whether there was anything."""
        return self._delete(instance, _FORGOTTEN, "DELETE FROM sources WHERE scope = 'instance:' || ?")

    def _delete(self, instance: UUID, tables: tuple[str, ...], *statements: str) -> bool:
        every = [*(f"DELETE FROM {table} WHERE instance = ?" for table in tables), *statements]
        with self.transaction(), explained(self.path):
            found = sum(self._write(statement, str(instance)) for statement in every) > 0
            if found:
                self._note(f"instance:{instance}")
        return found

    def put_policy(self, instance: UUID, policy: Policy) -> None:
        """Keep an instance's policy, but what is `latched`: see `latches`. Raises InputError for a deadline that cannot
        be."""
        check_until(policy.auto.until if policy.auto else None)
        values = _values(policy)
        with self.transaction(), explained(self.path):
            self._write(
                f"INSERT OR REPLACE INTO policies (instance, {_POLICY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                str(instance), *values,
            )  # fmt: skip
            self._note(f"instance:{instance}")

    def policies(self) -> dict[UUID, Policy]:
        """The policies of the instances that have one of their own."""
        rows = self._read(f"SELECT instance, {_POLICY} FROM policies")
        with explained(self.path):
            return {UUID(instance): _policy(*row) for instance, *row in rows}

    def delete_policy(self, instance: UUID) -> bool:
        """Let the default policy hold again; whether there was another."""
        return self._delete(instance, ("policies",))

    def attach(self, netns: str, tap: str, instance: UUID) -> None:
        """Say whose a tap is. Raises ConflictError if it is said to be another instance's."""
        with self.transaction():
            owner = self.attachments().get((netns, tap), instance)
            if owner != instance:
                raise ConflictError(f"{tap} is attached to {owner}", f"`metashim detach {tap}` first")
            self._write("INSERT OR REPLACE INTO attachments VALUES (?, ?, ?)", netns, tap, str(instance))

    def detach(self, netns: str, tap: str) -> bool:
        """Take back an attach; whether there was one."""
        with self.transaction():
            return self._write("DELETE FROM attachments WHERE netns = ? AND tap = ?", netns, tap) > 0

    def attachments(self) -> Mapping[tuple[str, str], UUID]:
        """(namespace, tap) → instance; not to be changed. Asked for at every change of a link, so it is read again
        only after a write: `data_version` tells of others', `total_changes` of our own."""
        with explained(self.path):
            written = self._read("PRAGMA data_version")[0][0], self._db.total_changes
            if written != self._attached_as_of or self._db.in_transaction:  # which may yet be taken back
                rows: list[Row] = self._read("SELECT netns, tap, instance FROM attachments")
                self._attached = {(netns, tap): UUID(instance) for netns, tap, instance in rows}
                self._attached_as_of = None if self._db.in_transaction else written
            return self._attached


def _values(policy: Policy) -> tuple[object, ...]:
    """A policy in the columns of _POLICY."""
    return (
        policy.v4.value,
        policy.v6.value,
        policy.hop_limit,
        policy.tokens.value if policy.tokens else None,
        json.dumps(dict(policy.routes)) if policy.routes is not None else None,
        policy.composition.value if policy.composition else None,
        json.dumps(policy.closed) if policy.closed else None,
        msgspec.json.encode(policy.auto).decode() if policy.auto else None,
    )


def _policy(
    v4: str, v6: str, hop_limit: int, tokens: str | None, routes: str | None, composition: str | None,
    closed: str | None, auto: str | None,
) -> Policy:  # fmt: skip
    """A stored policy. Raises ValueError if it makes no sense here."""
    return Policy(
        Access(v4),
        Access(v6),
        hop_limit,
        Tokens(tokens) if tokens else None,
        _routes(routes),
        Composition(composition) if composition else None,
        _closed(closed),
        auto=_auto(auto),
    )


def _routes(raw: str | None) -> Routes | None:
    found = json.loads(raw) if raw is not None else None
    if found is not None and not (isinstance(found, dict) and all(isinstance(each, str) for each in found.values())):
        raise ValueError(f"{raw!r} are not routes")
    return tuple(found.items()) if found is not None else None


def _closed(raw: str | None) -> tuple[str, ...]:
    found: Any = json.loads(raw) if raw is not None else []
    if not isinstance(found, list) or any(not isinstance(each, str) or parse_prefix(each) != each for each in found):
        raise ValueError(f"{raw!r} are not prefixes")
    return tuple(found)


def _auto(raw: str | None) -> Auto | None:
    return msgspec.json.decode(raw, type=Auto) if raw is not None else None
