"""The verbs that change what instances may do: access, session tokens, routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from shim.control.arguments import InstanceType, PrefixType, RouteType, Session, json_option
from shim.control.output import complain, print_json, say, show
from shim.errors import ConflictError, InputError, MetashimError

if TYPE_CHECKING:
    from uuid import UUID

    from shim.control.client import Client
    from shim.control.shapes import PolicyView

Words = Callable[[Any, "PolicyView"], str]
"""A policy in words, given the module `text`."""
Doubt = Callable[["UUID", "PolicyView"], "MetashimError | None"]

instances_argument = click.argument(
    "instances", type=InstanceType(), nargs=-1, required=True, metavar="INSTANCE..."
)
how_option = click.option(
    "--how",
    type=click.Choice(["reset", "drop", "403"]),
    default="reset",
    show_default=True,
    help="Refuse by a TCP reset, by silence, or by the proxy's HTTP 403.",
)
_family_option = click.option(
    "--family", type=click.Choice(["4", "6", "both"]), default="both", show_default=True, help="IP version."
)
_path_option = click.option(
    "--path",
    "paths",
    type=PrefixType(),
    multiple=True,
    metavar="PREFIX",
    help="This path prefix or topic alone, as 403 by the proxy; can be given again.",
)


@click.command()
@instances_argument
@_path_option
@_family_option
@click.option("--hop-limit", type=click.IntRange(1, 64), help="TTL of replies from now on.")
@json_option
@click.pass_obj
def enable(
    session: Session,
    instances: tuple[UUID, ...],
    paths: tuple[str, ...],
    family: str,
    hop_limit: int | None,
    as_json: bool,
) -> int:
    """Serve instances again.

    What a guest locked itself stays locked: `metashim unlock` opens that. Topics are user-data, vendor-data, keys and
    kv.
    """
    if paths:
        _nothing_else("family", "hop_limit")
        return each(
            session, instances, as_json,
            lambda client, instance: client.set_closed(instance, open=paths),
            lambda text, policy: text.closed(policy),
            lambda instance, policy: _closed_still(instance, policy, paths),
            timed=False,
        )  # fmt: skip
    return _switch(session, instances, "open", family, as_json, hop_limit, _locked_still)


@click.command()
@instances_argument
@_path_option
@how_option
@_family_option
@json_option
@click.pass_obj
def disable(
    session: Session, instances: tuple[UUID, ...], paths: tuple[str, ...], how: str, family: str, as_json: bool
) -> int:
    """Refuse instances; returns when the kernel does.

    With --path a part of what there is, whatever version or face it is asked of, and whoever would answer. Topics are
    user-data, vendor-data, keys and kv.
    """
    if paths:
        _nothing_else("how", "family")
        return each(
            session, instances, as_json,
            lambda client, instance: client.set_closed(instance, close=paths),
            lambda text, policy: text.closed(policy),
            timed=False,
        )  # fmt: skip
    return _switch(session, instances, how, family, as_json)


def _nothing_else(*names: str) -> None:
    """Raises UsageError where one of these options is given beside --path."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--path or --{name.replace('_', '-')}? A path is closed by 403, over both families")


def _locked_still(instance: UUID, policy: PolicyView) -> MetashimError | None:
    """What to say of an instance that is refused all the same."""
    from shim.core.closure import WHOLE

    if WHOLE not in policy.latched:
        return None
    hint = f"`metashim unlock {instance}` opens what a guest locked; nothing else does"
    return ConflictError("refused all the same: its guest locked it", hint)


def _closed_still(instance: UUID, policy: PolicyView, paths: tuple[str, ...]) -> MetashimError | None:
    """What to say where something that was to be opened is closed all the same."""
    from shim.core.closure import is_closed, prefixes

    def by(closed: list[str]) -> str | None:
        return next((one for one in closed if any(is_closed(path, prefixes([one])) for path in prefixes(paths))), None)

    if one := by(policy.latched):
        hint = f"`metashim unlock {instance} {one}` opens it; nothing else does"
        return ConflictError(f"closed all the same: its guest locked {one}", hint)
    if one := by(policy.closed):
        return ConflictError(f"some of it is closed all the same, by {one}", f"`enable --path {one}` too")
    return None


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
    return each(
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
    doubt: Doubt | None = None,
) -> int:
    """Set the access of each instance."""
    from shim.core.policy import Access, Family

    families = list(Family) if family == "both" else [Family(family)]
    return each(
        session, instances, as_json,
        lambda client, instance: client.set_policy(instance, Access(how), families, hop_limit),
        lambda text, policy: text.access(policy.v4, policy.v6),
        doubt,
    )  # fmt: skip


def each(
    session: Session,
    instances: Sequence[UUID],
    as_json: bool,
    change: Callable[[Client, UUID], PolicyView],
    words: Words,
    doubt: Doubt | None = None,
    *,
    timed: bool = True,
) -> int:
    """Change each instance's policy; the first failure's exit status, after all have been tried.

    words  what is said of one that is done; timed: and how long it took
    doubt  what is said of one that is done, and yet not as was wanted
    """
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
    _changed(as_json, done, failed, words, timed)
    told = failed + [(i, doubted) for i, policy, _ in done if doubt and (doubted := doubt(i, policy))]
    for instance, problem in told:
        complain(f"{instance}: {problem}", problem.hint)
    return told[0][1].exit_code if told else 0


def _changed(
    as_json: bool,
    done: list[tuple[UUID, PolicyView, float]],
    failed: list[tuple[UUID, MetashimError]],
    words: Words,
    timed: bool,
) -> None:
    from shim.control import text

    if as_json:
        results = [{"instance": i, "policy": p, "milliseconds": round(s * 1000, 3)} for i, p, s in done]
        errors = [{"instance": i, "error": str(e), "hint": e.hint} for i, e in failed]
        print_json({"done": results, "failed": errors})
        return
    for instance, policy, seconds in done:
        after = f" after {text.duration(seconds)}" if timed else ""
        click.echo(f"{instance}: {text.clean(words(text, policy))}{after}")
