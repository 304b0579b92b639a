"""What a request meets in a worker, from its caller to its answer: policy, allowance, session token, route, backend.

It is called once a request and returns what the server awaits, so each step is a look-up, and none waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from shim.core.exchange import Caller, Pending, Request, Response, Subject
from shim.core.policy import Access, Tokens
from shim.forward import token
from shim.forward.allowance import TOO_MANY, Allowance, Concurrency
from shim.forward.identify import Entry, Table
from shim.forward.routes import Routes
from shim.forward.subjects import Subjects
from shim.forward.unavailable import unavailable
from shim.settings import EMBEDDED

OPEN = Access.OPEN  # reaching it by its class takes 0.1 µs (Python 3.11), and every request asks
DISABLED = Response(403, ((b"content-type", b"text/plain"),), b"", close=True)
"""What a guest gets whose metadata was switched off by `--how 403`: as EC2 says it."""

UNAVAILABLE = unavailable("")

Answer = Response | Pending

Backend = Callable[[Subject, Request], Answer]
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
        embedded: Callable[[Caller, Request], Response],
        backends: Mapping[str, Backend],
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
        self._clock = clock
        self._now = now

    def handle(self, caller: Caller, request: Request) -> Answer:
        """The answer, or one that is to come."""
        entry = self._table.entry(caller)
        if entry is None or entry.policy.access(caller.family) is not OPEN:
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
        return self._embedded(caller, request) if route == EMBEDDED else self._forward(route, entry, request)

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

    def _forward(self, route: str, entry: Entry, request: Request) -> Answer:
        backend = self._backends.get(route)
        if backend is None:
            return UNAVAILABLE
        if not self._concurrency.enter(entry.instance):
            return TOO_MANY
        leave = partial(self._concurrency.leave, entry.instance)
        try:
            answer = backend(self._subjects.of(entry), request)
        except BaseException:
            leave()
            raise
        if isinstance(answer, Pending):
            answer.when_over(leave)
        else:
            leave()
        return answer
