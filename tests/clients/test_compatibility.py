"""Clients as the registries have them, each in a guest: what it makes of what it is told, on both datapaths, of the
documents and of the real Nova. README's table is made of these runs; see compat.py."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients import compat, sites
from tests.clients.catalogue import CLIENTS
from tests.clients.client import BOTH, Client, Run, run
from tests.clients.sites import NOVA, Place
from tests.nova.rig import require_nova

AT_ONCE = 4
"""Clients that run at the same time: most of what one does is waiting, or starting."""

SITES = tuple(itertools.product(("ebpf", "nft"), BOTH))
RUNS = [
    pytest.param(where, client, place, id="-".join((*where, client.key, place.address, place.tokens)))
    for where in SITES
    for client in CLIENTS
    for place in client.places(*where)
]


Where = tuple[str, str]


class Round:
    """The runs of one site after another: what is wanted of a site is begun as soon as it is open, all at once."""

    def __init__(self, wanted: list[tuple[Where, Client, Place]], homes: Path) -> None:
        self._wanted, self._homes = wanted, homes
        self._where: Where | None = None
        self._begun: dict[tuple[str, Place], Future[Run]] = {}
        self._open = contextlib.ExitStack()

    def result(self, where: Where, client: Client, place: Place) -> Run:
        if where != self._where:
            self.close()
            self._begin(where)
        return self._begun[client.key, place].result()

    def _begin(self, where: Where) -> None:
        if where[1] == NOVA:
            require_nova()
        site = self._open.enter_context(sites.opened(*where))
        threads = self._open.enter_context(ThreadPoolExecutor(AT_ONCE))
        chosen = [(client, place) for at, client, place in self._wanted if at == where]
        self._begun = {
            (client.key, place): threads.submit(run, client, site, place, self._homes / str(number))
            for number, (client, place) in enumerate(chosen)
        }
        self._open.callback(threads.shutdown, cancel_futures=True)
        self._where = where

    def close(self) -> None:
        self._where = None
        self._open.close()


@pytest.fixture(scope="module")
def wanted(request: pytest.FixtureRequest) -> list[tuple[Where, Client, Place]]:
    """What was selected of RUNS, in its order."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return [
        (call.params["where"], call.params["client"], call.params["place"])
        for call in calls
        if call is not None and "client" in call.params
    ]


@pytest.fixture(scope="module")
def rounds(wanted: list[tuple[Where, Client, Place]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    rounds = Round(wanted, tmp_path_factory.mktemp("homes"))
    try:
        yield rounds
    finally:
        rounds.close()


@pytest.fixture(scope="module")
def results() -> list[Run]:
    """Of this session, in its order."""
    return []


@pytest.mark.parametrize(("where", "client", "place"), RUNS)
def test_client(rounds, results, where, client, place):
    result = rounds.result(where, client, place)
    results.append(result)
    compat.keep(result)
    assert not result.error, result.error


def test_the_table_says_what_came_of_it(results):
    """README has it as these runs make it; `make compat` writes it. Of a client that was not run everywhere, as only
    some were chosen, the row is not compared."""
    assert compat.differences(results) == []
