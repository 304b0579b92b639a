"""The embedded backend: from a guest's request to what the store says, and back into it.

Theory of operation. A GET becomes a Rendered: made by a face from a View of the store, or kept from before. Then,
in this order: who waits for another state waits (`shim.forward.watches`), who has it already gets 304, and an answer
that uses something up is claimed of the agent first, so that two never get it. A PUT, POST or DELETE becomes an Ask,
which the agent answers. What changed in the store drops what was kept of those instances, and wakes who waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from math import inf

from msgspec.structs import replace

from shim.asks import Asks
from shim.catalog import ALL, INSTANCE, NOTHING, Catalog
from shim.core.ask import Ask
from shim.core.exchange import Caller, Pending, Rendered, Request, Response
from shim.core.instance import parse_instance
from shim.errors import StoreError
from shim.forward.cache import Cache
from shim.forward.identify import Entry
from shim.forward.unavailable import unavailable
from shim.forward.watches import Watches
from shim.metadata.compose import Unready
from shim.metadata.faces import respond
from shim.metadata.guest_writes import told, write_of
from shim.metadata.tree import plain
from shim.metadata.waits import Wait, event, wait_of
from shim.oneshot import Claimant, Reading, is_user_data
from shim.settings import EMBEDDED
from shim.waiting import collected, fulfil, settled

logger = logging.getLogger("shim.embedded")

_UNAVAILABLE = unavailable(EMBEDDED)
_TOO_LARGE = replace(plain(413, b"too large\n"), backend=EMBEDDED)

# Paths whose answer is decided by the path alone: neither by a query nor by a header. GCE's are not, nor is `/`.
_KEPT = (b"/latest/", b"/openstack/", b"/1.0/", b"/20", b"/metashim/")
_WAITING = frozenset((b"wait", b"etag", b"wait_for_change", b"last_etag", b"timeout_sec"))

Answer = Response | Pending | Awaitable[Response]
Refuse = Callable[[Caller, bytes], Entry | Response]
"""Whose the caller's slot is now, or what it gets instead for that path."""
Look = Callable[[Entry], Rendered | Response]
"""What is now. Raises StoreError, Unready."""


