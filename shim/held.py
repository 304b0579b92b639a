"""What all operations of the agent work on, and how a write ends: see shim.operations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from shim import feed
from shim.config import Config
from shim.control import shapes
from shim.core.policy import Policy
from shim.core.port import Port
from shim.enrolment import Enrolment
from shim.identity.resolve import Resolver
from shim.journal import Changes, Journal
from shim.kernel import Kernel
from shim.metadata.store import Store
from shim.signing import Signing
from shim.waiting import Bell
from shim.workers import Workers

log = logging.getLogger("shim.held")

P = ParamSpec("P")
T = TypeVar("T")
H = TypeVar("H", bound="Held")


def feed_entry(port: Port) -> feed.Entry | None:
    """What workers are told of a port; nothing of one that nobody is served on."""
    if port.instance is None:
        return None
    policy, auto = port.policy, port.policy.auto
    return feed.Entry(
        port.slot,
        port.generation,
        port.instance,
        policy.v4.value,
        policy.v6.value,
        policy.tokens.value if policy.tokens else None,
        policy.routes,
        port.project,
        port.address,
        policy.composition.value if policy.composition else None,
        (*policy.closed, *policy.latched),
        auto.until if auto else None,
        auto.on_read if auto else False,
        port.name,
        port.flavor,
    )


def to_its_end(method: Callable[Concatenate[H, P], Coroutine[Any, Any, T]]) -> Callable[
    Concatenate[H, P], Coroutine[Any, Any, T]
]:  # fmt: skip
    """Of an operation that writes: what it has begun it ends, though who asked for it has gone. Else the store, the
    kernel and the workers would be left with what one of them knows and the others do not."""

    @wraps(method)
    async def whole(self: H, /, *given: P.args, **named: P.kwargs) -> T:
        task = asyncio.ensure_future(method(self, *given, **named))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise

    return whole


def _unheard(task: asyncio.Task[Any]) -> None:
    """Nobody is there any more to be told of its failure."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("what an operator began and did not wait for failed: %s", error)


class Held:
    """The agent's parts, and what is in force. Writes are made one after the other, under `writing`."""

    def __init__(
        self,
        config: Config,
        store: Store,
        kernel: Kernel,
        enrolment: Enrolment,
        resolver: Resolver,
        workers: Workers,
        journal: Journal,
        changes: Changes,
        policies: dict[UUID, Policy],
        default: Policy,
        signing: Signing,
        ailments: Callable[[], list[shapes.Ailment]],
        user: tuple[int, int],
    ) -> None:
        self._config = config
        self._store = store
        self._kernel = kernel
        self._enrolment = enrolment
        self._resolver = resolver
        self._workers = workers
        self._journal = journal
        self._changes = changes
        self._policies = policies
        self._latches = store.latches()
        self._default = default
        self._signing = signing
        self._ailments = ailments
        self._user = user
        self._audited = Bell()
        self.writing = asyncio.Lock()
        self.under_way: set[asyncio.Task[Any]] = set()
        """Operations that have begun to write."""
        self.rehearsing = asyncio.Lock()
        self.composing = asyncio.Lock()
        """Held by who writes what is composed, from when it is looked at whether it fits, which may take longer than
        others are to wait to write."""

    def policy_of(self, instance: UUID | None) -> Policy:
        """The policy in force; of no instance: the default, though nobody is served by it."""
        if instance is None:
            return self._default
        policy, latched = self._own_policy(instance), self._latches.get(instance)
        return policy.with_latches(latched) if latched else policy

    def _own_policy(self, instance: UUID) -> Policy:
        """The policy that operators set, whatever the guest locked."""
        return self._policies.get(instance, self._default)

    def _known(self) -> set[UUID]:
        owners = {port.instance for port in self._enrolment.ports.values() if port.instance}
        return owners | self._store.instances()

    async def _published(self) -> None:
        """The store changed, and was audited: returns when no worker shows what was before."""
        self._audited.ring()
        await self._workers.settled(self._workers.changed())

    async def _tell(self, ports: list[Port], policy: Policy) -> None:
        """Tells the workers of a policy of these ports; returns when they go by it."""
        number = 0
        for port in ports:
            entry = feed_entry(replace(port, policy=policy))
            if entry is not None:
                number = self._workers.put(entry)
        if number:
            await self._workers.settled(number)
