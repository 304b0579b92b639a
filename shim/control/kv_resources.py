"""The control API's resources of instances' keys: values and listings, which can be waited for, and all changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf
from typing import NamedTuple
from uuid import UUID

import msgspec

from shim.control import fields
from shim.control import live_shapes as live
from shim.control.call import BYTES, JSON, MAX_WAIT, Call, Resources, answer, problem, tag
from shim.control.operations import Keys, Operations
from shim.core.exchange import Response
from shim.core.kv import ROOTS, Value, etag
from shim.errors import InputError

KEEP_ALIVE_SECONDS = 15
"""A stream that has nothing to say says so after this: whoever went away is noticed."""

ABSENT = "0"
"""The entity tag of what is not there, for who waits for it."""

_STREAM = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"))


class _Seen(NamedTuple):
    """What a GET would answer at one moment; `until` (Unix seconds) it no longer is that, whoever changes nothing."""

    response: Response
    etag: str
    seq: int
    until: float


async def _get_keys(call: Call) -> Response:
    known = fields.etags(call.request.header(b"if-none-match")) or ()
    if "etag" in call.query:
        known += fields.etags(call.query["etag"].encode()) or ()
    wait = min(fields.number(call.query, "wait"), MAX_WAIT)
    instance, prefix = fields.instance(call.item), fields.key_prefix("".join(call.items[1:]))
    seen = await _look(call, instance, prefix)
    if wait and (seen.etag in known or not known):
        known = (seen.etag,)
        seen = await _wait(call, instance, prefix, seen, wait)
    return Response(304, tag(seen.etag)) if seen.etag in known else seen.response


async def _look(call: Call, instance: UUID, prefix: str) -> _Seen:
    keys = await call.operations.kv(instance, prefix)
    response, mark = _shown(call, keys, prefix)
    until = min((value.until for value in keys.values if value.until is not None), default=inf)
    return _Seen(response, mark, keys.seq, until)


def _shown(call: Call, keys: Keys, prefix: str) -> tuple[Response, str]:
    """A value as it is, or a listing, and its tag."""
    values, json = keys.values, call.accepts(b"application/json")
    if not values and prefix not in ("", *ROOTS):
        hint = "`metashim kv list` shows those that are there"
        return problem(404, f"no key {prefix}, and none below it", hint, tag(ABSENT)), ABSENT
    if not json and [value.key for value in values] == [prefix]:
        (value,) = values
        return Response(200, BYTES + tag(value.etag), value.body), value.etag
    body = msgspec.json.encode({value.key: live.ValueView.of(value) for value in values}) + b"\n"
    return Response(200, JSON + tag(etag(body)), body), etag(body)


async def _wait(call: Call, instance: UUID, prefix: str, seen: _Seen, seconds: float) -> _Seen:
    """What there is once it is something else, or after `seconds`."""
    clock = asyncio.get_running_loop().time
    began, first = clock(), seen.etag
    while seen.etag == first and (left := began + seconds - clock()) > 0:
        spent = clock() - began
        expires = max(seen.until - call.now - spent, 0.05)
        await call.operations.kv_changes(seen.seq, min(left, expires), instance, prefix)
        seen = await _look(call, instance, prefix)
    return seen


async def _put_key(call: Call) -> Response:
    instance, key = fields.instance(call.items[0]), fields.key(call.items[1])
    value = Value(key, call.request.body, fields.reads(call.query), fields.until(call.query, call.now))
    if_match, if_none_match = (fields.etags(call.request.header(one)) for one in (b"if-match", b"if-none-match"))
    written = await call.operations.put_key(instance, value, if_match, if_none_match, who=call.who)
    return answer(written, 201 if written.created else 200, tag(written.etag))


async def _delete_key(call: Call) -> Response:
    instance, key = fields.instance(call.items[0]), fields.key(call.items[1])
    await call.operations.delete_key(instance, key, fields.etags(call.request.header(b"if-match")), who=call.who)
    return Response(204)


async def _get_changes(call: Call) -> Response:
    after, wait = (fields.number(call.query, key) for key in ("after", "wait"))
    instance = fields.instance(call.query["instance"]) if "instance" in call.query else None
    prefix = fields.key_prefix(call.query.get("prefix", ""))
    if call.accepts(b"text/event-stream"):
        after = _last_event(call, after)
        return Response(200, _STREAM, parts=_stream(call.operations, after, instance, prefix))
    return answer(await call.operations.kv_changes(after, min(wait, MAX_WAIT), instance, prefix))


def _last_event(call: Call, after: int) -> int:
    """Where a client that comes again goes on."""
    given = call.request.header(b"last-event-id")
    if given is None:
        return after
    if not (given.isdigit() and len(given) <= 18):
        raise InputError("Last-Event-ID is no number", "send the id of the last event as it came, or none")
    return int(given)


async def _stream(operations: Operations, after: int, instance: UUID | None, prefix: str) -> AsyncIterator[bytes]:
    """Changes as server-sent events, without an end."""
    yield b": changes\n\n"
    while True:
        view = await operations.kv_changes(after, KEEP_ALIVE_SECONDS, instance, prefix)
        if view.missed and after:
            yield b'event: missed\ndata: {"missed":%d}\n\n' % view.missed
        if not view.changes:
            yield b":\n\n"
        for change in view.changes:
            yield b"id: %d\ndata: %s\n\n" % (change.seq, msgspec.json.encode(change))
        after = view.next


RESOURCES: Resources = {
    "instances/<uuid>/kv": {"GET": (_get_keys, ("wait", "etag"))},
    "instances/<uuid>/kv/<key*>": {
        "GET": (_get_keys, ("wait", "etag")),
        "PUT": (_put_key, ("reads", "until", "seconds")),
        "DELETE": (_delete_key, ()),
    },
    "kv/changes": {"GET": (_get_changes, ("after", "wait", "instance", "prefix"))},
}