class Embedded:
    """A backend: call it with who asks and what. `refuse` is asked again for those who waited. To be made within the
    running loop."""

    def __init__(
        self,
        catalog: Catalog,
        asks: Asks,
        refuse: Refuse,
        body_bytes: int,
        now: Callable[[], float] = time.time,
        cache: Cache | None = None,
    ) -> None:
        self._catalog = catalog
        self._asks = asks
        self._refuse = refuse
        self._body_bytes = body_bytes
        self._now = now
        self._cache = cache or Cache()
        self.watches = Watches(self._evaluate, self._failed, now)
        self._ending = False
        self._logged = ""

    def __call__(self, caller: Caller, entry: Entry, request: Request) -> Answer:
        """The answer; never raises for what a guest sends."""
        try:
            if self._catalog.is_old():
                self.notice()
            kept = self._kept(entry, request)
            if kept is not None:
                return kept
            if request.method == b"GET" or request.method == b"HEAD":
                return self._read(caller, entry, request)
            if request.parts is not None:
                return self._write_whole(caller, entry, request)
            return self._write(caller, entry, request)
        except (StoreError, Unready) as error:
            return self._failed(error)

    def notice(self) -> None:
        """Drop what is no longer so, and wake who waits for it. Raises StoreError."""
        news = self._catalog.news()
        if news is not NOTHING:
            self._changed(news)

    def changed(self) -> None:
        """The agent says that the store changed."""
        self._catalog.doubt()
        try:
            self.notice()
        except StoreError as error:
            logger.error("%s", error)

    def end_waits(self) -> None:
        """Nobody waits any more, as this process ends: polls are over early, streams end, and both ask another one."""
        self._ending = True
        self.watches.end()

    def recheck(self, entry: Entry) -> None:
        """What an instance may do, or may see, changed."""
        self._cache.drop(entry.instance)
        self.watches.wake([entry.instance])

    def _changed(self, scopes: frozenset[str]) -> None:
        single = [one for one in scopes if one.startswith(INSTANCE)]
        if len(single) < len(scopes) or scopes == ALL:
            self._cache.clear()
            self.watches.wake(list(self.watches.instances))
            return
        for one in single:
            instance = parse_instance(one.removeprefix(INSTANCE))
            self._cache.drop(instance)
            self.watches.wake([instance])

    # Reading.

    def _kept(self, entry: Entry, request: Request) -> Response | None:
        """What most ask for: an answer that is there already, to one who asks for nothing more than that."""
        if request.query or request.method != b"GET" or entry.policy.auto is not None:
            return None
        kept = self._cache.get(entry.instance, request.path, self._now)
        if kept is None:
            return None
        for name, value in request.headers:
            if name == b"if-none-match" or (name == b"accept" and b"text/event-stream" in value):
                return None
        return kept.response

    def _read(self, caller: Caller, entry: Entry, request: Request) -> Answer:
        known, wait = _conditions(request)
        if isinstance(wait, Response):
            return wait
        if wait is not None:
            return self._wait(caller, entry, request, wait)
        return self._deliver(caller, entry, request, known, self._rendered(entry, request))

    def _rendered(self, entry: Entry, request: Request) -> Rendered:
        """What is now: kept, or made. Raises StoreError, Unready."""
        path = request.path
        if request.query or b"%" in path or not path.startswith(_KEPT):
            return self._made(entry, request)
        kept = self._cache.get(entry.instance, path, self._now)
        if kept is not None:
            return kept
        rendered = self._made(entry, request)
        # A HEAD's claims nothing, so it must not stand for a GET's.
        if rendered.response.status == 200 and not rendered.claims and request.method == b"GET":
            self._cache.keep(entry.instance, path, rendered)
        return rendered

    def _made(self, entry: Entry, request: Request) -> Rendered:
        rendered = respond(self._catalog.view(entry), request)
        return replace(rendered, response=replace(rendered.response, backend=EMBEDDED))

    def _deliver(
        self, caller: Caller, entry: Entry, request: Request, known: bytes | None, rendered: Rendered,
        look: Look | None = None,
    ) -> Response | Pending:
        """What is now, to one who may have it already. `look` says what is now, should it be used up meanwhile."""
        if known is not None and _matches(known, rendered.etag):
            return _not_modified(rendered.response)
        if rendered.claims:
            return self._claimed(caller, request, rendered, look or (lambda now: self._rendered(now, request)))
        if entry.policy.auto is None:  # as for most
            return rendered.response
        reading = self._reading(caller, entry, request, rendered.response)
        return rendered.response if reading is None else replace(rendered.response, receipt=reading)

    def _reading(self, caller: Caller, entry: Entry, request: Request, response: Response) -> Reading | None:
        """What tells the agent that user-data was read, where something follows from that."""
        auto = entry.policy.auto
        reads = auto is not None and auto.on_read and is_user_data(request, response)
        return Reading(self._asks, caller) if reads else None

    def _reading_by_now(self, caller: Caller, request: Request, response: Response) -> Reading | None:
        """The same of one who has waited: its policy may be another since."""
        entry = self._refuse(caller, request.path)
        return None if isinstance(entry, Response) else self._reading(caller, entry, request, response)

    def _claimed(self, caller: Caller, request: Request, rendered: Rendered, look: Look) -> Pending:
        """The answer, once the agent says that nobody else gets what it uses up."""
        here, deliver = partial(self._here, caller, request, look), partial(self._deliver_now, caller, request)
        reading = partial(self._reading_by_now, caller, request)
        return Claimant(self._asks, caller, here, deliver, reading, partial(self._may, caller, request)).claim(rendered)

    def _may(self, caller: Caller, request: Request) -> bool:
        return not isinstance(self._refuse(caller, request.path), Response)

    def hand(self, caller: Caller, request: Request, look: Look) -> Response | Pending:
        """What `look` makes of the store now, to a guest whose answer is made in part elsewhere, if it still may have
        it: that took its time."""
        entry = self._refuse(caller, request.path)
        if isinstance(entry, Response):
            return entry
        try:
            found = look(entry)
        except (StoreError, Unready) as error:
            return self._failed(error)
        if isinstance(found, Response):
            return found
        return self._deliver(caller, entry, request, request.header(b"if-none-match"), found, look)

    def _here(self, caller: Caller, request: Request, look: Look) -> Rendered | Response:
        """What there is for one who has waited its turn, if it still may have it."""
        try:
            self._catalog.doubt()
            self.notice()
            entry = self._refuse(caller, request.path)
            return entry if isinstance(entry, Response) else look(entry)
        except (StoreError, Unready) as error:
            return self._failed(error)

    # What would be, for who is not the guest.

    def foresee(self, entry: Entry, request: Request) -> Rendered | Wait | Ask:
        """What a request, whose body is whole, comes to as things are, with nothing claimed, kept, held or asked: an
        answer, a wait or a stream (`Wait.sse`), or what the agent would be asked for. Raises StoreError, Unready."""
        if self._catalog.is_old():
            self.notice()
        if request.method not in (b"GET", b"HEAD"):
            ask = self._writing(entry, request)
            return Rendered(ask) if isinstance(ask, Response) else ask
        known, wait = _conditions(request)
        if isinstance(wait, Response):
            return Rendered(wait)
        now = self._made(entry, request if wait is None else _asked(request))
        if wait is not None and now.response.status == 200 and (wait.sse or not wait.is_over(now.etag)):
            return wait
        is_known = wait is None and known is not None and _matches(known, now.etag)
        return Rendered(_not_modified(now.response)) if is_known else now

    # Waiting.

    def _wait(self, caller: Caller, entry: Entry, request: Request, wait: Wait) -> Response | Pending:
        asked = _asked(request)
        rendered = self._rendered(entry, asked)
        if rendered.response.status != 200:
            return rendered.response
        if wait.sse:
            headers = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"))
            return Response(200, headers, parts=self._events(caller, asked, wait.last_event_id), backend=EMBEDDED)
        if wait.is_over(rendered.etag):
            return self._deliver(caller, entry, request, None, rendered)
        deliver, late = partial(self._deliver_now, caller, asked), partial(self._late, caller, asked, wait)
        if self._ending:
            return late()
        return self.watches.wait(caller, asked, rendered, wait.seconds, deliver, late, "gce" if wait.gce else "poll")

    def _deliver_now(self, caller: Caller, request: Request, rendered: Rendered) -> Response | Pending:
        """What is now, to one who has waited: its policy may be another since."""
        entry = self._refuse(caller, request.path)
        return entry if isinstance(entry, Response) else self._deliver(caller, entry, request, None, rendered)

    def _late(self, caller: Caller, request: Request, wait: Wait) -> Response | Pending:
        """The time is over, and nothing changed."""
        try:
            found = self._evaluate(caller, request)
        except (StoreError, Unready) as error:
            return self._failed(error)
        if isinstance(found, Response):
            return found
        return self._deliver_now(caller, request, found) if wait.gce else _not_modified(found.response)

    async def _events(self, caller: Caller, request: Request, last: str | None) -> AsyncIterator[bytes]:
        """One event for each state that is looked at, until the guest leaves or may see it no more."""
        while not self._ending:
            try:
                rendered = self._evaluate(caller, request)
            except (StoreError, Unready) as error:
                self._failed(error)
                return
            if isinstance(rendered, Response):
                return
            if rendered.etag != last:
                last = rendered.etag
                yield event(rendered)
                reading = None if rendered.claims else self._reading_by_now(caller, request, rendered.response)
                if reading is not None:
                    reading.done(True)
                continue  # it may have changed while the guest took it
            pending = self.watches.wait(caller, request, rendered, inf, _something, lambda: _UNAVAILABLE, "stream")
            change: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
            pending.then(partial(fulfil, change))
            try:
                await change
            finally:
                pending.cancel()

    def _evaluate(self, caller: Caller, request: Request) -> Rendered | Response:
        entry = self._refuse(caller, request.path)
        return entry if isinstance(entry, Response) else self._rendered(entry, request)

    def _failed(self, error: Exception) -> Response:
        """The store cannot be read, or a source cannot be shown now; said once in the log, not for each request."""
        if not isinstance(error, StoreError | Unready):
            logger.error("a watch failed: %s", type(error).__name__)
        elif str(error) != self._logged:
            self._logged = str(error)
            logger.error("%s", error)
        return _UNAVAILABLE

    # Writing.

    def _write(self, caller: Caller, entry: Entry, request: Request) -> Response | Pending:
        ask = self._writing(entry, request)
        if isinstance(ask, Response):
            return ask
        pending = Pending()
        self._asks.ask(
            caller, ask, lambda outcome: pending.settle(replace(told(ask, outcome, request), backend=EMBEDDED))
        )
        return pending

    def _writing(self, entry: Entry, request: Request) -> Ask | Response:
        """What the agent is asked for, or the answer where it need not be."""
        view = self._catalog.view(entry)
        ask = write_of(view, request)
        if ask is None:
            return replace(respond(view, request).response, backend=EMBEDDED)  # 405
        return replace(ask, backend=EMBEDDED) if isinstance(ask, Response) else ask

    async def _write_whole(self, caller: Caller, entry: Entry, request: Request) -> Response:
        """The same, of a request whose body is still to come: proxy.body_bytes is the most."""
        body = await collected(request.parts, request.body, self._body_bytes)
        if body is None:
            return _TOO_LARGE
        whole = Request(request.method, request.path, request.query, request.headers, body)
        try:
            return await settled(self._write(caller, entry, whole))
        except (StoreError, Unready) as error:
            return self._failed(error)


