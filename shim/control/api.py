"""The operators' API: HTTP and JSON over a Unix socket, so that `curl --unix-socket` works too.

    GET                /v1/status /v1/ports /v1/instances
    GET PUT DELETE     /v1/instances/<uuid>            PUT: the instance's document
    GET PUT            /v1/instances/<uuid>/policy     {"access": …, "families": […], "hop_limit": …, "tokens": …,
                                                       "routes": {…}}
    GET                /v1/tokens
    POST               /v1/tokens/rotate               {"drop": false}
    GET POST           /v1/attachments                 {"tap": …, "instance": …, "netns": …}
    DELETE             /v1/attachments/<tap>?netns=
    GET                /v1/counters?instance=|tap=     (with tap: netns=)
    GET                /v1/events?after=<seq>&wait=<seconds>

The whole of a request is checked before any of it is applied. Who may speak here is decided by the
socket's owner and mode; nothing here is reachable by guests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from shim.control import fields, shapes
from shim.control.operations import Operations, PolicyChange
from shim.core.exchange import Headers, Request, Response
from shim.core.policy import Access, Family, Tokens
from shim.errors import ConflictError, InputError, MetashimError, NotFoundError, StoreError

MAX_BODY = shapes.MAX_BODY
MAX_WAIT = 30  # seconds that GET /v1/events may block

JSON = ((b"content-type", b"application/json"),)
_STATUS = ((InputError, 400), (NotFoundError, 404), (ConflictError, 409), (StoreError, 503))


_POLICY = (
    'a policy looks like {"access": "open|reset|drop|403", "families": ["4", "6"], "hop_limit": 64, '
    '"tokens": "off|optional|required", "routes": {"/": "embedded|nova|http"}}'
)
_ROTATION = 'a rotation looks like {"drop": false}'
_ATTACHMENT = 'an attachment looks like {"tap": "tap1", "instance": "<uuid>", "netns": ""}'


class _PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    access: Access | None = None
    families: list[Family] | None = None
    hop_limit: int | None = None
    tokens: Tokens | UnsetType | None = UNSET
    routes: dict[str, str] | UnsetType | None = UNSET


_NO_CHANGE = _PolicyChange()


class _Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    drop: bool = False


class _Attach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tap: str
    instance: str
    netns: str = ""


class _Call(NamedTuple):
    operations: Operations
    request: Request
    tail: str  # what follows the resource's prefix, decoded; "" if nothing may
    query: dict[str, str]


class _Refusal(Exception):
    """A request that fits no operation."""

    def __init__(self, status: int, what: str, hint: str, headers: Headers = ()) -> None:
        super().__init__(what)
        self.status, self.hint, self.headers = status, hint, headers


class Api:
    """`handle` answers one request; it raises nothing but what Operations raises beyond shim.errors."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def handle(self, request: Request) -> Response:
        """The answer to one operator's request."""
        try:
            return await self._route(request)
        except _Refusal as error:
            return _problem(error.status, str(error), error.hint, error.headers)
        except MetashimError as error:
            status = next((status for family, status in _STATUS if isinstance(error, family)), 500)
            return _problem(status, str(error), error.hint)

    def _route(self, request: Request) -> Awaitable[Response]:
        if len(request.body) > MAX_BODY:
            raise _Refusal(413, f"the body has {len(request.body)} bytes", f"send at most {MAX_BODY}")
        head, tail, leaf = _split(request.path)
        if (f"{head}/{tail}", False, leaf) in _RESOURCES:  # named by both, with no item
            head, tail = f"{head}/{tail}", ""
        resource = _RESOURCES.get((head, bool(tail), leaf))
        if resource is None:
            known = ", ".join(sorted({f"/v1/{name}" for name, _, _ in _RESOURCES}))
            raise _Refusal(404, "no such resource", f"there are {known}")
        method = request.method.decode("latin-1")
        operation = resource.get(method)
        if operation is None:
            allow = ", ".join(resource)
            headers = ((b"allow", allow.encode()),)
            raise _Refusal(405, f"{method} is not for this resource", f"use {allow}", headers)
        answer, parameters = operation
        return answer(_Call(self._operations, request, tail, fields.query(request.query, parameters)))


async def _get_status(call: _Call) -> Response:
    return _answer(await call.operations.status())


async def _get_ports(call: _Call) -> Response:
    return _answer(shapes.PortsView(await call.operations.ports()))


async def _get_instances(call: _Call) -> Response:
    return _answer(shapes.InstancesView(await call.operations.instances()))


async def _get_instance(call: _Call) -> Response:
    return _answer(await call.operations.instance(fields.instance(call.tail)))


async def _put_document(call: _Call) -> Response:
    instance = fields.instance(call.tail)
    try:
        revision = await call.operations.put_document(instance, call.request.body)
    except RecursionError:
        raise InputError("the document is nested too deeply", "a few levels are enough") from None
    return _answer(shapes.RevisionView(instance, revision))


