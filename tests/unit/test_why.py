"""What is told of a request is what comes of it, nothing comes of telling, and the words say which rule it was."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from msgspec.structs import replace as replace_task

from shim import feed, why
from shim.backends import Backends
from shim.config import parse
from shim.control.live_client import LiveClient
from shim.control.shapes import AuditRow, AutoView, PolicyView, PortView
from shim.control.why_shapes import WhyView
from shim.core.address import parse_address
from shim.core.exchange import Caller, Pending, Request, Response, Subject
from shim.core.kv import Value
from shim.core.policy import Access, Auto, Family, Policy, Tokens
from shim.core.prospect import RULES_MAX, TEXT_MAX, Course, Prospect, Question, Rule, cut
from shim.core.source import Reads
from shim.dry_run import DryRun, read
from shim.errors import InputError, StoreError
from shim.forward.allowance import Allowance, Concurrency
from shim.forward.http import Http
from shim.forward.identify import Entry, Table
from shim.forward.nova import Nova
from shim.forward.routes import Routes
from shim.forward.subjects import Subjects
from shim.forward.token import HEADER, TTL_HEADER, Keys, mint
from shim.forward.upstream import Endpoint, Upstream
from shim.http.head import Refused
from shim.http.limits import Limits
from shim.http.serialize import error_response
from shim.inquiries import Inquiries
from shim.metadata.store import Store
from shim.overlay import Overlay
from shim.proxy import Worker
from shim.service import Service
from tests.unit.cli_shell import Shell, complete
from tests.unit.control_memory import NOBODY, ONE, Host, Memory
from tests.unit.forward_site import ByHand
from tests.unit.live_site import HOST, LiveSite, source, tell

A = UUID(int=1)
NOW = 1_700_000_000.0
KEYS = Keys([(1, b"k" * 32)])
V4 = Caller(1, 1, A, Family.V4)
GOOD = (mint(KEYS, V4, NOW, 60) or b"").decode()
LIMITS = Limits(head_bytes=4096)
SECRET = "hunter2"

CONFIG = parse(b"", "m.toml")
TASK = feed.Task(
    [], "", "", 0, 0, LIMITS, "info", 0, 100, 100, "optional", CONFIG.forward, CONFIG.nova, CONFIG.http,
    CONFIG.sources, CONFIG.kv,
)  # fmt: skip


class Place:
    """A worker's parts over a real store, with one instance; its two backends are asked by nobody's hand."""

    def __init__(self, site: LiveSite) -> None:
        self.site, self.time = site, 0.0
        self.client = ByHand()
        self.upstreams = [self.upstream("http"), self.upstream("nova")]
        templates = {"X-Id": "{instance}", "X-Key": SECRET, "X-Address": "{address}"}
        self.backends = {
            "http": Http(self.upstreams[0], templates, b"s3cret"),
            "nova": Nova(self.upstreams[1], b"s3cret"),
        }
        self.table = Table([self.entry])
        self.allowance, self.concurrency = Allowance(1, 1000), Concurrency(2)
        overlay = Overlay(site.catalog, site.embedded.hand)
        self.service = Service(
            self.table, Tokens.OPTIONAL, Routes({"/": "embedded", "/far": "http"}), self.allowance, self.concurrency,
            Subjects(lambda: 1, Subject), site.embedded, self.backends, overlay, lambda: self.time, lambda: NOW,
        )  # fmt: skip
        self.service.keys = KEYS
        self.dry_run = DryRun(
            TASK, self.table, self.service, site.embedded, overlay, site.catalog, self.backends, self.upstreams
        )

    @property
    def entry(self) -> Entry:
        return replace(self.site.entries[A], project="blue")

    def upstream(self, name: str) -> Upstream:
        return Upstream(name, [Endpoint(parse_address("http://127.0.0.1:9"), self.client, ByHand())])

    def set(self, policy: Policy) -> None:
        self.site.policy(policy)
        self.table.put(self.entry)

    def explain(self, target: str, latched: tuple[str, ...] = (), **asked: object) -> Course:
        question = Question(target, **asked)  # type: ignore[arg-type]
        message = feed.Explain(7, feed.Entry(1, 1, A, "open", "open"), question, latched)
        found = self.dry_run.explain(message, self.entry)
        assert feed.read_from_worker(feed.encode(found)) == found, "it is within its bounds"
        assert found.number == 7
        return found.course

    def handle(self, question: Question) -> Response | Pending | Awaitable[Response]:
        """What a guest's request of that kind is answered by a worker."""
        try:
            request = read(question, LIMITS)
        except Refused as refused:
            return error_response(refused.status, refused.reason)
        caller = replace(V4, family=Family(question.family))
        if question.with_token:
            request = Request(request.method, request.path, request.query, (*request.headers, (HEADER, GOOD.encode())))
        return self.service.handle(caller, request)


