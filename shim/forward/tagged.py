"""Requests as a backend is sent them: cleaned of what the guest must not say, with the identity added. PURE.

The parser gives one and the same Request for a head that it was sent before, and guests ask for the same few paths
all their lives. So what a request becomes is remembered by which object it is, which takes a tenth of the time that
comparing headers would; and the client knows it again too.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from shim.core.exchange import Headers, Request, Subject

REMEMBERED = 512
REMEMBERED_BYTES = 1024  # of headers: as long as the heads that the parser knows again


class Tagged:
    """Call it with who asks and what; None where `headers`, which makes the whole of them, gives None."""

    def __init__(self, headers: Callable[[Subject, Headers], Headers | None]) -> None:
        self._headers = headers
        # The values keep what the ids in the key are of.
        self._known: dict[tuple[int, int], tuple[Subject, Request, Request]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, subject: Subject, request: Request) -> Request | None:
        """The request to send."""
        known = self._known.get((id(subject), id(request)))
        return known[2] if known is not None else self._tag(subject, request)

    def _tag(self, subject: Subject, request: Request) -> Request | None:
        headers = self._headers(subject, request.headers)
        if headers is None:
            return None
        tagged = replace(request, headers=headers)
        if request.parts is None and not request.body and _is_short(request.headers):
            self._remember(subject, request, tagged)
        return tagged

    def _remember(self, subject: Subject, request: Request, tagged: Request) -> None:
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[id(subject), id(request)] = subject, request, tagged


def _is_short(headers: Headers) -> bool:
    return sum(len(name) + len(value) for name, value in headers) <= REMEMBERED_BYTES
