"""What a request meets in a worker, from its caller to its answer: policy, allowance, session token, route, what is
closed, backend.

It is called once a request and returns what the server awaits, so each step is a look-up, and none waits. Each is a
method of its own that uses nothing up, but for the allowance: `shim.dry_run` asks them too, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from shim.core.closure import closing, fold
from shim.core.exchange import Caller, Pending, Request, Response, Subject
from shim.core.policy import Access, Family, Policy, Tokens
from shim.errors import StoreError
from shim.forward import token
from shim.forward.allowance import TOO_MANY, Allowance, Concurrency
from shim.forward.identify import Entry, Table
from shim.forward.routes import OWN, Routes, decode
from shim.forward.subjects import Subjects
from shim.forward.unavailable import unavailable
from shim.overlay import Overlay
from shim.settings import EMBEDDED

OPEN, V4 = Access.OPEN, Family.V4  # reaching them by their class takes 0.1 µs (Python 3.11), and every request asks
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
        if entry is None:
            return DISABLED
        policy = entry.policy
        if not self.admits(caller, policy):
            return DISABLED
        if not self._allowance.take(caller.instance, self._clock()):
            return TOO_MANY
        refusal = token.front(policy.tokens or self._tokens, self.keys, caller, request, self._now())
        if isinstance(refusal, Response):
            return refusal
        route = self.route(entry, request)
        if isinstance(route, Response):
            return route
        if route != EMBEDDED:
            return self._forward(route, caller, entry, request)
        if request.parts is None:
            return self._embedded(caller, entry, request)
        return self._limited(entry, self._embedded, caller, entry, request)

    # The steps.

    def admits(self, caller: Caller, policy: Policy) -> bool:
        """Whether one may ask at all over the caller's family now."""
        access = policy.v4 if caller.family is V4 else policy.v6  # as Policy.access, whose call is a tenth of all this
        return access is OPEN and (policy.auto is None or not self.is_over(policy))

    def is_over(self, policy: Policy) -> bool:
        """Whether the time has come when the instance is to be disabled. The agent sees to that; while there is none,
        this does."""
        until = policy.auto.until if policy.auto is not None else None
        return until is not None and until <= self._now()

    def may_ask(self, entry: Entry) -> bool:
        """Whether the instance's allowance has a request left. A guest's takes it, this does not."""
        return self._allowance.has(entry.instance, self._clock())

    def mode(self, policy: Policy) -> Tokens:
        """What session tokens are to an instance."""
        return policy.tokens or self._tokens

    def front(self, caller: Caller, entry: Entry, request: Request) -> Response | token.Verdict:
        """What its session token, or the lack of one, comes to."""
        return token.front(self.mode(entry.policy), self.keys, caller, request, self._now())

    def mint(self, caller: Caller) -> bytes | None:
        """A token that the caller could have been given; None while there are no keys."""
        return token.mint(self.keys, caller, self._now(), 1)

    def route(self, entry: Entry, request: Request) -> str | Response:
        """The backend that answers, or what the guest gets instead: there is none, or the path is closed."""
        policy, path = entry.policy, request.path
        route = self._routes.backend(path, policy.routes)
        if isinstance(route, Response):
            return route
        if policy.closed and closing_of(policy, path) is not None:
            return CLOSED
        return self._beside(entry, request) if route == EMBEDDED and path.startswith(OWN) else route

    def prefix(self, entry: Entry, path: bytes) -> str:
        """The prefix that a path's route is for."""
        return self._routes.prefix(path, entry.policy.routes)

    def has_room(self, entry: Entry) -> bool:
        """Whether one more of the instance's requests may be forwarded."""
        return self._concurrency.has_room(entry.instance)

    def is_composed(self, entry: Entry, request: Request) -> bool | Response:
        """Whether a backend's answer is composed with what the store has; what the guest gets where that is not to be
        known."""
        try:
            return self._overlay is not None and self._overlay.concerns(entry, request)
        except StoreError:
            return UNAVAILABLE

    def subject(self, entry: Entry) -> Subject:
        """Whose request it is, as a backend is told."""
        return self._subjects.of(entry)

    def _beside(self, entry: Entry, request: Request) -> str:
        """Who answers what our own face shows of a backend's user-data: that one, where it answers the instance."""
        theirs = self._overlay.beside(request) if self._overlay is not None else None
        route = self._routes.backend(theirs, entry.policy.routes) if theirs is not None else EMBEDDED
        return route if isinstance(route, str) else EMBEDDED

    def still(self, caller: Caller, path: bytes) -> Entry | Response:
        """Whose the slot of one is who was let in before and has waited since, or what it gets now."""
        entry = self._table.entry(caller)
        if entry is None or not self.admits(caller, entry.policy):
            return DISABLED
        return CLOSED if entry.policy.closed and closing_of(entry.policy, path) is not None else entry

    def token_outcome(self, entry: Entry | None, request: Request | None, status: int, backend: str) -> str:
        """What an answered request was by its session token: with, without, refused; empty where nobody looked."""
        if entry is None or request is None:
            return ""
        if backend == token.BACKEND:
            return "refused" if status == 401 else ""
        if not backend:
            return ""
        off = self.mode(entry.policy) is Tokens.OFF
        return "without" if off or request.header(token.HEADER) is None else "with"

    def _forward(self, route: str, caller: Caller, entry: Entry, request: Request) -> Answer:
        backend = self._backends.get(route)
        if backend is None:
            return UNAVAILABLE
        return self._limited(entry, self._composed, backend, caller, entry, request)

    def _composed(self, backend: Backend, caller: Caller, entry: Entry, request: Request) -> Answer:
        """What the backend answers, with what the store has beside it."""
        ask = partial(backend, self._subjects.of(entry))
        composed = self.is_composed(entry, request)
        if isinstance(composed, Response):
            return composed
        if not composed or self._overlay is None:
            return ask(request)
        return self._overlay.answer(caller, request, ask)

    def _limited(self, entry: Entry, answer: Callable[..., Answer], *asked: object) -> Answer:
        """One more of what an instance may have under way."""
        if not self._concurrency.enter(entry.instance):
            return TOO_MANY
        leave = partial(self._concurrency.leave, entry.instance)
        try:
            answered = answer(*asked)
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


def closing_of(policy: Policy, path: bytes) -> str | None:
    """The prefix or topic by which a path, which has one reading alone, is closed."""
    return closing(fold(decode(path).decode()), policy.closed)
