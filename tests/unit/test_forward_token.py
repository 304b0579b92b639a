"""Session tokens as IMDSv2 has them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.exchange import Caller, Headers, Request, Response
from shim.core.policy import Family, Tokens
from shim.forward.token import HEADER, TTL_HEADER, TTL_MAX, UNAUTHORIZED, Keys, Verdict, front, mint, verify

OFF, OPTIONAL, REQUIRED = Tokens.OFF, Tokens.OPTIONAL, Tokens.REQUIRED
A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
B = UUID("c0ffee00-1111-4222-8333-444455556666")
CALLER = Caller(7, 2, A, Family.V4)
NOW = 1_764_000_000.25
OLD, NEW = (1, b"o" * 32), (0xFFFFFFFF, b"n" * 32)
KEYS = Keys([NEW, OLD])


def minted(keys: Keys = KEYS, caller: Caller = CALLER, now: float = NOW, ttl: int = 60) -> bytes:
    token = mint(keys, caller, now, ttl)
    assert token is not None
    return token


TOKEN = minted()


def test_a_token_verifies_for_who_got_it() -> None:
    assert verify(KEYS, CALLER, NOW, TOKEN)
    assert verify(KEYS, replace(CALLER, family=Family.V6), NOW, TOKEN)  # v4 and v6 are one port
    assert re.fullmatch(rb"[A-Za-z0-9_-]{44}", TOKEN)


@pytest.mark.parametrize(
    "other",
    [replace(CALLER, instance=B), replace(CALLER, slot=8), replace(CALLER, generation=3), Caller(2, 7, A, Family.V4)],
)
def test_and_for_nobody_else(other: Caller) -> None:
    assert not verify(KEYS, other, NOW, TOKEN)


@pytest.mark.parametrize("ttl", [1, 60, TTL_MAX])
def test_it_lives_for_its_time_and_at_most_a_second_more(ttl: int) -> None:
    token = minted(ttl=ttl)
    assert verify(KEYS, CALLER, NOW, token)
    assert verify(KEYS, CALLER, NOW + ttl, token)
    assert not verify(KEYS, CALLER, NOW + ttl + 1, token)
    assert verify(KEYS, CALLER, NOW - 3600, minted(ttl=60))


def test_one_from_before_the_clock_was_set_back_a_day_is_refused() -> None:
    assert not verify(KEYS, CALLER, NOW - 86_400, TOKEN)


def test_the_newest_key_signs_and_all_verify() -> None:
    old = minted(Keys([OLD]))
    assert verify(KEYS, CALLER, NOW, old)
    assert not verify(Keys([OLD]), CALLER, NOW, TOKEN)
    assert verify(Keys([NEW]), CALLER, NOW, TOKEN)
    assert not verify(Keys([NEW]), CALLER, NOW, old)
    assert not verify(Keys([(NEW[0], b"x" * 32)]), CALLER, NOW, TOKEN)


def test_without_keys_there_are_no_tokens() -> None:
    assert mint(Keys(), CALLER, NOW, 60) is None
    assert not verify(Keys(), CALLER, NOW, TOKEN)


TEXT = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=. \n\0é"


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(TEXT))
def test_no_altered_token_verifies(at: int, char: str) -> None:
    altered = TOKEN[:at] + char.encode("latin-1") + TOKEN[at + 1 :]
    assert verify(KEYS, CALLER, NOW, altered) == (altered == TOKEN)


WELL_SPELT = st.text(TEXT[:64], min_size=44, max_size=44).map(str.encode)


@given(st.one_of(st.binary(max_size=60), st.binary(min_size=44, max_size=44), WELL_SPELT))
def test_no_made_up_token_verifies_nor_raises(token: bytes) -> None:
    assert not verify(KEYS, CALLER, NOW, token)
    assert not verify(KEYS, CALLER, NOW, TOKEN[:12] + token[12:])  # of a known key, and not expired


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1), st.integers(0, 2**39), st.integers(1, TTL_MAX))
def test_every_minted_token_verifies(key: bytes, number: int, now: int, ttl: int) -> None:
    keys = Keys([(number, key)])
    token = minted(keys, now=now, ttl=ttl)
    assert verify(keys, CALLER, now, token)
    for spelt in (token + b"=", token + b"\n", b" " + token, token[:-1], token.replace(b"-", b"+").replace(b"_", b"/")):
        assert spelt == token or not verify(keys, CALLER, now, spelt)


# In front of the backends.


def ask(
    mode: Tokens, method: bytes = b"GET", path: bytes = b"/latest/", *headers: tuple[bytes, bytes], keys: Keys = KEYS
) -> Any:
    return front(mode, keys, CALLER, Request(method, path, b"", ((b"host", b"x"), *headers)), NOW)


TTL = TTL_HEADER, b"60"


def test_a_token_is_given() -> None:
    given_ = ask(OPTIONAL, b"PUT", b"/latest/api/token", TTL)
    assert isinstance(given_, Response)
    assert given_.status == 200
    assert given_.headers == ((b"content-type", b"text/plain"), TTL)
    assert verify(KEYS, CALLER, NOW + 60, given_.body)
    assert not verify(KEYS, CALLER, NOW + 61, given_.body)
    assert ask(REQUIRED, b"PUT", b"/latest/api/token", TTL) == given_


@pytest.mark.parametrize("path", [b"/latest/api/token/", b"/latest/api/%74oken", b"/%6catest/api/token"])
def test_its_path_in_other_spellings(path: bytes) -> None:
    assert ask(OPTIONAL, b"PUT", path, TTL).status == 200


@pytest.mark.parametrize("ttl", [b"1", b"21600", b"00060"])
def test_a_time_to_live_within_bounds(ttl: bytes) -> None:
    response = ask(OPTIONAL, b"PUT", b"/latest/api/token", (TTL_HEADER, ttl))
    assert (response.status, response.headers[1]) == (200, (TTL_HEADER, b"%d" % int(ttl)))


@pytest.mark.parametrize("ttl", [b"", b"0", b"21601", b"-1", b"+1", b"1.0", b"1e3", b"6 0", b"0x10", b"9" * 5000])
def test_a_bad_time_to_live(ttl: bytes) -> None:
    assert ask(OPTIONAL, b"PUT", b"/latest/api/token", (TTL_HEADER, ttl)).status == 400


def test_no_time_to_live_or_two() -> None:
    assert ask(OPTIONAL, b"PUT", b"/latest/api/token").status == 400
    assert ask(OPTIONAL, b"PUT", b"/latest/api/token", TTL, TTL).status == 400


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded"])
@pytest.mark.parametrize("value", [b"10.0.0.1", b""])
def test_none_through_a_proxy_in_the_guest(name: bytes, value: bytes) -> None:
    assert ask(OPTIONAL, b"PUT", b"/latest/api/token", TTL, (name, value)).status == 403


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"DELETE", b"OPTIONS", b"PATCH"])
@pytest.mark.parametrize("mode", [OPTIONAL, REQUIRED])
def test_other_methods_there(mode: Tokens, method: bytes) -> None:
    response = ask(mode, method, b"/latest/api/token", (HEADER, TOKEN))
    assert (response.status, dict(response.headers)[b"allow"]) == (405, b"PUT")


@pytest.mark.parametrize("path", [b"/2021-03-23/api/token", b"/1.0/api/token/", b"/2009-04-04/api/%74oken"])
def test_on_a_dated_versions_path(path: bytes) -> None:
    assert ask(OPTIONAL, b"PUT", path, TTL).status == 403
    assert ask(REQUIRED, b"PUT", path, TTL).status == 403
    assert ask(OFF, b"PUT", path, TTL).status == 404


@pytest.mark.parametrize("method", [b"PUT", b"GET", b"HEAD"])
def test_off_gives_none_and_forwards_none(method: bytes) -> None:
    assert ask(OFF, method, b"/latest/api/token", TTL).status == 404


@pytest.mark.parametrize("path", [b"/latest/api/tokens", b"/latest/meta-data/token", b"/x/latest/api/token"])
def test_other_paths_are_the_backends(path: bytes) -> None:
    assert ask(OPTIONAL, b"PUT", path, TTL) is Verdict.TOKENLESS


@pytest.mark.parametrize("path", [b"/latest//api/token", b"/x/../latest/api/token", b"/latest%2fapi/token", b"/%"])
def test_ambiguous_paths_are_left_to_the_routes(path: bytes) -> None:
    assert ask(OPTIONAL, b"PUT", path, TTL) is Verdict.TOKENLESS
    assert ask(REQUIRED, b"PUT", path, TTL) is UNAUTHORIZED


def test_without_keys_the_guest_is_to_try_again() -> None:
    response = ask(OPTIONAL, b"PUT", b"/latest/api/token", TTL, keys=Keys())
    assert (response.status, response.headers[-1][0]) == (503, b"retry-after")


WRONG: list[Headers] = [
    ((HEADER, b""),),
    ((HEADER, b"x"),),
    ((HEADER, TOKEN[:-1] + b"!"),),
    ((HEADER, minted(caller=replace(CALLER, slot=9))),),
    ((HEADER, minted(now=NOW - 100)),),
    ((HEADER, TOKEN), (HEADER, TOKEN)),
    ((HEADER, TOKEN), (HEADER, b"x")),
    ((HEADER, b"x"), (HEADER, TOKEN)),
    ((HEADER, TOKEN), (HEADER, b""), (HEADER, TOKEN)),
    ((HEADER, TOKEN + b", " + TOKEN),),
]


@pytest.mark.parametrize("headers", WRONG)
@pytest.mark.parametrize("path", [b"/latest/meta-data/", b"/openstack/latest/meta_data.json", b"/", b"/a%20b"])
def test_a_wrong_token_is_refused_where_tokens_count(path: bytes, headers: Headers) -> None:
    assert ask(OPTIONAL, b"GET", path, *headers) is UNAUTHORIZED
    assert ask(REQUIRED, b"GET", path, *headers) is UNAUTHORIZED
    assert ask(OFF, b"GET", path, *headers) is Verdict.TOKENLESS
    assert UNAUTHORIZED.status == 401


def test_what_passes_and_how() -> None:
    assert ask(OPTIONAL) is Verdict.TOKENLESS
    assert ask(REQUIRED) is UNAUTHORIZED
    assert ask(OFF) is Verdict.TOKENLESS
    for mode in (OPTIONAL, REQUIRED):
        assert ask(mode, b"GET", b"/", (HEADER, TOKEN)) is Verdict.TOKEN
        assert ask(mode, b"POST", b"/openstack/latest/password", (HEADER, TOKEN)) is Verdict.TOKEN


def test_no_answer_shows_a_key_or_quotes_the_guest() -> None:
    answers = [
        ask(REQUIRED, b"GET", b"/", (HEADER, b"secret-of-the-guest")),
        ask(OPTIONAL, b"PUT", b"/latest/api/token", (TTL_HEADER, b"secret-of-the-guest")),
    ]
    assert not any(b"secret" in answer.body for answer in answers)
    assert b"nnnn" not in repr(KEYS).encode()