async def _delete_instance(call: _Call) -> Response:
    await call.operations.delete_instance(fields.instance(call.tail))
    return Response(204)


async def _get_policy(call: _Call) -> Response:
    return _answer(await call.operations.policy(fields.instance(call.tail)))


async def _put_policy(call: _Call) -> Response:
    instance, change = fields.instance(call.tail), fields.body(call.request.body, _PolicyChange, _POLICY)
    if change.access is None and change.families is not None:
        raise InputError('"families" without "access"', 'add "access": all else holds for both families')
    if change == _NO_CHANGE:
        hint = 'give "access" (open, reset, drop, 403), "hop_limit", "tokens" or "routes", or several of them'
        raise InputError("nothing to change", hint)
    if change.families == []:
        raise InputError('"families" is empty', 'name "4", "6" or both, or leave it out for both')
    if change.hop_limit is not None and not 1 <= change.hop_limit <= 64:
        raise InputError(f'"hop_limit" is {change.hop_limit}', "it is the replies' TTL: 1 to 64")
    families = frozenset(Family) if change.families is None else frozenset(change.families)
    routes = fields.routes(change.routes) if isinstance(change.routes, dict) else change.routes
    wanted = PolicyChange(change.access, families, change.hop_limit, change.tokens, routes)
    return _answer(await call.operations.set_policy(instance, wanted))


async def _get_tokens(call: _Call) -> Response:
    return _answer(await call.operations.tokens())


async def _rotate_keys(call: _Call) -> Response:
    rotation = fields.body(call.request.body or b"{}", _Rotation, _ROTATION)
    return _answer(await call.operations.rotate_keys(rotation.drop))


async def _get_attachments(call: _Call) -> Response:
    return _answer(shapes.AttachmentsView(await call.operations.attachments()))


async def _post_attachment(call: _Call) -> Response:
    body = fields.body(call.request.body, _Attach, _ATTACHMENT)
    tap, instance, netns = fields.tap(body.tap), fields.instance(body.instance), fields.netns(body.netns)
    view = shapes.AttachmentView(tap, instance, netns)
    await call.operations.attach(view.netns, view.tap, view.instance)
    return _answer(view, 201)


async def _delete_attachment(call: _Call) -> Response:
    await call.operations.detach(fields.netns(call.query.get("netns", "")), fields.tap(call.tail))
    return Response(204)


async def _get_counters(call: _Call) -> Response:
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
    return _answer(shapes.CountersView(known))


async def _get_events(call: _Call) -> Response:
    after, wait = (fields.number(call.query, key) for key in ("after", "wait"))
    return _answer(await call.operations.events(after, min(wait, MAX_WAIT)))


_Operation = tuple[Callable[[_Call], Awaitable[Response]], tuple[str, ...]]

# (collection, whether an item is named, what of the item) → method → (operation, query parameters)
_RESOURCES: Mapping[tuple[str, bool, str], Mapping[str, _Operation]] = {
    ("status", False, ""): {"GET": (_get_status, ())},
    ("ports", False, ""): {"GET": (_get_ports, ())},
    ("instances", False, ""): {"GET": (_get_instances, ())},
    ("instances", True, ""): {
        "GET": (_get_instance, ()),
        "PUT": (_put_document, ()),
        "DELETE": (_delete_instance, ()),
    },
    ("instances", True, "policy"): {"GET": (_get_policy, ()), "PUT": (_put_policy, ())},
    ("tokens", False, ""): {"GET": (_get_tokens, ())},
    ("tokens/rotate", False, ""): {"POST": (_rotate_keys, ())},
    ("attachments", False, ""): {"GET": (_get_attachments, ()), "POST": (_post_attachment, ())},
    ("attachments", True, ""): {"DELETE": (_delete_attachment, ("netns",))},
    ("counters", False, ""): {"GET": (_get_counters, ("instance", "tap", "netns"))},
    ("events", False, ""): {"GET": (_get_events, ("after", "wait"))},
}


def _split(path: bytes) -> tuple[str, str, str]:
    """`/v1/<collection>[/<item>[/<leaf>]]`; a trailing slash makes no difference."""
    parts = [fields.decode(part) for part in path.decode("latin-1").removesuffix("/").split("/")]
    if parts[:2] != ["", "v1"] or not 3 <= len(parts) <= 5:
        return "", "", ""
    head, tail, leaf = [*parts[2:], "", ""][:3]
    return head, tail, leaf


def _answer(view: object, status: int = 200) -> Response:
    return Response(status, JSON, msgspec.json.encode(view) + b"\n")


def _problem(status: int, what: str, hint: str, headers: Headers = ()) -> Response:
    return Response(status, JSON + headers, msgspec.json.encode(shapes.Problem(what, hint)) + b"\n")
