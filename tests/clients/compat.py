"""The table of clients in README, made of what came of running them.

    make compat        runs them, and writes it; or, of the last runs: python -m tests.clients.compat
"""

from __future__ import annotations

import dataclasses
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


def keep(results: Sequence[Run], *, whole: bool) -> None:
    """Put them where `main` looks for them, if they are all."""
    if whole:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([dataclasses.asdict(result) for result in results], indent=1) + "\n")


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
    ways = sum(len(client.places(datapath, backend)) for datapath in ("ebpf", "nft") for backend in BOTH)
    return sum(result.client == client.key for result in results) == ways


def _but_version(cells: tuple[str, ...]) -> tuple[str, ...]:
    return cells[:VERSION] + cells[VERSION + 1 :]


def main() -> None:
    if not RESULTS.exists():
        sys.exit(f"{RESULTS.relative_to(ROOT)} is not there: run tests/clients, all of it, before: `make compat` does")
    results = [Run(**result) for result in json.loads(RESULTS.read_text())]
    pattern = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.DOTALL)
    text = README.read_text()
    assert pattern.search(text), f"README.md has no section between {BEGIN!r} and {END!r}"
    README.write_text(pattern.sub(lambda found: found[1] + table(results) + found[2], text))


if __name__ == "__main__":
    main()
