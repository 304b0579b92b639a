"""The operators' verbs. Each talks to the running agent; `agent`, `check`, `rules`, `teardown`, `backup` and
`restore` are the host's own.

What a verb needs is imported when it runs, so that the short ones start fast, and bcc never is.
Whatever goes wrong is two lines on standard error: what happened, then what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from shim import __version__, errors
from shim.control import kv_verbs, policy_verbs, source_verbs, switch_verbs, trace_verb, why_verb
from shim.control.arguments import (
    FOLLOW_SECONDS,
    InstanceOrTapType,
    InstanceType,
    Session,
    TapType,
    contents,
    json_option,
    maybe_uuid,
)
from shim.control.output import complain, print_json, say, show
from shim.errors import InputError, MetashimError

if TYPE_CHECKING:
    from uuid import UUID

    from shim.control.shapes import EventView


INTERRUPTED = 130  # as a shell reports SIGINT

_FAMILIES = (
    (errors.ConfigError, "the configuration is wrong"),
    (errors.InputError, "an argument or a document is wrong"),
    (errors.NotFoundError, "no such instance, tap, source or key"),
    (errors.ConflictError, "it contradicts what is there"),
    (errors.KernelError, "the kernel refused"),
    (errors.StoreError, "the store cannot be used"),
    (errors.UnreachableError, "the agent does not answer"),
)
_CODES = (
    "0 done",
    "1 `check` found a fault, or another failure",
    "2 wrong usage",
    *(f"{family.exit_code} {words}" for family, words in _FAMILIES),
)
EPILOG = "\b\nExit status:\n" + "\n".join(f"  {line}" for line in _CODES)


_PATH = click.Path(path_type=Path)
_netns_option = click.option("--netns", default="", metavar="NAME", help="Namespace that the tap is in.")


_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(epilog=EPILOG, context_settings=_HELP)
@click.option("--config", type=_PATH, help="Configuration file.  [default: /etc/metashim/metashim.toml]")
@click.option("--socket", type=_PATH, help="The agent's control socket, instead of the configured one.")
@click.version_option(__version__, prog_name="metashim")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, socket: Path | None) -> None:
    """Metadata for every guest of this hypervisor, told apart by the tap it speaks through."""
    ctx.obj = Session(config, socket, _drop)


def _drop(uid: int, gid: int) -> None:
    from shim import privilege

    privilege.drop(uid, gid)


_VERBS = (
    *policy_verbs.VERBS, *switch_verbs.VERBS, *source_verbs.VERBS, *kv_verbs.VERBS, *why_verb.VERBS, *trace_verb.VERBS,
)  # fmt: skip
for _verb in _VERBS:
    cli.add_command(_verb)


@cli.command()
@click.option("--datapath", type=click.Choice(["ebpf", "nft", "auto"]), help="In place of datapath.datapath.")
@click.pass_obj
def agent(session: Session, datapath: Literal["ebpf", "nft", "auto"] | None) -> int:
    """Run the privileged side, until SIGTERM.

    On another datapath than the last run's it takes over: guarded taps stay guarded, open connections end.
    """
    config = session.config()
    from shim import agent as privileged

    return int(privileged.run(config.on(datapath) if datapath else config))


@cli.command()
@json_option
@click.pass_obj
def status(session: Session, as_json: bool) -> None:
    """How the agent, the datapath and the proxy are."""
    view = session.client().status()
    show(as_json, view, lambda text: text.status(view))


@cli.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """Guarded taps and known instances."""
    client = session.client()
    ports, instances = client.ports(), client.instances()
    show(as_json, {"ports": ports, "instances": instances}, lambda text: text.listing(ports, instances))


@cli.command("show")
@click.argument("instance", type=InstanceType())
@json_option
@click.pass_obj
def show_(session: Session, instance: UUID, as_json: bool) -> None:
    """One instance: its policy, taps and document."""
    view = session.client().instance(instance)
    show(as_json, view, lambda text: text.instance(view))


@cli.command("set")
@click.argument("instance", type=InstanceType())
@click.argument("file", type=click.Path(allow_dash=True))
@json_option
@click.pass_obj
def set_(session: Session, instance: UUID, file: str, as_json: bool) -> None:
    """Write an instance's document from a file.

    FILE holds JSON or TOML; - is standard input.
    """
    revision = session.client().put_document(instance, _document(file))
    words = f"document of {instance}: revision {revision}"
    say(as_json, {"instance": instance, "revision": revision}, words)


@cli.command()
@click.argument("tap", type=TapType())
@click.argument("instance", type=InstanceType())
@_netns_option
@json_option
@click.pass_obj
def attach(session: Session, tap: str, instance: UUID, netns: str, as_json: bool) -> None:
    """Say by hand which instance is behind a tap."""
    session.client().attach(tap, instance, netns)
    say(as_json, {"tap": tap, "netns": netns, "instance": instance}, f"{tap} is {instance}'s")


@cli.command()
@click.argument("tap", type=TapType())
@_netns_option
@json_option
@click.pass_obj
def detach(session: Session, tap: str, netns: str, as_json: bool) -> None:
    """Take an attach back."""
    session.client().detach(tap, netns)
    say(as_json, {"tap": tap, "netns": netns}, f"{tap} is detached")


@cli.command()
@click.argument("which", type=InstanceOrTapType(), required=False, metavar="[INSTANCE|TAP]")
@_netns_option
@json_option
@click.pass_obj
def counters(session: Session, which: str | None, netns: str, as_json: bool) -> None:
    """Packets by verdict: of all taps, of an instance's, or of one."""
    instance = maybe_uuid(which)
    views = session.client().counters(instance, None if instance else which, netns)
    show(as_json, {"ports": views}, lambda text: text.counters(views))