def decider(course: Course) -> Rule:
    assert [rule.decides for rule in course.rules] == [False] * (len(course.rules) - 1) + [True]
    return course.rules[-1]


POLICIES = [
    Policy(v4, v6, 64, tokens, routes, None, closed, (), auto)
    for v4, v6 in ((Access.OPEN, Access.OPEN), (Access.FORBID, Access.OPEN), (Access.OPEN, Access.RESET))
    for tokens in (None, Tokens.OFF, Tokens.REQUIRED)
    for routes in (None, (("/", "http"), ("/openstack", "nova")), (("/latest", "embedded"),), (("/", "nowhere"),))
    for closed in ((), ("user-data",), ("/",), ("/latest/meta-data", "kv"))
    for auto in (None, Auto(until=NOW - 1), Auto(until=NOW + 60, on_read=True))
]
TARGETS = (
    "/", "/latest/user-data", "/2009-04-04/meta-data/", "/latest/meta-data/instance-id?x=1",
    "/latest/meta-data/?wait=soon", "/openstack/latest/user_data", "/computeMetadata/v1/instance/?recursive=true",
    "/metashim/v1/", "/latest/api/token", "/metashim/v1/sources/host/base", "/metashim/v1/kv/guest/x",
    "/metashim/v1/kv/host/x", "/metashim/v1/user-data", "/metashim/v1/user-data?wait=1", "/far/x", "/latest/../x",
    "/latest//x", "/l%61test/user-data", "/nothing", "/x y",
)  # fmt: skip
QUESTIONS = [
    Question(target, family, method, headers, body, with_token)  # type: ignore[arg-type]
    for target in TARGETS
    for family in ("4", "6")
    for method, headers, body, with_token in (
        ("GET", (), "", False),
        ("GET", ((HEADER.decode(), "x" * 44), ("metadata-flavor", "Google")), "", False),
        ("GET", (("metadata-flavor", "Google"), ("if-none-match", "*")), "", True),
        ("HEAD", (("x-forwarded-for", "::1"),), "", False),
        ("PUT", ((TTL_HEADER.decode(), "60"),), "v", False),
        ("DELETE", (), "", True),
        ("TRACE", (), "", False),
        ("GET", (("accept", "text/event-stream"),), "", False),
    )
]


def met(answer: object) -> tuple[str, int | None]:
    """Kind and status of what a request got."""
    if isinstance(answer, Pending) and answer.response is not None:
        answer = answer.response
    if isinstance(answer, Response):
        return ("streamed" if answer.parts is not None else "answered"), answer.status
    return "to come", None


def told(prospect: Prospect) -> tuple[str, int | None]:
    return (prospect.kind, prospect.status) if prospect.status is not None else ("to come", None)


