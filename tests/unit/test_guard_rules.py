"""The leak guard's text: which taps it speaks of, that nothing of a name gets out of its quotes, offsets, the mark."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.datapath import guard_rules
from shim.settings import Datapath

DEFAULTS = Datapath()
ADDRESSES = DEFAULTS.service_v4 + DEFAULTS.service_v6
PATTERNS = st.text(st.characters(exclude_characters="/", exclude_categories=("Zs", "Cs")), min_size=1, max_size=15)
NAMES = st.text(st.sampled_from("tapvne01-.*?[]!\\\"x"), min_size=1, max_size=15)


def ruleset(*patterns, name="metashim", addresses=ADDRESSES):
    return guard_rules.ruleset(name, patterns or DEFAULTS.taps, addresses)


def interfaces(text):
    return re.findall(r"iifname (.*) goto judge", text)


def says(word, name):
    """Whether nft takes an interface of that name for what `word` says."""
    plain = word.strip('"')
    return name.startswith(plain[:-1]) if plain.endswith("*") else name == plain


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "word"),
        [
            ("tap*", '"tap*"'),
            ("tap**", '"tap*"'),
            ("vnet0", '"vnet0"'),
            ("tap-1.5:2@x", '"tap-1.5:2@x"'),
            ("t" * 15, f'"{"t" * 15}"'),
            ("drop;}{$taps", '"drop;}{$taps"'),
            ("tap[0-9]", None),
            ("tap?", None),
            ("*x", None),
            ("t*p*", None),
            ("*", None),
            ("[", None),
            ('a"b', None),
            ("a\\*", None),
            ("a\\", None),
            ("täp*", None),
            ("tap\x07", None),
            ("tap\x00*", None),
            ("tap x", None),
            ("t" * 16, None),
        ],
    )
    def test_words_for_exactly_the_same_names_or_none(self, pattern, word):
        assert guard_rules.prefix_of(pattern) == word
        assert guard_rules.uncovered([pattern]) == ([] if word else [pattern])

    @given(PATTERNS | NAMES, NAMES)
    def test_never_another_set_of_names(self, pattern, name):
        word = guard_rules.prefix_of(pattern)
        if word is not None:
            assert says(word, name) == fnmatchcase(name, pattern)

    @given(st.lists(PATTERNS | NAMES, max_size=4))
    def test_nothing_gets_out_of_its_quotes(self, patterns):
        text = ruleset("tap*", *patterns).text
        assert all(re.fullmatch(r'"[^"\\\n]{1,16}"', word) for word in interfaces(text))
        outside = re.sub(r'\t\tiifname "[^"]*" goto judge\n', "", text)
        bare = re.sub(r'\t\tiifname "[^"]*" goto judge\n', "", ruleset("tap*").text)
        assert re.sub("0x[0-9a-f]{8} }\n", "", outside) == re.sub("0x[0-9a-f]{8} }\n", "", bare)

    def test_each_once_in_every_family_and_none_that_cannot_be_said(self):
        text = ruleset("tap*", "x", "tap**", "q?").text
        assert interfaces(text) == ['"tap*"', '"x"'] * len(guard_rules.FAMILIES)


class TestRuleset:
    def test_replaces_what_was_there_of_its_own_tables_only(self):
        text = ruleset(name="0-x").text
        top = [line for line in text.splitlines() if re.match(r"\w", line)]
        assert top == [
            line
            for family in guard_rules.FAMILIES
            for line in (
                f"table {family} guard-0-x",
                f"delete table {family} guard-0-x",
                f"table {family} guard-0-x {{",
            )
        ]

    def test_every_chain_is_there_before_rules_go_to_it(self):
        for table in ruleset().text.split("\ndelete table")[1:]:
            known = set()
            for line in table.splitlines():
                if chain := re.match(r"\tchain (\w+)", line):
                    known.add(chain[1])
                for target in re.findall(r"goto (\w+)", line):
                    assert target in known or f"\tchain {target} " in table
            assert {"judge", "from_taps"} <= known

    def test_nothing_is_left_to_fill_in(self):
        assert "$" not in ruleset().text

    @pytest.mark.parametrize("depth", range(guard_rules.TAGS_INSIDE + 1))
    def test_each_tag_shifts_every_field_by_its_size(self, depth):
        text = ruleset().text

        def offsets(number):
            body = re.search(rf"chain ipv6_{number} {{(.*?)\n\t}}", text, re.DOTALL)
            return [int(found) for found in re.findall(r"@nh,(\d+),", body[1])]

        assert offsets(depth) == [field + 32 * depth for field in (160, 288, 48, 48)]

    def test_its_mark_is_in_every_table_and_tells_rulesets_apart(self):
        rules = ruleset()
        number = int.from_bytes(rules.mark, sys.byteorder)
        assert rules.text.count(f"elements = {{ {number:#010x} }}") == len(guard_rules.FAMILIES)
        others = [ruleset("tap*"), ruleset(name="b"), ruleset(addresses=ADDRESSES[:1])]
        assert len({rules.mark, ruleset().mark, *(other.mark for other in others)}) == 4

    def test_addresses_are_those_of_the_service_and_their_groups(self):
        four, six = IPv4Address("10.1.2.3"), IPv6Address("fd00::ab:cdef")
        text = ruleset(addresses=[four, six]).text
        compared = re.findall(r",(32|128) (?:!= )?\{ (.*?) \} ", text)
        numbers = {(size, int(word, 16)) for size, words in compared for word in words.split(", ")}
        group = int(ip_address("ff02::1:ffab:cdef"))
        assert numbers == {("32", int(four)), ("32", 0xABCDEF), ("128", int(six)), ("128", group)}

    @pytest.mark.parametrize("addresses", [ADDRESSES[:1], ADDRESSES[1:]])
    def test_a_family_without_a_service_is_left_alone(self, addresses):
        """0.0.0.0 is the sender of every DHCP request, :: of every duplicate address detection."""
        text = ruleset(addresses=addresses).text
        assert not re.search(r"\{ *\}|[{,] 0x0[ ,]", text)
