"""What a worker tells of a request is what comes of it, and nothing comes of telling."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from msgspec.structs import replace as replace_task

from shim import feed
from shim.backends import Backends
from shim.config import parse
from shim.core.address import parse_address
from shim.core.exchange import Caller, Pending, Request, Response, Subject
from shim.core.kv import Value
from shim.core.policy import Access, Auto, Family, Policy, Tokens
from shim.core.prospect import Course, Prospect, Question, Rule
from shim.core.source import Reads
from shim.dry_run import DryRun, read
from shim.errors import StoreError
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
from shim.metadata.store import Store
from shim.overlay import Overlay
from shim.proxy import Worker
from shim.service import Service
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


def test_a_worker_answers_whatever_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its conversation with the agent goes on after a question that it fails at."""
    Store(tmp_path / "m.db").close()
    said: list[bytes] = []

    async def whole() -> None:
        worker = Worker(replace_task(TASK, store=str(tmp_path / "m.db")), Backends(TASK.forward, TASK.nova, TASK.http))
        worker._feed = SimpleNamespace(write=said.append, is_closing=lambda: False)  # type: ignore[assignment]
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
        (Question("/" + "x" * 8191), 414),
    ):
        with pytest.raises(Refused) as refused:
            read(question, LIMITS)
        assert refused.value.status == status
