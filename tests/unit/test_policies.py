"""What an instance may do, changed by operators, by its guest and by itself: order, failures, restarts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from shim import policies
from shim.control.operations import CLOSED_MAX, PolicyChange
from shim.core.ask import Confirm, Delete, Lock, Outcome, Put, Read, Ready, Release, Spend
from shim.core.kv import Value
from shim.core.policy import Access, Auto, Composition, Policy, Tokens
from shim.core.source import HOST, Reads, Source
from shim.errors import InputError, KernelError, NotFoundError, StoreError
from shim.policies import end_overdue, ended, told
from shim.writes import Write
from tests.unit.agent_site import NOVA, ONE, TWO, WHO, Host, soon, tell

OFF = PolicyChange(Access.RESET)
ON = PolicyChange(Access.OPEN)
READY, READ = Auto(on_ready=True), Auto(Access.FORBID, on_read=True)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "LAST_WORDS_SECONDS", 0.02)
    monkeypatch.setattr(policies, "AGAIN_SECONDS", 0.02)


async def guest(host: Host, *asks: object, instance: UUID = ONE) -> None:
    """Has these committed as Writes does, and told."""
    done = []
    async with host.operations.writing:
        with host.store.transaction():
            for ask in asks:
                outcome = Outcome("done")
                if isinstance(ask, Lock):
                    host.store.latch(instance, ask.prefix)
                elif isinstance(ask, Ready | Read):
                    host.store.report(instance, "ready" if isinstance(ask, Ready) else "read")
                elif isinstance(ask, Put):
                    outcome = host.store.put_value(instance, Value(ask.key, ask.value))
                elif isinstance(ask, Spend):
                    outcome = Outcome("done", items=host.store.spend(instance, ask.items, ask.lease))
                elif isinstance(ask, Release):
                    outcome = Outcome("done", items=host.store.unspend(instance, ask.items, ask.lease))
                done.append((Write(instance, "tap1", ask, "w1", lambda outcome: None), outcome))  # type: ignore[arg-type]
        await host.operations.written(done)


def entry(host: Host, slot: int = 1):  # type: ignore[no-untyped-def]
    return host.workers.entries[slot]


class TestLocks:
    def test_workers_close_at_once_and_the_kernel_when_the_guest_has_its_answer(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.datapath.steps = host.workers.told
            await guest(host, Lock("/"))
            assert entry(host).closed == ("/",) and entry(host).v4 == "open", "the answer passes yet"
            assert host.datapath.policy().v4 is Access.OPEN
            assert [what for what, _ in host.workers.told] == ["put", "settled", "changed", "settled"]
            await soon(lambda: entry(host).v4 == "reset")
            policy = host.datapath.policy()
            assert (policy.v4, policy.v6, policy.latched) == (Access.RESET, Access.RESET, ("/",))
            steps = [one for one in host.workers.told if one[0] in ("kernel", "put")]
            assert [what for what, _ in steps] == ["put", "kernel", "put"]
            assert await host.noted() == ["/"]

        tell(tmp_path, story)

    def test_a_path_is_the_workers_matter_alone(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("user-data"), Lock("/latest/meta-data"), Lock("user-data"))
            await asyncio.sleep(0.06)
            assert entry(host).closed == ("user-data", "/latest/meta-data")
            assert host.datapath.policy().v4 is Access.OPEN
            view = await host.operations.policy(ONE)
            assert (view.v4, view.closed, view.latched, view.own) == (
                "open", [], ["user-data", "/latest/meta-data"], False,
            )  # fmt: skip

        tell(tmp_path, story)

    @pytest.mark.parametrize(("set_to", "is_then"), [("open", "reset"), ("403", "reset"), ("drop", "drop")])
    def test_whatever_operators_set_it_stays_locked(self, tmp_path: Path, set_to: str, is_then: str) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("/"))
            view = await host.operations.set_policy(ONE, PolicyChange(Access(set_to)), who=WHO)
            assert (view.v4, view.v6, view.latched) == (is_then, is_then, ["/"])
            assert host.datapath.policy().v4.value == entry(host).v4 == is_then
            assert host.store.policies()[ONE].v4.value == set_to, "what holds once it is unlocked"
            assert "latched" not in told(host.store.policies()[ONE])

        tell(tmp_path, story)

    def test_it_comes_back_with_the_agent(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("/"), Lock("kv"))
            # The agent ends before the kernel was told.

        async def again(host: Host) -> None:
            assert host.datapath.policy().v6 is Access.RESET
            assert (await host.operations.policy(ONE)).latched == ["/", "kv"]

        tell(tmp_path, story)
        tell(tmp_path, again)

    def test_what_others_lock_is_theirs(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("/"), instance=TWO)
            assert (await host.operations.policy(ONE)).latched == []
            assert (await host.operations.policy(TWO)).v4 == "reset"

        tell(tmp_path, story)

    def test_a_kernel_that_fails_is_tried_again_and_the_workers_refuse_meanwhile(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.datapath.refuses = lambda policy: policy.v4 is Access.RESET
            await guest(host, Lock("/"))
            await soon(lambda: host.enrolment.failures)
            assert entry(host).closed == ("/",) and host.datapath.policy().v4 is Access.OPEN
            host.datapath.refuses = lambda policy: False
            await soon(lambda: host.datapath.policy().v4 is Access.RESET and entry(host).v4 == "reset")

        tell(tmp_path, story)


class TestUnlocking:
    def test_opens_what_was_locked_and_no_more(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(Access.DROP, close=("keys",)), who=WHO)
            await guest(host, Lock("/"), Lock("kv"), Lock("keys"))
            found = await host.operations.unlock(ONE, "kv", who=WHO)
            assert (found.opened, found.policy.latched) == (["kv"], ["/", "keys"])
            found = await host.operations.unlock(ONE, None, who=WHO)
            assert (found.opened, found.policy.latched, found.policy.closed) == (["/", "keys"], [], ["keys"])
            assert found.policy.v4 == "drop" and host.datapath.policy().v4 is Access.DROP
            assert entry(host).closed == ("keys",)
            assert [one for one in host.audited if one[1] == "unlock"] == [
                (WHO, "unlock", "kv"), (WHO, "unlock", "/"), (WHO, "unlock", "keys")
            ]  # fmt: skip

        tell(tmp_path, story)

    def test_workers_first_then_the_kernel_and_the_default_stays_one(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("/"))
            await soon(lambda: entry(host).v4 == "reset")
            host.workers.told.clear()
            host.datapath.steps = host.workers.told
            found = await host.operations.unlock(ONE, "/", who=WHO)
            assert [what for what, _ in host.workers.told] == ["put", "settled", "kernel"]
            assert found.policy.v4 == "open" and not found.policy.own and host.policies == {} == host.store.policies()

        tell(tmp_path, story)

    @pytest.mark.parametrize("prefix", [None, "/", "kv"])
    def test_where_nothing_of_the_kind_is_locked_nothing_is_opened(self, tmp_path: Path, prefix: str | None) -> None:
        async def story(host: Host) -> None:
            if prefix == "kv":
                await guest(host, Lock("/latest/meta-data"))
            host.workers.told.clear()
            found = await host.operations.unlock(ONE, prefix, who=WHO)
            assert found.opened == [] and host.workers.told == []
            assert "unlock" not in [what for _, what, _ in host.audited]
            assert found.policy.latched == (["/latest/meta-data"] if prefix == "kv" else [])

        tell(tmp_path, story)

    def test_right_after_the_lock_it_is_not_shut_afterwards(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("/"))
            await host.operations.unlock(ONE, None, who=WHO)
            await asyncio.sleep(0.06)
            assert host.datapath.policy().v4 is Access.OPEN and entry(host).v4 == "open" and entry(host).closed == ()

        tell(tmp_path, story)

    def test_a_kernel_that_fails_leaves_nothing_said_that_is_not_so(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Lock("/"))
            await soon(lambda: entry(host).v4 == "reset")
            host.datapath.refuses = lambda policy: True
            with pytest.raises(KernelError):
                await host.operations.unlock(ONE, None, who=WHO)
            view = await host.operations.policy(ONE)
            assert (view.latched, view.own) == ([], False) and host.store.latches() == {}
            host.datapath.refuses = lambda policy: False
            await host.enrolment.settle(list(host.enrolment.failures))  # as the next round does
            assert host.datapath.policy().v4 is Access.OPEN

        tell(tmp_path, story)


class TestForgetting:
    def test_opens_what_was_locked_and_says_so(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, OFF, who=WHO)
            await guest(host, Lock("/"), Lock("kv"), Put("guest/a", b"1"))
            await asyncio.sleep(0.05)
            woken = []
            host.operations.freed = lambda: woken.append(1)  # type: ignore[method-assign]
            await host.operations.delete_instance(ONE, who=WHO)
            assert (WHO, "forget", "opens /, kv") in host.audited
            view = await host.operations.policy(ONE)
            assert (view.v4, view.latched, view.own) == ("open", [], False)
            assert host.datapath.policy().v4 is Access.OPEN and entry(host).closed == () and host.store.latches() == {}
            assert woken == [1], "the watched folder puts back what it has for it"
            changes = (await host.changes.after(0, 0, ONE, "")).changes
            assert [(one.op, one.key) for one in changes] == [("put", "guest/a"), ("delete", "guest/a")]
            assert host.workers.told[-2][0] == "changed"

        tell(tmp_path, story)

    def test_takes_back_what_it_would_have_come_to(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=Auto(until=time.time() + 0.1)), who=WHO)
            await host.operations.delete_instance(ONE, who=WHO)
            await asyncio.sleep(0.15)
            assert host.datapath.policy().v4 is Access.OPEN and host.store.policies() == {}

        tell(tmp_path, story)

    def test_of_nobody_is_refused(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            with pytest.raises(NotFoundError):
                await host.operations.delete_instance(ONE, who=WHO)
            assert host.audited == []

        tell(tmp_path, story)

    def test_a_store_that_fails_leaves_all_as_it_was(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, OFF, who=WHO)
            await guest(host, Lock("kv"))
            host.store._db.execute("PRAGMA query_only = 1")
            with pytest.raises(StoreError):
                await host.operations.delete_instance(ONE, who=WHO)
            view = await host.operations.policy(ONE)
            assert (view.v4, view.latched, view.own) == ("reset", ["kv"], True)
            assert host.datapath.policy().v4 is Access.RESET

        tell(tmp_path, story)

    def test_a_kernel_that_fails_leaves_what_the_store_says(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, OFF, who=WHO)
            await guest(host, Lock("/"))
            host.datapath.refuses = lambda policy: policy.v4 is Access.OPEN
            with pytest.raises(KernelError):
                await host.operations.delete_instance(ONE, who=WHO)
            view = await host.operations.policy(ONE)
            assert (view.v4, view.latched, view.own) == ("open", [], False)
            assert host.store.policies() == {} == host.store.latches()

        tell(tmp_path, story)


class TestAuto:
    def test_at_a_time(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            until = time.time() + 0.1
            view = await host.operations.set_policy(ONE, PolicyChange(auto=Auto(Access.DROP, until)), who=WHO)
            assert view.auto is not None and (view.auto.how, view.auto.until) == ("drop", until)
            assert entry(host).until == until and host.datapath.policy().v4 is Access.OPEN
            await soon(lambda: host.datapath.policy().v4 is Access.DROP)
            assert time.time() >= until
            view = await host.operations.policy(ONE)
            assert (view.v4, view.v6, view.auto) == ("drop", "drop", None)
            assert host.store.policies()[ONE] == Policy(Access.DROP, Access.DROP)
            assert host.audited[-1] == ("agent: its time is over", "disable", "IPv4 drop, IPv6 drop")
            await soon(lambda: entry(host).until is None)

        tell(tmp_path, story)

    @pytest.mark.parametrize(("auto", "ask", "other"), [(READY, Ready(), Read()), (READ, Read(), Ready())])
    def test_when_the_guest_has_what_it_needs(self, tmp_path: Path, auto: Auto, ask: object, other: object) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=auto), who=WHO)
            await guest(host, other)
            await guest(host, ask, instance=TWO)
            await asyncio.sleep(0.06)
            assert host.datapath.policy().v4 is Access.OPEN
            await guest(host, ask)
            assert host.datapath.policy().v4 is Access.OPEN, "it gets the answer yet"
            await soon(lambda: host.datapath.policy().v4 is auto.how)
            assert (await host.operations.policy(ONE)).auto is None
            view = await host.operations.instance(ONE)
            assert (view.reports.read if ask == Read() else view.reports.ready) is not None

        tell(tmp_path, story)

    def test_what_is_refused_already_stays_as_it_is(self, tmp_path: Path) -> None:
        assert ended(Policy(Access.DROP, Access.OPEN, auto=READY)) == Policy(Access.DROP, Access.RESET)
        assert ended(Policy(Access.FORBID, Access.RESET, auto=Auto(Access.DROP))) == Policy(Access.DROP, Access.RESET)
        kept = Policy(hop_limit=3, tokens=Tokens.OFF, routes=(("/", "nova"),), closed=("kv",), auto=READ)
        assert ended(kept) == replace(kept, v4=Access.FORBID, v6=Access.FORBID, auto=None)

    def test_reports_from_before_it_was_set_do_not_count(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await guest(host, Ready(), Read())
            await host.operations.set_policy(ONE, PolicyChange(auto=READY), who=WHO)
            assert host.store.reports(ONE) == {}
            await asyncio.sleep(0.05)

        async def again(host: Host) -> None:
            assert host.datapath.policy().v4 is Access.OPEN
            await guest(host, Ready())
            # Another change leaves the reports that have come since.
            await host.operations.set_policy(ONE, PolicyChange(hop_limit=3), who=WHO)
            assert "ready" in host.store.reports(ONE)
            await soon(lambda: host.datapath.policy().v4 is Access.RESET)

        tell(tmp_path, story)
        tell(tmp_path, again)

    def test_one_that_an_operator_has_set_meanwhile_is_another(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=READY), who=WHO)
            await guest(host, Ready())
            await host.operations.set_policy(ONE, PolicyChange(auto=replace(READY, how=Access.DROP)), who=WHO)
            await asyncio.sleep(0.06)
            assert host.datapath.policy().v4 is Access.OPEN, "it is ready from now on that counts"
            await guest(host, Ready())
            await soon(lambda: host.datapath.policy().v4 is Access.DROP)

        tell(tmp_path, story)

    def test_taken_back_or_put_off_in_time(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            for change in (PolicyChange(auto=None), PolicyChange(auto=Auto(until=time.time() + 100))):
                await host.operations.set_policy(ONE, PolicyChange(auto=Auto(until=time.time() + 0.1)), who=WHO)
                await host.operations.set_policy(ONE, change, who=WHO)
                await asyncio.sleep(0.15)
                assert host.datapath.policy().v4 is Access.OPEN

        tell(tmp_path, story)

    def test_a_guest_that_is_ready_all_the_time_is_one_thing_to_do(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=READY), who=WHO)
            host.datapath.refuses = lambda policy: policy.v4 is Access.RESET
            before = len(asyncio.all_tasks())
            for _ in range(50):
                await guest(host, Ready())
            assert len(asyncio.all_tasks()) == before + 1
            host.datapath.refuses = lambda policy: False
            await soon(lambda: not host.operations._due)
            assert [what for _, what, _ in host.audited] == ["policy", "disable"]

        tell(tmp_path, story)

    def test_a_kernel_that_fails_is_tried_again_and_the_workers_refuse_meanwhile(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=READ), who=WHO)
            host.datapath.refuses = lambda policy: policy.v4 is not Access.OPEN
            await guest(host, Read())
            await soon(lambda: entry(host).v4 == "403" and caplog.text.count("cannot write the policy") > 3)
            assert host.store.policies()[ONE].auto == READ, "the next agent would do it again"
            host.datapath.refuses = lambda policy: False
            await soon(lambda: host.store.policies()[ONE].auto is None)
            assert host.datapath.policy().v4 is Access.FORBID

        tell(tmp_path, story)

    def test_a_store_that_cannot_be_written_keeps_nothing_open(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=READY), who=WHO)
            await guest(host, Ready())
            host.store._db.execute("PRAGMA query_only = 1")
            await soon(lambda: caplog.text.count("readonly") > 2)
            assert host.datapath.policy().v4 is Access.RESET and entry(host).v4 == "reset", "closed all the time"
            assert host.store.policies()[ONE].auto == READY
            host.store._db.execute("PRAGMA query_only = 0")
            await soon(lambda: host.store.policies()[ONE].auto is None)
            assert [what for _, what, _ in host.audited] == ["policy", "disable"]

        tell(tmp_path, story)

    def test_an_operator_opens_again_what_it_closed(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=READY), who=WHO)
            await guest(host, Ready())
            await soon(lambda: host.datapath.policy().v4 is Access.RESET)
            await host.operations.set_policy(ONE, ON, who=WHO)
            await guest(host, Ready())
            await asyncio.sleep(0.06)
            assert host.datapath.policy().v4 is Access.OPEN

        tell(tmp_path, story)

    def test_what_is_planned_for_later_is_planned_at_the_start(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(auto=Auto(until=time.time() + 0.3)), who=WHO)

        async def again(host: Host) -> None:
            assert host.datapath.policy().v4 is Access.OPEN
            await soon(lambda: host.datapath.policy().v4 is Access.RESET)

        tell(tmp_path, story)
        tell(tmp_path, again)


class TestOverdue:
    @pytest.mark.parametrize(
        ("auto", "reports"),
        [(Auto(until=5.0), ()), (READY, ("ready",)), (READ, ("read",)), (Auto(until=9e9, on_read=True), ("read",))],
    )
    def test_it_has_come_about_before_anything_is_served(
        self, tmp_path: Path, auto: Auto, reports: tuple[str, ...]
    ) -> None:
        async def story(host: Host) -> None:
            host.store.put_policy(ONE, Policy(auto=auto))
            for kind in reports:
                host.store.report(ONE, kind)  # type: ignore[arg-type]

        async def again(host: Host) -> None:
            assert host.datapath.policy() == ended(Policy(auto=auto)) == host.store.policies()[ONE]
            assert [(who, what) for who, what, _ in host.audited] == [("agent: at its start", "disable")]

        tell(tmp_path, story)
        tell(tmp_path, again)

    @pytest.mark.parametrize(
        ("auto", "reports"), [(Auto(until=9e9), ("ready", "read")), (READY, ("read",)), (READ, ("ready",)), (None, ())]
    )
    def test_what_has_not_come_about_has_not(
        self, tmp_path: Path, auto: Auto | None, reports: tuple[str, ...]
    ) -> None:
        async def story(host: Host) -> None:
            host.store.put_policy(ONE, Policy(auto=auto))
            for kind in reports:
                host.store.report(ONE, kind)  # type: ignore[arg-type]

        async def again(host: Host) -> None:
            assert host.datapath.policy() == Policy(auto=auto)
            assert host.audited == []

        tell(tmp_path, story)
        tell(tmp_path, again)

    def test_a_store_that_cannot_be_written_holds_up_no_start(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def story(host: Host) -> None:
            for instance in (ONE, TWO):
                host.store.put_policy(instance, Policy(auto=Auto(until=5.0)))
            known = host.store.policies()
            host.store._db.execute("PRAGMA query_only = 1")
            end_overdue(host.store, known, 6.0)
            assert known == dict.fromkeys((ONE, TWO), Policy(Access.RESET, Access.RESET))
            host.store._db.execute("PRAGMA query_only = 0")
            end_overdue(host.store, host.store.policies(), 6.0)
            assert host.store.policies() == known

        tell(tmp_path, story)
        assert caplog.text.count("which cannot be kept") == 2


class TestPaths:
    def test_are_closed_and_opened_one_by_one_or_all(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            async def closed(**change: object) -> tuple[str, ...]:
                view = await host.operations.set_policy(ONE, PolicyChange(**change), who=WHO)  # type: ignore[arg-type]
                assert tuple(view.closed) == entry(host).closed == host.store.policies()[ONE].closed
                return entry(host).closed

            assert await closed(close=("user-data", "/latest/meta-data")) == ("user-data", "/latest/meta-data")
            assert await closed(close=("user-data", "kv")) == ("user-data", "/latest/meta-data", "kv")
            assert await closed(open=("/latest/meta-data", "keys")) == ("user-data", "kv")
            assert await closed(closed=("/", "keys", "/")) == ("/", "keys")
            assert host.datapath.policy().v4 is Access.OPEN, "an operator's / is the proxy's matter: 403"
            assert await closed(closed=()) == ()

        tell(tmp_path, story)

    def test_close_before_they_are_kept_and_open_after(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            seen: list[tuple[str, tuple[str, ...]]] = []
            put, keep = host.workers.put, host.store.put_policy
            host.workers.put = lambda e: (seen.append(("worker", e.closed)), put(e))[1]  # type: ignore[method-assign]
            host.store.put_policy = lambda i, p: (seen.append(("kept", p.closed)), keep(i, p))[1]  # type: ignore[method-assign, func-returns-value]
            await host.operations.set_policy(ONE, PolicyChange(close=("kv",)), who=WHO)
            assert seen == [("kept", ("kv",)), ("worker", ("kv",)), ("worker", ("kv",))]
            seen.clear()
            await host.operations.set_policy(ONE, PolicyChange(open=("kv",), close=("keys",)), who=WHO)
            assert seen == [("kept", ("keys",)), ("worker", ("kv", "keys")), ("worker", ("keys",))]

        tell(tmp_path, story)

    def test_are_so_many_and_no_more(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            many = tuple(f"/latest/{number}" for number in range(CLOSED_MAX))
            await host.operations.set_policy(ONE, PolicyChange(closed=many), who=WHO)
            with pytest.raises(InputError, match="65 closed prefixes"):
                await host.operations.set_policy(ONE, PolicyChange(close=("/",)), who=WHO)
            assert host.store.policies()[ONE].closed == many == entry(host).closed

        tell(tmp_path, story)


class TestFailures:
    def test_who_goes_before_the_end_leaves_no_half(self, tmp_path: Path) -> None:
        """An operator's connection ends, and so does what waits for the answer: at any step of it."""

        async def story(host: Host) -> None:
            for turns in range(12):
                access = Access.DROP if turns % 2 else Access.OPEN
                doing = asyncio.ensure_future(host.operations.set_policy(ONE, PolicyChange(access), who=WHO))
                for _ in range(turns):
                    await asyncio.sleep(0)
                given_up = doing.cancel()
                await asyncio.gather(doing, return_exceptions=True)
                assert doing.cancelled() == given_up and (given_up or turns > 4)
                await soon(lambda: not host.operations.under_way)
                if turns:  # before its first step it has not begun
                    assert host.store.policies()[ONE] == host.datapath.policy() == Policy(access, access)
                    assert entry(host).v4 == access.value

        tell(tmp_path, story)

    def test_what_fails_unheard_is_in_the_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        async def story(host: Host) -> None:
            host.datapath.refuses = lambda policy: True
            doing = asyncio.ensure_future(host.operations.set_policy(ONE, OFF, who=WHO))
            await asyncio.sleep(0)
            doing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doing
            await soon(lambda: not host.operations.under_way)
            await asyncio.sleep(0)
            assert "did not wait for failed" in caplog.text and host.policies == {}

        tell(tmp_path, story)

    def test_a_store_that_refuses_changes_nothing(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.store._db.execute("PRAGMA query_only = 1")
            with pytest.raises(StoreError):
                await host.operations.set_policy(ONE, PolicyChange(Access.DROP, auto=READY), who=WHO)
            view = await host.operations.policy(ONE)
            assert (view.v4, view.own, view.auto) == ("open", False, None) and host.policies == {}
            assert host.datapath.policy().v4 is Access.OPEN and await host.noted() == []

        tell(tmp_path, story)


class TestUsedUp:
    def test_keys_that_were_and_those_that_were_not_after_all_are_told(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.store.put_value(ONE, Value("host/secret", b"s", Reads.ONCE))
            host.store.put_source(Source(HOST, "s", b"x", reads=Reads.ONCE))
            key, source = host.store.value(ONE, "host/secret"), host.store.source(HOST, "s")
            assert key is not None and source is not None
            await guest(host, Spend(5, (key.item, source.item, "kv ", "kv", "kv a")))
            await guest(host, Spend(5, (key.item,)))
            await guest(host, Release(5, (key.item, source.item)))
            await guest(host, Confirm(("kv ", "kv host/secret 1")), Delete("guest/none"))
            changes = (await host.changes.after(0, 0, None, "")).changes
            assert [(one.op, one.key, one.bytes) for one in changes] == [
                ("delete", "host/secret", 0), ("put", "host/secret", 1), ("delete", "guest/none", 0),
            ]  # fmt: skip

        tell(tmp_path, story)


class TestWords:
    @pytest.mark.parametrize(
        ("policy", "words"),
        [
            (Policy(), "IPv4 open, IPv6 open"),
            (Policy(Access.FORBID, Access.DROP, 3), "IPv4 403, IPv6 drop; hop limit 3"),
            (
                Policy(tokens=Tokens.OFF, routes=(("/", "nova"), ("/latest", "embedded"))),
                "IPv4 open, IPv6 open; tokens off; routes / nova, /latest embedded",
            ),
            (
                Policy(composition=Composition.VENDOR, closed=("/", "kv"), latched=("keys",)),
                "IPv4 open, IPv6 open; composition vendor; closed /, kv",
            ),
            (Policy(auto=Auto(until=0.5)), "IPv4 open, IPv6 open; auto reset at 1970-01-01T00:00:00Z"),
            (
                Policy(auto=Auto(Access.FORBID, 1e9, on_read=True, on_ready=True)),
                "IPv4 open, IPv6 open; auto 403 at 2001-09-09T01:46:40Z once read once ready",
            ),
        ],
    )
    def test_of_the_audit_trail(self, policy: Policy, words: str) -> None:
        assert told(policy) == words

    def test_of_the_journal(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            change = PolicyChange(close=("kv",), auto=Auto(Access.DROP, on_ready=True))
            await guest(host, Lock("keys"))
            await host.operations.set_policy(ONE, change, who=WHO)
            assert (await host.noted())[-1] == (
                "IPv4 open, IPv6 open, hop limit 64, tokens optional, routes / embedded, closed kv, keys, "
                "auto drop once ready"
            )

        tell(tmp_path, story, NOVA)
