"""What an instance may do, changed: by operators, by the guest's own locks, and by itself when a time has come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from msgspec import UNSET

from shim.control import shapes
from shim.control.operations import PolicyChange
from shim.core.closure import WHOLE
from shim.core.policy import Access, Auto, Composition, Family, Policy, Routes
from shim.core.reconcile import closing
from shim.errors import InputError, KernelError, MetashimError, StoreError
from shim.held import Held, to_its_end
from shim.metadata.store import Store
from shim.settings import EMBEDDED, FORWARDED

log = logging.getLogger("shim.policies")

LAST_WORDS_SECONDS = 0.5
"""What a guest that ends its own access is given to take the answer, before the kernel refuses the rest of it. The
workers refuse all else from the first."""

AGAIN_SECONDS = 5.0


Due = tuple[UUID, Auto | None]
"""What is to come about of an instance: its auto, or (None) that it locked all."""


class Policies(Held):
    """See Operations for the methods."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._planned: dict[UUID, asyncio.TimerHandle] = {}
        self._due: dict[Due, asyncio.Task[None]] = {}

    async def policy(self, instance: UUID) -> shapes.PolicyView:
        return self._policy_view(instance)

    def _policy_view(self, instance: UUID) -> shapes.PolicyView:
        policy = self.policy_of(instance)
        routes: dict[str, str] = dict(self._config.forward.routes if policy.routes is None else policy.routes)
        composition = policy.composition or Composition(self._config.sources.composition)
        auto = policy.auto
        return shapes.PolicyView(
            policy.v4.value,
            policy.v6.value,
            policy.hop_limit,
            instance in self._policies,
            self._mode(policy),
            routes,
            policy.tokens is not None,
            policy.routes is not None,
            list(policy.closed),
            list(policy.latched),
            shapes.AutoView(auto.how.value, auto.until, auto.on_read, auto.on_ready) if auto else None,
            composition.value,
            policy.composition is not None,
        )

    def _mode(self, policy: Policy) -> str:
        return policy.tokens.value if policy.tokens else self._config.tokens.mode

    @to_its_end
    async def set_policy(self, instance: UUID, change: PolicyChange, *, who: str) -> shapes.PolicyView:
        if change.routes is not UNSET and (absent := self._absent_backends(change.routes)):
            name = absent[0]
            hint = f"set {name}.addresses and {name}.secret_file in the configuration, then restart the agent"
            raise InputError(f"the backend {name} is not set up", hint)
        async with self.writing:
            before = self._own_policy(instance)
            after = change.of(before)

            def keep() -> None:
                self._store.put_policy(instance, after)
                if after.auto is not None and after.auto != before.auto:
                    self._store.forget_reports(instance)  # what is there from now on came after this
                self._store.audit(who, "policy", instance, told(after))

            await self._close_and_keep(instance, closing(before, after), keep)
            self._plan(instance, after)
            await self._enforce(instance, after, workers_first=True)
            self._note_policy(instance)
            return self._policy_view(instance)

    def _note_policy(self, instance: UUID) -> None:
        self._audited.ring()
        text = _told(self._policy_view(instance), self._own_policy(instance).auto)
        self._journal.note("policy", text, instance=instance)

    @to_its_end
    async def unlock(self, instance: UUID, prefix: str | None, *, who: str) -> shapes.UnlockedView:
        async with self.writing:
            with self._store.transaction():
                opened = self._store.unlatch(instance, prefix)
                for one in opened:
                    self._store.audit(who, "unlock", instance, one)
            left = tuple(one for one in self._latches.pop(instance, ()) if one not in opened)
            if left:
                self._latches[instance] = left
            if opened:
                await self._put_in_force(instance, workers_first=True)
                self._note_policy(instance)
            return shapes.UnlockedView(list(opened), self._policy_view(instance))

    def _absent_backends(self, routes: Routes | None) -> list[str]:
        """Backends that routes lead to although no address of them is configured."""
        known = {EMBEDDED} | {name for name in FORWARDED if getattr(self._config, name).addresses}
        return sorted({backend for _, backend in routes or ()} - known)

    def misrouted(self) -> list[shapes.Ailment]:
        """Instances whose own routes lead to backends that were taken out of the configuration since."""
        return [
            shapes.Ailment(
                "routes", f"{instance} is routed to {', '.join(absent)}, which is not set up: it gets 503",
                f"configure it, or `metashim routes {instance} --default`",
            )
            for instance, policy in self._policies.items()
            if (absent := self._absent_backends(policy.routes))
        ]  # fmt: skip

    async def _close_and_keep(self, instance: UUID, closed: Policy, keep: Callable[[], None]) -> None:
        """Closes, then keeps what is to hold; if it cannot be kept, all is as before."""
        before = self._policies.get(instance)
        try:
            with self._store.transaction():
                keep()
                await self._enforce(instance, closed)
        except MetashimError:
            await self._restore(instance, before)
            raise

    async def _restore(self, instance: UUID, before: Policy | None) -> None:
        """Puts back what was in force, None for the default; where the kernel will not, the agent goes on trying."""
        if before is None:
            self._policies.pop(instance, None)
        else:
            self._policies[instance] = before
        with contextlib.suppress(KernelError):
            await self._put_in_force(instance, workers_first=True)

    async def _enforce(self, instance: UUID, policy: Policy, *, workers_first: bool = False) -> None:
        """Makes a policy an instance's own, and puts it in force. Raises KernelError."""
        self._policies[instance] = policy
        await self._put_in_force(instance, workers_first=workers_first)

    async def _put_in_force(self, instance: UUID, *, workers_first: bool = False) -> None:
        """Kernel first when closing, workers first when opening, as each knows least then. What the guest locked is
        locked in it. Raises KernelError: the agent goes on trying then; workers that come last have not been told."""
        policy = self.policy_of(instance)
        ports = await self._enrolment.ports_by_now(instance)
        if workers_first:
            await self._tell(ports, policy)
        await self._enrolment.settle([port.place for port in ports])
        failed = [error for port in ports if (error := self._enrolment.failures.get(port.place))]
        if failed:
            raise KernelError(f"{instance}: {failed[0]}", failed[0].hint, failed[0].errno)
        if not workers_first:
            await self._tell(ports, policy)

    # What ends by itself.

    async def latched(self, instance: UUID, prefix: str) -> None:
        """The guest locked this, and the store has it: returns when the workers refuse it. The kernel follows."""
        latched = self._latches.get(instance, ())
        if prefix in latched:
            return
        self._latches[instance] = (*latched, prefix)
        ports = self._enrolment.ports_of(instance)
        await self._tell(ports, replace(self._own_policy(instance), latched=self._latches[instance]))
        self._journal.note("lock", prefix, instance=instance)
        if prefix == WHOLE:
            self._later((instance, None), LAST_WORDS_SECONDS, partial(self._shut, instance))

    async def _shut(self, instance: UUID) -> None:
        """The kernel refuses an instance that locked all, unless it was unlocked meanwhile."""
        async with self.writing:
            await self._put_in_force(instance)

    def reported(self, instance: UUID, kind: str) -> None:
        """The guest says that it is `ready`, or has `read` its user-data: what waited for that comes about."""
        auto = self._own_policy(instance).auto
        if auto is not None and ((kind == "ready" and auto.on_ready) or (kind == "read" and auto.on_read)):
            words = "the guest is ready" if kind == "ready" else "its user-data was read"
            self._later((instance, auto), LAST_WORDS_SECONDS, partial(self.come_due, instance, auto, words))

    async def come_due(self, instance: UUID, auto: Auto, words: str) -> None:
        """Disables an instance as the `auto` of its policy says, and takes that off the policy, unless an operator has
        done so. It is closed whether that can be kept or not: the store has why, and the next agent does it again."""
        async with self.writing:
            before = self._own_policy(instance)
            if before.auto != auto:
                return
            after = ended(before)
            await self._enforce(instance, replace(after, auto=auto), workers_first=True)  # the kernel may fail
            with self._store.transaction():
                self._store.put_policy(instance, after)
                self._store.audit(f"agent: {words}", "disable", instance, told(after))
            self._policies[instance] = after
            self._plan(instance, after)
            self._note_policy(instance)
            await self._put_in_force(instance)

    def _later(self, due: Due, seconds: float, what: Callable[[], Coroutine[None, None, None]]) -> None:
        """Does it after so many seconds, and again until it succeeds: what is to be closed must not stay open. Once for
        one thing that is due, however often a guest brings it about."""
        if due not in self._due:
            self._due[due] = task = asyncio.ensure_future(_until_done(seconds, what))
            task.add_done_callback(lambda _: self._due.pop(due))

    def _plan(self, instance: UUID, policy: Policy) -> None:
        """Sees to it that its time is not missed."""
        former = self._planned.pop(instance, None)
        if former is not None:
            former.cancel()
        if policy.auto is not None and policy.auto.until is not None:
            # The clock may be set meanwhile, so no more than a minute is slept away at a time.
            seconds = min(max(policy.auto.until - time.time(), 0), 60)
            self._planned[instance] = asyncio.get_running_loop().call_later(seconds, self._look, instance)

    def _look(self, instance: UUID) -> None:
        self._planned.pop(instance, None)
        policy = self._own_policy(instance)
        if policy.auto is None or policy.auto.until is None:
            return
        if policy.auto.until <= time.time():
            self._later((instance, policy.auto), 0, partial(self.come_due, instance, policy.auto, "its time is over"))
        else:
            self._plan(instance, policy)

    def plan_all(self) -> None:
        """Of all instances, at the start."""
        for instance, policy in self._policies.items():
            self._plan(instance, policy)


