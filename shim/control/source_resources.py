"""The control API's resources of sources, and of what they make of an instance's user-data."""

from __future__ import annotations

import re

from shim.control import fields
from shim.control import live_shapes as live
from shim.control.call import BYTES, Call, Resources, answer, tag
from shim.core.exchange import Response
from shim.core.kv import etag
from shim.core.source import DOCUMENT, MERGE_DEFAULT, ORDER_DEFAULT, Kind, Scope, Source
from shim.errors import InputError

_UNPRINTABLE = re.compile(r"[^ -~]")
OWNER_DEFAULT = "operator"  # and not who asks: guests are shown it


async def _get_sources(call: Call) -> Response:
    scope, instance = call.query.get("scope"), call.query.get("instance")
    if scope is not None and instance is not None:
        raise InputError("both scope and instance", "give one of them: instance is all of the scopes that it is in")
    found = await call.operations.sources(
        None if scope is None else fields.scope(scope), None if instance is None else fields.instance(instance)
    )
    return answer(live.SourcesView(found))


def _named(call: Call) -> tuple[Scope, str]:
    scope, name = call.items
    return fields.scope(scope), fields.source_name(name)


async def _get_source(call: Call) -> Response:
    source = await call.operations.source(*_named(call))
    headers = (*tag(etag(source.body)), (b"x-metashim-owner", _UNPRINTABLE.sub("?", source.owner).encode()))
    if not call.accepts(b"application/json"):
        return Response(200, BYTES + headers, source.body)
    return answer(live.SourceBodyView.of(source), headers=headers)


async def _put_source(call: Call) -> Response:
    (scope, name), query = _named(call), call.query
    if scope.kind == "instance" and name == DOCUMENT:
        raise InputError(f"the source {name} of an instance is its document's own", "`metashim set`, or another name")
    source = Source(
        scope,
        name,
        call.request.body,
        kind=fields.member(query, "kind", Kind.USER),
        owner=fields.owner(query.get("owner", OWNER_DEFAULT)),
        order=fields.within(query, "order", ORDER_DEFAULT, 0, 999),
        merge=fields.merge(query.get("merge", MERGE_DEFAULT)),
        template=fields.flag(query, "template"),
        reads=fields.reads(query),
        until=fields.until(query, call.now),
    )
    written = await call.operations.put_source(source, who=call.who)
    return answer(written, 201 if written.created else 200, tag(written.source.etag))


async def _delete_source(call: Call) -> Response:
    scope, name = _named(call)
    await call.operations.delete_source(scope, name, who=call.who)
    return Response(204)


async def _preview(call: Call) -> Response:
    return answer(await call.operations.preview(fields.instance(call.item)))


_PARAMETERS = ("kind", "owner", "order", "merge", "template", "reads", "until", "seconds")

RESOURCES: Resources = {
    "sources": {"GET": (_get_sources, ("scope", "instance"))},
    "sources/<scope>/<name>": {
        "GET": (_get_source, ()),
        "PUT": (_put_source, _PARAMETERS),
        "DELETE": (_delete_source, ()),
    },
    "instances/<uuid>/userdata": {"GET": (_preview, ())},
}
