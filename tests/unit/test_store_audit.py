"""The audit trail is not a guest's to fill: what one did pushes out its own alone."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID

from shim.metadata.store import Store
from shim.metadata.store_marks import AUDITS_KEPT, GUESTS_KEPT

A, B = UUID(int=1), UUID(int=2)


def test_a_guest_pushes_out_what_it_did_itself_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "m.db")
    store.audit("root (uid 0)", "policy", A, "IPv4 reset")
    store.audit("guest on tapb", "lock", B, "/")
    store.audit("guest on tapa", "lock", A, "/")
    with store.transaction():
        for number in range(GUESTS_KEPT + 300):
            store.audit("guest on tapa", "read once", A, f"{number}")
            if number % 1000 == 0:
                store.audit("root (uid 0)", "policy", A, f"{number}")
    rows = store.audits(A, 0, 1 << 20)
    guests = [row.detail for row in rows if row.who == "guest on tapa"]
    assert guests == [str(number) for number in range(300, GUESTS_KEPT + 300)]
    assert [row.detail for row in rows if row.who != "guest on tapa"] == ["IPv4 reset", "0", "1000", "2000"]
    assert [(row.who, row.what) for row in store.audits(B)] == [("guest on tapb", "lock")]
    store.close()


def test_it_takes_no_longer_where_there_is_much(tmp_path: Path) -> None:
    """A full trail, most of it about one instance."""
    store = Store(tmp_path / "m.db")
    with store.transaction():
        rows = [(1.0, "root (uid 0)", str(A), "policy", "") for _ in range(AUDITS_KEPT)]
        store._db.executemany("INSERT INTO audit (at, who, instance, what, detail) VALUES (?, ?, ?, ?, ?)", rows)
    began = time.perf_counter()
    with store.transaction():
        for _ in range(10):
            store.audit("guest on tapa", "read once", A, "x")
    assert time.perf_counter() - began < 2
    store.close()
