"""The table of clients in README, made of what came of running them.

    make compat        runs them, and writes it; or, of the last runs: python -m tests.clients.compat
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.clients.catalogue import CLIENTS
from tests.clients.client import BOTH, Client, Run, version
from tests.clients.sites import OFF, OPTIONAL, REQUIRED

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "build" / "clients.json"
BEGIN, END = "<!-- clients: made by `make compat` -->\n", "<!-- /clients -->\n"
HEAD = (
    "client", "version", "from", "face", "over", "tokens", "eBPF", "nftables", "documents", "Nova", "",
)  # fmt: skip
VERSION = HEAD.index("version")


def keep(result: Run) -> None:
    """Put it where `main` looks for it, in the place of what came of that way before."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = {_way(one): one for one in _read(file.read())}
        known[_way(result)] = result
        file.seek(0)
        file.truncate()
        file.write(json.dumps([dataclasses.asdict(one) for one in known.values()], indent=1) + "\n")


def _read(text: str) -> list[Run]:
    return [Run(**one) for one in json.loads(text or "[]")]


def _way(result: Run) -> tuple[str, ...]:
    return result.client, result.datapath, result.backend, result.address, result.tokens


def row(client: Client, results: Iterable[Run]) -> tuple[str, ...]:
    """What is known of it. A way in which it was not run is a dash; one in which any run failed is `no`."""
    own = [result for result in results if result.client == client.key]
    over = [address for address in client.addresses if _all(one for one in own if one.address == address) == "yes"]
    return (
        client.name,
        version(client),
        client.origin if client.package == client.name else f"{client.origin}, `{client.package}`",
        client.face,
        ", ".join(over),
        _tokens(own),
        *(_all(one for one in own if one.datapath == datapath) for datapath in ("ebpf", "nft")),
        *(_all(one for one in own if one.backend == backend) for backend in BOTH),
        client.note,
    )


def _all(results: Iterable[Run]) -> str:
    errors = [result.error for result in results]
    return "–" if not errors else "no" if any(errors) else "yes"


def _tokens(results: Sequence[Run]) -> str:
    """Those with which it found what it had to: v2 where it has to bring one, v1 where it gets none."""
    works = {mode: _all(one for one in results if one.tokens == mode) for mode in (REQUIRED, OFF, OPTIONAL)}
    found = [name for name, mode in (("v2", REQUIRED), ("v1", OFF)) if works[mode] == "yes"]
    return ", ".join(found) or "–"


def table(results: Sequence[Run]) -> str:
    """All rows, in the catalogue's order."""
    rows = [HEAD, ("---",) * len(HEAD), *(row(client, results) for client in CLIENTS)]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in rows)


def written() -> list[tuple[str, ...]]:
    """README's rows."""
    _, _, rest = README.read_text().partition(BEGIN)
    lines = rest.partition(END)[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("|")]


def differences(results: Sequence[Run]) -> list[str]:
    """What README says in another way than these runs. Versions are those of the machine, and not compared."""
    known = {cells[:1] + cells[2:4]: cells for cells in written()}
    found = [] if len(known) == len(CLIENTS) else [f"README has {len(known)} rows for {len(CLIENTS)} clients"]
    for client in CLIENTS:
        if not _was_run(client, results):
            continue
        cells = row(client, results)
        old = known.get(cells[:1] + cells[2:4])
        if old is None or _but_version(old) != _but_version(cells):
            found.append(f"README: {old}; now: {cells}")
    return found


def _was_run(client: Client, results: Sequence[Run]) -> bool:
    """In every way in which it has to be."""
    found = {_way(result) for result in results}
    return all(
        (client.key, datapath, backend, place.address, place.tokens) in found
        for datapath in ("ebpf", "nft")
        for backend in BOTH
        for place in client.places(datapath, backend)
    )


def _but_version(cells: tuple[str, ...]) -> tuple[str, ...]:
    return cells[:VERSION] + cells[VERSION + 1 :]


def main() -> None:
    results = _read(RESULTS.read_text() if RESULTS.exists() else "")
    if missing := [client.key for client in CLIENTS if not _was_run(client, results)]:
        sys.exit(f"not run yet in all ways, as `make compat` does: {', '.join(missing)}")
    pattern = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.DOTALL)
    text = README.read_text()
    assert pattern.search(text), f"README.md has no section between {BEGIN!r} and {END!r}"
    README.write_text(pattern.sub(lambda found: found[1] + table(results) + found[2], text))


if __name__ == "__main__":
    main()
