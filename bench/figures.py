"""Figures: a value, the baseline it is a ratio of, and the limit it is held to. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure must keep to: its value, its ratio to the baseline, or what it is over the baseline."""

    of: Literal["value", "ratio", "over"]
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bound = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        return bound if self.of == "value" else f"{self.of} {bound}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `name` is unique; `baseline_name` says what the baseline is, empty for none."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    limit: Limit | None = None

    @property
    def ratio(self) -> float | None:
        """Value to baseline; None without one, or with one of zero."""
        return self.value / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None without one. A limit on a baseline that is not there is missed."""
        if self.limit is None:
            return None
        held = self._held(self.limit)
        if held is None:
            return False
        return (self.limit.least is None or held >= self.limit.least) and (
            self.limit.most is None or held <= self.limit.most
        )

    def _held(self, limit: Limit) -> float | None:
        if limit.of == "value":
            return self.value
        if limit.of == "ratio":
            return self.ratio
        return self.value - self.baseline if self.baseline is not None else None

    def as_json(self) -> dict[str, Any]:
        """The figure as plain data."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "baseline_name": self.baseline_name,
            "ratio": self.ratio,
            "limit": str(self.limit) if self.limit else None,
            "met": self.met,
        }

    def as_row(self) -> tuple[str, ...]:
        """The figure as the cells of COLUMNS."""
        base = "" if self.baseline is None else f"{_short(self.baseline)} {self.baseline_name}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return self.name, f"{_short(self.value)} {self.unit}", base, ratio, str(self.limit or ""), verdict


COLUMNS = ("what", "figure", "baseline", "ratio", "limit", "")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


def middle_and_tail(
    name: str, values: Sequence[float], unit: str, baseline: Sequence[float], baseline_name: str, limit: Limit | None
) -> list[Figure]:
    """Median and 99th percentile as two figures; the limit holds for both."""
    return [
        Figure(f"{name}, p50", median(values), unit, median(baseline), baseline_name, limit),
        Figure(f"{name}, p99", percentile(values, 99), unit, percentile(baseline, 99), baseline_name, limit),
    ]
