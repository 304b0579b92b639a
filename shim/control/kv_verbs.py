"""The verbs about instances' keys: `metashim kv …`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from shim.control.arguments import (
    FOLLOW_SECONDS,
    InstanceType,
    KeyType,
    Session,
    WatchedType,
    contents,
    json_option,
    readable,
    reading_options,
)
from shim.control.output import print_bytes, print_json, say, show_live
from shim.errors import NotFoundError

if TYPE_CHECKING:
    from uuid import UUID

    from shim.control.live_shapes import ChangeView

_instance_argument = click.argument("instance", type=InstanceType())
_key_argument = click.argument("key", type=KeyType())
_if_match_option = click.option("--if-match", metavar="ETAG", help="Only if its entity tag is still this one.")


@click.group()
def kv() -> None:
    """Instances' keys: host/… for the guest to read, guest/… that it writes."""


@kv.command()
@_instance_argument
@_key_argument
@json_option
@click.pass_obj
def get(session: Session, instance: UUID, key: str, as_json: bool) -> None:
    """Print a key's value as it is."""
    from shim.control.live_text import body_of

    found = session.live().values(instance, key).get(key)
    if found is None:
        raise NotFoundError(f"{key} is no value: there are keys below it", f"`metashim kv list {instance} {key}`")
    if as_json:
        import msgspec

        print_json({"key": key} | msgspec.to_builtins(found))
    else:
        print_bytes(body_of(found.value, found.value_base64))


@kv.command("set")
@_instance_argument
@_key_argument
@click.argument("value")
@reading_options
@_if_match_option
@json_option
@click.pass_obj
def set_(
    session: Session,
    instance: UUID,
    key: str,
    value: str,
    once: bool,
    confirm: bool,
    until: float | None,
    seconds: float | None,
    if_match: str | None,
    as_json: bool,
) -> None:
    """Write a key.

    VALUE is text, @FILE a file's bytes, and - standard input's.
    """
    parameters = readable(once, confirm, until, seconds)
    written = session.live().put_key(instance, key, _value(value), parameters, if_match)
    say(as_json, written, f"{key} of {instance}: revision {written.revision}, etag {written.etag}")


def _value(text: str) -> bytes:
    if text == "-" or text.startswith("@"):
        return contents(text.removeprefix("@") or "@", "name a file as @FILE, or - for standard input")
    return text.encode(errors="surrogateescape")


@kv.command()
@_instance_argument
@_key_argument
@_if_match_option
@json_option
@click.pass_obj
def delete(session: Session, instance: UUID, key: str, if_match: str | None, as_json: bool) -> None:
    """Remove a key."""
    session.live().delete_key(instance, key, if_match)
    say(as_json, {"instance": instance, "key": key}, f"{key} of {instance} is removed")


@kv.command("list")
@_instance_argument
@click.argument("prefix", default="")
@json_option
@click.pass_obj
def list_(session: Session, instance: UUID, prefix: str, as_json: bool) -> None:
    """An instance's keys, or those below a prefix.

    With --json their values too.
    """
    found = session.live().values(instance, prefix)
    show_live(as_json, found, lambda text: text.keys(found))


@kv.command()
@click.argument("which", type=WatchedType(), nargs=-1, metavar="[INSTANCE] [PREFIX]")
@click.option("--all", "everyones", is_flag=True, help="Of all instances; PREFIX comes first then.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def watch(session: Session, which: tuple[str, ...], everyones: bool, as_json: bool) -> None:
    """Changes of keys from now on, until interrupted.

    Of an instance, or of all; of keys at or below PREFIX.
    """
    instance, prefix = _watched(which, everyones)
    client = session.live()
    after = client.changes(0, 0, instance, prefix).next
    while True:
        view = client.changes(after, FOLLOW_SECONDS, instance, prefix)
        if view.missed and after:
            click.echo(f"{view.missed} changes came too fast and are lost", err=True)
        for change in view.changes:
            show_live(as_json, change, partial(_print_change, change, everyones), indent=0)
        after = view.next


def _watched(which: tuple[str, ...], everyones: bool) -> tuple[UUID | None, str]:
    """Whose keys, and what they begin with. Raises UsageError, InputError."""
    from shim.control.arguments import parse_uuid

    if everyones:
        if len(which) > 1:
            raise click.UsageError("an instance or --all?")
        return None, which[0] if which else ""
    if not 1 <= len(which) <= 2:
        raise click.UsageError("which instance? Or --all")
    return parse_uuid(which[0]), which[1] if len(which) == 2 else ""


def _print_change(change: ChangeView, whose: bool, text: Any) -> None:
    text.change(change, whose)


VERBS = (kv,)
