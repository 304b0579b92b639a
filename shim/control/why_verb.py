"""The verb that explains what a request would get."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from shim.control.arguments import InstanceType, ParamType, Session, json_option
from shim.control.output import print_json
from shim.errors import InputError

if TYPE_CHECKING:
    from uuid import UUID

_PATHS = (
    "/latest/meta-data/",
    "/latest/meta-data/instance-id",
    "/latest/user-data",
    "/latest/api/token",
    "/openstack/latest/meta_data.json",
    "/openstack/latest/network_data.json",
    "/openstack/latest/user_data",
    "/openstack/latest/vendor_data.json",
    "/computeMetadata/v1/instance/",
    "/metashim/v1/",
    "/metashim/v1/kv/",
    "/metashim/v1/sources/",
    "/metashim/v1/user-data",
)
"""What guests' software asks for most, for completion."""


class GuestPathType(ParamType):
    """A path as a guest asks for it, with its query."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Those that are known well."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(path) for path in _PATHS if path.startswith(incomplete)]


class HeaderType(ParamType):
    """One header, NAME:VALUE."""

    name = "header"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Name and value. Raises InputError."""
        name, colon, text = value.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name):
            raise InputError(f"{value!r} is no header", "write NAME:VALUE, as in Metadata-Flavor:Google")
        return name, text.strip()


@click.command()
@click.argument("instance", type=InstanceType())
@click.argument("path", type=GuestPathType())
@click.option("--family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IPv4 or IPv6.")
@click.option("--method", default="GET", show_default=True, metavar="METHOD", help="As in PUT, for a token or a key.")
@click.option("--header", "headers", type=HeaderType(), multiple=True, metavar="NAME:VALUE", help="Any number.")
@click.option("--data", default="", metavar="TEXT", help="The body.")
@click.option("--with-token", is_flag=True, help="As with a session token that is good.")
@json_option
@click.pass_obj
def why(
    session: Session,
    instance: UUID,
    path: str,
    family: str,
    method: str,
    headers: tuple[tuple[str, str], ...],
    data: str,
    with_token: bool,
    as_json: bool,
) -> None:
    """What a request would get, and which rule decides.

    PATH is as the guest asks for it, with its query. Rules are in the order in which a packet and a request meet
    them, up to the one that decides; nothing is sent to a backend, and nothing is used up.
    """
    asked = {
        "path": path, "family": family, "method": method.upper(), "headers": headers, "body": data,
        "with_token": with_token,
    }  # fmt: skip
    view = session.live().why(instance, asked)
    if as_json:
        print_json(view)
        return
    from shim.control import why_text

    why_text.why(view)


VERBS = (why,)
