"""What the verbs' arguments are: the session that the global options say, instances, taps, and their completion.

Like the verbs' own file it imports late: the short verbs start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shim.errors import InputError, MetashimError

if TYPE_CHECKING:
    from uuid import UUID

    from shim.config import Config
    from shim.control.client import Client

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic in newer releases only

COMPLETION_SECONDS = 0.2

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Session:
    """What the global options say."""

    def __init__(self, config: Path | None, socket: Path | None) -> None:
        self._config, self._socket = config, socket

    def config(self) -> Config:
        """The configuration. Raises ConfigError."""
        from shim.config import load

        return load(self._config)

    def client(self, timeout: float = 30.0) -> Client:
        """The way to the agent."""
        from shim.control.client import Client

        return Client(self._socket or self.config().control_socket, timeout)


class InstanceType(ParamType):
    """An instance's uuid, completed from those that the agent knows."""

    name = "instance"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """The uuid, however it is spelt. Raises InputError."""
        return _uuid(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The known instances."""
        names = _known(ctx, lambda client: [str(i.instance) for i in client.instances()])
        return _matching(incomplete, names)


class TapType(ParamType):
    """The name of a tap, completed from those that the agent guards."""

    name = "tap"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The guarded taps."""
        return _matching(incomplete, _known(ctx, lambda client: [port.tap for port in client.ports()]))


class InstanceOrTapType(TapType):
    """Either of them."""

    name = "instance or tap"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The known instances and the guarded taps."""
        instances = InstanceType().shell_complete(ctx, param, incomplete)
        return instances + super().shell_complete(ctx, param, incomplete)


class RouteType(ParamType):
    """One route, PREFIX=BACKEND."""

    name = "route"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Prefix and backend; the agent says whether they can be. Raises InputError."""
        prefix, equals, backend = value.rpartition("=")
        if not equals:
            raise InputError(f"{value!r} is no route", "write PREFIX=BACKEND, as in /=nova /latest/user-data=embedded")
        return prefix, backend

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The prefix as it is, with each backend."""
        from shim.settings import BACKENDS

        prefix = incomplete.rpartition("=")[0] or incomplete or "/"
        return _matching(incomplete, [f"{prefix}={backend}" for backend in BACKENDS])


def _uuid(text: str) -> UUID:
    from shim.core.instance import parse_instance

    try:
        return parse_instance(text)
    except ValueError as error:
        raise InputError(str(error), "`metashim list` shows those that are known") from None


def maybe_uuid(text: str | None) -> UUID | None:
    try:
        return _uuid(text or "")
    except InputError:
        return None


def _known(ctx: click.Context, ask: Callable[[Client], list[str]]) -> list[str]:
    """Names for completion; none when the agent does not answer soon."""
    options = ctx.find_root().params
    try:
        return ask(Session(options.get("config"), options.get("socket")).client(COMPLETION_SECONDS))
    except MetashimError:
        return []


def _matching(incomplete: str, names: Iterable[str]) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]
