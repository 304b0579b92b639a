"""Answers that use something up, or that end something, once they have arrived: see docs/live.md, "Reading, once".

    Claimant ──Claim──▶ agent ──lease──▶ the answer, all but its last byte ──Spend──▶ agent ──▶ the last byte
                                                     └── the connection breaks ──Release──▶ agent
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from shim.asks import Asks
from shim.core.ask import Claim, Outcome, Read, Release, Spend
from shim.core.closure import TOPICS, fold
from shim.core.exchange import Caller, Pending, Rendered, Request, Response
from shim.forward.routes import decode
from shim.forward.unavailable import unavailable
from shim.metadata.target import parameters, says
from shim.settings import EMBEDDED

CLAIMS_TRIED = 5
"""Times that a reader who came too late looks at what is left, before it is told to come again."""

_UNAVAILABLE = unavailable(EMBEDDED)
_GONE = Response(410, ((b"content-type", b"text/plain"),), b"it was read already\n", backend=EMBEDDED)
_USER_DATA = frozenset(path for path in TOPICS["user-data"] if path.endswith(("user-data", "user_data")))
_ABOVE = {
    "/computeMetadata": ("v1", "instance", "attributes", "user-data"),
    "/computeMetadata/v1": ("instance", "attributes", "user-data"),
    "/computeMetadata/v1/instance": ("attributes", "user-data"),
    "/computeMetadata/v1/instance/attributes": ("user-data",),
}
"""Folders that may show it, and where in them."""


def is_user_data(request: Request, response: Response) -> bool:
    """Whether this answers a GET of user-data, on any face, or of what shows it among others."""
    if request.method != b"GET" or response.status != 200:
        return False
    try:
        folded = fold(decode(request.path).decode())
    except ValueError:
        return False
    return folded in _USER_DATA or (folded in _ABOVE and _is_shown(request, response.body, _ABOVE[folded]))


def _is_shown(request: Request, body: bytes, place: tuple[str, ...]) -> bool:
    """Whether a recursive answer of Compute Engine's face, which is how cloud-init asks there, has it at this place."""
    if not says(parameters(request.query), "recursive", "true"):
        return False
    try:
        found: object = msgspec.json.decode(body)
    except msgspec.DecodeError:  # ?alt=text: `path value`, a line each
        return b"\n" + "/".join(place).encode() + b" " in b"\n" + body
    for name in place:
        found = found.get(name) if isinstance(found, dict) else None
    return found is not None


class Reading:
    """The receipt of user-data whose being read ends the instance's access: the agent is told."""

    def __init__(self, asks: Asks, caller: Caller) -> None:
        self._asks = asks
        self._caller = caller

    async def commit(self) -> bool:
        """Nothing is used up by it."""
        return True

    def done(self, whole: bool) -> None:
        """It has arrived, or has not."""
        if whole:
            self._asks.post(self._caller, Read())


class OneShot:
    """The receipt of an answer with items under a lease, for one who `may` still have it. `inner` is told too."""

    def __init__(
        self,
        asks: Asks,
        caller: Caller,
        lease: int,
        items: tuple[str, ...],
        inner: Reading | None,
        may: Callable[[], bool],
    ) -> None:
        self._asks = asks
        self._caller = caller
        self._lease = lease
        self._items = items
        self._inner = inner
        self._may = may

    async def commit(self) -> bool:
        """Have them count as read. Should the agent die meanwhile, the next one is asked. What was closed while the
        guest took its time is not read any more."""
        if not self._may():
            return False
        outcome = await self._asks.answered(self._caller, Spend(self._lease, self._items))
        return outcome.fate == "done"

    def done(self, whole: bool) -> None:
        """The lease is over."""
        if not whole:
            self._asks.post(self._caller, Release(self._lease, self._items))
        elif self._inner is not None:
            self._inner.done(True)


class Claimant:
    """One who asks for what can be read once.

    evaluate  what there is now, after a look at the store: a Response where it may not have it any more
    deliver   makes its answer of what is left, where that uses nothing up
    reading   what is told that an answer was read, if anything is
    may       whether it may still have it
    """

    __slots__ = ("_asks", "_caller", "_deliver", "_evaluate", "_gone", "_may", "_reading", "_tried", "pending")

    def __init__(
        self,
        asks: Asks,
        caller: Caller,
        evaluate: Callable[[], Rendered | Response],
        deliver: Callable[[Rendered], Response | Pending],
        reading: Callable[[Response], Reading | None],
        may: Callable[[], bool],
    ) -> None:
        self._asks = asks
        self._caller = caller
        self._evaluate = evaluate
        self._deliver = deliver
        self._reading = reading
        self._may = may
        self._tried = 0
        self._gone = False
        self.pending = Pending()
        self.pending.when_over(self._leave)

    def claim(self, rendered: Rendered) -> Pending:
        """Its answer, once the agent says that nobody else has what `rendered` uses up."""
        self._tried += 1
        self._asks.ask(self._caller, Claim(rendered.claims), self._told)
        return self.pending

    def _told(self, outcome: Outcome) -> None:
        """Its turn has come, after half a minute perhaps: what counts is what there is now."""
        if not self._gone:
            now = self._evaluate() if outcome.fate == "done" else _UNAVAILABLE
            if isinstance(now, Rendered) and now.claims and frozenset(now.claims) == frozenset(outcome.items):
                reading = self._reading(now.response)
                receipt = OneShot(self._asks, self._caller, outcome.lease, outcome.items, reading, self._may)
                self.pending.settle(replace(now.response, receipt=receipt))
                return
        if outcome.lease:
            self._asks.post(self._caller, Release(outcome.lease, outcome.items))
        if not self._gone:
            self._settle_for(now)

    def _settle_for(self, now: Rendered | Response) -> None:
        """Another was faster, or there is something else by now."""
        if isinstance(now, Response):
            self.pending.settle(now)
        elif now.claims and self._tried < CLAIMS_TRIED:
            self.claim(now)
        elif now.claims:
            self.pending.settle(_UNAVAILABLE)
        elif now.response.status == 404:
            self.pending.settle(_GONE)
        else:
            answer = self._deliver(now)
            if isinstance(answer, Pending):
                answer.then(self.pending.settle)
            else:
                self.pending.settle(answer)

    def _leave(self) -> None:
        self._gone = True