async def give_up(answer: object) -> None:
    """Nobody waits for it."""
    if isinstance(answer, Pending) and answer.response is None:
        answer.cancel()
    elif not isinstance(answer, Response | Pending):
        task = asyncio.ensure_future(answer)  # type: ignore[arg-type, var-annotated]
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_what_is_told_is_what_comes(tmp_path: Path) -> None:
    """Four thousand of all policies and requests, one after the other, told first and asked for then."""

    async def story(site: LiveSite) -> None:
        site.store.put_document(A, b'{"user_data": "#!/bin/sh\\n", "meta": {"enable-guest-attributes": "TRUE"}}')
        site.store.put_source(source("base", b"#cloud-config\n", HOST))
        site.silent = True
        site.changed()
        place = Place(site)
        pairs = list(itertools.product(POLICIES, QUESTIONS))
        seen = set()
        for policy, question in random.Random(6).sample(pairs, 4000):
            place.set(policy)
            asked = len(site.asked), len(place.client.asked), len(site.embedded.watches)
            fields = {name: getattr(question, name) for name in ("family", "method", "headers", "body", "with_token")}
            course = place.explain(question.target, **fields)
            assert asked == (len(site.asked), len(place.client.asked), len(site.embedded.watches)), "nobody was asked"
            answer = place.handle(question)
            if not isinstance(answer, Response | Pending):  # composed
                is_told = course.prospect.kind == "answered"
                assert is_told or "overlay" in [rule.name for rule in course.rules]
                answer = await answer if is_told else answer
            assert told(course.prospect) == met(answer), (policy, question, course)
            if isinstance(answer, Response) and answer.parts is None:
                size = len(answer.body) if answer.length is None else answer.length
                assert course.prospect.bytes == size, (policy, question, course)
            seen.add((decider(course).name, *told(course.prospect)))
            await give_up(answer)
            place.time += 10  # so that the allowance is full again
        assert len(seen) > 20, seen

    tell(tmp_path, story)


