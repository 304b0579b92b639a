"""What a verb prints: text for people or JSON for programs, and complaints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from shim.errors import InputError


def show(as_json: bool, view: object, print_text: Callable[[Any], None], indent: int = 2) -> None:
    """Print `view` as JSON, or let `print_text` print it given the module `text`."""
    if as_json:
        print_json(view, indent)
        return
    from shim.control import text

    print_text(text)


def show_live(as_json: bool, view: object, print_text: Callable[[Any], None], indent: int = 2) -> None:
    """Print `view` as JSON, or let `print_text` print it given the module `live_text`."""
    if as_json:
        print_json(view, indent)
        return
    from shim.control import live_text

    print_text(live_text)


def print_bytes(body: bytes) -> None:
    """Bytes as they are to a file or pipe; to a terminal as text that cannot steer it. Raises InputError for what is
    no text there."""
    if not sys.stdout.isatty():
        click.echo(body, nl=False)
        return
    from shim.control.text import lines

    try:
        click.echo("\n".join(lines(body.decode().removesuffix("\n"))))
    except UnicodeDecodeError:
        raise InputError(f"{len(body)} bytes that are no text", "send them to a file or a pipe") from None


def say(as_json: bool, view: object, words: str) -> None:
    """Print `view` as JSON, or a sentence."""
    print_json(view) if as_json else click.echo(words)


def print_json(view: object, indent: int = 2) -> None:
    """Print what msgspec can encode; without `indent` on one line."""
    import msgspec

    raw = msgspec.json.encode(view)
    click.echo(msgspec.json.format(raw, indent=indent) if indent else raw)


def complain(what: str, hint: str) -> None:
    """Two lines on standard error: what happened, then what to do."""
    from shim.control.text import clean

    click.echo(f"metashim: {clean(what)}", err=True)
    if hint:
        click.echo(f"  {clean(hint)}", err=True)
