"""The operators' end of the control API of sources and keys; verbs that need neither import client.py alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import UUID

import msgspec

from shim.control import live_shapes as live
from shim.control import shapes
from shim.control.client import ACCEPT, Client, encoded, query
from shim.errors import InputError

if TYPE_CHECKING:
    from shim.control.why_shapes import WhyView


class LiveClient(Client):
    """A Client that knows of sources and keys too."""

    def sources(self, scope: str | None = None, instance: UUID | None = None) -> list[live.SourceView]:
        """The sources of a scope, of an instance's scopes, or all."""
        return self._get(f"/v1/sources{query(scope=scope, instance=instance)}", live.SourcesView).sources

    def source(self, scope: str, name: str) -> live.SourceBodyView:
        """One source with its body."""
        return self._get(_source(scope, name), live.SourceBodyView)

    def put_source(
        self, scope: str, name: str, body: bytes, parameters: Mapping[str, object]
    ) -> live.SourceWrittenView:
        """Write a source; `parameters` as the API has them, those that are None left out."""
        if len(body) > shapes.MAX_BODY:
            raise InputError(f"the source has {len(body)} bytes", f"at most {shapes.MAX_BODY} are kept")
        where = _source(scope, name) + encoded(parameters)
        return self._call("PUT", where, body, live.SourceWrittenView)

    def delete_source(self, scope: str, name: str) -> None:
        """Take a source back."""
        self._send("DELETE", _source(scope, name))

    def preview(self, instance: UUID) -> live.PreviewView:
        """What an instance would be given as user-data and vendor data now."""
        return self._get(f"/v1/instances/{instance}/userdata", live.PreviewView)

    def why(self, instance: UUID, asked: Mapping[str, object]) -> WhyView:
        """What a request would get, `asked` as the API has it."""
        from shim.control.why_shapes import WhyView

        return self._call("POST", f"/v1/instances/{instance}/why", msgspec.json.encode(asked), WhyView)

    def values(self, instance: UUID, prefix: str = "") -> dict[str, live.ValueView]:
        """The key of that name, or those below it; empty: all."""
        return self._get(_key(instance, prefix), dict[str, live.ValueView])

    def put_key(
        self, instance: UUID, key: str, body: bytes, parameters: Mapping[str, object], if_match: str | None = None
    ) -> live.KeyWrittenView:
        """Write a key; `parameters` as the API has them. Raises ConflictError if its entity tag is not `if_match`."""
        if len(body) > shapes.MAX_BODY:
            raise InputError(f"the value has {len(body)} bytes", f"at most {shapes.MAX_BODY} are kept")
        where = _key(instance, key) + encoded(parameters)
        return self._call("PUT", where, body, live.KeyWrittenView, headers=_condition(if_match))

    def delete_key(self, instance: UUID, key: str, if_match: str | None = None) -> None:
        """Remove a key. Raises ConflictError if its entity tag is not `if_match`."""
        self._send("DELETE", _key(instance, key), headers=_condition(if_match))

    def changes(
        self, after: int = 0, wait: int = 0, instance: UUID | None = None, prefix: str = ""
    ) -> live.ChangesView:
        """Changes of keys after a sequence number; waits up to `wait` seconds (at most 30) for one."""
        where = query(after=after, wait=wait, instance=instance, prefix=prefix)
        return self._get(f"/v1/kv/changes{where}", live.ChangesView, wait)


def _source(scope: str, name: str) -> str:
    return f"/v1/sources/{quote(scope, safe='')}/{quote(name, safe='')}"


def _key(instance: UUID, key: str) -> str:
    return f"/v1/instances/{instance}/kv/{quote(key)}"


def _condition(if_match: str | None) -> dict[str, str]:
    if if_match is not None and not (if_match.isascii() and if_match.isprintable()):
        raise InputError(f"{if_match!r} is no entity tag", "write it as `metashim kv list --json` shows it")
    return ACCEPT | ({} if if_match is None else {"If-Match": if_match})
