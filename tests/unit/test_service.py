"""What a request meets, in order: each step with those after it out of reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.exchange import Caller, Pending, Request, Response, Subject
from shim.core.policy import Access, Family, Policy, Tokens
from shim.forward.allowance import Allowance, Concurrency
from shim.forward.identify import Entry, Table
from shim.forward.routes import Routes
from shim.forward.subjects import Subjects
from shim.forward.token import HEADER, TTL_HEADER, Keys
from shim.overlay import Overlay
from shim.service import Service
from tests.unit.live_site import LiveSite, tell

A = UUID(int=1)
V4, V6 = Caller(1, 7, A, Family.V4), Caller(1, 7, A, Family.V6)
NOW = 1_700_000_000.0
OURS = Response(200, (), b"embedded", backend="embedded")
DEFAULT = Policy()
THEIRS = Response(200, (), b"theirs", backend="http")
GET = Request(b"GET", b"/latest/meta-data/")


class Scene:
    """A service with one instance, a backend that answers as told, and a clock that stands still."""

    def __init__(self, policy: Policy = DEFAULT, tokens: Tokens = Tokens.OPTIONAL, burst: int = 100) -> None:
        self.table = Table([Entry(1, 7, A, policy, "p", "10.0.0.5")])
        self.asked: list[tuple[Subject, Request]] = []
        self.answer: Callable[[], Response | Pending] = lambda: THEIRS
        self.time = 0.0
        self.service = Service(
            self.table,
            tokens,
            Routes({"/": "embedded", "/far": "http", "/gone": "nova"}),
            Allowance(1, burst),
            Concurrency(2),
            Subjects(lambda: 1, Subject),
            lambda caller, entry, request: OURS,
            {"http": self.backend},
            clock=lambda: self.time,
            now=lambda: NOW,
        )
        self.service.keys = Keys([(1, b"k" * 32)])

    def backend(self, subject: Subject, request: Request) -> Response | Pending:
        self.asked.append((subject, request))
        return self.answer()

    def set(self, policy: Policy) -> None:
        self.table.put(replace(self.table.entry(V4) or pytest.fail("no entry"), policy=policy))

    def get(self, path: bytes = b"/latest/", caller: Caller = V4, *headers: tuple[bytes, bytes]) -> Response:
        answer = self.service.handle(caller, Request(b"GET", path, headers=headers))
        assert isinstance(answer, Response)
        return answer


def test_routes() -> None:
    scene = Scene()
    assert scene.get() is OURS
    assert scene.get(b"/far/x") is THEIRS
    assert scene.asked == [(Subject(A, "p", "10.0.0.5"), Request(b"GET", b"/far/x"))]
    assert scene.get(b"/farther") is OURS
    assert scene.get(b"/far/../x").status == 400
    assert scene.get(b"/gone").status == 503, "no such backend could be made"


def test_an_instances_own_routes_take_the_place_of_the_hosts() -> None:
    scene = Scene(Policy(routes=(("/", "http"),)))
    assert scene.get() is THEIRS


@pytest.mark.parametrize("access", [Access.FORBID, Access.RESET, Access.DROP])
def test_who_is_closed_meets_nothing_else(access: Access) -> None:
    scene = Scene(Policy(v4=access), burst=1)
    for _ in range(3):
        answer = scene.get(b"/far")
        assert (answer.status, answer.body, answer.close) == (403, b"", True)
    assert scene.get(caller=V6) is OURS
    assert scene.asked == []


def test_a_former_owner_of_a_slot_is_nobody() -> None:
    assert Scene().get(caller=replace(V4, generation=6)).status == 403


def test_the_allowance_is_of_both_families_and_comes_back() -> None:
    scene = Scene(burst=4)
    assert [scene.get(caller=caller).status for caller in (V4, V6, V4, V6)] == [200] * 4
    refused = scene.get(b"/far", V6)
    assert (refused.status, dict(refused.headers)[b"retry-after"], refused.close) == (429, b"1", True)
    assert scene.asked == []
    scene.time = 1.0
    assert scene.get().status == 200
    assert scene.get().status == 429


def test_tokens_stand_before_every_backend() -> None:
    scene = Scene(tokens=Tokens.REQUIRED)
    assert scene.get().status == scene.get(b"/far").status == scene.get(b"/gone").status == 401
    put = Request(b"PUT", b"/latest/api/token", headers=((TTL_HEADER, b"60"),))
    given = scene.service.handle(V4, put)
    assert isinstance(given, Response) and given.status == 200
    for caller in (V4, V6):
        assert scene.get(b"/far", caller, (HEADER, given.body)) is THEIRS
    assert scene.get(b"/far", replace(V4, generation=6), (HEADER, given.body)).status == 403
    scene.set(Policy(tokens=Tokens.OFF))
    assert scene.get() is OURS, "an instance's own mode counts"


@pytest.mark.parametrize(
    ("mode", "headers", "status", "backend", "outcome"),
    [
        (None, (), 200, "http", "without"),
        (None, ((HEADER, b"x"),), 200, "http", "with"),
        (None, ((HEADER, b"x"),), 401, "tokens", "refused"),
        (None, (), 200, "tokens", ""),
        (None, (), 429, "", ""),
        (Tokens.OFF, ((HEADER, b"x"),), 200, "http", "without"),
    ],
)
def test_what_is_counted_of_tokens(
    mode: Tokens | None, headers: tuple[tuple[bytes, bytes], ...], status: int, backend: str, outcome: str
) -> None:
    scene = Scene(Policy(tokens=mode))
    request = Request(b"GET", b"/", headers=headers)
    assert scene.service.token_outcome(scene.table.entry(V4), request, status, backend) == outcome
    assert scene.service.token_outcome(None, request, status, backend) == ""
    assert scene.service.token_outcome(scene.table.entry(V4), None, status, backend) == ""


def test_so_many_requests_are_under_way_and_no_more() -> None:
    scene = Scene()
    under_way: list[Pending] = []

    def later() -> Pending:
        under_way.append(Pending())
        return under_way[-1]

    scene.answer = later
    far = Request(b"GET", b"/far")
    first, second = (scene.service.handle(V4, far) for _ in range(2))
    assert isinstance(first, Pending) and isinstance(second, Pending)
    assert scene.get(b"/far", V6).status == 429
    assert scene.get() is OURS, "what is answered here needs no backend"
    first.cancel()
    third = scene.service.handle(V4, far)
    assert isinstance(third, Pending)
    assert scene.get(b"/far").status == 429
    under_way[1].settle(THEIRS)
    assert isinstance(scene.service.handle(V4, far), Pending)


def test_what_fails_or_is_answered_at_once_is_not_under_way() -> None:
    scene = Scene()

    def broken() -> Response:
        raise ValueError("no request that can be sent")

    scene.answer = broken
    for _ in range(5):
        with pytest.raises(ValueError, match="no request"):
            scene.get(b"/far")
    scene.answer = lambda: THEIRS
    assert [scene.get(b"/far") for _ in range(5)] == [THEIRS] * 5


def test_our_own_face_asks_the_backend_for_its_part_where_that_answers_the_instance(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        scene = Scene(Policy(routes=(("/", "http"),)))
        scene.service._overlay = Overlay(site.catalog, site.embedded.hand)
        scene.answer = lambda: Response(200, (), b"#!theirs\n", backend="http")
        answer = scene.service.handle(V4, Request(b"GET", b"/metashim/v1/sources/backend/user-data"))
        assert not isinstance(answer, Response | Pending)
        assert (await answer).body == b"#!theirs\n"
        assert [request.path for _, request in scene.asked] == [b"/openstack/latest/user_data"]
        for path in (b"/metashim/v1/kv/", b"/metashim/v1/sources/host/x", b"/metashim/v1/meta-data"):
            assert scene.service.handle(V4, Request(b"GET", path)) is OURS
        scene.set(Policy())
        assert scene.service.handle(V4, Request(b"GET", b"/metashim/v1/user-data")) is OURS

    tell(tmp_path, story)
