"""The verbs about sources of user-data: `metashim userdata …`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shim.control.arguments import (
    InstanceType,
    ScopeType,
    Session,
    SourceNameType,
    contents,
    json_option,
    readable,
    reading_options,
)
from shim.control.output import complain, print_bytes, print_json, say, show_live
from shim.errors import InputError

if TYPE_CHECKING:
    from uuid import UUID

_scope_argument = click.argument("scope", type=ScopeType())
_name_argument = click.argument("name", type=SourceNameType())


@click.group()
def userdata() -> None:
    """Sources of user-data: whose, for whom, and what an instance gets.

    SCOPE is host, project:ID, image:ID, tag:KEY=VALUE, or an instance's uuid.
    """


@userdata.command("list")
@click.argument("instance", type=InstanceType(), required=False)
@click.option("--scope", type=ScopeType(), help="Those of this scope alone.")
@json_option
@click.pass_obj
def list_(session: Session, instance: UUID | None, scope: str | None, as_json: bool) -> None:
    """Sources in the order of composition: all, or those for an instance."""
    if instance is not None and scope is not None:
        raise click.UsageError("an instance or a --scope?")
    views = session.live().sources(scope, instance)
    show_live(as_json, {"sources": views}, lambda text: text.sources(views))


@userdata.command()
@_scope_argument
@_name_argument
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--vendor", is_flag=True, help="Vendor data, in place of user-data.")
@click.option("--owner", metavar="NAME", help="Who answers for it; guests are shown it.  [default: operator]")
@click.option("--order", type=click.IntRange(0, 999), help="Its place among the others.  [default: 500]")
@click.option("--merge", metavar="TYPE", help="Merge type of its cloud-config; '' is cloud-init's own default.")
@click.option("--template", is_flag=True, help="Rendered by Jinja2 for each instance.")
@reading_options
@json_option
@click.pass_obj
def add(
    session: Session,
    scope: str,
    name: str,
    file: str,
    vendor: bool,
    owner: str | None,
    order: int | None,
    merge: str | None,
    template: bool,
    once: bool,
    confirm: bool,
    until: float | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Write a source from a file, in the place of any of that name.

    FILE is what cloud-init reads: #cloud-config, a script, a MIME archive, gzip; - is standard input. A cloud-config
    that is no YAML is refused.
    """
    parameters = readable(once, confirm, until, seconds)
    body = contents(file, "name a file that cloud-init can read")
    if not template:
        check_cloud_config(file, body)
    parameters |= {
        "kind": "vendor" if vendor else None,
        "owner": owner,
        "order": order,
        "merge": merge,
        "template": "true" if template else None,
    }
    written = session.live().put_source(scope, name, body, parameters)
    words = f"{scope}/{name}: revision {written.source.revision}, {written.source.bytes} bytes"
    say(as_json, written, words if written.created else f"{words}, in the place of the former")
    for problem in written.problems:
        complain(problem, "")


def check_cloud_config(file: str, body: bytes) -> None:
    """Raises InputError where a cloud-config is no YAML, with the line. `file` is what it is called."""
    import re

    if not re.match(rb"\s*#cloud-config(?!-)", body, re.IGNORECASE):  # -archive and -jsonp are other things
        return
    import yaml

    hint = "mend it, or add it as --template if it is one"
    try:
        found = yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise InputError(f"{file}{_line(error, body)}: no YAML: {_problem(error)}", hint) from None
    except RecursionError:
        raise InputError(f"{file}: nested too deeply", "a few levels are enough") from None
    except ValueError as error:  # a date that there is not
        raise InputError(f"{file}: no YAML: {error}", hint) from None
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{file}: a cloud-config is keys and their values", "as in packages: [nginx]")


def _line(error: Exception, body: bytes) -> str:
    mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
    if mark is not None:
        return f", line {mark.line + 1}"
    return f", line {body.count(10, 0, position) + 1}" if isinstance(position, int) else ""


def _problem(error: Exception) -> str:
    told = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
    context = getattr(error, "context", None)
    return f"{told} {context}" if context else str(told)


@userdata.command()
@_scope_argument
@_name_argument
@json_option
@click.pass_obj
def remove(session: Session, scope: str, name: str, as_json: bool) -> None:
    """Take a source back."""
    session.live().delete_source(scope, name)
    say(as_json, {"scope": scope, "name": name}, f"{scope}/{name} is removed")


@userdata.command()
@_scope_argument
@_name_argument
@json_option
@click.pass_obj
def show(session: Session, scope: str, name: str, as_json: bool) -> None:
    """Print a source as it was written."""
    from shim.control.live_text import body_of

    found = session.live().source(scope, name)
    if as_json:
        print_json(found)
    else:
        print_bytes(body_of(found.body, found.body_base64))


@userdata.command()
@click.argument("instance", type=InstanceType())
@click.option("--vendor", is_flag=True, help="Vendor data, in place of user-data.")
@json_option
@click.pass_obj
def preview(session: Session, instance: UUID, vendor: bool, as_json: bool) -> None:
    """What an instance would be given now, and from whom.

    Parts as they are sent, the sources of each key of the merged cloud-config, and what is wrong. Nothing is used up
    by it.
    """
    view = session.live().preview(instance)
    show_live(as_json, view, lambda text: text.preview(view, vendor))


@userdata.command()
@click.argument("mode", type=click.Choice(["merged", "vendor", "default"]))
@click.argument("instances", type=InstanceType(), nargs=-1, required=True, metavar="INSTANCE...")
@json_option
@click.pass_obj
def compose(session: Session, mode: str, instances: tuple[UUID, ...], as_json: bool) -> int:
    """How instances' sources become their user-data.

    merged: one archive of all. vendor: the document's (or the backend's) own alone, all others as vendor data under it.
    default: as the configuration says.
    """
    from shim.control.policy_verbs import each
    from shim.core.policy import Composition

    wanted = None if mode == "default" else Composition(mode)
    return each(
        session, instances, as_json,
        lambda client, instance: client.set_composition(instance, wanted),
        lambda text, policy: f"composition {text.origin(policy.composition, policy.own_composition)}",
    )  # fmt: skip


VERBS = (userdata,)
