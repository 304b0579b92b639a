"""The operators' end of a trace: one answer of the control API that does not end by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from uuid import UUID

import msgspec

from shim.control import trace_shapes as shapes
from shim.control.client import Client
from shim.errors import UnreachableError

SILENCE_SECONDS = 10.0
"""The agent says something every second, if only that it is there."""

_KINDS: dict[bytes, type[msgspec.Struct]] = {
    b"packet": shapes.PacketView,
    b"missed": shapes.MissedView,
    b"taps": shapes.TapsView,
}

Told = shapes.PacketView | shapes.MissedView | shapes.TapsView | None
"""None: nothing, and time has passed."""


class TraceClient(Client):
    """A Client that can trace."""

    @contextmanager
    def trace(self, instance: UUID) -> Iterator[Iterator[Told]]:
        """What the agent shows of an instance's packets, until it ends. The trace has begun once this is entered.
        Raises UnreachableError when the agent goes."""
        with self._opened(f"/v1/instances/{instance}/trace", {"Accept": "text/event-stream"}) as answer:
            yield self._read(answer)

    def _read(self, answer: HTTPResponse) -> Iterator[Told]:
        kind = b""
        while True:
            try:
                line = answer.readline()
            except (OSError, HTTPException, ValueError) as error:
                raise UnreachableError(f"the agent broke off: {error or type(error).__name__}", "see its log") from None
            if not line:
                raise UnreachableError("the agent ended the trace", "was it restarted? Trace again then")
            if line.startswith(b":"):
                yield None
            name, _, value = line.strip().partition(b": ")
            if name == b"event":
                kind = value
            elif name == b"data" and kind in _KINDS:
                yield msgspec.json.decode(value, type=_KINDS[kind])  # type: ignore[misc]
