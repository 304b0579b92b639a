"""`python -m bench [--only ROW,…] [--strict] [--json PATH]`: measure, print a table, write the figures.

The exit status is 1 when a row could not be measured, with --strict also when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import COLUMNS, Figure

RESULT = Path(__file__).parent / "result.json"

Row = Callable[[], list[Figure]]


def _packets() -> list[Figure]:
    from bench import packets

    return packets.measure()


def _path() -> list[Figure]:
    from bench import path

    return path.measure()


def _requests() -> list[Figure]:
    from bench import requests

    return requests.measure()


def _forward() -> list[Figure]:
    from bench import forward

    return forward.measure()


def _isolation() -> list[Figure]:
    from bench import isolation

    return isolation.measure()


def _watch() -> list[Figure]:
    from bench import watch

    return watch.measure()


def _cold() -> list[Figure]:
    from bench import cold

    return cold.measure()


def _boot() -> list[Figure]:
    from bench import boot

    return boot.measure()


def _storm() -> list[Figure]:
    from bench import storm

    return storm.measure()


def _scale(wanted: set[str]) -> Row:
    from bench import scale

    return lambda: scale.measure(wanted)


ROWS: dict[str, Row] = {
    "packets": _packets,
    "path": _path,
    "requests": _requests,
    "forward": _forward,
    "isolation": _isolation,
    "watch": _watch,
    "cold": _cold,
    "boot": _boot,
    "storm": _storm,
}
SCALED = ("toggle", "enrol", "memory")
"""Measured together, as all need the same many ports."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the rows asked for; the exit status."""
    asked = _arguments(argv)
    if os.geteuid() != 0:
        print("bench: needs root, for namespaces and programs in the kernel", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, leaving nothing behind
    began = time.monotonic()
    try:
        figures, failures = _measure(_rows(set(asked.only)))
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    show(figures)
    print(f"{time.monotonic() - began:.0f} s in all; written to {asked.json}")
    _write(asked.json, figures, failures)
    missed = [figure.name for figure in figures if figure.met is False]
    if missed:
        print(f"limits missed: {', '.join(missed)}")
    return int(bool(failures) or (asked.strict and bool(missed)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [*ROWS, *SCALED]

    def known(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the rows are {', '.join(names)}")
        return chosen

    parser = argparse.ArgumentParser(prog="python -m bench", description="What metashim costs.")
    parser.add_argument("--only", type=known, default=names, metavar="ROW,…", help=f"of {', '.join(names)}")
    parser.add_argument("--strict", action="store_true", help="fail when a limit is missed")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="PATH", help="where the figures go")
    return parser.parse_args(argv)


def _rows(only: set[str]) -> dict[str, Row]:
    rows = {name: row for name, row in ROWS.items() if name in only}
    scaled = only & set(SCALED)
    if scaled:
        rows[" and ".join(name for name in SCALED if name in scaled)] = _scale(scaled)
    return rows


def _measure(rows: dict[str, Row]) -> tuple[list[Figure], dict[str, str]]:
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    for name, row in rows.items():
        print(f"measuring {name} …", file=sys.stderr)
        try:
            figures += row()
        except Exception as error:  # noqa: BLE001 - the boundary of one row: the others are measured all the same
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}"
    return figures, failures


def show(figures: list[Figure]) -> None:
    """Prints the table: with lines and colours on a terminal, plain columns elsewhere."""
    rows = [figure.as_row() for figure in figures]
    if sys.stdout.isatty():
        _show_rich(rows)
        return
    widths = [max(len(row[i]) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    for row in [COLUMNS, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show_rich(rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row, style="bold red" if row[-1] == "MISSED" else None)
    Console().print(table)


def _write(path: Path, figures: list[Figure], failures: dict[str, str]) -> None:
    result = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "figures": [figure.as_json() for figure in figures],
        "not_measured": failures,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
