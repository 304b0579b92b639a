"""What a request would get of this worker, rule by rule, with nothing of it happening: its part of `metashim why`.

Each step asks the code that answers guests (shim.http.head, shim.service, shim.embedded, shim.overlay, the backends)
and says in words what that finds. Nothing is claimed, written, held, counted, logged or sent, and of a body nothing is
told but its size. Refusals are of our own making, so their words are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

from msgspec.structs import replace

from shim import feed
from shim.backends import Made
from shim.catalog import Catalog
from shim.core.ask import Ask, Confirm, Delete, Lock, Put
from shim.core.closure import TOPICS, fold, is_closed
from shim.core.exchange import Caller, Rendered, Request, Response, Subject
from shim.core.policy import Access, Family, Tokens
from shim.core.prospect import Course, Part, Prospect, Question, Rule, cut
from shim.embedded import Embedded
from shim.errors import StoreError
from shim.forward import token
from shim.forward.allowance import TOO_MANY
from shim.forward.identify import Entry, Table, address_of
from shim.forward.routes import NO_ROUTE, OWN, REFUSED, decode
from shim.forward.unavailable import unavailable
from shim.forward.upstream import Upstream
from shim.http import head
from shim.http.limits import Limits
from shim.http.serialize import error_response
from shim.metadata.compose import Unready
from shim.metadata.waits import Wait
from shim.oneshot import is_user_data
from shim.overlay import Overlay
from shim.service import DISABLED, UNAVAILABLE, Service, closing_of
from shim.settings import EMBEDDED

_COMPOSED = (*TOPICS["user-data"], *TOPICS["vendor-data"])
_HOST = (b"host", b"169.254.169.254")


class Walk:
    """One request on its way, and what it met so far."""

    def __init__(self, question: Question, caller: Caller, entry: Entry, latched: tuple[str, ...]) -> None:
        self.question = question
        self.caller = caller
        self.entry = entry
        self.latched = latched
        self.request = Request(b"GET", b"/")  # until its head was read
        self.route = ""
        self.rules: list[Rule] = []

    def passes(self, part: Part, name: str, says: str, where: str = "") -> None:
        """It goes on."""
        self.rules.append(Rule(part, name, cut(says), where))

    def ends(self, part: Part, name: str, says: str, prospect: Prospect, where: str = "") -> Prospect:
        """This decides."""
        self.rules.append(Rule(part, name, cut(says), where, decides=True))
        return prospect


Step = Callable[[Walk], Prospect | None]
"""A rule or several: the outcome, where one of them decides."""


class DryRun:
    """`explain` is all. `parts` are the worker's own."""

    def __init__(
        self,
        task: feed.Task,
        table: Table,
        service: Service,
        embedded: Embedded,
        overlay: Overlay,
        catalog: Catalog,
        backends: Mapping[str, Made],
        upstreams: list[Upstream],
    ) -> None:
        self._task = task
        self._table = table
        self._service = service
        self._embedded = embedded
        self._overlay = overlay
        self._catalog = catalog
        self._backends = backends
        self._upstreams = upstreams
        self._steps: tuple[Step, ...] = (
            self._slot, self._head, self._access, self._allowance, self._token, self._route, self._backend
        )  # fmt: skip

    def explain(self, message: feed.Explain, entry: Entry) -> feed.Explained:
        """The answer to the agent. `entry` is the message's own, for an instance that has no slot."""
        family = Family(message.question.family)
        caller = Caller(entry.slot, entry.generation, entry.instance, family)
        walk = Walk(message.question, caller, entry, message.latched)
        prospect = next(found for step in self._steps if (found := step(walk)) is not None)
        return feed.Explained(message.number, Course(tuple(walk.rules), prospect))

    # What a connection meets, and the head that comes on it.

    def _slot(self, walk: Walk) -> Prospect | None:
        caller, limit = walk.caller, self._task.limits.connections_per_instance
        if caller.slot:  # what is in force is in the table
            entry = self._table.entry(caller)
            if entry is None or self._table.caller(address_of(caller.slot, caller.family)) != caller:
                says = f"slot {caller.slot} is not this instance's in this worker"
                return walk.ends("proxy", "slot", says, Prospect("reset", "the connection is reset; ask again soon"))
            walk.entry = entry
        says = f"{limit} at a time; one more gets 429"
        walk.passes("proxy", "connections", says, "proxy.connections_per_instance")
        return None

    def _head(self, walk: Walk) -> Prospect | None:
        try:
            request = read(walk.question, self._task.limits)
        except head.Refused as error:
            return walk.ends("proxy", "request", error.reason, answered(error_response(error.status, error.reason)))
        minted = self._service.mint(walk.caller) if walk.question.with_token else None
        if minted is not None:
            request = replace(request, headers=(*request.headers, (token.HEADER, minted)))
        walk.request = request
        return None

    # What shim.service asks of every request.

    def _access(self, walk: Walk) -> Prospect | None:
        policy, family = walk.entry.policy, walk.caller.family
        if self._service.admits(walk.caller, policy):
            return None
        if policy.access(family) is Access.OPEN:
            return walk.ends("proxy", "auto", "the time is over until which it was to be served", answered(DISABLED))
        says = f"IPv{family.value} is {policy.access(family).value}: the proxy answers 403"
        return walk.ends("proxy", "access", says, answered(DISABLED), "metashim enable INSTANCE")

    def _allowance(self, walk: Walk) -> Prospect | None:
        rate, burst = self._task.request_rate, self._task.request_burst
        says = f"{rate} requests a second, {burst} at once, of each worker"
        where = "proxy.request_rate, proxy.request_burst"
        if not self._service.may_ask(walk.entry):
            return walk.ends("proxy", "allowance", f"{says}: used up at this moment", answered(TOO_MANY), where)
        walk.passes("proxy", "allowance", f"{says}; more gets 429", where)
        return None

    def _token(self, walk: Walk) -> Prospect | None:
        policy = walk.entry.policy
        mode = self._service.mode(policy)
        where = "tokens.mode" if policy.tokens is None else "metashim tokens MODE INSTANCE"
        found = self._service.front(walk.caller, walk.entry, walk.request)
        if isinstance(found, Response):
            says = f"{mode.value}: {_token_words(walk.request, found)}"
            return walk.ends("proxy", "token", says, answered(found), where)
        if mode is Tokens.OFF:
            says = "none is looked at"
        elif found is token.Verdict.TOKEN:
            says = "it has a valid one"
        else:
            says = "it has none, and needs none"
        walk.passes("proxy", "token", f"{mode.value}: {says}", where)
        return None

    def _route(self, walk: Walk) -> Prospect | None:
        policy, path = walk.entry.policy, walk.request.path
        where = "forward.routes" if policy.routes is None else "metashim routes INSTANCE"
        found = self._service.route(walk.entry, walk.request)
        if found is REFUSED:
            says = "two servers may read this path in two ways: nobody is asked"
            return walk.ends("proxy", "route", says, answered(REFUSED))
        if found is NO_ROUTE:
            return walk.ends("proxy", "route", "no prefix of this path has a backend", answered(NO_ROUTE), where)
        if isinstance(found, Response):
            return self._closed(walk, found)
        walk.route = found
        prefix = self._service.prefix(walk.entry, path)
        shows = found != EMBEDDED and path.startswith(OWN)
        walk.passes("proxy", "route", f"{prefix} to {found}{', whose user-data it shows' if shows else ''}", where)
        if policy.closed:
            walk.passes("proxy", "closed", f"not this, but {', '.join(policy.closed)}", "metashim show INSTANCE")
        return None

    def _closed(self, walk: Walk, refusal: Response) -> Prospect:
        closed = closing_of(walk.entry.policy, walk.request.path)
        by_guest = closed in walk.latched
        verb = f"metashim unlock INSTANCE {closed}" if by_guest else f"metashim enable INSTANCE --path {closed}"
        says = f"{closed} is {'locked by the guest' if by_guest else 'closed by an operator'}"
        return walk.ends("proxy", "closed", says, answered(refusal), verb)

    # Who answers.

    def _backend(self, walk: Walk) -> Prospect:
        return self._embedded_one(walk) if walk.route == EMBEDDED else self._forwarded(walk)

    def _embedded_one(self, walk: Walk) -> Prospect:
        try:
            found = self._embedded.foresee(walk.entry, walk.request)
            self._tell_sources(walk)
        except (StoreError, Unready) as error:
            return walk.ends("backend", EMBEDDED, str(error), answered(unavailable(EMBEDDED)))
        if isinstance(found, Rendered):
            return self._rendered(walk, found)
        prospect = _waiting(found) if isinstance(found, Wait) else _asked(found)
        return walk.ends("backend", EMBEDDED, prospect.words, prospect)

    def _rendered(self, walk: Walk, found: Rendered) -> Prospect:
        auto, response = walk.entry.policy.auto, found.response
        if auto is not None and auto.on_read and is_user_data(walk.request, response):
            walk.passes("backend", "auto", "once this was read to its end, the instance is disabled")
        prospect = replace(answered(response), uses_up=tuple(map(cut, found.claims)))
        says = prospect.words
        if found.claims:
            says = f"{says}; read once, so this would use it up: {', '.join(found.claims)}"
        return walk.ends("backend", EMBEDDED, says, prospect)

    def _tell_sources(self, walk: Walk) -> None:
        """Whose user-data or vendor data it is, where that is what is asked for. Raises StoreError."""
        if not is_closed(fold(decode(walk.request.path).decode()), _COMPOSED):
            return
        sources = self._catalog.view(walk.entry).sources
        if sources:
            ids = ", ".join(source.id for source in sources)
            walk.passes("backend", "sources", ids, "metashim userdata list INSTANCE")

    def _forwarded(self, walk: Walk) -> Prospect:
        """In the order of Service and Overlay."""
        name, backend = walk.route, self._backends.get(walk.route)
        if backend is None:
            says = f"{name} is not set up, or its secret cannot be read: see the log"
            return walk.ends("backend", name, says, answered(UNAVAILABLE), f"{name}.addresses, {name}.secret_file")
        if not self._service.has_room(walk.entry):
            says = "as many requests of it are under way as may be"
            return walk.ends("proxy", "forwarded", says, answered(TOO_MANY), "forward.requests_per_instance")
        composed = self._service.is_composed(walk.entry, walk.request)
        refusal = composed if isinstance(composed, Response) else None
        if composed is True:
            refusal = self._overlay.refusal(walk.request)
        if refusal is not None:
            return walk.ends("backend", "sources", _words(refusal), answered(refusal))
        if composed:
            self._tell_sources(walk)
            walk.passes("backend", "overlay", f"if {name} answers 200 or 404, the store's sources are composed with it")
        return self._sent(walk, name, backend)

    def _sent(self, walk: Walk, name: str, backend: Made) -> Prospect:
        states = (one for upstream in self._upstreams if upstream.name == name for one in upstream.states)
        shown = ", ".join(f"{one.text} is up" if one.healthy else f"{one.text} is down: {one.why}" for one in states)
        where = f"{name}.addresses"
        subject = self._service.subject(walk.entry)
        names = backend.names(subject)
        if isinstance(names, Response):
            return walk.ends("backend", name, f"{_words(names)}; {shown}", answered(names), where)
        walk.passes("backend", "identity", f"told that it is {_identity(subject)}, by {', '.join(names) or 'nothing'}")
        words = f"forwarded to {name} as {_identity(subject)}"
        return walk.ends("backend", name, shown, Prospect("forwarded", cut(words), backend=name), where)


