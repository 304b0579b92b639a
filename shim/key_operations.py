"""What operators do with guests' keys: see Operations for the methods."""

from __future__ import annotations

from uuid import UUID

from shim.control import live_shapes as live
from shim.control.operations import ChangedError, Keys
from shim.core.ask import Etags, Outcome
from shim.core.kv import Value
from shim.core.source import Reads
from shim.errors import ConflictError, InputError, NotFoundError
from shim.held import Held, to_its_end


class KeyOperations(Held):
    """See Operations for the methods."""

    async def kv(self, instance: UUID, prefix: str) -> Keys:
        found = self._store.values(instance, prefix)
        here = (one for one in found.values() if not prefix or one.key == prefix or one.key.startswith(prefix + "/"))
        return Keys(tuple(sorted(here, key=lambda one: one.key)), self._changes.last)

    @to_its_end
    async def put_key(
        self, instance: UUID, value: Value, if_match: Etags | None, if_none_match: Etags | None, *, who: str
    ) -> live.KeyWrittenView:
        if not value.body and value.reads is Reads.ONCE:
            raise InputError("a value to be read once is empty", "its last byte is what tells that it was read")
        async with self.writing:
            with self._store.transaction():
                outcome = self._store.put_value(instance, value, if_match=if_match, if_none_match=if_none_match)
                _done(outcome, value.key)
                revision = self._store.revision()
                if value.reads is not Reads.MANY:  # what is a secret; of others there may be thousands an hour
                    self._store.audit(who, "key put", instance, f"{value.key}, {value.reads.value}")
            self._changes.put(instance, value.key, outcome.etag, len(value.body))
            await self._published()
        return live.KeyWrittenView(value.key, outcome.etag, revision, outcome.created)

    @to_its_end
    async def delete_key(self, instance: UUID, key: str, if_match: Etags | None, *, who: str) -> None:
        async with self.writing:
            before = self._store.value(instance, key)
            with self._store.transaction():
                _done(self._store.delete_value(instance, key, if_match=if_match), key)
                if before is not None and before.reads is not Reads.MANY:
                    self._store.audit(who, "key remove", instance, f"{key}, {before.reads.value}")
            self._changes.deleted(instance, key)
            await self._published()

    async def kv_changes(self, after: int, wait: float, instance: UUID | None, prefix: str) -> live.ChangesView:
        return await self._changes.after(after, wait, instance, prefix)


def _done(outcome: Outcome, key: str) -> None:
    """Nothing, if it was done. Raises what the operator is told."""
    if outcome.fate == "absent":
        raise NotFoundError(f"there is no key {key}", "`metashim kv list` shows those that there are")
    if outcome.fate == "changed":
        raise ChangedError(f"{key} is another by now, or is not there", "read it again, then write with its new tag")
    if outcome.fate == "clash":
        raise ConflictError(f"{key}: {outcome.words}", "a key is either a value or a folder of keys: choose another")
    if outcome.fate != "done":
        raise InputError(f"{key}: {outcome.words or outcome.fate}", "shorten it, or delete others first")
