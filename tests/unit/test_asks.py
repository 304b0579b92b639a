"""What guests ask of the agent, over agents that come and go."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import feed
from shim.asks import UNAVAILABLE, Asks
from shim.core.ask import Ask, Claim, Delete, Outcome, Put, Read, Ready, Release, Spend
from shim.core.exchange import Caller
from shim.core.policy import Family
from tests.unit.live_site import A, B

DONE = Outcome("done")


def caller(slot: int = 1, generation: int = 1) -> Caller:
    return Caller(slot, generation, A if slot == 1 else B, Family.V4)


class Desk:
    """Asks, the lines that an agent got of them, and what became of each."""

    def __init__(self, *, connected: bool = True) -> None:
        self.asks = Asks()
        self.lines: list[feed.Asked] = []
        self.told: list[tuple[Ask, Outcome]] = []
        if connected:
            self.connect()

    def connect(self) -> None:
        self.asks.connected(self._take)

    def _take(self, line: bytes) -> None:
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        message = feed.read_from_worker(line)
        assert isinstance(message, feed.Asked)
        self.lines.append(message)

    def ask(self, ask: Ask, slot: int = 1, *, until_told: bool = False) -> None:
        self.asks.ask(caller(slot), ask, lambda outcome: self.told.append((ask, outcome)), until_told=until_told)

    def tell(self, index: int = -1, outcome: Outcome = DONE) -> None:
        self.asks.told(feed.Told(self.lines[index].number, outcome))


def test_each_answer_finds_who_asked() -> None:
    desk = Desk()
    first, second = Put("guest/a", b"\0\xff"), Delete("guest/b")
    desk.ask(first)
    desk.ask(second, slot=2)
    assert [(line.slot, line.generation, line.ask) for line in desk.lines] == [(1, 1, first), (2, 1, second)]
    desk.tell(1)
    desk.tell(0, Outcome("quota"))
    assert desk.told == [(second, DONE), (first, Outcome("quota"))] and len(desk.asks) == 0


def test_an_answer_to_nobody_is_none() -> None:
    desk = Desk()
    desk.ask(Ready())
    desk.tell()
    desk.tell()
    desk.asks.told(feed.Told(4711, DONE))
    assert len(desk.told) == 1


def test_without_an_agent_nothing_is_asked() -> None:
    desk = Desk(connected=False)
    desk.ask(Ready())
    assert desk.told == [(Ready(), UNAVAILABLE)] and len(desk.asks) == 0
    desk.connect()
    assert desk.lines == []


def test_what_is_open_when_the_agent_goes_is_unavailable_but_for_what_is_asked_until_it_is_told() -> None:
    desk = Desk()
    desk.ask(Put("guest/a", b"1"))
    desk.ask(Spend(5, ("x",)), until_told=True)
    desk.asks.disconnected()
    assert desk.told == [(Put("guest/a", b"1"), UNAVAILABLE)] and len(desk.asks) == 1
    desk.asks.disconnected()  # once is as good as twice
    desk.connect()
    assert desk.lines[-1] == desk.lines[1], "the very same question"
    desk.tell()
    assert desk.told[1:] == [(Spend(5, ("x",)), DONE)] and len(desk.asks) == 0


def test_who_asks_again_as_it_is_told_that_nobody_answers_is_told_so_again() -> None:
    desk = Desk()

    def again(outcome: Outcome) -> None:
        assert outcome is UNAVAILABLE
        desk.ask(Claim(("x",)))

    desk.asks.ask(caller(), Claim(("x",)), again)
    desk.asks.disconnected()
    assert desk.told == [(Claim(("x",)), UNAVAILABLE)] and len(desk.asks) == 0


def test_what_is_posted_waits_for_an_agent_in_order() -> None:
    desk = Desk(connected=False)
    desk.asks.post(caller(), Release(5, ("x",)))
    desk.asks.post(caller(), Read())
    assert len(desk.asks) == 2
    desk.connect()
    assert [line.ask for line in desk.lines] == [Release(5, ("x",)), Read()]
    desk.tell(0)
    desk.tell(1)
    assert len(desk.asks) == 0


def test_a_guest_that_reads_on_and_on_without_an_agent_fills_no_memory() -> None:
    desk = Desk(connected=False)
    for _ in range(1000):
        desk.asks.post(caller(), Read())
        desk.asks.post(caller(2), Read())
        desk.asks.post(caller(1, generation=2), Read())
    assert len(desk.asks) == 3
    desk.connect()
    assert [(line.slot, line.generation) for line in desk.lines] == [(1, 1), (2, 1), (1, 2)]
    desk.tell(0)
    desk.asks.post(caller(), Read())
    assert len(desk.lines) == 4, "what was told once can be told again"


def test_an_answer_is_waited_for_through_any_number_of_agents() -> None:
    async def story() -> None:
        desk = Desk(connected=False)
        waiting = asyncio.ensure_future(desk.asks.answered(caller(), Spend(5, ("x",))))
        await asyncio.sleep(0)
        for _ in range(3):
            desk.connect()
            desk.asks.disconnected()
        assert not waiting.done() and len(desk.lines) == 3
        desk.connect()
        desk.tell(outcome=Outcome("refused"))
        assert await waiting == Outcome("refused")

    asyncio.run(story())


def test_who_gives_up_waiting_harms_nobody() -> None:
    async def story() -> None:
        desk = Desk()
        waiting = asyncio.ensure_future(desk.asks.answered(caller(), Spend(5, ("x",))))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        desk.tell()
        assert len(desk.asks) == 0

    asyncio.run(story())


@given(st.lists(st.sampled_from("aupcdt"), max_size=40))
def test_every_question_is_answered_once_whatever_becomes_of_agents(steps: str) -> None:
    """Asks, such until told, posts, connects, disconnects and answers, in any order."""
    desk = Desk(connected=False)
    asked, answers = 0, 0
    for step in steps:
        if step in "au":
            asked += 1
            desk.ask(Put("guest/a", b"%d" % asked), until_told=step == "u")
        elif step == "p":
            desk.asks.post(caller(), Release(asked, ("x",)))
        elif step == "c":
            desk.connect()
        elif step == "d":
            desk.asks.disconnected()
        elif desk.lines:
            answers += 1
            desk.tell(answers % len(desk.lines))
    desk.asks.disconnected()
    desk.connect()
    for number in {line.number for line in desk.lines}:
        desk.asks.told(feed.Told(number, DONE))
    assert len(desk.asks) == 0 and not desk.asks._posted
    values = [ask.value for ask, _ in desk.told if isinstance(ask, Put)]
    assert sorted(values) == sorted({b"%d" % number for number in range(1, asked + 1)})
