"""What a guest asks to have written: what becomes an Ask, what is refused, and the answers."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from shim.core.ask import Confirm, Delete, Fate, Lock, Outcome, Put, Ready
from shim.core.exchange import Headers, Response
from shim.core.kv import Value, etag
from shim.core.source import Reads, Scope
from shim.metadata.document import Document
from shim.metadata.faces import respond
from shim.metadata.guest_writes import CONFIRMED_AT_ONCE, told, write_of
from shim.metadata.view import View
from tests.unit.faces_site import GOOGLE, get, request, source, view

V1 = "/metashim/v1/"
GUEST = "/computeMetadata/v1/instance/guest-attributes/"
ON = Document(meta={"enable-guest-attributes": "TRUE"})


def write(
    path: str, method: bytes = b"PUT", headers: Headers = (), body: bytes = b"", seen: View | None = None
) -> Any:
    return write_of(seen or view(ON), request(path, method, headers, body))


def status(answer: Any) -> int:
    assert isinstance(answer, Response), answer
    return answer.status


class TestKeys:
    def test_put_and_delete(self) -> None:
        assert write(V1 + "kv/guest/a/b", body=b"\x00x") == Put("guest/a/b", b"\x00x")
        assert write(V1 + "kv/guest/a%3Ab/") == Put("guest/a:b", b"")
        assert write(V1 + "kv/guest/a", b"DELETE", body=b"ignored") == Delete("guest/a")

    @pytest.mark.parametrize("method", [b"PUT", b"DELETE"])
    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("kv", 400), ("kv/", 400), ("kv/guest", 400), ("kv/other/a", 400), ("kv/guest/..", 400),
            ("kv/guest//a", 400),
            ("kv/guest/a%20b", 400), ("kv/guest/" + "a" * 129, 400), ("kv/guest/a%2fb%2f..", 400), ("kv/guest/a%", 400),
            ("kv/guest/%00", 400), ("kv/host/a", 403), ("kv/host", 403), ("kv/%68ost/a", 403),
            ("kv/guest/" + "/".join("a" * 9), 400), ("kv/host%2f..%2fguest/a", 400),
        ],
    )  # fmt: skip
    def test_no_key_of_a_guests(self, method: bytes, path: str, code: int) -> None:
        assert status(write(V1 + path, method)) == code

    def test_words_hold_nothing_of_the_guests(self) -> None:
        assert b"secret" not in write(V1 + "kv/guest/secret%20x").body
        assert b"secret" not in write(V1 + "kv/guest/a", headers=((b"if-match", b"secret"),)).body
        assert b"secret" not in write(V1 + "lock?prefix=secret%20", b"POST").body

    @pytest.mark.parametrize(
        "path", ["kv/guest/a", "kv/", "meta-data", "", "user-data", "sources/host/a", "ready/x", "x"]
    )
    @pytest.mark.parametrize("method", [b"POST", b"PATCH", b"OPTIONS", b"put"])
    def test_other_methods_are_none_of_these(self, path: str, method: bytes) -> None:
        assert write(V1 + path, method) is None

    @pytest.mark.parametrize(
        "path",
        ["/latest/meta-data", "/openstack/latest/password", "/", "/metashim", "/metashim/v2/kv/guest/a", V1 + "x"],
    )
    def test_other_paths_are_none_of_these(self, path: str) -> None:
        assert write(path) is None
        assert write(path, b"POST") is None

    def test_a_conditions_tags(self) -> None:
        headers = ((b"if-match", b'"a" , W/"b",\t"c"'), (b"if-none-match", b'W/"d"'), (b"if-none-match", b'"e"'))
        assert write(V1 + "kv/guest/a", headers=headers) == Put("guest/a", b"", ("a", "W/b", "c"), ("d", "e"))
        assert write(V1 + "kv/guest/a", headers=((b"if-none-match", b"*"),)) == Put("guest/a", b"", None, ("*",))
        assert write(V1 + "kv/guest/a", b"DELETE", ((b"if-match", b"*"),)) == Delete("guest/a", ("*",))
        assert write(V1 + "kv/guest/a", headers=((b"if-match", b'""'),)) == Put("guest/a", b"", ("",))
        assert write(V1 + "kv/guest/a", headers=((b"if-match", b'","'),)) == Put("guest/a", b"", (",",))

    @pytest.mark.parametrize(
        "value",
        [
            b"", b"a", b'"a', b'a"', b'"a" "b"', b'"a",', b',"a"', b'"a",,"b"', b'w/"a"', b"'a'", b'"a\x80"',
            b'*, "a"', b'"' + b"a" * 65 + b'"', b",".join([b'"a"'] * 17), b'"a"' + b" " * 8000, b'"a b"', b"W/*",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("name", [b"if-match", b"if-none-match"])
    def test_malformed_conditions(self, name: bytes, value: bytes) -> None:
        assert status(write(V1 + "kv/guest/a", headers=((name, value),))) == 400
        assert status(write(V1 + "kv/guest/a", headers=((name, b"*"), (name, b"*")))) == 400

    def test_a_deletion_has_no_if_none_match(self) -> None:
        assert status(write(V1 + "kv/guest/a", b"DELETE", ((b"if-none-match", b'"a"'),))) == 400

    @pytest.mark.parametrize("closed", ["kv", "/", "/metashim", "/metashim/v1/kv/guest", "/metashim/v1/kv/guest/a"])
    def test_closed(self, closed: str) -> None:
        seen = view(ON, closed=(closed,))
        assert status(write(V1 + "kv/guest/a", seen=seen)) == 403
        assert status(write(V1 + "kv/guest/a", b"DELETE", seen=seen)) == 403


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"PUT", V1 + "kv/guest/a"), (b"DELETE", V1 + "kv/guest/a"), (b"POST", V1 + "lock"), (b"POST", V1 + "ready"),
        (b"POST", V1 + "confirm"), (b"POST", V1 + "sources/host/a/confirm"), (b"PUT", GUEST + "a/b"),
        (b"DELETE", GUEST + "a/b"),
    ],
)  # fmt: skip
def test_nothing_is_written_through_a_proxy(name: bytes, method: bytes, path: str) -> None:
    assert status(write(path, method, (*GOOGLE, (name, b"")))) == 403


class TestLock:
    def test_all_or_a_prefix(self) -> None:
        assert write(V1 + "lock", b"POST") == Lock("/")
        assert write(V1 + "lock?prefix=user-data", b"POST") == Lock("user-data")
        assert write(V1 + "lock?prefix=%2F2009-04-04%2Fuser-data%2F", b"POST") == Lock("/latest/user-data")

    @pytest.mark.parametrize(
        "query",
        ["prefix=", "prefix=x", "prefix=/../", "prefix=/a&prefix=/b", "prefx=/a", "prefix=/a&x=1", "=", "prefix"],
    )
    def test_what_is_not_understood_locks_nothing(self, query: str) -> None:
        assert status(write(f"{V1}lock?{query}", b"POST")) == 400

    def test_a_prefix_in_the_body_locks_not_everything(self) -> None:
        assert status(write(V1 + "lock", b"POST", body=b"prefix=/latest/user-data")) == 400

    def test_only_that_path(self) -> None:
        assert write(V1 + "lock/x", b"POST") is None
        assert write(V1 + "lock", b"PUT") is None

    def test_who_may_not_look_at_it_may_not_lock(self) -> None:
        assert status(write(V1 + "lock", b"POST", seen=view(closed=(V1 + "lock",)))) == 403


class TestConfirm:
    TAG = Scope("tag", "role=web")
    SEEN = view(
        sources=[
            source("a", b"1", Reads.CONFIRM), source("a", b"2", Reads.CONFIRM, TAG), source("b", b"3", Reads.ONCE),
        ],
        values=[
            Value("host/k", b"4", Reads.CONFIRM, revision=2), Value("host/m", b"5"),
            Value("guest/a/b", b"6", Reads.CONFIRM),
        ],
    )  # fmt: skip

    def confirm(self, path: str, seen: View | None = None) -> Any:
        return write(V1 + path, b"POST", seen=seen or self.SEEN)

    def test_one(self) -> None:
        assert self.confirm("sources/host/a/confirm") == Confirm(("source host/a 7",))
        assert self.confirm("sources/tag:role/a/confirm") == Confirm(("source tag:role=web/a 7",))
        assert self.confirm("kv/host/k/confirm/") == Confirm(("kv host/k 2",))
        assert self.confirm("kv/guest/a/b/confirm") == Confirm(("kv guest/a/b 0",))

    def test_all(self) -> None:
        assert self.confirm("confirm") == Confirm(
            ("source host/a 7", "source tag:role=web/a 7", "kv guest/a/b 0", "kv host/k 2")
        )
        assert status(self.confirm("confirm", view())) == 204

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("sources/host/x/confirm", 404), ("sources/host/confirm", 404), ("sources/confirm", 404),
            ("kv/confirm", 404), ("kv/host/x/confirm", 404), ("sources/host/b/confirm", 409),
            ("kv/host/m/confirm", 409),
            ("sources/host/a//confirm", 404),
        ],
    )  # fmt: skip
    def test_what_does_not_wait_for_it(self, path: str, code: int) -> None:
        assert status(self.confirm(path)) == code

    def test_what_is_closed_is_not_confirmed(self) -> None:
        seen = view(sources=self.SEEN.sources, values=self.SEEN.values.values(), closed=("user-data", V1 + "kv/host/k"))
        assert status(self.confirm("sources/host/a/confirm", seen)) == 403
        assert self.confirm("confirm", seen) == Confirm(("kv guest/a/b 0",))

    def test_too_many_at_once(self) -> None:
        many = [source(f"s{n}", b"", Reads.CONFIRM) for n in range(CONFIRMED_AT_ONCE + 1)]
        assert status(self.confirm("confirm", view(sources=many))) == 409
        assert len(self.confirm("confirm", view(sources=many[1:])).items) == CONFIRMED_AT_ONCE

    def test_ready(self) -> None:
        assert self.confirm("ready") == Ready()
        assert write(V1 + "ready", b"POST", body=b"whatever") == Ready()


class TestGuestAttributes:
    def test_put_and_delete(self) -> None:
        assert write(GUEST + "hostkeys/ssh-rsa", headers=GOOGLE, body=b"k") == Put("guest/hostkeys/ssh-rsa", b"k")
        assert write(GUEST + "a/b", b"DELETE", GOOGLE) == Delete("guest/a/b")
        assert write(GUEST.replace("v1", "v1beta1") + "a/b", headers=GOOGLE) == Put("guest/a/b", b"")
        tag = etag(b"x").encode()
        assert write(GUEST + "a/b", headers=(*GOOGLE, (b"if-match", tag))) == Put("guest/a/b", b"", (tag.decode(),))

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("", 400), ("a", 400), ("a/b/c", 400), ("a//", 400), ("a/" + "b" * 127, 0), ("a/" + "b" * 128, 400),
            ("a" * 128 + "/b", 400), ("a/b%20c", 400), ("a/..", 400), ("%/b", 400), ("a/é", 400),
        ],
    )  # fmt: skip
    def test_names(self, path: str, code: int) -> None:
        answer = write(GUEST + path, headers=GOOGLE)
        assert isinstance(answer, Put) if code == 0 else status(answer) == code

    def test_sizes(self) -> None:
        assert isinstance(write(GUEST + "a/b", headers=GOOGLE, body=bytes(262_144)), Put)
        assert status(write(GUEST + "a/b", headers=GOOGLE, body=bytes(262_145))) == 413

    @pytest.mark.parametrize("method", [b"PUT", b"DELETE"])
    def test_refused(self, method: bytes) -> None:
        assert status(write(GUEST + "a/b", method)) == 403
        assert status(write(GUEST + "a/b", method, ((b"metadata-flavor", b"x"),))) == 403
        assert status(write(GUEST + "a/b", method, GOOGLE, seen=view())) == 403
        assert status(write(GUEST + "a/b", method, GOOGLE, seen=view(ON, closed=("kv",)))) == 403

    def test_every_refusal_says_who_speaks(self) -> None:
        for path, headers in (("a/b", ()), ("a", GOOGLE), ("%/b", GOOGLE), ("a/b%20", GOOGLE)):
            assert (b"metadata-flavor", b"Google") in write(GUEST + path, headers=headers).headers

    @pytest.mark.parametrize(
        "path", ["/computeMetadata", "/computeMetadata/v1/instance/id", GUEST.replace("v1", "v3") + "a/b"]
    )
    def test_nothing_else_of_it_is_written(self, path: str) -> None:
        assert write(path, headers=GOOGLE) is None
        assert write(GUEST + "a/b", b"POST", GOOGLE) is None

    def test_what_is_written_is_read(self) -> None:
        asked = write(GUEST + "ns/key", headers=GOOGLE, body=b"v")
        seen = view(ON, values=[Value(asked.key, asked.value)])
        assert get(seen, GUEST + "ns/key", GOOGLE).response.body == b"v"
        assert get(seen, V1 + "kv/guest/ns/key").response.body == b"v"


class TestTold:
    PUT, DELETE = Put("guest/a/b", b""), Delete("guest/a/b")

    def told(self, ask: Any, outcome: Outcome, path: str = V1 + "kv/guest/a/b") -> Response:
        return told(ask, outcome, request(path, b"PUT"))

    @pytest.mark.parametrize(
        ("fate", "code"),
        [
            ("absent", 404), ("changed", 412), ("clash", 409), ("quota", 413), ("rate", 429), ("refused", 403),
            ("full", 507), ("unavailable", 503),
        ],
    )  # fmt: skip
    def test_fates(self, fate: Fate, code: int) -> None:
        for ask in (self.PUT, self.DELETE, Lock("/"), Ready(), Confirm(("x",))):
            for path in (V1 + "x", GUEST + "a/b"):
                response = self.told(ask, Outcome(fate), path)
                assert response.status == code
                assert response.body.endswith(b"\n") and len(response.body) > 4
                assert ((b"metadata-flavor", b"Google") in response.headers) is (path[1] == "c")
        assert self.told(self.PUT, Outcome(fate, words="because")).body == b"because\n"

    def test_every_fate_has_an_answer(self) -> None:
        assert all(self.told(self.PUT, Outcome(fate)).status for fate in get_args(Fate))

    def test_when_to_try_again(self) -> None:
        assert (b"retry-after", b"1") in self.told(self.PUT, Outcome("rate")).headers
        assert (b"retry-after", b"2") in self.told(self.PUT, Outcome("unavailable")).headers

    def test_done(self) -> None:
        made = self.told(self.PUT, Outcome("done", etag="abc", created=True))
        assert (made.status, made.headers, made.body) == (201, ((b"etag", b'"abc"'),), b"")
        assert self.told(self.PUT, Outcome("done", etag="abc")).status == 204
        for ask in (self.DELETE, Lock("/"), Ready(), Confirm(("x",))):
            assert self.told(ask, Outcome("done")) == Response(204)

    def test_done_as_google_says_it(self) -> None:
        made = self.told(self.PUT, Outcome("done", etag="abc", created=True), GUEST + "a/b")
        assert (made.status, made.headers) == (200, ((b"etag", b"abc"), (b"metadata-flavor", b"Google")))
        assert self.told(self.DELETE, Outcome("done"), GUEST + "a/b").status == 200


def test_what_is_none_of_these_gets_405() -> None:
    for path in ("/latest/user-data", V1 + "user-data", GUEST + "a/b"):
        rendered = respond(view(ON), request(path, b"POST", GOOGLE))
        assert rendered.response.status == 405
        assert (b"allow", b"GET, HEAD") in rendered.response.headers
