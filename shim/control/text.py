"""The API's answers as text for people: aligned columns, few words; colour on a terminal only.

Names and texts come from the kernel and from operators, so control characters in them are shown as `?`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import click
import msgspec

from shim.control import shapes
from shim.core.closure import WHOLE

UNCUT = 10000  # columns: a terminal that is narrower wraps, as names must stay whole

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_COLOURS = {
    "serving": "green",
    "ok": "green",
    "refused": "yellow",
    "warn": "yellow",
    "no-identity": "red",
    "failed": "red",
    "fail": "red",
}
_NUMBERS = ("OPENED", "DELIVERED", "REPLIED", "REFUSED", "PACKETS", "WITH", "WITHOUT", "ORDER", "BYTES")
_FLOW = ("opened", "delivered", "replied")
_PASSED = {*_FLOW, "arp_answered", "nd_answered", "echo_answered"}
_SECRET = ("user_data", "user_data_base64", "vendor_data", "vendor_data2")


def clean(text: object) -> str:
    """Text that cannot steer a terminal or forge a line."""
    return _CONTROL.sub("?", str(text))


def lines(text: str) -> list[str]:
    """Lines of a text, each of which cannot steer a terminal."""
    return [clean(line.expandtabs(8)) for line in text.split("\n")]


def when(seconds: float) -> str:
    """A time in Unix seconds as the clock on the wall has it, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """A span in at most two units: `3 h 12 min`, `40 ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    for size, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their heads; nothing is cut when the output is a file or a pipe."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        print("  ".join(_pad(*column) for column in zip(columns, row, widths, strict=True)).rstrip())


def _pad(column: str, cell: str, width: int) -> str:
    return cell.rjust(width) if column in _NUMBERS else cell.ljust(width)


def _rich_table(columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in shown.columns:
        column.no_wrap = True
        column.justify = "right" if column.header in _NUMBERS else "left"
    for row in cells:
        shown.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False, width=UNCUT, soft_wrap=True).print(shown)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print one fact a line, names in a column of their own; an empty name continues the fact above."""
    shown = [(name, clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}".rstrip())


def access(v4: str, v6: str) -> str:
    """Access over both families in as few words as it takes."""
    return v4 if v4 == v6 else f"IPv4 {v4}, IPv6 {v6}"


def origin(value: object, own: bool) -> str:
    """A value, and whether it is only what holds by default."""
    return f"{value}" if own else f"{value} (default)"


def status(view: shapes.StatusView) -> None:
    """The agent's state in a few lines, then what is not well."""
    total = sum(view.states.values())
    states = ", ".join(f"{count} {name}" for name, count in view.states.items() if count)
    up = sum(worker.pid > 0 for worker in view.workers)
    connections = sum(worker.connections for worker in view.workers)
    restarts = sum(worker.restarts for worker in view.workers)
    proxy = f"{up} of {len(view.workers)} workers up, {connections} connections, {restarts} restarts"
    ports = ", ".join(map(str, view.service_ports))
    ailments = [(f"{a.part}: {a.what}", a.hint) for a in view.ailments]
    facts(
        [
            ("agent", f"{view.version}, pid {view.pid}, up {duration(view.uptime_seconds)}"),
            ("datapath", view.datapath),
            *(("", f"in place of ebpf: {why}") for why in (view.fallback,) if why),
            *(("", f"with {view.datapath}: {what}") for what in view.lacks),
            ("service", f"{', '.join(view.service_addresses)}; port {ports}"),
            ("taps", f"{total}: {states}" if total else "none"),
            ("instances", view.instances),
            *_sources(view.sources),
            ("tokens", view.tokens),
            *_routes(view.routes),
            ("proxy", proxy),
            *_backends(view.backends),
            ("health", "well" if not ailments else f"{len(ailments)} not well"),
            *(("", line) for what, hint in ailments for line in (f"- {what}", f"  {hint}") if line.strip()),
        ]
    )


def _sources(views: list[shapes.SourceView]) -> list[tuple[str, str]]:
    """A fact a source of identity."""
    shown = [f"{one.name}: {one.taps} taps{'' if one.healthy else ', not well'}" for one in views]
    return [("identity" if not number else "", text) for number, text in enumerate(shown)]


def _backends(views: list[shapes.BackendView]) -> list[tuple[str, str]]:
    """A fact an address."""
    shown = [f"{one.name} {one.address} {'up' if one.healthy else f'down: {one.why}'}" for one in views]
    return [("backends" if not number else "", text) for number, text in enumerate(shown)]


def listing(ports: list[shapes.PortView], instances: list[shapes.InstanceSummary]) -> None:
    """One line a tap, then the instances that have none."""
    seen = {port.instance for port in ports}
    marks = {i.instance: _marks(i.policy) for i in instances}
    rows = [
        (_tap(p.netns, p.tap or f"link {p.ifindex}"), p.instance or "-", p.state, _access(p, marks), p.source or "-")
        for p in sorted(ports, key=lambda p: (p.netns, _natural(p.tap)))
    ]
    rows += [
        ("-", i.instance, "no tap", access(i.policy.v4, i.policy.v6) + marks[i.instance], "-")
        for i in sorted(instances, key=lambda i: str(i.instance))
        if i.instance not in seen
    ]
    if rows:
        table(("TAP", "INSTANCE", "STATE", "ACCESS", "FROM"), rows)
    else:
        print("no taps and no instances yet: a tap joins when it matches datapath.taps")
    for port in ports:
        if note := port.error or port.conflict:
            print(f"{_tap(port.netns, port.tap)}: {clean(note)}")


def _access(port: shapes.PortView, marks: dict[UUID, str]) -> str:
    return access(port.v4, port.v6) + marks.get(port.instance, "") if port.instance else "-"


def _marks(policy: shapes.PolicyView) -> str:
    """What of a policy is not seen from its access."""
    locked = "locked" if WHOLE in policy.latched else "partly locked" if policy.latched else ""
    marks = (locked, "partly closed" if policy.closed else "", "auto" if policy.auto else "")
    return "".join(f", {mark}" for mark in marks if mark)


def auto(view: shapes.AutoView) -> str:
    """When an instance will be disabled, and how."""
    times = (
        f"at {when(view.until)}" if view.until is not None else "",
        "once it has read its user-data" if view.on_read else "",
        "once it says that it is ready" if view.on_ready else "",
    )
    return f"{view.how} {', or '.join(filter(None, times))}"


def _switches(policy: shapes.PolicyView) -> list[tuple[str, object]]:
    """Facts about what is closed, or will be; none where nothing is."""
    facts = (
        ("auto", auto(policy.auto) if policy.auto else ""),
        ("closed", ", ".join(policy.closed)),
        ("locked", ", ".join("all" if one == WHOLE else one for one in policy.latched)),
    )
    return [(name, f"{value} (by the guest)" if name == "locked" else value) for name, value in facts if value]


def _live(view: shapes.InstanceView) -> list[tuple[str, object]]:
    """Facts about sources, keys and what the guest reported; none where there is nothing."""
    policy, reports = view.policy, view.reports
    told = [
        f"{what} {when(at)}" for what, at in (("ready", reports.ready), ("user-data read", reports.read)) if at
    ]
    facts: tuple[tuple[str, object], ...] = (
        ("composition", policy.composition if policy.own_composition else ""),
        ("sources", ", ".join(view.sources)),
        ("keys", view.keys or ""),
        ("reports", ", ".join(told)),
    )
    return [(name, value) for name, value in facts if value]


def instance(view: shapes.InstanceView) -> None:
    """One instance: policy, taps, document."""
    policy = view.policy
    taps: list[tuple[str, object]] = [
        ("taps" if not n else "", f"{_tap(p.netns, p.tap)}  {p.state}" + (f": {p.error}" if p.error else ""))
        for n, p in enumerate(view.ports)
    ]
    facts(
        [
            ("instance", view.instance),
            ("access", origin(access(policy.v4, policy.v6), policy.own)),
            *_switches(policy),
            ("hop limit", policy.hop_limit),
            ("tokens", origin(policy.tokens, policy.own_tokens)),
            *_routes(policy.routes, "" if policy.own_routes else " (default)"),
            *(taps or [("taps", "none")]),
            *_said(view.ports),
            *_live(view),
            ("document", f"revision {view.revision}" if view.document is not None else "none"),
            *((f"  {name}", _member(name, value)) for name, value in (view.document or {}).items() if value),
        ]
    )


def _said(ports: list[shapes.PortView]) -> list[tuple[str, str]]:
    """What sources of identity say of an instance beside whose a tap is: a fact a tap."""
    shown = []
    for port in ports:
        of_port = {"project": port.project, "address": port.address, "name": port.name, "flavor": port.flavor}
        of_tap = {"port": port.port_id, "mac": port.mac}
        said = ", ".join(f"{name} {value}" for name, value in (of_port | of_tap).items() if value)
        if said:
            shown.append(f"{port.source} of {_tap(port.netns, port.tap)}: {clean(said)}")
    return [("identity" if not number else "", text) for number, text in enumerate(shown)]


def _routes(routes: dict[str, str], note: str = "") -> list[tuple[str, str]]:
    return [("" if n else "routes", f"{prefix} {backend}{note}") for n, (prefix, backend) in enumerate(routes.items())]


def closed(policy: shapes.PolicyView) -> str:
    """What operators closed."""
    return f"closed: {', '.join(policy.closed)}" if policy.closed else "no path is closed"


def unlocked(instance: UUID, view: shapes.UnlockedView) -> None:
    """What is open again, and what is not."""
    opened = ", ".join("all" if one == WHOLE else one for one in view.opened)
    print(f"{instance}: {clean(f'{opened} unlocked' if opened else 'nothing of the kind is locked')}")
    for name, value in _switches(view.policy):
        if name != "auto":
            print(f"{instance}: {name} still: {clean(value)}")


def routes(instance: UUID, policy: shapes.PolicyView) -> None:
    """Who answers an instance."""
    print(f"{instance}: {origin('routes', policy.own_routes)}")
    table(("PREFIX", "BACKEND"), policy.routes.items())


def tokens(view: shapes.TokensView) -> None:
    """One line an instance, first those that ask most without a token."""
    most_first = sorted(view.instances, key=lambda i: (-i.without_token, str(i.instance)))
    rows = [
        (i.instance, origin(i.mode, i.own), i.with_token, i.without_token, i.token_refused) for i in most_first
    ]
    if rows:
        table(("INSTANCE", "TOKENS", "WITH", "WITHOUT", "REFUSED"), rows)
    asking = sum(i.without_token > 0 for i in view.instances)
    print(f"default: {view.mode}; {asking} of {len(rows)} instances made requests without a token")


def counters(views: list[shapes.CounterView]) -> None:
    """One port in full, or several side by side."""
    if len(views) == 1:
        most_first = sorted(views[0].counters.items(), key=lambda item: item[1], reverse=True)
        table(("VERDICT", "PACKETS"), most_first)
        return
    rows = []
    for view in sorted(views, key=lambda v: (v.netns, _natural(v.tap))):
        flow = (view.counters.get(name, 0) for name in _FLOW)
        rows.append((_tap(view.netns, view.tap), view.instance or "-", *flow, _refusals(view.counters)))
    table(("TAP", "INSTANCE", "OPENED", "DELIVERED", "REPLIED", "REFUSED"), rows)


def event(view: shapes.EventView) -> None:
    """One line: local time, kind, tap, reason and words."""
    stamp = time.strftime("%H:%M:%S", time.localtime(view.time)) + f".{int(view.time % 1 * 1000):03d}"
    about = _tap(view.netns, view.tap) if view.tap else "-"
    words = " ".join(filter(None, (view.reason, view.text, str(view.instance or ""))))
    print(f"{stamp}  {view.kind:<8}  {clean(about):<15}  {clean(words)}", flush=True)


def coloured(words: str, colour: str) -> str:
    """Words in a colour, on a terminal that may have them so."""
    return words if not sys.stdout.isatty() or os.environ.get("NO_COLOR") else click.style(words, fg=colour)


def _refusals(counters: dict[str, int]) -> int:
    return sum(count for name, count in counters.items() if name not in _PASSED)


def _tap(netns: str, tap: str) -> str:
    return f"{netns}/{tap}" if netns else tap


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts tap2 before tap10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _member(name: str, value: Any) -> str:
    """A document's member on one line; what may be secret or long is shown by its size."""
    if name in _SECRET:
        return f"({len(str(value).encode())} bytes)"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else f"{text[:117]}..."


def findings(found: Iterable[tuple[str, str, str]]) -> int:
    """What `check` finds, one a line, what to do below it, and the sum. Returns how many are faults."""
    levels = []
    for level, what, hint in found:
        levels.append(level)
        print(f"{coloured(level, _COLOURS[level])}{' ' * (4 - len(level))}  {clean(what)}", flush=True)
        if hint and level != "ok":
            print(f"      {clean(hint)}")
    faults, warnings = levels.count("fail"), levels.count("warn")
    print("this host is ready" if not faults else f"{faults} to mend first", end="")
    print(f"; {warnings} to know of" if warnings else "")
    return faults
