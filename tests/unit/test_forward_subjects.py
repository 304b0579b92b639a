"""Who a backend is told that asks: the source's word, then the document's."""

from __future__ import annotations

from uuid import UUID

import pytest

from shim.core.exchange import Subject
from shim.core.policy import Policy
from shim.errors import StoreError
from shim.forward.identify import Entry
from shim.forward.subjects import Subjects

A, B = UUID(int=1), UUID(int=2)


class Documents:
    """Documents of one project each, which can break."""

    def __init__(self) -> None:
        self.version = 0
        self.project = "p1"
        self.broken = False
        self.reads = 0
        self.subjects = Subjects(self._version, self._read)

    def _version(self) -> int:
        if self.broken:
            raise StoreError("gone")
        self.version += 1  # so that every look sees a change
        return self.version

    def _read(self, instance: UUID) -> Subject:
        self.reads += 1
        return Subject(instance, self.project, "10.0.0.9")


def entry(instance: UUID = A, project: str = "", address: str = "") -> Entry:
    return Entry(1, 1, instance, Policy(), project, address)


@pytest.mark.parametrize(
    ("project", "address", "expected"),
    [
        ("", "", ("p1", "10.0.0.9")),
        ("p2", "", ("p2", "10.0.0.9")),
        ("", "10.0.0.1", ("p1", "10.0.0.1")),
        ("p2", "10.0.0.1", ("p2", "10.0.0.1")),
    ],
)
def test_what_the_source_says_comes_first(project: str, address: str, expected: tuple[str, str]) -> None:
    found = Documents().subjects.of(entry(project=project, address=address))
    assert (found.instance, found.project, found.address) == (A, *expected)


def test_a_source_that_says_all_spares_the_store() -> None:
    documents = Documents()
    documents.broken = True
    assert documents.subjects.of(entry(project="p", address="a")).project == "p"
    assert documents.reads == 0


def test_a_store_that_cannot_be_read_leaves_gaps_and_is_asked_again() -> None:
    documents = Documents()
    documents.broken = True
    assert documents.subjects.of(entry(address="10.0.0.1")) == Subject(A, "", "10.0.0.1")
    documents.broken = False
    assert documents.subjects.of(entry()).project == "p1"


def test_an_entry_has_one_subject_while_the_store_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[UUID] = []
    state = [1]

    def read(instance: UUID) -> Subject:
        reads.append(instance)
        return Subject(instance, f"p{state[0]}")

    kept = Subjects(lambda: state[0], read)
    monkeypatch.setattr("shim.forward.fresh.CHECK_SECONDS", 0.0)
    one, two = entry(A), Entry(2, 1, B, Policy())
    first = kept.of(one)
    assert kept.of(two).instance == B and kept.of(one) is first
    assert reads == [A, B]
    state[0] = 2
    assert kept.of(one).project == "p2"


def test_the_next_owner_of_a_slot_has_another_subject() -> None:
    kept = Subjects(lambda: 1, lambda instance: Subject(instance, str(instance.int)))
    assert kept.of(entry(A)).project == "1"
    assert kept.of(entry(B)).project == "2"
    full = entry(A, "p", "10.0.0.1")
    assert kept.of(full) is kept.of(full)
    assert kept.of(entry(A, "q", "10.0.0.1")).project == "q"
