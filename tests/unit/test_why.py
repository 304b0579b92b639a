"""Why a request gets what it gets, as far as the agent says it; and what it takes of a worker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace as replace_struct

from shim import feed, why
from shim.config import parse
from shim.control.operations import PolicyChange
from shim.control.shapes import AuditRow, AutoView, PolicyView, PortView
from shim.control.why_shapes import WhyView
from shim.core.policy import Access, Policy
from shim.core.prospect import RULES_MAX, TEXT_MAX, Course, Prospect, Question, Rule, cut
from shim.errors import NotFoundError
from shim.identity.resolve import Resolution
from shim.inquiries import Inquiries
from tests.unit.agent_site import ONE as FIRST
from tests.unit.agent_site import TWO as SECOND
from tests.unit.agent_site import Host as AgentHost
from tests.unit.agent_site import tell as tell_agent
from tests.unit.control_memory import ONE

A = UUID(int=1)


def decider(course: Course) -> Rule:
    assert [rule.decides for rule in course.rules] == [False] * (len(course.rules) - 1) + [True]
    return course.rules[-1]


def port(**more: object) -> PortView:
    served = PortView("tap7", "", 7, 3, 1, ONE, "alias", "serving", "open", "open")
    return replace_struct(served, **more)


def facts(**more: object) -> why.Facts:
    policy = PolicyView("open", "open", 64, False)
    return replace(why.Facts([port()], [], policy, Policy(), None, 0, 1), **more)  # type: ignore[arg-type]


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


# The agent itself.


def test_the_agent_says_what_it_knows(tmp_path: Path) -> None:
    async def story(host: AgentHost) -> None:
        asked: list[tuple[feed.Entry, Question, tuple[str, ...]]] = []

        async def explained(*question: Any) -> Course:
            asked.append(question)
            return WORKERS

        host.workers.explained = explained  # type: ignore[attr-defined]
        question = Question("/latest/user-data")
        found = await host.operations.why(FIRST, question)
        assert (found.tap, found.prospect) == ("tap1", WORKERS.prospect)
        ((entry, passed, latched),) = asked
        assert (entry.slot, entry.instance, passed, latched) == (1, FIRST, question, ())
        await host.operations.set_policy(FIRST, PolicyChange(Access.RESET), who="root (uid 0)")
        found = await host.operations.why(FIRST, question)
        assert found.prospect.kind == "reset" and "last changed by root (uid 0)" in found.rules[-1].says
        assert len(asked) == 1, "no worker is asked about what the kernel refuses"

    tell_agent(tmp_path, story)


def test_the_agent_says_what_keeps_a_tap_from_it(tmp_path: Path) -> None:
    async def story(host: AgentHost) -> None:
        async def silent(*_: Any) -> None:
            return None

        host.workers.explained = silent  # type: ignore[attr-defined]
        with pytest.raises(NotFoundError):
            await host.operations.why(SECOND, Question("/"))
        await host.operations.put_document(SECOND, b"{}", who="x")
        host.datapath.refuses = lambda policy: True
        place = next(iter(host.links))
        link = replace(host.links[place], ifindex=9, name="tap9", alias=f"metashim:{SECOND}")
        host.links[link.place] = link
        await host.enrolment.settle([link.place])
        found = await host.operations.why(SECOND, Question("/"))
        assert found.tap == "" and found.prospect.kind == "dropped"
        assert found.rules[0].says == "a tap of it cannot be enrolled: cannot write the policy of tap9"
        host.enrolment.resolutions[place] = Resolution(elsewhere=f"file says that {SECOND} is on tap3 and wins")
        says = [rule.says for rule in (await host.operations.why(SECOND, Question("/"))).rules]
        assert f"tap1: file says that {SECOND} is on tap3 and wins" in says
        host.enrolment.resolutions[place] = Resolution(waits="libvirt")
        says = [rule.says for rule in (await host.operations.why(SECOND, Question("/"))).rules]
        assert any(one.startswith("tap1: libvirt could not be read") for one in says)
        assert not [rule for rule in (await host.operations.why(FIRST, Question("/"))).rules if "tap9" in rule.says]

    tell_agent(tmp_path, story)
