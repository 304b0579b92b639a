"""How the story looks: parts, and steps with a tick and the time each took. Plain where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80
INDENT = 4
CLOCK = 9
"""Columns at the right edge that hold a step's time: `  12.3 ms`."""


class WrongError(Exception):
    """A step did not come out as it must. The message says what was expected, and what was found."""


def expect(what: str, found: object, wanted: object) -> None:
    """Raise WrongError unless `found` is what is wanted."""
    if found != wanted:
        raise WrongError(f"{what}: expected {wanted!r}, found {found!r}")


def milliseconds(seconds: float) -> str:
    """A time as people compare it: `0.31 ms`, `45.0 ms`, `1.23 s`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"


class Show:
    """Writes to standard output as it is now: verbs that are captured later do not catch this."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
        utf = (self._console.encoding or "").lower().startswith("utf")
        self._tick, self._cross = ("✓", "✗") if utf else ("+", "!")
        self._width = min(self._console.width, WIDTH) if self._console.is_terminal else WIDTH

    def _line(self, text: Text) -> None:
        """One line, never wrapped or cut by the console."""
        self._console.print(text, soft_wrap=True)

    def title(self, text: str) -> None:
        """The heading of it all."""
        self._line(Text(text, style="bold"))

    def part(self, text: str) -> None:
        """The heading of one part."""
        self._line(Text())
        self._line(Text(text, style="bold cyan"))

    def say(self, text: str, style: str = "") -> None:
        """A line of its own below a step."""
        self._line(Text(" " * INDENT + text, style=style))

    def command(self, text: str) -> None:
        """A command as an operator would type it."""
        self._line(Text(" " * INDENT + "$ " + text, style="dim"))

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A tick when the block ends well, a cross when it raises; and how long it took."""
        began = time.perf_counter()
        waiting = self._console.status(Text(text)) if self._console.is_terminal else contextlib.nullcontext()
        try:
            with waiting:
                yield
        except BaseException:
            self._done(self._cross, "bold red", text, time.perf_counter() - began)
            raise
        self._done(self._tick, "green", text, time.perf_counter() - began)

    def fact(self, text: str, seconds: float) -> None:
        """A tick for what was measured apart from the step it belongs to."""
        self._done(self._tick, "green", text, seconds)

    def restore(self) -> None:
        """Give the terminal back whole after a story that was cut off while it waited."""
        if self._console.is_terminal:
            self._console.print("\r", end="")
            self._console.show_cursor(True)

    def result(self, text: str, *, well: bool) -> None:
        """The last line: a tick or a cross."""
        mark, style = (self._tick, "bold green") if well else (self._cross, "bold red")
        self._line(Text.assemble((f"  {mark} ", style), (text, "bold")))

    def _done(self, mark: str, style: str, text: str, seconds: float) -> None:
        took = milliseconds(seconds)
        room = self._width - INDENT - CLOCK
        padding = " " * max(1, room - cell_len(text) + CLOCK - len(took))
        self._line(Text.assemble((f"  {mark} ", style), text, (padding + took, "dim")))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows under their heads."""
        shown = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for row in rows:
            shown.add_row(*(Text(cell) for cell in row))
        for column in shown.columns:
            column.no_wrap = True
        with self._console.capture() as drawn:
            self._console.print(shown, soft_wrap=True)
        for line in drawn.get().splitlines():
            self._line(Text(" " * INDENT) + Text.from_ansi(line.rstrip()))
