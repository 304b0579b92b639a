"""What workers count, what they tell of it, and what the agent makes of it."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from shim import feed
from shim.core.exchange import Caller
from shim.core.policy import Family
from shim.tally import Tally
from shim.usage import Ledger, Usage

ONE, TWO = UUID(int=1), UUID(int=2)
HUGE = (1 << 63) - 1


def caller(slot: int = 1, generation: int = 1, instance: UUID = ONE) -> Caller:
    return Caller(slot, generation, instance, Family.V4)


def told(tally: Tally) -> list[feed.ToAgent]:
    """What a tally tells, as it arrives."""
    lines = [feed.encode(message) for message in tally.changed()]
    assert all(len(line) <= feed.LINE_BYTES for line in lines)
    return [feed.read_from_worker(line) for line in lines]


def owners(tally: Tally) -> dict[tuple[int, int], Usage]:
    return {
        (slot, generation): Usage(*counts)
        for message in told(tally)
        if isinstance(message, feed.Usage)
        for slot, generation, counts in message.owners
    }


class TestTally:
    def test_everything_about_a_request_is_counted_once(self):
        tally = Tally()
        tally.request(caller(), 200, 11, 0.002, "nova", "with")
        tally.request(caller(), 429, 5, 0.0, "", "")
        totals, usage = told(tally)
        counts = Usage(success=1, refused=1, bytes=16, with_token=1, limited=1)
        assert (Usage(*totals.counts), totals.malformed) == (counts, 0)
        assert usage.owners == [(1, 1, tuple(counts))]
        nova = totals.backends["nova"]
        assert nova[:5] == (1, 0, 0, 0, 0)
        assert nova[5] == 2000
        assert [n for n, count in enumerate(nova[6:]) if count] == [feed.BUCKETS.index(0.0025)]
        assert totals.backends[""][:5] == (0, 0, 1, 0, 0)

    @pytest.mark.parametrize(
        ("status", "field"),
        [(200, "success"), (299, "success"), (304, "redirected"), (404, "refused"), (503, "failed"), (0, "other"),
         (100, "other"), (600, "other"), (999, "other")],
    )  # fmt: skip
    def test_classes(self, status, field):
        tally = Tally()
        tally.request(caller(), status, 0, 0.0, "embedded")
        assert owners(tally)[1, 1] == Usage(**{field: 1})

    @pytest.mark.parametrize(
        ("token", "field"), [("with", "with_token"), ("without", "without_token"), ("refused", "token_refused")]
    )
    def test_tokens(self, token, field):
        tally = Tally()
        tally.request(caller(), 200, 0, 0.0, "embedded", token)
        assert owners(tally)[1, 1] == Usage(success=1, **{field: 1})

    @pytest.mark.parametrize(
        ("seconds", "place"), [(0.0, 0), (0.0005, 0), (0.00051, 1), (10.0, 13), (10.1, 14), (4000.0, 14)]
    )
    def test_a_bucket_holds_its_upper_bound(self, seconds, place):
        tally = Tally()
        tally.request(caller(), 200, 0, seconds, "http")
        buckets = told(tally)[0].backends["http"][6:]
        assert [n for n, count in enumerate(buckets) if count] == [place]

    def test_only_what_changed_is_told(self):
        tally = Tally()
        for slot in (1, 2):
            tally.request(caller(slot), 200, 1, 0.0, "embedded")
        assert set(owners(tally)) == {(1, 1), (2, 1)}
        assert told(tally) == []
        tally.request(caller(2), 200, 1, 0.0, "embedded")
        assert owners(tally) == {(2, 1): Usage(success=2, bytes=2)}

    def test_malformed_alone_is_told(self):
        tally = Tally()
        tally.malformed()
        (totals,) = told(tally)
        assert totals.malformed == 1

    def test_all_is_told_to_who_comes_anew(self):
        tally = Tally()
        for slot in (1, 2):
            tally.request(caller(slot), 200, 1, 0.0, "embedded")
        told(tally)
        tally.again()
        assert set(owners(tally)) == {(1, 1), (2, 1)}

    def test_thousands_take_several_lines(self):
        tally = Tally()
        for slot in range(1, 1002):
            tally.request(caller(slot), 200, HUGE // 2000, 0.0, "embedded")
        assert len(owners(tally)) == 1001

    def test_the_longest_row_fits_a_line(self):
        row = (HUGE, HUGE, (HUGE,) * len(feed.COUNTS))
        assert len(feed.encode(feed.Usage([row] * feed.OWNERS_PER_LINE))) <= feed.LINE_BYTES

    def test_who_is_gone_is_forgotten(self):
        tally = Tally()
        tally.request(caller(), 200, 1, 0.0, "embedded")
        tally.forget(1, 2)
        tally.again()
        assert set(owners(tally)) == {(1, 1)}
        tally.forget(1, 1)
        tally.again()
        assert owners(tally) == {}
        tally.forget(1, 1)

    def test_a_later_owner_begins_at_0_and_a_former_one_counts_for_nobody(self):
        tally = Tally()
        tally.request(caller(1, 1), 200, 100, 0.0, "embedded")
        tally.request(caller(1, 2, TWO), 200, 1, 0.0, "embedded")
        tally.request(caller(1, 1), 200, 100, 0.0, "embedded")
        tally.request(caller(1, 2, TWO), 404, 1, 0.0, "embedded")
        assert owners(tally) == {(1, 2): Usage(success=1, refused=1, bytes=2)}

    def test_one_that_goes_while_it_is_told_of_harms_nothing(self):
        tally = Tally()
        for slot in range(1, 402):
            tally.request(caller(slot), 200, 1, 0.0, "embedded")
        lines = tally.changed()
        next(lines)
        for slot in range(1, 402):
            tally.forget(slot, 1)
        assert list(lines) == []


class TestFeed:
    @pytest.mark.parametrize(
        "line",
        [
            '{"type":"Usage","owners":[[1,1,[-1,0,0,0,0,0,0,0,0,0]]]}',
            '{"type":"Usage","owners":[[1,1,[0,0,0]]]}',
            '{"type":"Usage","owners":[[1,1,["x",0,0,0,0,0,0,0,0,0]]]}',
            '{"type":"Usage","owners":[[1,1,[9223372036854775808,0,0,0,0,0,0,0,0,0]]]}',
            '{"type":"Totals","counts":[0,0,0,0,0,0,0,0,0,0],"malformed":1.5,"backends":{}}',
            '{"type":"Totals","counts":[0,0,0,0,0,0,0,0,0,0],"malformed":0,"backends":{"nova":[1]}}',
            '{"type":"Load","connections":-1,"requests":0}',
            '{"type":"Backends","addresses":[{"backend":"nova","address":"a","healthy":1}]}',
        ],
    )
    def test_what_no_worker_of_ours_says(self, line):
        with pytest.raises(msgspec.ValidationError):
            feed.read_from_worker(line.encode())

    def test_too_many_of_anything(self):
        row = (1, 1, (0,) * len(feed.COUNTS))
        health = feed.AddressHealth("nova", "a", True)
        for message in (feed.Usage([row] * 51), feed.Backends([health] * 65)):
            with pytest.raises(msgspec.ValidationError):
                feed.read_from_worker(feed.encode(message))


class Site:
    """A ledger, and the tallies of its workers."""

    def __init__(self, workers: int = 2) -> None:
        self.of = {(1, 1): ONE, (2, 1): ONE, (3, 1): TWO}
        addresses = {"nova": ["http://a:1", "http://b:1"], "http": ["unix:/c"]}
        self.ledger = Ledger(lambda slot, generation: self.of.get((slot, generation)), addresses)
        self.tallies = [Tally() for _ in range(workers)]

    def ask(self, worker: int, slot: int, times: int = 1, size: int = 1, backend: str = "nova") -> None:
        for _ in range(times):
            self.tallies[worker].request(caller(slot), 200, size, 0.001, backend, "without")
        self.tell(worker)

    def tell(self, worker: int) -> None:
        for message in told(self.tallies[worker]):
            self.ledger.hear(worker, message)

    def restart(self, worker: int) -> None:
        self.ledger.ended(worker)
        self.tallies[worker] = Tally()

    def gone(self, slot: int) -> None:
        del self.of[slot, 1]
        self.ledger.gone(slot, 1)

    @property
    def bytes(self) -> dict[UUID, int]:
        return {instance: usage.bytes for instance, usage in self.ledger.usage().items()}


class TestLedger:
    def test_ports_and_workers_add_up(self):
        site = Site()
        site.ask(0, 1, size=1)
        site.ask(0, 2, size=10)
        site.ask(1, 1, size=100)
        site.ask(1, 3, size=1000)
        assert site.bytes == {ONE: 111, TWO: 1000}
        assert site.ledger.usage_of(ONE) == Usage(success=3, bytes=111, without_token=3)
        assert site.ledger.usage_of(UUID(int=9)) == Usage()
        totals = site.ledger.totals()
        assert totals.usage == Usage(success=4, bytes=1111, without_token=4)
        assert totals.backends["nova"].codes["2xx"] == 4
        assert totals.backends["nova"].seconds == pytest.approx(0.004)

    def test_what_is_told_twice_counts_once(self):
        site = Site()
        site.ask(0, 1, times=3)
        site.tallies[0].again()
        site.tell(0)
        assert site.bytes == {ONE: 3}
        assert site.ledger.totals().usage.success == 3

    def test_a_worker_that_begins_again_takes_nothing_away(self):
        site = Site()
        site.ask(0, 1, times=5)
        site.restart(0)
        assert site.bytes == {ONE: 5}
        site.ask(0, 1, times=2)
        assert site.bytes == {ONE: 7}
        assert site.ledger.totals().usage.success == 7
        assert site.ledger.totals().backends["nova"].codes["2xx"] == 7

    def test_an_agent_that_begins_again_counts_its_workers_whole(self):
        site = Site()
        site.ask(0, 1, times=5)
        successor = Site()
        successor.tallies = site.tallies
        site.tallies[0].again()
        successor.tell(0)
        assert successor.bytes == {ONE: 5}

    def test_no_sum_goes_down_for_a_lie(self):
        site = Site()
        site.ask(0, 1, times=5)
        site.ledger.hear(0, feed.Usage([(1, 1, (0,) * len(feed.COUNTS))]))
        assert site.bytes == {ONE: 5}
        site.ask(0, 1)
        assert site.bytes == {ONE: 6}

    def test_a_worker_is_believed_of_no_others(self):
        site = Site()
        lie = (1,) * len(feed.COUNTS)
        site.ledger.hear(0, feed.Usage([(4, 1, lie), (1, 2, lie), (0, 0, lie)]))
        site.ledger.hear(0, feed.Totals(lie, 0, {"evil": (1,) * feed.SPENT, "nova": (1,) * feed.SPENT}))
        site.ledger.hear(0, feed.Backends([feed.AddressHealth("nova", "http://evil", False, "x")]))
        assert site.ledger.usage() == {}
        assert set(site.ledger.totals().backends) == {"nova"}
        assert [view.healthy for view in site.ledger.backends()] == [True] * 3

    def test_an_instance_is_forgotten_with_its_last_port(self):
        site = Site()
        for slot in (1, 2, 3):
            site.ask(0, slot)
        site.gone(1)
        assert site.bytes == {ONE: 2, TWO: 1}, "what went over a port that is gone still counts"
        site.gone(2)
        assert site.bytes == {TWO: 1}
        site.ask(0, 2)
        assert site.bytes == {TWO: 1}
        assert site.ledger.totals().usage.bytes == 4

    def test_nothing_is_held_of_who_is_gone(self):
        site = Site()
        for slot in (1, 2, 3):
            site.ask(0, slot)
            site.gone(slot)
        ledger = site.ledger
        assert not ledger._owners and not ledger._owned and not ledger._instances
        assert [key for last in ledger._last.values() for key in last if isinstance(key, tuple) and len(key) == 2] == []

    def test_load(self):
        site = Site()
        site.ledger.hear(0, feed.Load(3, 9, accepted=5, turned_away=1))
        site.ledger.hear(0, feed.Load(3, 9, accepted=7, turned_away=1))
        site.restart(0)
        site.ledger.hear(0, feed.Load(3, 9, accepted=2, turned_away=2))
        totals = site.ledger.totals()
        assert (totals.accepted, totals.turned_away) == (9, 3)

    def test_an_address_is_unwell_if_any_worker_says_so(self):
        site = Site()
        down = feed.AddressHealth("nova", "http://b:1", False, "refused " + "x" * 1000)
        site.ledger.hear(0, feed.Backends([feed.AddressHealth("nova", "http://b:1", True)]))
        site.ledger.hear(1, feed.Backends([down]))
        views = {(view.backend, view.address): view for view in site.ledger.backends()}
        assert [key for key, view in views.items() if not view.healthy] == [("nova", "http://b:1")]
        assert len(views["nova", "http://b:1"].why) == 200
        assert list(views) == [("nova", "http://a:1"), ("nova", "http://b:1"), ("http", "unix:/c")]
        site.restart(1)
        assert all(view.healthy for view in site.ledger.backends())
