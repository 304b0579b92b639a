"""The rows that need many ports: a site that grows, whose agent is started anew at each size."""

from __future__ import annotations

from bench import memory, toggle
from bench.figures import Figure
from bench.site import site

SIZES = (1, 10, 1_000, 10_000)
TOGGLED = (1, 1_000, 10_000)
WEIGHED = (10, 1_000, 10_000)
GUESTS = 4
"""Guests that ask for metadata, where memory is weighed; guest 0 is the one that is disabled."""


def measure(wanted: set[str]) -> list[Figure]:
    """Figures of `toggle`, of `memory`, and of starting with that many taps."""
    with site() as here:
        disabled = here.quiet_guest(0)
        guests = []
        figures: list[Figure] = []
        started: dict[int, float] = {}
        there = 1
        for size in SIZES:
            if size > 1 and not guests:
                guests = [here.guest(number) for number in range(1, GUESTS + 1)]
                there += GUESTS
            here.taps(range(there, size))
            there = size
            here.know(range(size))
            started[size] = here.start(size)
            if "memory" in wanted and size in WEIGHED:
                figures += memory.measure(here, guests, size)
            if "toggle" in wanted and size in TOGGLED:
                figures += toggle.measure(here, disabled, size)
            here.forget()
        return figures + _starts(started)


def _starts(started: dict[int, float]) -> list[Figure]:
    """A cold start: no filter is on any tap, and no program in the kernel."""
    return [
        Figure(f"cold start, {size:,} ports", seconds, "s", started[1], "one port")
        for size, seconds in started.items()
        if size >= 1_000
    ]