def test_nothing_comes_of_telling(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", SECRET.encode(), reads=Reads.ONCE))
        site.store.put_value(A, Value("host/k", SECRET.encode(), Reads.ONCE))
        site.changed()
        place = Place(site)
        place.allowance = Allowance(1, 1)
        place.set(Policy(auto=Auto(on_read=True)))
        for target in ("/latest/user-data", "/metashim/v1/sources/instance/secret", "/metashim/v1/kv/host/k"):
            first = place.explain(target)
            assert len(first.prospect.uses_up) == 1 and "would use it up" in decider(first).says
            assert [place.explain(target) for _ in range(5)] == [first] * 5
            assert SECRET not in repr(first)
            assert place.explain(target, method="HEAD").prospect.uses_up == ()
        for method, target in (("POST", "lock"), ("PUT", "kv/guest/x"), ("DELETE", "kv/guest/x"), ("POST", "ready")):
            assert place.explain(f"/metashim/v1/{target}", method=method).prospect.kind == "asked"
        assert place.explain("/latest/meta-data/?wait=9&etag=x").prospect.status == 200
        etag = place.explain("/latest/meta-data/").prospect.etag
        assert place.explain(f"/latest/meta-data/?wait=9&etag={etag}").prospect.kind == "waits"
        assert place.explain("/far/x").prospect.kind == "forwarded"
        assert site.asked == [] and len(site.asks) == 0 and len(site.embedded.watches) == 0
        assert place.client.asked == [] and len(place.concurrency) == 0
        assert len(place.service._allowance) == 0, "no allowance was drawn from"
        assert site.embedded._cache.held == 0, "no answer pushes out another"
        assert site.get("/metashim/v1/kv/host/k").status == 200 and site.asked, "the guest's own read asks"

    tell(tmp_path, story)


def test_the_allowance_and_what_is_under_way(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        place = Place(site)
        for _ in range(1000):
            assert place.allowance.take(A, 0.0)
        course = place.explain("/")
        assert (decider(course).name, course.prospect.status) == ("allowance", 429)
        place.time = 1.5
        assert place.explain("/").prospect.status == 200
        assert place.concurrency.enter(A) and place.explain("/far").prospect.kind == "forwarded"
        assert place.concurrency.enter(A)
        course = place.explain("/far")
        assert (decider(course).name, course.prospect.status) == ("forwarded", 429)
        assert decider(course).where == "forward.requests_per_instance"

    tell(tmp_path, story)


def test_what_a_backend_is_told_without_its_secrets(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        place = Place(site)
        course = place.explain("/far/x")
        (identity,) = [rule.says for rule in course.rules if rule.name == "identity"]
        assert identity == f"told that it is instance {A}, project blue, by X-Id, X-Key, X-Metashim-Signature"
        assert decider(course).says == "http://127.0.0.1:9 is up"
        place.set(Policy(routes=(("/", "nova"),)))
        course = place.explain("/latest/user-data", headers=(("cookie", "x"),))
        (identity,) = [rule.says for rule in course.rules if rule.name == "identity"]
        assert identity.endswith("by X-Instance-ID, X-Instance-ID-Signature, X-Tenant-ID")
        for one in ("s3cret", SECRET, "sha256"):
            assert one not in repr(course) + repr(place.explain("/far/x"))
        site.entries[A] = replace(site.entries[A], project="")
        place.table.put(replace(place.entry, project=""))
        course = place.explain("/x")
        assert (course.prospect.status, decider(course).name) == (503, "nova") and "project" in decider(course).says
        place.set(Policy(routes=(("/", "nowhere"),)))
        assert decider(place.explain("/x")).where == "nowhere.addresses, nowhere.secret_file"
        place.upstreams[0]._preferred = ()
        assert place.explain("/far/x").prospect.status == 503
        place.set(Policy())
        course = place.explain("/far/x")
        assert (course.prospect.status, decider(course).name) == (503, "http")

    tell(tmp_path, story)


def test_sources_beside_a_backends_answer(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#cloud-config\n", HOST))
        site.changed()
        place = Place(site)
        place.set(Policy(routes=(("/", "http"),)))
        names = [rule.name for rule in place.explain("/latest/user-data").rules]
        assert names[-4:] == ["sources", "overlay", "identity", "http"]
        assert "overlay" not in [rule.name for rule in place.explain("/latest/meta-data/").rules]
        course = place.explain("/metashim/v1/user-data?wait=3")
        assert (course.prospect.status, decider(course).name) == (400, "sources")
        assert "nobody can wait" in decider(course).says

    tell(tmp_path, story)


def test_a_store_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(site: LiveSite) -> None:
        place = Place(site)

        def broken(*_: object) -> None:
            raise StoreError("the store is gone", "restore it")

        monkeypatch.setattr(site.catalog, "view", broken)
        course = place.explain("/latest/user-data")
        assert (course.prospect.status, decider(course).says) == (503, "the store is gone")
        place.set(Policy(routes=(("/", "http"),)))
        assert place.explain("/latest/user-data").prospect.status == 503

    tell(tmp_path, story)


def test_whose_closing_it_is_and_whose_slot(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        place = Place(site)
        place.set(Policy(closed=("user-data", "/latest/meta-data")))
        rule = decider(place.explain("/latest/user-data", latched=("user-data",)))
        assert (rule.says, rule.where) == ("user-data is locked by the guest", "metashim unlock INSTANCE user-data")
        rule = decider(place.explain("/latest/meta-data/x", latched=("user-data",)))
        assert rule.says == "/latest/meta-data is closed by an operator"
        assert rule.where == "metashim enable INSTANCE --path /latest/meta-data"
        place.table.remove(1, 1)
        course = place.explain("/")
        assert (decider(course).name, course.prospect.kind) == ("slot", "reset")
        supposed = place.dry_run.explain(
            feed.Explain(1, feed.Entry(0, 0, A, "open", "open"), Question("/")), Entry(0, 0, A, Policy())
        )
        assert supposed.course.prospect.status == 200, "of no slot: what it would be"

    tell(tmp_path, story)


def test_an_allowance_that_is_looked_at_is_as_it_was() -> None:
    dice = random.Random(1)
    allowance, now = Allowance(3, 4), 0.0
    for _ in range(3000):
        now += dice.choice((0, 0.01, 0.1, 0.5, 9))
        one = UUID(int=dice.randrange(3))
        before = allowance.has(one, now)
        assert before is allowance.has(one, now) is allowance.take(one, now)


# The agent's side.


def facts(**more: object) -> why.Facts:
    port = PortView("tap7", "", 7, 3, 1, ONE, "alias", "serving", "open", "open")
    policy = PolicyView("open", "open", 64, False)
    return replace(why.Facts([port], [], policy, Policy(), None, 0, 1), **more)  # type: ignore[arg-type]


def port(**more: object) -> PortView:
    given = {
        "tap": "tap7", "netns": "", "ifindex": 7, "slot": 3, "generation": 1, "instance": ONE, "source": "alias",
        "state": "serving", "v4": "open", "v6": "open",
    }  # fmt: skip
    return PortView(**(given | more))  # type: ignore[arg-type]


def view(**more: object) -> PolicyView:
    return PolicyView(**({"v4": "open", "v6": "open", "hop_limit": 64, "own": True} | more))  # type: ignore[arg-type]


WORKERS = Course((Rule("backend", "embedded", "200 OK", decides=True),), Prospect("answered", "200 OK", 200))


def explained(known: why.Facts, answer: Course | None = WORKERS, family: str = "4", config: bytes = b"") -> WhyView:
    async def ask() -> Course | None:
        return answer

    question = Question("/latest/", family)  # type: ignore[arg-type]
    return asyncio.run(why.explain(ONE, parse(config, "m.toml"), known, question, ask))


CHANGED = AuditRow(4, 0.0, "root (uid 0)", ONE, "policy", "")


@pytest.mark.parametrize(
    ("known", "family", "rule", "kind", "says", "where"),
    [
        (facts(), "4", "embedded", "answered", "200 OK", ""),
        (facts(ports=[port(v4="reset")], policy=view(v4="reset"), changed=CHANGED), "4", "access", "reset",
         "IPv4 is reset: the policy was last changed by root (uid 0) at 1970-01-01T00:00:00Z",
         "metashim enable INSTANCE --family 4"),
        (facts(ports=[port(v4="reset")], policy=view(v4="reset")), "6", "embedded", "answered", "200 OK", ""),
        (facts(ports=[port(v6="drop")], policy=view(v6="drop")), "6", "access", "dropped", "IPv6 is drop",
         "metashim enable INSTANCE --family 6"),
        (facts(ports=[port(v4="reset")], policy=view(v4="reset", own=False)), "4", "access", "reset",
         "as instances are that have no policy of their own", "policy.enabled"),
        (facts(ports=[port(v4="reset")], policy=view(v4="reset", latched=["/"])), "4", "lock", "reset",
         "the guest locked all", "metashim unlock INSTANCE"),
        (facts(ports=[port(v4="reset")], policy=view(v4="reset", latched=["/"]), own=Policy(Access.RESET)), "4",
         "access", "reset", "IPv4 is reset", "metashim enable"),
        (facts(ports=[port(v4="403")], policy=view(v4="403")), "4", "embedded", "answered", "200 OK", ""),
        (facts(ports=[]), "4", "identity", "dropped", "no tap here is the instance's", "metashim attach TAP INSTANCE"),
        (facts(), "6", "address", "dropped", "the service has no IPv6 address", "datapath.service_addresses"),
    ],
)  # fmt: skip
def test_what_decides_before_the_proxy(
    known: why.Facts, family: str, rule: str, kind: str, says: str, where: str
) -> None:
    config = b'[datapath]\nservice_addresses = ["169.254.169.254"]\n' if rule == "address" else b""
    found = explained(known, family=family, config=config)
    one = decider(Course(found.rules, found.prospect))
    assert (one.name, found.prospect.kind) == (rule, kind)
    assert says in one.says and where in one.where


def test_what_is_told_on_the_way() -> None:
    known = facts(
        ports=[port(conflict="alias says 1 and wins", error="no room"), port(tap="tap8", netns="red")],
        doubts=["tap9: file says that it is on tap7"],
        policy=view(v4="reset", hop_limit=1, auto=AutoView("drop", 0.0, True, True)),
        limited=12,
    )
    told = {rule.name: rule.says for rule in explained(known).rules}
    assert told["identity"] == "tap7 is the instance's, as alias says"
    assert told["others"] == "so are tap8 in red" and told["failed"].startswith("no room; until")
    assert told["conflict"] == "tap9: file says that it is on tap7"
    assert told["behind"] == "the policy says reset; the kernel does not follow yet"
    assert told["auto"] == (
        "will be drop at 1970-01-01T00:00:00Z, or once its user-data was read, or once the guest says that it is ready"
    )
    assert told["rate"] == "50 connections a second, 200 at once; 12 were refused so far"
    assert told["hop limit"].startswith("replies leave with 1")


def test_no_worker_and_no_tap() -> None:
    found = explained(facts(), None)
    assert (found.rules[-1].name, found.prospect.kind, found.supposed) == ("worker", "waits", None)
    found = explained(facts(ports=[]))
    assert found.prospect.kind == "dropped" and found.tap == ""
    assert found.supposed is not None and found.supposed.prospect == WORKERS.prospect
    assert decider(found.supposed) == WORKERS.rules[0]
    found = explained(facts(ports=[], policy=view(v4="drop")))
    assert found.supposed is not None and found.supposed.prospect.kind == "dropped"


def test_the_last_change_of_who_is_let_in() -> None:
    rows = [AuditRow(n, 0.0, "x", ONE, what) for n, what in enumerate(("policy", "disable", "key put", "document"))]
    assert why.last_change(rows) == rows[1]
    assert why.last_change(rows[2:]) is None


# Between them.


def test_a_workers_words_are_bounded() -> None:
    rule = Rule("proxy", "token", "x" * TEXT_MAX)
    message = feed.Explained(1, Course((rule,) * RULES_MAX, Prospect("answered", "200", 200)))
    assert feed.read_from_worker(feed.encode(message)) == message
    for bad in (
        Course((Rule("proxy", "token", "x" * (TEXT_MAX + 1)),), message.course.prospect),
        Course((rule,) * (RULES_MAX + 1), message.course.prospect),
        Course((), Prospect("answered", "200", 99)),
        Course((), Prospect("answered", "200", 200, backend="x" * 33)),
        Course((), Prospect("opened", "200", 200)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError):
            feed.read_from_worker(feed.encode(feed.Explained(1, bad)))


def test_words_are_cut_and_steer_nothing() -> None:
    assert cut("plain") == "plain" and cut("a\x1b[2J\nb") == "a?[2J?b"
    assert len(cut("x" * 9999)) == TEXT_MAX and cut("x" * TEXT_MAX) == "x" * TEXT_MAX


def test_only_who_was_asked_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.inquiries.ANSWER_SECONDS", 0.05)
    entry, question = feed.Entry(1, 1, A, "open", "open"), Question("/")

    async def whole() -> None:
        inquiries, sent = Inquiries(), []
        asking = asyncio.ensure_future(inquiries.ask("one", sent.append, entry, question, ("/",)))
        await asyncio.sleep(0)
        (message,) = sent
        assert message == feed.Explain(message.number, entry, question, ("/",))
        inquiries.told("other", feed.Explained(message.number, WORKERS))
        inquiries.told("one", feed.Explained(message.number + 1, WORKERS))
        assert not asking.done()
        inquiries.told("one", feed.Explained(message.number, WORKERS))
        inquiries.told("one", feed.Explained(message.number, WORKERS))
        assert await asking == WORKERS
        assert await inquiries.ask("one", sent.append, entry, question, ()) is None, "it does not answer"
        inquiries.told("one", feed.Explained(sent[-1].number, WORKERS))

    asyncio.run(whole())


def test_a_worker_answers_whatever_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its conversation with the agent goes on after a question that it fails at."""
    Store(tmp_path / "m.db").close()
    said: list[bytes] = []

    async def whole() -> None:
        worker = Worker(replace_task(TASK, store=str(tmp_path / "m.db")), Backends(TASK.forward, TASK.nova, TASK.http))
        worker._feed = SimpleNamespace(write=said.append)  # type: ignore[assignment]
        entry = feed.Entry(1, 1, A, "open", "open")
        worker.take(feed.Put(1, entry))
        worker.take(feed.Explain(2, entry, Question("/latest/meta-data/instance-id")))
        worker._dry_run.explain = lambda *_: 1 / 0  # type: ignore[method-assign]
        worker.take(feed.Explain(3, entry, Question("/")))

    asyncio.run(whole())
    good, bad = (feed.read_from_worker(line) for line in said)
    assert isinstance(good, feed.Explained) and isinstance(bad, feed.Explained)
    assert (good.number, good.course.prospect.status, good.course.prospect.bytes) == (2, 200, 36)
    assert (bad.number, bad.course.prospect.kind) == (3, "unknown") and "ZeroDivisionError" in caplog.text


def test_a_request_is_read_as_a_guests() -> None:
    found = read(Question("/latest/x?y=1", "4", "PUT", (("X-A", " b "), ("X-A", "c")), "héh"), LIMITS)
    assert (found.method, found.path, found.query, found.body) == (b"PUT", b"/latest/x", b"y=1", "héh".encode())
    assert (b"x-a", b"b") in found.headers and (b"content-length", b"4") in found.headers
    for question, status in (
        (Question("/x y"), 400),
        (Question("/", headers=(("Host", "a"), ("host", "b"))), 400),
        (Question("/", method="PUT", headers=(("content-length", "99999999"),)), 413),
        (Question("/" + "x" * 8191), 431),
    ):
        with pytest.raises(Refused) as refused:
            read(question, LIMITS)
        assert refused.value.status in (status, 414)


# The operators' end.


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def run(tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    with Host(tmp_path / "s", memory):
        yield Shell(tmp_path / "s", capsys)


def test_the_verb(run: Shell, memory: Memory) -> None:
    memory.courses[ONE] = WhyView(
        ONE, "4", "GET", "/latest/user-data",
        (
            Rule("tap", "identity", "tap7 is its, as alias says", "identity source alias"),
            Rule("proxy", "token", "optional: it has none, and needs none", "tokens.mode"),
            Rule("backend", "embedded", "200 OK\x1b[2J", decides=True),
        ),
        Prospect("answered", "200 OK", 200, "embedded", "text/plain", 12, "abc", ("source instance/x 4",)),
        "tap7", "red",
    )  # fmt: skip
    done = run("why", ONE, "/latest/user-data")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"GET /latest/user-data of {ONE}, by red/tap7, over IPv4",
        "  tap      identity  tap7 is its, as alias says  [identity source alias]",
        "  proxy    token     optional: it has none, and needs none  [tokens.mode]",
        "> backend  embedded  200 OK?[2J",
        "= 200 OK, from embedded, 12 bytes, text/plain, etag abc",
        "  a guest that reads it uses up source instance/x 4",
    ]
    assert run("why", ONE, "/latest/user-data", "--json").json["prospect"]["status"] == 200


def test_what_the_verb_asks(run: Shell, memory: Memory) -> None:
    headers = ("--header", "X-A: b:c", "--header", "x-a:d")
    asked = ("--method", "put", *headers, "--data", "v", "--with-token", "--family", "6")
    assert run("why", ONE, "/latest/?x=1", *asked).code == 0
    assert memory.questions == [Question("/latest/?x=1", "6", "PUT", (("X-A", "b:c"), ("x-a", "d")), "v", True)]
    assert run("why", NOBODY, "/").code == 5
    assert run("why", ONE, "latest").code == 4
    assert run("why", ONE, "/", "--header", "nothing").code == 4
    assert run("why", ONE, "/", "--family", "5").code == 2
    assert run("why", ONE, "/", "--method", "G T").code == 4


def test_without_a_tap(run: Shell, memory: Memory) -> None:
    memory.courses[ONE] = WhyView(
        ONE, "6", "GET", "/", (Rule("tap", "identity", "no tap", decides=True),), Prospect("dropped", "nothing"),
        supposed=WORKERS,
    )  # fmt: skip
    assert run("why", ONE, "/", "--family", "6").out.splitlines() == [
        f"GET / of {ONE}, by no tap, over IPv6",
        "> tap      identity  no tap",
        "= nothing",
        "",
        "If it had a tap here:",
        "> backend  embedded  200 OK",
        "= it would get 200 OK",
    ]


def test_completion(run: Shell) -> None:
    assert str(ONE) in complete(run.path, "why ")
    assert "/latest/user-data" in complete(run.path, f"why {ONE} /latest/us")
    assert complete(run.path, f"why {ONE} / --family ") == ["4", "6"]


@pytest.mark.parametrize(
    "body",
    [
        {}, {"path": "x"}, {"path": "/\r\nx"}, {"path": "/" + "x" * 8192}, {"path": "/", "family": "5"},
        {"path": "/", "method": ""}, {"path": "/", "method": "a b"}, {"path": "/", "headers": [["a b", "c"]]},
        {"path": "/", "headers": [["a", "b\r\nc: d"]]}, {"path": "/", "headers": [["a", "b"]] * 65},
        {"path": "/", "headers": {"a": "b"}}, {"path": "/", "body": "x" * 262_145}, {"path": "/", "x": 1},
    ],
)  # fmt: skip
def test_what_is_no_question(run: Shell, memory: Memory, body: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LiveClient(run.path).why(ONE, body)
    assert memory.questions == []