async def _until_done(seconds: float, what: Callable[[], Coroutine[None, None, None]]) -> None:
    await asyncio.sleep(seconds)
    while True:
        try:
            return await what()
        except MetashimError as error:
            log.error("%s (%s)", error, error.hint)
        except Exception:  # the boundary of one thing that is due
            log.exception("what is to be closed could not be; it is tried again")
        await asyncio.sleep(AGAIN_SECONDS)


def end_overdue(store: Store, policies: dict[UUID, Policy], now: float) -> None:
    """What came due while no agent ran has come about before anything is served: in `policies`, and in the store if
    that can be written. Raises StoreError where it cannot be read."""
    for instance, policy in policies.items():
        auto = policy.auto
        if auto is None:
            continue
        reports = store.reports(instance)
        over = auto.until is not None and auto.until <= now
        if over or (auto.on_ready and "ready" in reports) or (auto.on_read and "read" in reports):
            policies[instance] = ended(policy)
            try:
                with store.transaction():
                    store.put_policy(instance, policies[instance])
                    store.audit("agent: at its start", "disable", instance, told(policies[instance]))
            except StoreError as error:  # the next start does it again
                log.error("%s: disabled, which cannot be kept: %s (%s)", instance, error, error.hint)


def ended(policy: Policy) -> Policy:
    """A policy whose auto has come about: what passed before is refused as that says."""
    how = policy.auto.how if policy.auto is not None else Access.RESET
    passing = frozenset(one for one in Family if policy.access(one) in (Access.OPEN, Access.FORBID))
    return replace(policy.with_access(how, passing), auto=None)