def _something(_now: Rendered) -> Response:
    """Told to a stream, which looks for itself."""
    return _UNAVAILABLE


def _conditions(request: Request) -> tuple[bytes | None, Wait | Response | None]:
    """What a GET or HEAD says of what the guest has already: If-None-Match, and whether it waits for another state."""
    known = accept = None
    for name, value in request.headers:
        if name == b"if-none-match":
            known = value
        elif name == b"accept":
            accept = value
    if not request.query and (accept is None or b"text/event-stream" not in accept):
        return known, None
    wait = wait_of(request)
    return known, replace(wait, backend=EMBEDDED) if isinstance(wait, Response) else wait


def _matches(known: bytes, etag: str) -> bool:
    """Whether If-None-Match (RFC 9110, 13.1.2) names this tag; weakly, as it says. An error has none."""
    if not etag:
        return False
    if known.strip() == b"*":
        return True
    return any(one.strip().removeprefix(b"W/").strip(b'"') == etag.encode() for one in known.split(b","))


def _not_modified(response: Response) -> Response:
    """304 with what a 200 would have told, but for what is of the body."""
    kept = tuple((name, value) for name, value in response.headers if name.lower() != b"content-type")
    return Response(304, kept, backend=EMBEDDED)


def _asked(request: Request) -> Request:
    """What somebody who waits asks for: without how long, and without the headers that do not matter."""
    query = b"&".join(pair for pair in request.query.split(b"&") if pair.partition(b"=")[0] not in _WAITING)
    headers = tuple(one for one in request.headers if one[0] in (b"metadata-flavor", b"x-forwarded-for"))
    return Request(b"GET", request.path, query, headers)
