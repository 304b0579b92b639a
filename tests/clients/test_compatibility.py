"""Clients as the registries have them, each in a guest: what it makes of what it is told, on both datapaths, of the
documents and of the real Nova. README's table is made of these runs; see compat.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

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


@pytest.fixture(scope="module")
def wanted(request: pytest.FixtureRequest) -> list[tuple[tuple[str, str], Client, Place]]:
    """What was selected of RUNS."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return [
        (call.params["site"], call.params["client"], call.params["place"])
        for call in calls
        if call is not None and "client" in call.params
    ]


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest,
    wanted: list[tuple[tuple[str, str], Client, Place]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, Place], Future[Run]]]:
    """All that is wanted of a site, begun there at once."""
    where = request.param
    if where[1] == NOVA:
        require_nova()
    homes = tmp_path_factory.mktemp("homes")
    with sites.opened(*where) as site, ThreadPoolExecutor(AT_ONCE) as threads:
        chosen = [(client, place) for at, client, place in wanted if at == where]
        begun = {
            (client.key, place): threads.submit(run, client, site, place, homes / str(number))
            for number, (client, place) in enumerate(chosen)
        }
        try:
            yield begun
        finally:
            for one in begun.values():
                one.cancel()


@pytest.fixture(scope="module")
def results() -> list[Run]:
    """Of this session, in its order."""
    return []


@pytest.mark.parametrize(("site", "client", "place"), RUNS, indirect=["site"])
def test_client(site, client, place, results):
    result = site[client.key, place].result()
    results.append(result)
    assert not result.error, result.error


def test_the_table_says_what_came_of_it(results, wanted):
    """README has it as these runs make it, `make compat` writes it. Of a client that was not run everywhere, and where
    no more than some were chosen, no row is compared."""
    compat.keep(results, whole=len(wanted) == len(RUNS))
    assert compat.differences(results) == []
