"""The verbs about what is closed by itself or by guests, and the trail of who did what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shim.control.arguments import (
    FOLLOW_SECONDS,
    DurationType,
    InstanceType,
    PrefixType,
    Session,
    TimeType,
    json_option,
)
from shim.control.output import print_json, show
from shim.control.policy_verbs import each, how_option, instances_argument

if TYPE_CHECKING:
    from uuid import UUID

    from shim.control.shapes import AuditRow


@click.command()
@instances_argument
@click.option("--after", type=DurationType(), help="So long from now: 90s, 15m, 2h, 1d.")
@click.option("--at", type=TimeType(), help="At a time: ISO 8601, or Unix seconds.")
@click.option("--on-read", is_flag=True, help="Once it has read its user-data to the end.")
@click.option("--on-ready", is_flag=True, help="Once it says that it is ready.")
@how_option
@click.option("--never", is_flag=True, help="Take it back.")
@json_option
@click.pass_obj
def auto(
    session: Session,
    instances: tuple[UUID, ...],
    after: float | None,
    at: float | None,
    on_read: bool,
    on_ready: bool,
    how: str,
    never: bool,
    as_json: bool,
) -> int:
    """Disable instances later: at a time, or by what they do; whatever comes first.

    Each replaces what was said before.
    """
    some = after is not None or at is not None or on_read or on_ready
    if never == some:
        raise click.UsageError("when: --after, --at, --on-read, --on-ready? Or --never")
    if after is not None and at is not None:
        raise click.UsageError("--after or --at?")
    wanted = None if never else {"how": how, "until": at, "seconds": after, "on_read": on_read, "on_ready": on_ready}
    return each(
        session, instances, as_json,
        lambda client, instance: client.set_auto(instance, wanted),
        lambda text, policy: f"will be disabled: {text.auto(policy.auto)}" if policy.auto else "no auto",
        timed=False,
    )  # fmt: skip


@click.command()
@click.argument("instance", type=InstanceType())
@click.argument("prefix", type=PrefixType(), required=False)
@json_option
@click.pass_obj
def unlock(session: Session, instance: UUID, prefix: str | None, as_json: bool) -> None:
    """Open what an instance's guest locked: a prefix or topic, or all.

    PREFIX is what the guest locked, as `metashim show` has it: a path such as /latest/user-data, user-data,
    vendor-data, keys or kv, or / where that is all.
    """
    view = session.client().unlock(instance, prefix)
    show(as_json, view, lambda text: text.unlocked(instance, view))


@click.command()
@click.argument("instance", type=InstanceType(), required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@click.option("-n", "--lines", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many, the last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def audit(session: Session, instance: UUID | None, follow: bool, lines: int, as_json: bool) -> None:
    """Who switched, wrote or locked what, and when."""
    client = session.client()
    view = client.audit(instance, limit=lines)
    while True:
        _print_rows(view.rows, as_json)
        if not follow:
            return
        view = client.audit(instance, view.next, wait=FOLLOW_SECONDS)


def _print_rows(rows: list[AuditRow], as_json: bool) -> None:
    for row in rows if as_json else ():
        print_json(row, indent=0)
    if not as_json:
        from shim.control import live_text

        live_text.audit(rows)


VERBS = (auto, unlock, audit)
