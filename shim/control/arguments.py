"""What the verbs' arguments are: the session that the global options say, what is named, and its completion.

Like the verbs' own file it imports late: the short verbs start fast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shim.errors import InputError, MetashimError

if TYPE_CHECKING:
    from uuid import UUID

    from shim.config import Config
    from shim.control.client import Client
    from shim.control.live_client import LiveClient
    from shim.control.trace_client import TraceClient

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic in newer releases only

COMPLETION_SECONDS = 0.2
NOBODY = 65534  # the kernel's own overflow uid, and nobody's on Linux
FOLLOW_SECONDS = 25  # one long poll of a verb that follows

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Session:
    """What the global options say."""

    def __init__(
        self, config: Path | None, socket: Path | None, drop: Callable[[int, int], None] | None = None
    ) -> None:
        self._config, self._socket, self._drop = config, socket, drop

    def config(self) -> Config:
        """The configuration. Raises ConfigError."""
        from shim.config import load

        return load(self._config)

    def client(self, timeout: float = 30.0) -> Client:
        """The way to the agent."""
        from shim.control.client import Client

        return Client(self._socket or self.config().control_socket, timeout)

    def live(self, timeout: float = 30.0) -> LiveClient:
        """The same, for verbs about sources and keys."""
        from shim.control.live_client import LiveClient

        return LiveClient(self._socket or self.config().control_socket, timeout)


    def tracer(self) -> TraceClient:
        """The same, for the verb that traces."""
        from shim.control.trace_client import SILENCE_SECONDS, TraceClient

        return TraceClient(self._socket or self.config().control_socket, SILENCE_SECONDS)

    def give_up_root(self) -> None:
        """Becomes nobody, for good, and not the proxy's user, whose workers it could then touch; who is not root stays
        who they are."""
        import os

        if os.geteuid() == 0 and self._drop is not None:
            os.environ["HOME"] = "/nonexistent"  # root's is not to be looked into any more
            self._drop(NOBODY, NOBODY)


class InstanceType(ParamType):
    """An instance's uuid, completed from those that the agent knows."""

    name = "instance"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The uuid, however it is spelt. Raises InputError."""
        return parse_uuid(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The known instances."""
        names = _known(ctx, lambda client: [str(i.instance) for i in client.instances()])
        return _matching(incomplete, names)


class WatchedType(InstanceType):
    """An instance or a prefix of keys; which of them its verb finds out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As it is."""
        return value


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


class ScopeType(ParamType):
    """A scope of sources, as Scope.text writes it."""

    name = "scope"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The scope, a bare uuid as that instance's. Raises InputError."""
        from shim.core.source import parse_scope

        try:
            return parse_scope(value).text
        except ValueError as error:
            raise InputError(str(error), "as in project:blue or tag:role=web") from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Those that have a source, the kinds that there are, and the known instances."""
        used = _known(ctx, lambda client: [source.scope for source in client.sources()])
        found = _matching(incomplete, ["host", "project:", "image:", "tag:", *used])
        return found + InstanceType().shell_complete(ctx, param, incomplete)


class SourceNameType(ParamType):
    """The name of a source, completed from those of the scope before it."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The names in that scope."""
        scope = ctx.params.get("scope")
        return _matching(incomplete, _known(ctx, lambda client: [one.name for one in client.sources(scope)]))


class KeyType(ParamType):
    """A key of the instance before it."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The key. Raises InputError."""
        from shim.core.kv import parse_key

        try:
            return parse_key(value)
        except ValueError as error:
            raise InputError(f"{value!r}: {error}", "as in host/role or guest/report/boot") from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The keys of that instance."""
        instance = ctx.params.get("instance")
        names = _known(ctx, lambda client: list(client.values(instance))) if instance else []
        return _matching(incomplete, names or ["host/", "guest/"])


class PrefixType(ParamType):
    """A path prefix or a topic, folded."""

    name = "prefix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The prefix as closures are compared with it. Raises InputError."""
        from shim.core.closure import parse_prefix

        try:
            return parse_prefix(value)
        except ValueError as error:
            raise InputError(f"{value!r} is {error}", "every version and face that shows it is meant") from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The topics."""
        from shim.core.closure import TOPICS

        return _matching(incomplete, TOPICS)


class DurationType(ParamType):
    """A span of time: 90s, 15m, 2h, 1d, 1h30m; seconds where there is no unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds. Raises InputError."""
        import re

        units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
        if re.fullmatch(r"[0-9]{1,9}", value):
            return float(value)
        if not re.fullmatch(r"([0-9]{1,6}[smhd])+", value):
            raise InputError(f"{value!r} is no duration", "write 90s, 15m, 2h, 1d or 1h30m")
        return float(sum(int(count) * units[unit] for count, unit in re.findall(r"([0-9]+)([smhd])", value)))


class TimeType(ParamType):
    """A time: ISO 8601, which is local where it has no zone, or Unix seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds. Raises InputError."""
        from datetime import datetime

        if value.isascii() and value.isdigit() and 9 <= len(value) <= 11:
            return float(value)
        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            hint = "write it as in 2030-01-31T18:00, 2030-01-31T18:00:00Z or 1896112800"
            raise InputError(f"{value!r} is no time", hint) from None


_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def reading_options(verb: _Verb) -> _Verb:
    """How often something can be read, and until when: for `readable`."""
    for option in (
        click.option("--for", "seconds", type=DurationType(), help="How long it can be read: 90s, 15m, 2h, 1d."),
        click.option("--until", type=TimeType(), help="When it ends: ISO 8601, or Unix seconds."),
        click.option("--confirm", is_flag=True, help="It can be read until the guest confirms it."),
        click.option("--once", is_flag=True, help="It can be read once."),
    ):
        verb = option(verb)
    return verb


def readable(once: bool, confirm: bool, until: float | None, seconds: float | None) -> dict[str, object]:
    """The API's parameters for that. Raises UsageError for what does not go together."""
    if once and confirm:
        raise click.UsageError("--once or --confirm?")
    if until is not None and seconds is not None:
        raise click.UsageError("--until or --for?")
    reads = "once" if once else "confirm" if confirm else None
    return {"reads": reads, "until": None if until is None else f"{until:.6f}", "seconds": seconds}


def contents(file: str, hint: str) -> bytes:
    """The bytes of a file, `-` for standard input. Raises InputError."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", hint) from None


def parse_uuid(text: str) -> UUID:
    """An instance's uuid, however it is spelt. Raises InputError."""
    from shim.core.instance import parse_instance

    try:
        return parse_instance(text)
    except ValueError as error:
        raise InputError(str(error), "`metashim list` shows those that are known") from None


def maybe_uuid(text: str | None) -> UUID | None:
    """The same, None for what is none."""
    try:
        return parse_uuid(text or "")
    except InputError:
        return None


def _known(ctx: click.Context, ask: Callable[[LiveClient], list[str]]) -> list[str]:
    """Names for completion; none when the agent does not answer soon."""
    options = ctx.find_root().params
    try:
        return ask(Session(options.get("config"), options.get("socket")).live(COMPLETION_SECONDS))
    except MetashimError:
        return []


def _matching(incomplete: str, names: Iterable[str]) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]
