"""Whether one address of a backend may be asked, by what checks and requests met there. PURE.

    UP ──a request or one check failed──▶ DOUBTED ──two checks in a row failed──▶ DOWN
    UP, DOUBTED ──a check was refused──▶ DOWN
    DOUBTED, DOWN ──a check passed──▶ UP

A request that fails says little: its connection may have been closed at the very moment by a backend that is well.
So it only brings doubt: others are asked first, and a check decides at once. A check that the kernel refuses is
certain. One that is not answered, or badly, may be bad luck; two in a row are not. But a backend that answers
requests while a check waits is busy, and not frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shim.core.exchange import Response
from shim.errors import BackendError

FAILURES = 2
"""Checks in a row that must fail, if not refused."""


class State(Enum):
    """What is thought of an address."""

    UP = "up"
    DOUBTED = "doubted"
    DOWN = "down"


class Finding(Enum):
    """What a check found."""

    PASSED = "a well-formed answer below 500"
    REFUSED = "no connection"
    SILENT = "nothing in time"
    BAD = "something else"


@dataclass(slots=True)
class Health:
    """The state of one address, why, and since when (by the caller's clock)."""

    since: float
    state: State = State.UP
    why: str = ""
    failures: int = 0

    def doubt(self, why: str, now: float) -> None:
        """A request failed."""
        if self.state is State.UP:
            self._become(State.DOUBTED, why, now)

    def check(self, finding: Finding, why: str, now: float, *, answered: bool) -> bool:
        """A check ended; `answered`: requests were answered meanwhile. Whether it took the address down or up."""
        was_down = self.state is State.DOWN
        if finding is Finding.PASSED:
            self.failures = 0
            self._become(State.UP, "", now)
        elif finding is Finding.SILENT and answered and not was_down:
            self.failures = 0
        else:
            self.failures += 1
            down = was_down or finding is Finding.REFUSED or self.failures >= FAILURES
            self._become(State.DOWN if down else State.DOUBTED, why, now)
        return was_down is not (self.state is State.DOWN)

    def _become(self, state: State, why: str, now: float) -> None:
        if state is not self.state:
            self.state, self.since = state, now
        self.why = why


def judge(outcome: Response | BackendError) -> tuple[Finding, str]:
    """What a check's outcome says, and why in words."""
    if isinstance(outcome, Response):
        return (Finding.PASSED, "") if outcome.status < 500 else (Finding.BAD, f"answers {outcome.status}")
    if outcome.late:
        return Finding.SILENT, str(outcome)
    return (Finding.BAD if outcome.sent else Finding.REFUSED), str(outcome)
