"""The operators' API: HTTP and JSON over a Unix socket, so that `curl --unix-socket` works too.

    GET                /v1/status /v1/ports /v1/instances
    GET PUT DELETE     /v1/instances/<uuid>              PUT: the instance's document
    GET PUT            /v1/instances/<uuid>/policy       {"access": …, "families": […], "hop_limit": …, "tokens": …,
                                                         "routes": {…}, "composition": …, "closed": […], "auto": {…}}
    POST               /v1/instances/<uuid>/unlock       {"prefix": …}
    POST               /v1/instances/<uuid>/why          {"path": …, "family": …, "method": …, "headers": [[…, …]], …}
    GET                /v1/instances/<uuid>/trace        server-sent events
    GET                /v1/instances/<uuid>/userdata
    GET                /v1/instances/<uuid>/kv[/<prefix>]?wait=&etag=
    GET PUT DELETE     /v1/instances/<uuid>/kv/<key>     raw bytes; ?reads=&until=|seconds=
    GET                /v1/kv/changes?after=&wait=&instance=&prefix=
    GET                /v1/sources?scope=|instance=
    GET PUT DELETE     /v1/sources/<scope>/<name>        raw bytes; ?kind=&owner=&order=&merge=&template=&reads=&until=
    GET                /v1/tokens
    POST               /v1/tokens/rotate                 {"drop": false}
    GET POST           /v1/attachments                   {"tap": …, "instance": …, "netns": …}
    DELETE             /v1/attachments/<tap>?netns=
    GET                /v1/counters?instance=|tap=       (with tap: netns=)
    GET                /v1/events?after=<seq>&wait=<seconds>
    GET                /v1/audit?instance=&after=&limit=&wait=

The whole of a request is checked before any of it is applied. Who may speak here is decided by the
socket's owner and mode; nothing here is reachable by guests.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import msgspec

from shim.control import (
    fields,
    kv_resources,
    policy_resources,
    shapes,
    source_resources,
    trace_resources,
    why_resources,
)
from shim.control.call import MAX_WAIT, Call, Refusal, Resources, answer, problem
from shim.control.operations import ChangedError, Operations
from shim.core.exchange import Request, Response
from shim.errors import ConflictError, InputError, MetashimError, NotFoundError, StoreError

MAX_BODY = shapes.MAX_BODY
AUDIT_ROWS = 100
AUDIT_ROWS_MAX = 1000

_STATUS = ((InputError, 400), (NotFoundError, 404), (ChangedError, 412), (ConflictError, 409), (StoreError, 503))
_ROTATION = 'a rotation looks like {"drop": false}'
_ATTACHMENT = 'an attachment looks like {"tap": "tap1", "instance": "<uuid>", "netns": ""}'


class _Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    drop: bool = False


class _Attach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tap: str
    instance: str
    netns: str = ""


class Api:
    """`handle` answers one request; it raises nothing but what Operations raises beyond shim.errors.

    `clock` gives Unix seconds.
    """

    def __init__(self, operations: Operations, clock: Callable[[], float] = time.time) -> None:
        self._operations = operations
        self._clock = clock

    async def handle(self, request: Request, who: str = "operator") -> Response:
        """The answer to one operator's request. `who` that is, for the audit trail."""
        try:
            return await self._route(request, who)
        except Refusal as error:
            return problem(error.status, str(error), error.hint, error.headers)
        except MetashimError as error:
            status = next((status for family, status in _STATUS if isinstance(error, family)), 500)
            return problem(status, str(error), error.hint)

    def _route(self, request: Request, who: str) -> Awaitable[Response]:
        if len(request.body) > MAX_BODY:
            raise Refusal(413, f"the body has {len(request.body)} bytes", f"send at most {MAX_BODY}")
        resource, items = _find(request.path)
        if resource is None:
            known = ", ".join(sorted({f"/v1/{name.partition('/<')[0]}" for name in _RESOURCES}))
            raise Refusal(404, "no such resource", f"there are {known}")
        operations = _RESOURCES[resource]
        method = request.method.decode("latin-1")
        operation = operations.get(method)
        if operation is None:
            allow = ", ".join(operations)
            headers = ((b"allow", allow.encode()),)
            raise Refusal(405, f"{method} is not for this resource", f"use {allow}", headers)
        respond, parameters = operation
        query = fields.query(request.query, parameters)
        return respond(Call(self._operations, request, items, query, who, self._clock()))


async def _get_status(call: Call) -> Response:
    return answer(await call.operations.status())


async def _get_ports(call: Call) -> Response:
    return answer(shapes.PortsView(await call.operations.ports()))


async def _get_instances(call: Call) -> Response:
    return answer(shapes.InstancesView(await call.operations.instances()))


async def _get_instance(call: Call) -> Response:
    return answer(await call.operations.instance(fields.instance(call.item)))


