"""The embedded backend: answers made here, from the documents in the store.

An answer is made once and then kept, as long as the store does not change at all: operators write seldom
and guests read the same few paths again and again. What is kept is bounded in bytes, and in answers per
instance, so that one which asks for ever new spellings of paths pushes out its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from uuid import UUID

from msgspec.structs import replace

from shim.core.exchange import Caller, Request, Response
from shim.errors import StoreError
from shim.forward.fresh import Freshness
from shim.forward.unavailable import unavailable
from shim.settings import EMBEDDED

CACHE_BYTES = 8 << 20
ANSWERS_PER_INSTANCE = 64

_OVERHEAD = 600  # bytes that an answer takes beside its path and body: objects, and the dict's share
_UNAVAILABLE = unavailable(EMBEDDED)


class Embedded:
    """A backend: call it with who asks and what.

    `version` is another value after any change of the store; `render` makes an instance's answer from the
    store as it is now. Either raises StoreError when the store cannot be read: then the guest gets a 503.
    """

    def __init__(
        self,
        version: Callable[[], Hashable],
        render: Callable[[UUID, Request], Response],
        cache_bytes: int = CACHE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._freshness = Freshness(version, clock)
        self._render = render
        self._cache_bytes = cache_bytes
        self._answers: OrderedDict[UUID, dict[bytes, Response]] = OrderedDict()
        self.held = 0
        """Bytes that the kept answers take, as reckoned."""

    def __call__(self, caller: Caller, request: Request) -> Response:
        """The answer; never raises for what a guest sends."""
        try:
            if self._freshness.is_over():
                self._answers.clear()
                self.held = 0
            return self._answer(caller.instance, request)
        except StoreError:
            return _UNAVAILABLE

    def _answer(self, instance: UUID, request: Request) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return self._made(instance, request)
        answers = self._answers.get(instance)
        kept = answers.get(request.path) if answers is not None else None
        if kept is not None:
            self._answers.move_to_end(instance)
            return kept
        response = self._made(instance, request)
        if response.status == 200:
            self._keep(instance, request.path, response)
        return response

    def _made(self, instance: UUID, request: Request) -> Response:
        return replace(self._render(instance, request), backend=EMBEDDED)

    def _keep(self, instance: UUID, path: bytes, response: Response) -> None:
        cost = _cost(path, response)
        if cost > self._cache_bytes:
            return
        if len(self._answers.get(instance, ())) >= ANSWERS_PER_INSTANCE:
            self._drop(instance)
        while self.held + cost > self._cache_bytes:
            self._drop(next(iter(self._answers)))
        self._answers.setdefault(instance, {})[path] = response
        self._answers.move_to_end(instance)
        self.held += cost

    def _drop(self, instance: UUID) -> None:
        self.held -= sum(_cost(path, response) for path, response in self._answers.pop(instance).items())


def _cost(path: bytes, response: Response) -> int:
    return _OVERHEAD + len(path) + len(response.body)