@cli.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def events(session: Session, follow: bool, as_json: bool) -> None:
    """What happened lately: refusals, taps, policy."""
    client, after = session.client(), 0
    while True:
        view = client.events(after, FOLLOW_SECONDS if follow and after else 0)
        if view.missed and after:
            click.echo(f"{view.missed} events came too fast and are lost", err=True)
        for event in view.events:
            show(as_json, event, partial(_print_event, event), indent=0)
        if not follow:
            return
        after = max(view.next, 1)


@cli.command()
@json_option
@click.pass_obj
def check(session: Session, as_json: bool) -> int:
    """Whether this host can run metashim, and what to do if not."""
    from shim.check import findings

    if as_json:
        found = list(findings(session.config()))
        print_json({"findings": found})
        return int(any(finding.level == "fail" for finding in found))
    from shim.control import text

    return int(text.findings((f.level, f.what, f.hint) for f in findings(session.config())) > 0)


@cli.command()
@click.option("--datapath", type=click.Choice(["ebpf", "nft"]), help="Which one's.  [default: the configured one's]")
@json_option
@click.pass_obj
def rules(session: Session, datapath: Literal["ebpf", "nft"] | None, as_json: bool) -> None:
    """Print what the agent would load into the kernel.

    The programs or the ruleset, then the leak guard. It takes no agent and no root.
    """
    config = session.config()
    from shim.host import rules_of

    found = rules_of(config.on(datapath) if datapath else config)
    say(as_json, found, "\n".join(found.values()))


@cli.command()
@json_option
@click.pass_obj
def teardown(session: Session, as_json: bool) -> None:
    """Remove all that metashim made in the kernel.

    Stop the agent first. Guests have no metadata afterwards; what operators wrote is kept.
    """
    config = session.config()
    from shim import agent as privileged

    privileged.teardown(config)
    say(as_json, {"removed": config.host.name}, f"all of {config.host.name} is removed from the kernel")


@cli.command()
@click.argument("file", type=_PATH)
@click.option("--force", is_flag=True, help="Also over a file that is there.")
@json_option
@click.pass_obj
def backup(session: Session, file: Path, force: bool, as_json: bool) -> None:
    """Copy the store to a file, while the agent runs or not."""
    config = session.config()
    from shim import host_store

    _carried(as_json, file, host_store.backup(config, file, force))


@cli.command()
@click.argument("file", type=_PATH)
@json_option
@click.pass_obj
def restore(session: Session, file: Path, as_json: bool) -> None:
    """Put a copy in the store's place; stop the agent first."""
    config = session.config()
    from shim import host_store

    _carried(as_json, file, host_store.restore(config, file))


def _carried(as_json: bool, file: Path, carried: object) -> None:
    """What a copy of the store holds, by its kind."""
    import msgspec

    found = msgspec.to_builtins(carried)
    view = {"file": str(file)} | found
    show(as_json, view, lambda text: text.facts((key.replace("_", " "), value) for key, value in view.items()))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print shell completion: source <(metashim completion bash)."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise InputError(f"no completion for {shell}", "bash, zsh and fish have one")
    one = kind(cli, {}, "metashim", "_METASHIM_COMPLETE")
    script = one.source_template % one.source_vars()  # source() would ask a bash for its version
    say(as_json, {"shell": shell, "script": script}, script)


def _print_event(event: EventView, text: Any) -> None:
    text.event(event)


def _document(file: str) -> bytes:
    """The document in a file as JSON: JSON goes as it is, TOML is turned into it. Raises InputError."""
    raw = contents(file, "name a file with a JSON or TOML document")
    if raw.lstrip()[:1] in (b"{", b"[") and not file.endswith(".toml"):
        return raw
    import tomllib

    import msgspec

    try:
        return msgspec.json.encode(tomllib.loads(raw.decode()))
    except ValueError as error:
        hint = "write a JSON object, or TOML as in: hostname = 'web1'"
        raise InputError(f"{file}: neither JSON nor TOML: {error}", hint) from None


_HELP_ASKED = getattr(click.exceptions, "NoArgsIsHelpError", ())  # in newer releases only


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status."""
    try:
        status = int(cli.main(arguments, prog_name="metashim", standalone_mode=False) or 0)
        sys.stdout.flush()
        return status
    except MetashimError as error:
        complain(str(error), error.hint)
        return error.exit_code
    except _HELP_ASKED as error:  # by giving nothing at all
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        verb = getattr(error, "ctx", None)
        complain(error.format_message(), f"see `{verb.command_path if verb else 'metashim'} --help`")
        return 2
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 1
