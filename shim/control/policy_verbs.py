"""The verbs that change what instances may do: access, session tokens, routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from shim.control.arguments import InstanceType, RouteType, Session, json_option
from shim.control.output import complain, print_json, say, show
from shim.errors import InputError, MetashimError

if TYPE_CHECKING:
    from uuid import UUID

    from shim.control.client import Client
    from shim.control.shapes import PolicyView

_instances_argument = click.argument(
    "instances", type=InstanceType(), nargs=-1, required=True, metavar="INSTANCE..."
)
_family_option = click.option(
    "--family", type=click.Choice(["4", "6", "both"]), default="both", show_default=True, help="IP version."
)


@click.command()
@_instances_argument
@_family_option
@click.option("--hop-limit", type=click.IntRange(1, 64), help="TTL of replies from now on.")
@json_option
@click.pass_obj
def enable(session: Session, instances: tuple[UUID, ...], family: str, hop_limit: int | None, as_json: bool) -> int:
    """Serve instances again."""
    return _switch(session, instances, "open", family, as_json, hop_limit)


@click.command()
@_instances_argument
@click.option(
    "--how",
    type=click.Choice(["reset", "drop", "403"]),
    default="reset",
    show_default=True,
    help="Refuse by a TCP reset, by silence, or by the proxy's HTTP 403.",
)
@_family_option
@json_option
@click.pass_obj
def disable(session: Session, instances: tuple[UUID, ...], how: str, family: str, as_json: bool) -> int:
    """Refuse instances; returns when the kernel does."""
    return _switch(session, instances, how, family, as_json)


@click.command()
@click.argument("mode", type=click.Choice(["off", "optional", "required", "default"]), required=False)
@click.argument("instances", type=InstanceType(), nargs=-1, metavar="INSTANCE...")
@json_option
@click.pass_obj
def tokens(session: Session, mode: str | None, instances: tuple[UUID, ...], as_json: bool) -> int:
    """Who uses session tokens (IMDSv2), or what they are to instances.

    Without a mode: each instance's, and its requests with a token, without one, and refused for the lack of a valid
    one. Who has requests without one would break where tokens are required.
    """
    if mode is None:
        view = session.client().tokens()
        show(as_json, view, lambda text: text.tokens(view))
        return 0
    if not instances:
        raise click.UsageError("which instances?")
    from shim.core.policy import Tokens

    wanted = None if mode == "default" else Tokens(mode)
    return _each(
        session, instances, as_json,
        lambda client, instance: client.set_tokens(instance, wanted),
        lambda text, policy: f"tokens {text.origin(policy.tokens, policy.own_tokens)}",
    )  # fmt: skip


@click.command("rotate-keys")
@click.option("--drop", is_flag=True, help="End all tokens given so far, at once.")
@json_option
@click.pass_obj
def rotate_keys(session: Session, drop: bool, as_json: bool) -> None:
    """Sign session tokens with a new key.

    The agent does so daily. Tokens given before hold until they expire, unless they are dropped.
    """
    view = session.client().rotate_keys(drop)
    if drop:
        words = "session tokens are signed with a new key; none given before holds any more"
    else:
        words = f"session tokens are signed with a new key in {view.begins_seconds:.0f} s; all hold until they expire"
    say(as_json, view, words)


@click.command()
@click.argument("instance", type=InstanceType())
@click.argument("routes", type=RouteType(), nargs=-1, metavar="[PREFIX=BACKEND...]")
@click.option("--default", "default", is_flag=True, help="As the host's are.")
@json_option
@click.pass_obj
def routes(
    session: Session, instance: UUID, routes: tuple[tuple[str, str], ...], default: bool, as_json: bool
) -> None:
    """Who answers an instance, by path; given routes are all of its routes.

    The backend of the longest prefix that fits answers: embedded, nova or http, as in /=nova
    /latest/user-data=embedded
    """
    if default and routes:
        raise click.UsageError("routes of its own, or --default?")
    wanted = dict(routes)
    if len(wanted) != len(routes):
        raise InputError("a prefix is there twice", "give each prefix one backend")
    client = session.client()
    policy = client.set_routes(instance, wanted or None) if default or wanted else client.policy(instance)
    view = {"instance": instance, "routes": policy.routes, "own": policy.own_routes}
    show(as_json, view, lambda text: text.routes(instance, policy))


VERBS = (enable, disable, tokens, rotate_keys, routes)


def _switch(
    session: Session,
    instances: Sequence[UUID],
    how: str,
    family: str,
    as_json: bool,
    hop_limit: int | None = None,
) -> int:
    """Set the access of each instance."""
    from shim.core.policy import Access, Family

    families = list(Family) if family == "both" else [Family(family)]
    return _each(
        session, instances, as_json,
        lambda client, instance: client.set_policy(instance, Access(how), families, hop_limit),
        lambda text, policy: text.access(policy.v4, policy.v6),
    )  # fmt: skip


def _each(
    session: Session,
    instances: Sequence[UUID],
    as_json: bool,
    change: Callable[[Client, UUID], PolicyView],
    words: Callable[[Any, PolicyView], str],
) -> int:
    """Change each instance's policy; the first failure's exit status, after all have been tried."""
    import time

    client, done, failed = session.client(), [], []
    for instance in dict.fromkeys(instances):
        began = time.perf_counter()
        try:
            policy = change(client, instance)
        except MetashimError as error:
            failed.append((instance, error))
        else:
            done.append((instance, policy, time.perf_counter() - began))
    _changed(as_json, done, failed, words)
    return failed[0][1].exit_code if failed else 0


def _changed(
    as_json: bool,
    done: list[tuple[UUID, PolicyView, float]],
    failed: list[tuple[UUID, MetashimError]],
    words: Callable[[Any, PolicyView], str],
) -> None:
    from shim.control import text

    if as_json:
        results = [{"instance": i, "policy": p, "milliseconds": round(s * 1000, 3)} for i, p, s in done]
        errors = [{"instance": i, "error": str(e), "hint": e.hint} for i, e in failed]
        print_json({"done": results, "failed": errors})
    else:
        for instance, policy, seconds in done:
            click.echo(f"{instance}: {words(text, policy)} after {text.duration(seconds)}")
    for instance, error in failed:
        complain(f"{instance}: {error}", error.hint)