def read(question: Question, limits: Limits) -> Request:
    """The request that a guest's bytes would be read as. Raises head.Refused."""
    headers = tuple((name.encode(), value.encode()) for name, value in question.headers)
    names = {name.lower() for name, _ in headers}
    more = () if b"host" in names else (_HOST,)
    body = question.body.encode()
    if (body or question.method in ("PUT", "POST")) and not names & {b"content-length", b"transfer-encoding"}:
        more = (*more, (b"content-length", b"%d" % len(body)))
    lines = b"".join(b"%b: %b\r\n" % field for field in (*more, *headers))
    raw = b"%b %b HTTP/1.1\r\n%b\r\n" % (question.method.encode(), question.target.encode(), lines)
    head.scan(bytearray(raw), 0, limits)
    return replace(head.read_head(raw, limits).request, body=body)


def answered(response: Response) -> Prospect:
    """An answer of this host's own: its status, and of its body no more than the size."""
    known = {name.lower(): value for name, value in response.headers}
    return Prospect(
        "answered",
        cut(_words(response)),
        response.status,
        response.backend,
        cut(known.get(b"content-type", b"").decode("latin-1")),
        response.length if response.length is not None else len(response.body),
        cut(known.get(b"etag", b"").decode("latin-1").strip('"')),
    )


