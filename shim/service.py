"""What a request meets in a worker, from its caller to its answer: policy, allowance, session token, route, what is
closed, backend.

It is called once a request and returns what the server awaits, so each step is a look-up, and none waits.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from shim.core.closure import fold, is_closed, prefixes
from shim.core.exchange import Caller, Pending, Request, Response, Subject
from shim.core.policy import Access, Policy, Tokens
from shim.errors import StoreError
from shim.forward import token
from shim.forward.allowance import TOO_MANY, Allowance, Concurrency
from shim.forward.identify import Entry, Table
from shim.forward.routes import OWN, Routes, decode
from shim.forward.subjects import Subjects
from shim.forward.unavailable import unavailable
from shim.overlay import Overlay
from shim.settings import EMBEDDED

OPEN = Access.OPEN  # reaching it by its class takes 0.1 µs (Python 3.11), and every request asks
DISABLED = Response(403, ((b"content-type", b"text/plain"),), b"", close=True)
"""What a guest gets whose metadata was switched off by `--how 403`: as EC2 says it."""

CLOSED = Response(403, ((b"content-type", b"text/plain"),), b"closed\n")
"""What a guest gets of a path that an operator or it itself closed."""

UNAVAILABLE = unavailable("")

Answer = Response | Pending | Awaitable[Response]

Backend = Callable[[Subject, Request], Response | Pending]
"""Answers who asks what."""



class Service:
    """`handle` answers the requests of the callers in `table`. `keys` are those of session tokens.

    `embedded` answers what is routed to it; `backends` are the others, by name.
    """

    def __init__(
        self,
        table: Table,
        tokens: Tokens,
        routes: Routes,
        allowance: Allowance,
        concurrency: Concurrency,
        subjects: Subjects,
        embedded: Callable[[Caller, Entry, Request], Answer],
        backends: Mapping[str, Backend],
        overlay: Overlay | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.keys = token.Keys()
        self._table = table
        self._tokens = tokens
        self._routes = routes
        self._allowance = allowance
        self._concurrency = concurrency
        self._subjects = subjects
        self._embedded = embedded
        self._backends = backends
        self._overlay = overlay
        self._clock = clock
        self._now = now

    def handle(self, caller: Caller, request: Request) -> Answer:
        """The answer, or one that is to come."""
        entry = self._table.entry(caller)
        if entry is None or entry.policy.access(caller.family) is not OPEN:
            return DISABLED
        if entry.policy.auto is not None and self._is_over(entry.policy):
            return DISABLED
        if not self._allowance.take(caller.instance, self._clock()):
            return TOO_MANY
        mode = entry.policy.tokens or self._tokens
        refusal = token.front(mode, self.keys, caller, request, self._now())
        if isinstance(refusal, Response):
            return refusal
        route = self._routes.backend(request.path, entry.policy.routes)
        if isinstance(route, Response):
            return route
        if entry.policy.closed and _is_closed(entry.policy, request.path):
            return CLOSED
        if route == EMBEDDED and request.path.startswith(OWN):
            route = self._beside(entry, request)
        if route != EMBEDDED:
            return self._forward(route, caller, entry, request)
        if request.parts is None:
            return self._embedded(caller, entry, request)
        return self._limited(entry, lambda: self._embedded(caller, entry, request))

    def _beside(self, entry: Entry, request: Request) -> str:
        """Who answers what our own face shows of a backend's user-data: that one, where it answers the instance."""
        theirs = self._overlay.beside(request) if self._overlay is not None else None
        route = self._routes.backend(theirs, entry.policy.routes) if theirs is not None else EMBEDDED
        return route if isinstance(route, str) else EMBEDDED

    def still(self, caller: Caller, path: bytes) -> Entry | Response:
        """Whose the slot of one is who was let in before and has waited since, or what it gets now."""
        entry = self._table.entry(caller)
        if entry is None or entry.policy.access(caller.family) is not OPEN:
            return DISABLED
        if entry.policy.auto is not None and self._is_over(entry.policy):
            return DISABLED
        return CLOSED if entry.policy.closed and _is_closed(entry.policy, path) else entry

    def _is_over(self, policy: Policy) -> bool:
        """Whether the time has come when the instance is to be disabled. The agent sees to that; while there is none,
        this does."""
        until = policy.auto.until if policy.auto is not None else None
        return until is not None and until <= self._now()

    def token_outcome(self, entry: Entry | None, request: Request | None, status: int, backend: str) -> str:
        """What an answered request was by its session token: with, without, refused; empty where nobody looked."""
        if entry is None or request is None:
            return ""
        if backend == token.BACKEND:
            return "refused" if status == 401 else ""
        if not backend:
            return ""
        off = (entry.policy.tokens or self._tokens) is Tokens.OFF
        return "without" if off or request.header(token.HEADER) is None else "with"

    def _forward(self, route: str, caller: Caller, entry: Entry, request: Request) -> Answer:
        backend = self._backends.get(route)
        if backend is None:
            return UNAVAILABLE
        return self._limited(entry, lambda: self._composed(backend, caller, entry, request))

    def _composed(self, backend: Backend, caller: Caller, entry: Entry, request: Request) -> Answer:
        """What the backend answers, with what the store has beside it."""
        ask = partial(backend, self._subjects.of(entry))
        try:
            if self._overlay is None or not self._overlay.concerns(entry, request):
                return ask(request)
        except StoreError:
            return UNAVAILABLE
        return self._overlay.answer(caller, request, ask)

    def _limited(self, entry: Entry, answer: Callable[[], Answer]) -> Answer:
        """One more of what an instance may have under way."""
        if not self._concurrency.enter(entry.instance):
            return TOO_MANY
        leave = partial(self._concurrency.leave, entry.instance)
        try:
            answered = answer()
        except BaseException:
            leave()
            raise
        if isinstance(answered, Pending):
            answered.when_over(leave)
        elif isinstance(answered, Response):
            leave()
        else:
            return _then(answered, leave)
        return answered


async def _then(answer: Awaitable[Response], leave: Callable[[], None]) -> Response:
    try:
        return await answer
    finally:
        leave()


def _is_closed(policy: Policy, path: bytes) -> bool:
    """Whether a path, which has one reading alone, is closed."""
    return is_closed(fold(decode(path).decode()), prefixes(policy.closed))
