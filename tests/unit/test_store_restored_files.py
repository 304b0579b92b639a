"""A copy put back beside a watched folder of sources: what was read once of the folder's files stays read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.source import HOST, Reads, Source
from shim.metadata.archive import backup, restore
from shim.metadata.store import Store

A, B = UUID(int=1), UUID(int=2)


def secret(body: bytes = b"#!/bin/sh\n: 1\n", name: str = "secret", **more: object) -> Source:
    return Source(HOST, name, body, reads=Reads.ONCE, **more)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.db"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(path)
    yield made
    made.close()


def spend(store: Store, instance: UUID, name: str = "secret") -> str:
    """The guest reads it; its item."""
    source = store.source(HOST, name)
    assert source is not None and store.spend(instance, [source.item]) == (source.item,)
    return source.item


def readable(path: Path, wanted: list[Source], instance: UUID) -> list[str]:
    """What the instance can read once the agent has started again and looked at the folder."""
    store = Store(path)
    store.replace_directory(wanted)
    found = [one.name for one in store.sources_for([HOST], instance)]
    store.close()
    return found


def test_a_file_that_came_after_the_copy(store: Store, path: Path, copy: Path) -> None:
    backup(path, copy)
    store.replace_directory([secret()])
    spend(store, A)
    store.close()
    restored = restore(copy, path)
    assert restored.used_up == 1 and restored.again == ()
    store = Store(path)
    assert store.revision() == restored.revision
    store.close()
    assert readable(path, [secret()], A) == []
    assert readable(path, [secret()], B) == ["secret"], "who has not read it can"
    assert readable(path, [secret(b"#!/bin/sh\n: 2\n")], A) == ["secret"], "another one is new"


def test_a_file_that_was_edited_after_the_copy(store: Store, path: Path, copy: Path) -> None:
    store.replace_directory([secret(b"#!/bin/sh\n: old\n")])
    backup(path, copy)
    store.replace_directory([secret()])
    spend(store, A)
    store.close()
    restored = restore(copy, path)
    assert restored.again == () and restored.used_up == 1
    assert readable(path, [secret()], A) == []
    assert readable(path, [], A) == [], "and a file that is gone is gone"


def test_a_file_that_is_the_same(store: Store, path: Path, copy: Path) -> None:
    store.replace_directory([secret()])
    backup(path, copy)
    spend(store, A)
    store.close()
    assert restore(copy, path).used_up == 1
    assert readable(path, [secret()], A) == []


def test_an_operators_source_of_that_name_is_as_it_was(store: Store, path: Path, copy: Path) -> None:
    store.put_source(secret(b"#!/bin/sh\n: operator\n"))
    backup(path, copy)
    store.delete_source(HOST, "secret")
    store.replace_directory([secret()])
    spend(store, A)
    store.close()
    restored = restore(copy, path)
    store = Store(path)
    source = store.source(HOST, "secret")
    assert source is not None and source.origin == "operator" and source.body == b"#!/bin/sh\n: operator\n"
    assert restored.used_up == 0 and restored.again == ("host/secret",)
    store.close()


def test_another_hosts_copy_has_numbers_of_its_own(store: Store, path: Path, copy: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other.db")
    for number in range(5):
        other.put_source(Source(HOST, f"o{number}", b"#!x\n", reads=Reads.ONCE))
    other.close()
    backup(tmp_path / "other.db", copy)
    store.replace_directory([secret()])
    spend(store, A)
    store.close()
    restore(copy, path)
    assert readable(path, [secret()], A) == [f"o{number}" for number in range(5)]
