"""The control API's resource of an instance's packets: server-sent events for as long as somebody reads them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from shim.control import fields
from shim.control import trace_shapes as shapes
from shim.control.call import Call, Resources
from shim.core.exchange import Response

_STREAM = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"))


async def _get_trace(call: Call) -> Response:
    stream = call.operations.trace(fields.instance(call.item), who=call.who)
    first = await anext(stream)  # what it raises is the answer
    return Response(200, _STREAM, parts=_events(first, stream))


async def _events(first: shapes.TraceView, stream: AsyncGenerator[shapes.TraceView, None]) -> AsyncIterator[bytes]:
    """What is to be said at once in one part; a comment where there is nothing, so that who went away is noticed."""
    try:
        yield _said(first)
        async for view in stream:
            yield _said(view)
    finally:
        await stream.aclose()


def _said(view: shapes.TraceView) -> bytes:
    events = [] if view.taps is None else [(b"taps", msgspec.json.encode(shapes.TapsView(view.taps)))]
    events += [(b"packet", msgspec.json.encode(packet)) for packet in view.packets]
    if view.missed:
        events.append((b"missed", msgspec.json.encode(shapes.MissedView(view.missed))))
    return b"".join(b"event: %s\ndata: %s\n\n" % event for event in events) or b":\n\n"


RESOURCES: Resources = {"instances/<uuid>/trace": {"GET": (_get_trace, ())}}