async def _put_document(call: Call) -> Response:
    instance = fields.instance(call.item)
    try:
        revision = await call.operations.put_document(instance, call.request.body, who=call.who)
    except RecursionError:
        raise InputError("the document is nested too deeply", "a few levels are enough") from None
    return answer(shapes.RevisionView(instance, revision))


async def _delete_instance(call: Call) -> Response:
    await call.operations.delete_instance(fields.instance(call.item), who=call.who)
    return Response(204)


async def _get_tokens(call: Call) -> Response:
    return answer(await call.operations.tokens())


async def _rotate_keys(call: Call) -> Response:
    rotation = fields.body(call.request.body or b"{}", _Rotation, _ROTATION)
    return answer(await call.operations.rotate_keys(rotation.drop, who=call.who))


async def _get_attachments(call: Call) -> Response:
    return answer(shapes.AttachmentsView(await call.operations.attachments()))


async def _post_attachment(call: Call) -> Response:
    body = fields.body(call.request.body, _Attach, _ATTACHMENT)
    tap, instance, netns = fields.tap(body.tap), fields.instance(body.instance), fields.netns(body.netns)
    view = shapes.AttachmentView(tap, instance, netns)
    await call.operations.attach(view.netns, view.tap, view.instance, who=call.who)
    return answer(view, 201)


async def _delete_attachment(call: Call) -> Response:
    netns, tap = fields.netns(call.query.get("netns", "")), fields.tap(call.item)
    await call.operations.detach(netns, tap, who=call.who)
    return Response(204)


async def _get_counters(call: Call) -> Response:
    instance, tap, netns = (call.query.get(key) for key in ("instance", "tap", "netns"))
    if instance is not None and tap is not None:
        raise InputError("both instance and tap", "give one of them")
    if netns is not None and tap is None:
        raise InputError("netns without tap", "add tap=: netns says where that one is")
    known = await call.operations.counters(
        None if instance is None else fields.instance(instance),
        fields.netns(netns or ""),
        None if tap is None else fields.tap(tap),
    )
    return answer(shapes.CountersView(known))


async def _get_events(call: Call) -> Response:
    after, wait = (fields.number(call.query, key) for key in ("after", "wait"))
    return answer(await call.operations.events(after, min(wait, MAX_WAIT)))


async def _get_audit(call: Call) -> Response:
    instance = call.query.get("instance")
    after = fields.number(call.query, "after") if "after" in call.query else None
    limit = fields.number(call.query, "limit") or AUDIT_ROWS
    wait = min(fields.number(call.query, "wait"), MAX_WAIT)
    found = await call.operations.audit(
        None if instance is None else fields.instance(instance), after, min(limit, AUDIT_ROWS_MAX), wait
    )
    return answer(found)


_RESOURCES: Resources = {
    "status": {"GET": (_get_status, ())},
    "ports": {"GET": (_get_ports, ())},
    "instances": {"GET": (_get_instances, ())},
    "instances/<uuid>": {
        "GET": (_get_instance, ()),
        "PUT": (_put_document, ()),
        "DELETE": (_delete_instance, ()),
    },
    **policy_resources.RESOURCES,
    **why_resources.RESOURCES,
    **trace_resources.RESOURCES,
    **kv_resources.RESOURCES,
    **source_resources.RESOURCES,
    "tokens": {"GET": (_get_tokens, ())},
    "tokens/rotate": {"POST": (_rotate_keys, ())},
    "attachments": {"GET": (_get_attachments, ()), "POST": (_post_attachment, ())},
    "attachments/<tap>": {"DELETE": (_delete_attachment, ("netns",))},
    "counters": {"GET": (_get_counters, ("instance", "tap", "netns"))},
    "events": {"GET": (_get_events, ("after", "wait"))},
    "audit": {"GET": (_get_audit, ("instance", "after", "limit", "wait"))},
}
_PATTERNS = [(name, name.split("/")) for name in _RESOURCES]


def _find(path: bytes) -> tuple[str | None, tuple[str, ...]]:
    """The resource that a path names, and its items; a trailing slash makes no difference."""
    parts = [fields.decode(part) for part in path.decode("latin-1").removesuffix("/").split("/")]
    if parts[:2] != ["", "v1"]:
        return None, ()
    for name, pattern in _PATTERNS:
        items = _match(pattern, parts[2:])
        if items is not None:
            return name, items
    return None, ()


def _match(pattern: list[str], parts: list[str]) -> tuple[str, ...] | None:
    """What is in the places of a pattern's <…>; None where the path is not of it."""
    many = pattern[-1].endswith("*>")
    if len(parts) < len(pattern) or (len(parts) > len(pattern) and not many):
        return None
    if many:
        parts = [*parts[: len(pattern) - 1], "/".join(parts[len(pattern) - 1 :])]
    items = []
    for known, part in zip(pattern, parts, strict=True):
        if known.startswith("<"):
            items.append(part)
        elif known != part:
            return None
    return tuple(items) if all(items) else None
