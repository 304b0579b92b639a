"""One numbering of verdicts in three places: Python's, the kernel's, and what operators read."""

from __future__ import annotations

import re
from pathlib import Path

from shim.core.verdict import COUNTERS, REFUSALS_START, Verdict

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "rules/bpf/lib/verdict.h").read_text()
README = (ROOT / "rules/README.md").read_text()


def in_header() -> list[tuple[str, int]]:
    return [(name, int(value)) for name, value in re.findall(r"^#define (\w+) (\d+)$", HEADER, re.MULTILINE)]


def in_readme() -> list[list[str]]:
    """The rows of the table of verdicts: number, name, meaning, what to do."""
    rows = re.findall(r"^\| *(\d+) *\|(.+)\|$", README, re.MULTILINE)
    return [[number, *(cell.strip() for cell in rest.split("|"))] for number, rest in rows]


def test_the_kernel_says_the_same():
    found = dict(in_header())
    assert found.pop("COUNTERS") == COUNTERS
    assert found == {verdict.name: verdict.value for verdict in Verdict}


def test_no_number_and_no_name_is_given_twice():
    names, numbers = zip(*in_header(), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(numbers)) == len(numbers)
    assert len(Verdict.__members__) == len(set(Verdict)), "an enum's second name for a number hides in the first"


def test_the_readme_explains_each_once_and_in_order():
    rows = in_readme()
    assert [(int(row[0]), row[1].strip("`")) for row in rows] == [(v.value, v.label) for v in sorted(Verdict)]
    for number, name, meaning, remedy in rows:
        assert len(meaning) > 10, (number, name)
        assert len(remedy) > 3, (number, name)


def test_numbers_are_kept_out_of_the_kernels_own_and_within_the_counters():
    assert all(0 < verdict < COUNTERS for verdict in Verdict)
    served = {Verdict.DELIVERED, Verdict.REPLIED, Verdict.OPENED}
    served |= {Verdict.ARP_ANSWERED, Verdict.ND_ANSWERED, Verdict.ECHO_ANSWERED}
    assert {verdict for verdict in Verdict if not verdict.refusal} == served
    assert all(verdict < REFUSALS_START for verdict in served)


def test_numbers_once_given_stay():
    """Operators' dashboards and logs have them. A new verdict takes a new number; this list only grows."""
    given = {
        1: "DELIVERED", 2: "REPLIED", 3: "OPENED", 4: "ARP_ANSWERED", 5: "ND_ANSWERED", 6: "ECHO_ANSWERED",
        16: "DISABLED_RESET", 17: "DISABLED_DROP", 18: "NO_IDENTITY", 19: "NOT_ENROLLED", 20: "RATE_LIMITED",
        21: "FLOW_LIMIT", 22: "FLOW_CLASH", 23: "NO_FLOW", 24: "SPOOFED_SOURCE", 25: "SPOOFED_ARP", 26: "SPOOFED_ND",
        27: "WRONG_PORT", 28: "WRONG_PROTOCOL", 29: "FRAGMENT", 30: "IP_OPTIONS", 31: "EXTENSION_HEADER",
        32: "MALFORMED", 33: "VLAN_DEPTH", 40: "REPLY_FOREIGN", 41: "REPLY_NO_PORT", 42: "REPLY_NO_FLOW",
        43: "REPLY_DISABLED", 44: "KERNEL_FAILED",
    }  # fmt: skip
    assert given.items() <= {verdict.value: verdict.name for verdict in Verdict}.items()
