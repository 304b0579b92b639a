"""A backend's own user-data and vendor data, composed with what a real store has: the backend is a function here."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from shim.core.ask import Read
from shim.core.exchange import Pending, Request, Response
from shim.core.policy import Auto, Composition, Policy
from shim.core.source import HOST, Kind, Reads
from shim.errors import BackendError
from shim.overlay import BODY_BYTES, Overlay
from tests.unit.live_site import DENIED, ONCE, A, B, LiveSite, source, tell

USER, OPENSTACK, VENDOR = "/latest/user-data", "/openstack/latest/user_data", "/openstack/latest/vendor_data.json"
THEIRS = b"#cloud-config\npackages: [theirs]\n"
OURS = b"#cloud-config\npackages: [ours]\n"
PLAIN = ((b"Content-Type", b"text/x-theirs"), (b"X-Theirs", b"1"))


class Place:
    """A site whose guest's requests are routed to a backend, which answers `says`."""

    def __init__(self, site: LiveSite) -> None:
        self.site = site
        self.overlay = Overlay(site.catalog, site.embedded.hand)
        self.says = Response(200, PLAIN, THEIRS, backend="nova")
        self.asked: list[Request] = []

    def ask(self, request: Request) -> Response | Pending:
        self.asked.append(request)
        pending = Pending()
        asyncio.get_running_loop().call_soon(pending.settle, self.says)
        return pending

    def concerns(self, path: str = USER, method: str = "GET") -> bool:
        return self.overlay.concerns(self.site.entries[A], Request(method.encode(), path.encode()))

    async def get(self, path: str = USER, method: str = "GET", body: bytes = b"", **headers: str) -> Response:
        plain, _, query = path.partition("?")
        named = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
        request = Request(method.encode(), plain.encode(), query.encode(), named, body)
        assert self.overlay.concerns(self.site.entries[A], request)
        return await self.overlay.answer(self.site.caller(), request, self.ask)

    def put(self, name: str = "ours", body: bytes = OURS, **more: object) -> None:
        self.site.store.put_source(source(name, body, **{"scope": HOST, **more}))  # type: ignore[arg-type]
        self.site.changed()


def at(folder: Path, story: Callable[[Place], Awaitable[None]]) -> None:
    async def whole(site: LiveSite) -> None:
        await story(Place(site))

    tell(folder, whole)


async def parts(*pieces: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


def header(response: Response, name: bytes) -> bytes | None:
    return dict(response.headers).get(name)


@pytest.mark.parametrize(
    "path",
    [
        USER, "/2009-04-04/user-data", "/1.0/user-data/", "/ec2/latest/user-data", "/latest/user-d%61ta",
        "/l%61test/user-data", OPENSTACK, "/openstack/2018-08-27/user_data", VENDOR,
        "/openstack/2016-10-06/vendor_data.json",
    ],
)  # fmt: skip
def test_what_is_composed_where_there_are_sources(tmp_path: Path, path: str) -> None:
    async def story(place: Place) -> None:
        assert not place.concerns(path), "without a source it is the backend's alone"
        place.put()
        assert place.concerns(path) and place.concerns(path, "HEAD") and not place.concerns(path, "PUT")

    at(tmp_path, story)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/latest/meta-data/", "/latest/user-data/more", "/openstack/latest/meta_data.json", "/latest/user_data",
        "/openstack/latest/vendor_data2.json", "/openstack/latest/network_data.json", "/user-data", "/%zz/user-data",
        "/latest/../latest/user-data", "/computeMetadata/v1/instance/attributes/user-data", "/%FF/data",
    ],
)  # fmt: skip
def test_what_never_is(tmp_path: Path, path: str) -> None:
    async def story(place: Place) -> None:
        place.put()
        assert not place.concerns(path)

    at(tmp_path, story)


