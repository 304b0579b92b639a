"""Who a backend is told that asks: the source's word, then the document's."""

from __future__ import annotations

from uuid import UUID

import pytest

from shim.core.exchange import Subject
from shim.core.policy import Policy
from shim.errors import StoreError
from shim.forward import subjects
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


def test_what_was_read_is_kept_while_the_store_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[UUID] = []
    state = [1]

    def read(instance: UUID) -> Subject:
        reads.append(instance)
        return Subject(instance, f"p{state[0]}")

    kept = Subjects(lambda: state[0], read)
    monkeypatch.setattr("shim.forward.fresh.CHECK_SECONDS", 0.0)
    assert [kept.of(entry(one)).project for one in (A, B, A, B)] == ["p1"] * 4
    assert reads == [A, B]
    state[0] = 2
    assert kept.of(entry(A)).project == "p2"


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "MOST", 3)
    kept = Subjects(lambda: 1, Subject)
    for number in range(1, 20):
        assert kept.of(entry(UUID(int=number))).instance == UUID(int=number)
    assert len(kept._known) <= 3
