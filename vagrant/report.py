"""What the tests inside said, from their JUnit XML: read, summed up, judged. PURE."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from collections.abc import Iterable
from dataclasses import dataclass

FIRST_LINE = 160


@dataclass(frozen=True, slots=True)
class Suite:
    """One run of pytest's; `failed` and `skipped` have a test's name and why."""

    name: str
    tests: int
    seconds: float
    failed: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def passed(self) -> int:
        return self.tests - len(self.failed) - len(self.skipped)

    @property
    def green(self) -> bool:
        """Something was tested, and nothing failed."""
        return self.passed > 0 and not self.failed


def read(text: str) -> list[Suite]:
    """The suites of one file. ValueError where it is none, as when a run was cut."""
    try:
        root = xml.fromstring(text)
    except xml.ParseError as error:
        raise ValueError(f"not a JUnit report: {error}") from None
    return [_suite(one) for one in root.iter("testsuite")]


def _suite(element: xml.Element) -> Suite:
    cases = element.findall("testcase")
    return Suite(
        name=element.get("name", ""),
        tests=len(cases),
        seconds=float(element.get("time", "0")),
        failed=tuple(_told(case, kinds) for case in cases if (kinds := _parts(case, "failure", "error"))),
        skipped=tuple(_told(case, kinds) for case in cases if (kinds := _parts(case, "skipped"))),
    )


def _parts(case: xml.Element, *kinds: str) -> list[xml.Element]:
    return [part for part in case if part.tag in kinds]


def _told(case: xml.Element, parts: list[xml.Element]) -> tuple[str, str]:
    place = f"{case.get('classname', '')}::{case.get('name', '')}"
    lines = (parts[0].get("message") or parts[0].text or "").strip().splitlines()
    return place, lines[0][:FIRST_LINE] if lines else ""


def summary(suites: Iterable[Suite]) -> list[str]:
    """For a person: a line a suite, and one for each test that failed or was skipped."""
    lines = []
    for suite in suites:
        counts = f"{suite.passed} passed, {len(suite.failed)} failed, {len(suite.skipped)} skipped"
        lines.append(f"{'green' if suite.green else 'RED':5}  {suite.name}: {counts} in {suite.seconds:.0f} s")
        lines += [f"       failed   {place}: {why}" for place, why in suite.failed]
        lines += [f"       skipped  {place}: {why}" for place, why in suite.skipped]
    return lines