def _words(response: Response) -> str:
    """A status in words, with what a refusal of ours says."""
    phrase = f"{response.status} {HTTPStatus(response.status).phrase}"
    said = response.body.decode("utf-8", "replace").split("\n")[0] if response.status >= 400 else ""
    return f"{phrase}: {said}" if said else phrase


def _token_words(request: Request, response: Response) -> str:
    if response.status == 200:
        return "it is given a token"
    if response.status != 401:
        return _words(response)
    given = sum(name == token.HEADER for name, _ in request.headers)
    if not given:
        return "it has none: 401"
    return "it has two, which count as none: 401" if given > 1 else "its token is not ours, another tap's, or over: 401"


def _waiting(wait: Wait) -> Prospect:
    if wait.sse:
        words = "a stream of events, one for each state"
        return Prospect("streamed", words, 200, EMBEDDED, "text/event-stream")
    then = "200 with what there is" if wait.gce else "304"
    return Prospect("waits", f"waits for another state, {wait.seconds:g} s at most, then {then}", backend=EMBEDDED)


def _asked(ask: Ask) -> Prospect:
    """What the agent is asked for. It looks at quotas, rates and conditions when it is asked, and not before."""
    if isinstance(ask, Put):
        words = f"the agent is asked to keep {len(ask.value)} bytes as {ask.key}: quotas, rates and conditions decide"
    elif isinstance(ask, Delete):
        words = f"the agent is asked to remove {ask.key}"
    elif isinstance(ask, Lock):
        words = f"the agent is asked to lock {ask.prefix} for good"
    elif isinstance(ask, Confirm):
        words = f"the agent is asked to use up what the guest confirms: {', '.join(ask.items)}"
    else:
        words = "the agent is told that the guest is ready"
    return Prospect("asked", cut(words), backend=EMBEDDED)


def _identity(subject: Subject) -> str:
    project = f"project {subject.project}" if subject.project else ""
    address = f"address {subject.address}" if subject.address else ""
    return ", ".join(filter(None, (f"instance {subject.instance}", project, address)))
