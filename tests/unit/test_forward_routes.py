"""From a path to the backend that answers it."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shim.core.exchange import Response
from shim.forward.routes import NO_ROUTE, REFUSED, Routes, compiled, decode

HOST = {"/": "nova", "/latest/user-data": "embedded", "/openstack/": "http", "/openstack/latest/x": "embedded"}


@pytest.mark.parametrize(
    ("path", "backend"),
    [
        (b"/", "nova"),
        (b"/latest", "nova"),
        (b"/latest/", "nova"),
        (b"/latest/meta-data/", "nova"),
        (b"/latest/user-data", "embedded"),
        (b"/latest/user-data/", "embedded"),
        (b"/latest/user-data/x", "embedded"),
        (b"/latest/user-data2", "nova"),
        (b"/latest/user-dat", "nova"),
        (b"/latest/User-Data", "nova"),
        (b"/x/latest/user-data", "nova"),
        (b"/openstack", "http"),
        (b"/openstack/", "http"),
        (b"/openstack/latest", "http"),
        (b"/openstack/latest/x/y/z", "embedded"),
        (b"/openstack/latest/xy", "http"),
        (b"/openstacks", "nova"),
        (b"/l%61test/user%2Ddata", "embedded"),
        (b"/latest/user%2ddata/", "embedded"),
        (b"/latest/user-data;v=1", "nova"),
        (b"/latest/...", "nova"),
        (b"/latest/.x/..y/z.", "nova"),
        (b"/latest/%c3%a4%20b", "nova"),
        (b"/latest/100%25", "nova"),
    ],
)
def test_the_longest_prefix_in_whole_segments(path: bytes, backend: str) -> None:
    assert Routes(HOST).backend(path) == backend


@pytest.mark.parametrize(
    "path",
    [
        b"//", b"//latest/user-data", b"/latest//user-data", b"/latest/user-data//", b"/%2f", b"/latest%2fuser-data",
        b"/latest%2Fuser-data", b"/.", b"/..", b"/./latest", b"/../latest", b"/latest/.", b"/latest/..",
        b"/latest/./user-data", b"/x/../latest/user-data", b"/%2e", b"/%2e%2e/latest", b"/.%2E/latest",
        b"/x/%2e./latest",
        b"/x/..;/latest", b"/x/..;a=b/latest", b"/x/.;/latest", b"/x/..%3b/latest", b"/x/%2e%2e;/y", b"/x/..;", b"/;/x",
        b"/x/;a/latest", b"/latest%5cuser-data", b"/x/..%5C..%5Clatest", b"/latest\\user-data", b"/latest%00",
        b"/a%0d%0ab",
        b"/a%09", b"/a%7f", b"/a%1f", b"/%", b"/a%2", b"/a%zz", b"/a%u0061", b"/latest%3fx", b"/latest%23x",
        b"/%252e%252e/latest", b"/latest%252fuser-data", b"/a%2541", b"/%25%34%31", b"/%c0%ae%c0%ae/latest", b"/%ff",
        b"/%e0%80%af", b"latest", b"", b"*", b"http://x/latest", b"%2flatest",
    ],
)  # fmt: skip
def test_what_two_servers_may_read_differently_is_refused(path: bytes) -> None:
    routes = Routes(HOST)
    assert routes.backend(path) is REFUSED
    assert routes.backend(path, (("/", "embedded"),)) is REFUSED
    assert (REFUSED.status, REFUSED.headers) == (400, ((b"content-type", b"text/plain"),))


def test_an_instances_own_routes_take_the_place_of_the_hosts() -> None:
    routes = Routes(HOST)
    own = (("/", "embedded"),)
    assert routes.backend(b"/openstack/latest", own) == "embedded"
    assert routes.backend(b"/openstack/latest") == "http"
    assert routes.backend(b"/openstack/latest", (("/latest", "nova"),)) is NO_ROUTE
    assert routes.backend(b"/latest/x", (("/latest", "nova"),)) == "nova"
    assert routes.backend(b"/latest/x", ()) is NO_ROUTE
    assert NO_ROUTE.status == 404


@pytest.mark.parametrize("prefix", ["", "latest", "/a//b", "/a/../b", "/a%2fb", "/a%", "/a\\b", "/a\nb"])
def test_a_prefix_that_cannot_be(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"^'"):
        Routes({prefix: "nova"})
    with pytest.raises(ValueError):
        Routes(HOST).backend(b"/", ((prefix, "nova"),))


def test_one_prefix_in_two_spellings() -> None:
    with pytest.raises(ValueError, match="twice"):
        compiled((("/a", "nova"), ("/%61/", "http")))


SEGMENTS = st.sampled_from(["latest", "user-data", "user-data2", "openstack", "x", "a b", "ä", ".x", "..."])
PATHS = st.lists(SEGMENTS, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(PATHS, st.data())
def test_spellings_of_one_path_take_one_route(path: str, data: st.DataObject) -> None:
    def spell(byte: int) -> bytes:
        plain = bytes((byte,))
        if plain == b"/":
            return plain
        escaped = [b"%%%02x" % byte, b"%%%02X" % byte]
        return data.draw(st.sampled_from([plain, *escaped] if 0x20 < byte < 0x7F else escaped))

    spelt = b"".join(map(spell, path.encode()))
    routes = Routes(HOST)
    assert unquote_to_bytes(spelt) == path.encode()
    assert decode(spelt) == path.encode().removesuffix(b"/")
    assert routes.backend(spelt) == Routes(HOST).backend(path.encode())


PIECES = st.sampled_from(["/", "%2f", ".", "..", "%2e", "%2E", "%5c", "%25", "2e", ";", "a", "x", "%61", "%00", "%"])


@given(st.lists(PIECES, max_size=8).map(lambda parts: ("/" + "".join(parts)).encode()))
def test_what_is_routed_has_one_reading(path: bytes) -> None:
    """Whatever passes means the same to one who decodes twice, resolves dots, merges slashes or drops parameters."""
    if isinstance(Routes(HOST).backend(path), Response):
        return
    once = unquote_to_bytes(path)
    assert unquote_to_bytes(once) == once
    segments = once.removesuffix(b"/").split(b"/")[1:]
    assert not {b"", b".", b".."} & {segment.partition(b";")[0] for segment in segments}
    assert once.count(b"/") == path.count(b"/")
    assert b"\\" not in once and b"\0" not in once


@given(st.binary(max_size=12).map(lambda tail: b"/" + tail))
def test_any_bytes_get_an_answer_and_the_same_one_again(path: bytes) -> None:
    routes = Routes(HOST)
    assert routes.backend(path) == routes.backend(path) == Routes(HOST).backend(path)


@given(PATHS)
def test_without_a_root_route_only_what_is_below_a_prefix(path: str) -> None:
    assume(not (path + "/").startswith("/latest/"))
    assert Routes({"/latest": "nova"}).backend(path.encode()) is NO_ROUTE


def test_a_guest_cannot_fill_the_memory_with_paths() -> None:
    routes = Routes(HOST)
    for number in range(5000):
        assert routes.backend(b"/latest/%d" % number) == "nova"
    assert routes.backend(b"/latest/user-data/" + b"x" * 5000) == "embedded"
    assert len(routes._known) <= 2048
    assert max(len(path) for path, _ in routes._known) <= 256
