"""The rows that are asked for at several numbers of ports, of both datapaths: a site that grows, whose agent is started
anew at each size with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from bench import enrol, memory, toggle
from bench.figures import Figure, Limit, middle_and_tail
from bench.site import DATAPATHS, Site, site
from tests.lab import VethGuest

SIZES = (1, 10, 1_000, 10_000)
TIMED = (1, 1_000, 10_000)
WEIGHED = (10, 1_000, 10_000)
GUESTS = 4
"""Guests that ask for metadata, where memory is weighed; guest 0 is the one that is disabled."""

TOGGLE = Limit("value", most=2)
GROWTH = Limit("ratio", most=3)

Key = tuple[str, str, int]
"""A row, a datapath, a number of ports."""


def measure(wanted: set[str]) -> list[Figure]:
    """Figures of `toggle`, `enrol` and `memory`, and of starting with that many taps."""
    with site() as here:
        rows = Rows(here, wanted)
        there = 1
        for size in SIZES:
            if size > 1 and not rows.guests:
                rows.guests = [here.guest(number) for number in range(1, GUESTS + 1)]
                there += GUESTS
            here.taps(range(there, size))
            there = size
            here.know([*range(size), *enrol.TAPS])
            for datapath in DATAPATHS:
                rows.measure(datapath, size)
        return rows.figures()


def ports(number: int) -> str:
    """`1 port`, `1,000 ports`."""
    return f"{number:,} port{'s' if number > 1 else ''}"


class Rows:
    """What was measured on one site so far."""

    def __init__(self, here: Site, wanted: set[str]) -> None:
        self.guests: Sequence[VethGuest] = ()
        self._here = here
        self._wanted = wanted
        self._disabled = here.quiet_guest(0)
        self._weights: list[Figure] = []
        self._started: dict[tuple[str, int], float] = {}
        self._times: dict[Key, tuple[list[float], list[float]]] = {}

    def measure(self, datapath: str, size: int) -> None:
        """All that is wanted with one datapath at one size."""
        if size not in TIMED and "memory" not in self._wanted:
            return
        here = self._here
        self._started[datapath, size] = here.start(size, datapath)
        view = next(port for port in here.client.ports() if port.tap == "tap0")
        if "memory" in self._wanted and size in WEIGHED:
            self._weights += memory.measure(here, self.guests, size, datapath)
        timed = {
            "toggle": (
                lambda: toggle.measure(here, self._disabled),
                lambda: toggle.measure_by_hand(here, self._disabled, datapath, view),
            ),
            "enrol": (lambda: enrol.measure(here), lambda: enrol.measure_by_hand(here, datapath, view)),
        }
        if size in TIMED:
            self._time({name: both for name, both in timed.items() if name in self._wanted}, datapath, size)
        here.forget()

    def _time(
        self, rows: dict[str, tuple[Callable[[], list[float]], Callable[[], list[float]]]], datapath: str, size: int
    ) -> None:
        """What the agent takes, all rows of it first: it would mend what is done by hand."""
        ours = {name: measure() for name, (measure, _) in rows.items()}
        self._here.leave()
        for name, (_, by_hand) in rows.items():
            self._times[name, datapath, size] = ours[name], by_hand()

    def figures(self) -> list[Figure]:
        """All of them, the datapaths beside each other."""
        return [*self._timed("toggle"), *self._timed("enrol"), *self._weights, *self._starts()]

    def _timed(self, row: str) -> list[Figure]:
        measured = [(d, size) for size in TIMED for d in DATAPATHS if (row, d, size) in self._times]
        found = [figure for datapath, size in measured for figure in self._at(row, datapath, size)]
        return found + [self._growth(row, datapath) for datapath, size in measured if size == TIMED[-1]]

    def _growth(self, row: str, datapath: str) -> Figure:
        at_most, at_one = (median(self._times[row, datapath, size][0]) for size in (TIMED[-1], 1))
        name = f"{_WORDS[row]}, {datapath}, {ports(TIMED[-1])} to 1"
        return Figure(name, at_most, "ms", at_one, "p50 at 1 port", GROWTH)

    def _at(self, row: str, datapath: str, size: int) -> list[Figure]:
        ours, by_hand = self._times[row, datapath, size]
        name = f"{_WORDS[row]}, {datapath}, {ports(size)}"
        if row == "toggle":
            return middle_and_tail(name, ours, "ms", by_hand, "by hand, netlink or bpf(2)", TOGGLE)
        return middle_and_tail(name, ours, "ms", by_hand, f"by hand, {_TOOLS[datapath]}", None)

    def _starts(self) -> list[Figure]:
        """Cold starts: nothing is on any tap, and no program or table in the kernel."""
        return [
            Figure(
                f"cold start, {datapath}, {ports(size)}", seconds, "s", self._started[datapath, min(TIMED)], "one port"
            )
            for (datapath, size), seconds in sorted(self._started.items())
            if size >= 1_000
        ]


_WORDS = {"toggle": "disable to refusal", "enrol": "enrol a tap"}
_TOOLS = {"ebpf": "tc(8)", "nft": "nft(8)"}
