"""The store: documents, policies, attachments, transactions, and the modes of its files."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.policy import Access, Policy, Tokens
from shim.errors import ConflictError, InputError, StoreError
from shim.metadata.document import Document
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.unit.store_hall import A, B, clock, named, path, reopened, store

__all__ = ["clock", "path", "store"]


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