def told(policy: Policy) -> str:
    """A policy in a line of the audit trail: what is not the default of it."""
    plain = Policy()
    said = [f"IPv4 {policy.v4.value}, IPv6 {policy.v6.value}"]
    if policy.hop_limit != plain.hop_limit:
        said.append(f"hop limit {policy.hop_limit}")
    if policy.tokens is not None:
        said.append(f"tokens {policy.tokens.value}")
    if policy.routes is not None:
        said.append("routes " + ", ".join(f"{prefix} {backend}" for prefix, backend in policy.routes))
    if policy.composition is not None:
        said.append(f"composition {policy.composition.value}")
    if policy.closed:
        said.append(f"closed {', '.join(policy.closed)}")
    if policy.auto is not None:
        said.append(_auto_told(policy.auto))
    return "; ".join(said)


def _auto_told(auto: Auto) -> str:
    said = f"auto {auto.how.value}"
    if auto.until is not None:
        said += time.strftime(" at %Y-%m-%dT%H:%M:%SZ", time.gmtime(auto.until))
    return said + (" once read" if auto.on_read else "") + (" once ready" if auto.on_ready else "")


def _told(view: shapes.PolicyView, auto: Auto | None) -> str:
    """A policy in a line of the journal."""
    routes = ", ".join(f"{prefix} {backend}" for prefix, backend in view.routes.items())
    said = f"IPv4 {view.v4}, IPv6 {view.v6}, hop limit {view.hop_limit}, tokens {view.tokens}, routes {routes}"
    if view.closed or view.latched:
        said += f", closed {', '.join((*view.closed, *view.latched))}"
    return said + (f", {_auto_told(auto)}" if auto is not None else "")