def test_whose_sources_they_are_not_is_not_concerned(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put(scope=source("x", b"").scope)
        assert place.concerns()
        request = Request(b"GET", USER.encode())
        assert not place.overlay.concerns(place.site.entries[B], request)

    at(tmp_path, story)


def test_a_composition_of_both(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        answer = await place.get(authorization="x", if_none_match='"x"', range="bytes=0-1", accept_encoding="gzip")
        assert answer.status == 200 and answer.backend == "embedded"
        assert answer.body.index(b"[ours]") < answer.body.index(b"[theirs]"), "the backend's is the last of its order"
        assert header(answer, b"X-Theirs") is None and header(answer, b"etag") is not None
        (asked,) = place.asked
        assert (asked.method, asked.path, asked.headers) == (b"GET", USER.encode(), ((b"authorization", b"x"),))
        again = await place.get(if_none_match=(header(answer, b"etag") or b"").decode())
        assert (again.status, again.body) == (304, b"")

    at(tmp_path, story)


def test_where_the_backend_has_none_the_store_s_is_all(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        place.says = Response(404, (), b"no user-data", backend="nova")
        answer = await place.get()
        assert (answer.status, answer.body) == (200, OURS)
        place.says = Response(200, (), b"", backend="nova")
        assert OURS in (await place.get()).body

    at(tmp_path, story)


@pytest.mark.parametrize("status", [301, 400, 403, 500, 503])
def test_any_other_word_of_the_backend_s_passes(tmp_path: Path, status: int) -> None:
    async def story(place: Place) -> None:
        place.put()
        place.says = Response(status, PLAIN, b"no", close=True, backend="nova")
        assert await place.get() is place.says

    at(tmp_path, story)


def test_a_body_in_parts_is_one(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        whole = (await place.get()).body
        for length in (len(THEIRS), None):
            place.says = Response(200, PLAIN, parts=parts(THEIRS[:10], THEIRS[10:]), length=length)
            assert (await place.get()).body == whole
        place.says = Response(404, (), parts=parts(b"none"))
        assert (await place.get()).body == OURS

    at(tmp_path, story)


def test_one_that_breaks_off_is_a_failure_of_the_backend_s(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        for late, status in ((False, 502), (True, 504)):
            error = BackendError("gone", sent=True, late=late)
            place.says = Response(200, PLAIN, parts=parts(THEIRS, error=error), backend="nova")
            answer = await place.get()
            assert (answer.status, answer.backend) == (status, "nova")
            assert int(header(answer, b"retry-after") or b"0") > 0

    at(tmp_path, story)


def test_one_that_is_too_large_is_not_composed(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        closed = []

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"#" * 65_536
            finally:
                closed.append(1)

        place.says = Response(200, PLAIN, parts=endless(), backend="nova")
        assert (await place.get()).status == 502 and closed == [1]
        place.says = Response(200, PLAIN, b"#" * (BODY_BYTES + 1), backend="nova")
        assert (await place.get()).status == 502

    at(tmp_path, story)


def test_what_does_not_fit_with_the_backend_s_is_503(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        place.says = Response(200, PLAIN, random.Random(0).randbytes(80_000))
        assert (await place.get()).status == 503

    at(tmp_path, story)


def test_gzip_is_opened_among_others_and_passes_alone(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.says = Response(200, PLAIN, gzip.compress(THEIRS, mtime=0))
        place.put("vendor", kind=Kind.VENDOR)
        assert (await place.get()).body == place.says.body
        place.put()
        body = (await place.get()).body
        assert b"[theirs]" in body and b"[ours]" in body

    at(tmp_path, story)


def test_alone_it_passes_byte_for_byte_with_its_headers(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put("vendor", b"#!vendor\n", kind=Kind.VENDOR)
        for says in (place.says, Response(200, PLAIN, parts=parts(THEIRS[:5], THEIRS[5:]), length=len(THEIRS))):
            place.says = says
            answer = await place.get()
            assert (answer.status, answer.headers, answer.body, answer.parts) == (200, PLAIN, THEIRS, None)
        place.says = Response(404, PLAIN, b"none")
        answer = await place.get()
        assert (answer.status, answer.headers, answer.body) == (404, PLAIN, b"none")

    at(tmp_path, story)


def test_composition_vendor_leaves_user_data_to_the_backend(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        place.site.policy(Policy(composition=Composition.VENDOR))
        assert (await place.get()).body == THEIRS
        place.says = Response(200, PLAIN, b'{"cloud-init": "#!theirs\\n", "more": [1]}')
        found = json.loads((await place.get(VENDOR)).body)
        assert found["more"] == [1] and "#!theirs" in found["cloud-init"] and "[ours]" in found["cloud-init"]

    at(tmp_path, story)


@pytest.mark.parametrize("says", [b"no json", b"\xff\xfe", b'{"cloud-init": '])
def test_vendor_data_that_cannot_be_read_is_the_backend_s_word(tmp_path: Path, says: bytes) -> None:
    async def story(place: Place) -> None:
        place.put("vendor", b"#!ours\n", kind=Kind.VENDOR)
        place.says = Response(200, PLAIN, parts=parts(says[:3], says[3:]), length=len(says))
        answer = await place.get(VENDOR)
        assert (answer.status, answer.headers, answer.body, answer.parts) == (200, PLAIN, says, None)

    at(tmp_path, story)


@pytest.mark.parametrize(("status", "says"), [(404, b"none"), (200, b""), (200, b"null"), (200, b"{}")])
def test_vendor_data_where_the_backend_has_none(tmp_path: Path, status: int, says: bytes) -> None:
    async def story(place: Place) -> None:
        place.put("vendor", b"#!ours\n", kind=Kind.VENDOR)
        place.says = Response(status, PLAIN, says)
        answer = await place.get(VENDOR)
        assert (answer.status, json.loads(answer.body)) == (200, {"cloud-init": "#!ours\n"})

    at(tmp_path, story)


def test_what_is_read_once_is_claimed_and_left_out_for_the_next(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put("secret", b"#!secret\n", reads=ONCE)
        head = await place.get(method="HEAD")
        assert head.receipt is None and head.body == b"" and place.site.asked == []
        first, second = (asyncio.ensure_future(place.get()) for _ in range(2))
        answer = await first
        assert b"#!secret" in answer.body and answer.receipt is not None and not second.done()
        assert await answer.receipt.commit()
        answer.receipt.done(True)
        assert (await second).body == THEIRS
        assert not place.concerns(), "nothing is left beside the backend's"

    at(tmp_path, story)


def test_a_claim_whose_guest_may_see_it_no_more_is_refused(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put("secret", b"#!secret\n", reads=ONCE)
        first, second = (asyncio.ensure_future(place.get()) for _ in range(2))
        answer = await first
        assert answer.receipt is not None
        await asyncio.sleep(0.01)
        place.site.denied.add(A)
        answer.receipt.done(False)
        assert await second is DENIED
        assert len(place.site.leases) == 0

    at(tmp_path, story)


def test_reading_it_is_told_where_somebody_waits_for_that(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.site.policy(Policy(auto=Auto(on_read=True)))
        for path in (USER, "/ec2/latest/user-data", "/latest/user-d%61ta", OPENSTACK):
            assert place.concerns(path), path
            answer = await place.get(path)
            assert answer.body == THEIRS and answer.receipt is not None, path
            answer.receipt.done(False)
            assert place.site.asked == []
            assert await answer.receipt.commit()
            answer.receipt.done(True)
            assert place.site.asked.pop() == Read()
        assert not place.concerns(VENDOR)
        place.says = Response(404, PLAIN, b"none")
        assert (await place.get()).receipt is None

    at(tmp_path, story)


def test_what_is_to_be_confirmed_uses_nothing_up(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put("secret", b"#!secret\n", reads=Reads.CONFIRM)
        for _ in range(2):
            answer = await place.get()
            assert b"#!secret" in answer.body and answer.receipt is None

    at(tmp_path, story)


def test_who_leaves_gives_up_what_the_backend_was_asked(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        never = Pending()
        over = []
        never.when_over(lambda: over.append(1))
        waiting = asyncio.ensure_future(
            place.overlay.answer(place.site.caller(), Request(b"GET", USER.encode()), lambda request: never)
        )
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert over == [1]

    at(tmp_path, story)


def test_our_own_face_shows_what_the_backend_says_by_itself_and_composed(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        alone = await place.get("/metashim/v1/sources/backend/user-data")
        assert (alone.status, alone.body) == (200, THEIRS)
        assert dict(alone.headers)[b"x-metashim-owner"] == b"backend" and b"etag" in dict(alone.headers)
        both = await place.get("/metashim/v1/user-data")
        assert both.body == (await place.get(OPENSTACK)).body and b"ours" in both.body and b"theirs" in both.body
        place.says = Response(200, ((b"content-type", b"application/json"),), b'{"a": 1}', backend="nova")
        vendor = await place.get("/metashim/v1/vendor-data")
        assert vendor.body == b'{"a": 1}', "no source has a part in it"
        assert [one.path for one in place.asked] == [OPENSTACK.encode()] * 3 + [VENDOR.encode()]

    at(tmp_path, story)


@pytest.mark.parametrize("query", ["?wait=5&etag=x", "?wait=nonsense"])
def test_nobody_waits_for_what_a_backend_answers(tmp_path: Path, query: str) -> None:
    async def story(place: Place) -> None:
        assert (await place.get(f"/metashim/v1/user-data{query}")).status == 400
        assert (await place.get("/metashim/v1/user-data", accept="text/event-stream")).status == 400
        assert place.asked == []

    at(tmp_path, story)


def test_a_backend_without_user_data_has_none_by_itself(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.put()
        place.says = Response(404, (), b"none", backend="nova")
        assert (await place.get("/metashim/v1/sources/backend/user-data")).status == 404
        assert (await place.get("/metashim/v1/user-data")).body == OURS

    at(tmp_path, story)


def test_the_documents_own_is_one_of_them_beside_a_backends_alone(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.site.store.put_document(A, b'{"user_data": "#cloud-config\\npackages: [document]\\n"}')
        place.site.changed()
        body = (await place.get(OPENSTACK)).body
        assert b"document" in body and b"theirs" in body

    at(tmp_path, story)
