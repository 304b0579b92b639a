"""The verb that shows an instance's packets live.

What guests sent is taken apart by a large library, so that is not done as root: once the stream from the agent is
open, the verb becomes nobody.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shim.control.arguments import InstanceType, Session
from shim.control.output import print_json
from shim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from shim.control.trace_client import Told
    from shim.control.trace_pcap import Capture
    from shim.control.trace_shapes import PacketView


@click.command()
@click.argument("instance", type=InstanceType())
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many packets.")
@click.option("--seconds", type=click.FloatRange(min=0), metavar="S", help="End after so long.")
@click.option("--write", type=click.Path(path_type=Path), metavar="FILE", help="Keep their headers as a pcap file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def trace(
    session: Session, instance: UUID, count: int | None, seconds: float | None, write: Path | None, as_json: bool
) -> None:
    """Show an instance's packets live, with the verdict on each.

    Those that are about the service, in both directions, until interrupted. Of HTTP it shows method and path, or the
    status: no query, header or body. What comes too fast is left out, and told.
    """
    with ExitStack() as held:
        capture = _capture(write, held)
        told = held.enter_context(session.tracer().trace(instance))
        session.give_up_root()
        shown = _Shown(as_json, capture)
        try:
            shown.follow(told, count, None if seconds is None else time.monotonic() + seconds)
        except KeyboardInterrupt:
            pass
        finally:
            click.echo(shown.summary(), err=True)


def _capture(path: Path | None, held: ExitStack) -> Capture | None:
    """The file, opened by who asked for it. Raises InputError."""
    if path is None:
        return None
    from shim.control.trace_pcap import Capture

    try:
        return Capture(held.enter_context(path.open("wb")))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "name a file that can be written") from None


class _Shown:
    """What was shown by now."""

    def __init__(self, as_json: bool, capture: Capture | None) -> None:
        from shim.control import trace_text  # not before root was given up: this brings scapy

        self._text = trace_text
        self._as_json = as_json
        self._capture = capture
        self._verdicts: Counter[str] = Counter()
        self._missed = 0

    def follow(self, told: Iterator[Told], count: int | None, until: float | None) -> None:
        """Shows what comes, until it is enough."""
        from shim.control import trace_shapes as shapes

        for one in told:
            if isinstance(one, shapes.PacketView):
                self._packet(one)
            elif isinstance(one, shapes.MissedView):
                self._missed += one.missed
                click.echo(f"{one.missed} packets not shown", err=True)
            elif isinstance(one, shapes.TapsView):
                click.echo(f"tracing {_listed(one.taps)}", err=True)
            if self._verdicts.total() == count or (until is not None and time.monotonic() >= until):
                return

    def _packet(self, view: PacketView) -> None:
        from base64 import b64decode

        frame = b64decode(view.frame)
        packet = self._text.seen(frame, view.length, to_guest=view.to_guest)
        self._verdicts[view.verdict] += 1
        if self._capture is not None:
            self._capture.add(view.time, frame[: packet.plain], view.length)
        if self._as_json:
            print_json(self._text.fields(view, packet), 0)
        else:
            click.echo(self._text.line(view, packet))

    def summary(self) -> str:
        """Packets by verdict."""
        number = self._verdicts.total()
        by_verdict = ", ".join(f"{many} {verdict}" for verdict, many in self._verdicts.most_common())
        words = f"{number} packet{'' if number == 1 else 's'}{': ' if number else ''}{by_verdict}"
        return words + (f"; {self._missed} not shown" if self._missed else "")


def _listed(taps: list[str]) -> str:
    from shim.control.text import clean

    return clean(", ".join(taps)) if taps else "nothing yet: the instance has no tap here"


VERBS = (trace,)
