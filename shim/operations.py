"""What the agent does for operators: the control API's Operations, over the store, the enrolment and the workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from msgspec import UNSET

from shim import __version__, feed
from shim.config import Config
from shim.control import shapes
from shim.control.operations import PolicyChange
from shim.core.policy import Access, Policy, Routes
from shim.core.port import Port
from shim.core.reconcile import closing
from shim.enrolment import OWN_NETNS, Enrolment
from shim.errors import InputError, KernelError, MetashimError, NotFoundError
from shim.identity.resolve import Resolution, Resolver
from shim.journal import Journal
from shim.kernel import Kernel
from shim.keys import LEAD_SECONDS
from shim.metadata.store import Store
from shim.settings import EMBEDDED, FORWARDED
from shim.signing import Signing
from shim.usage import Usage
from shim.workers import Workers


def feed_entry(port: Port) -> feed.Entry | None:
    """What workers are told of a port; nothing of one that nobody is served on."""
    if port.instance is None:
        return None
    policy = port.policy
    tokens = policy.tokens.value if policy.tokens else None
    return feed.Entry(
        port.slot, port.generation, port.instance, policy.v4.value, policy.v6.value, tokens, policy.routes,
        port.project, port.address,
    )  # fmt: skip


class AgentOperations:
    """See Operations for the methods. Writes are made one after the other."""

    def __init__(
        self,
        config: Config,
        store: Store,
        kernel: Kernel,
        enrolment: Enrolment,
        resolver: Resolver,
        workers: Workers,
        journal: Journal,
        policies: dict[UUID, Policy],
        default: Policy,
        signing: Signing,
        ailments: Callable[[], list[shapes.Ailment]],
    ) -> None:
        self._config = config
        self._store = store
        self._kernel = kernel
        self._enrolment = enrolment
        self._resolver = resolver
        self._workers = workers
        self._journal = journal
        self._policies = policies
        self._default = default
        self._signing = signing
        self._ailments = ailments
        self._began = time.monotonic()
        self._writing = asyncio.Lock()

    async def status(self) -> shapes.StatusView:
        states: dict[str, int] = {}
        for view in await self.ports():
            states[view.state] = states.get(view.state, 0) + 1
        return shapes.StatusView(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=round(time.monotonic() - self._began, 3),
            datapath=self._kernel.datapath.name,
            fallback=self._kernel.fallback,
            lacks=list(self._kernel.datapath.lacks),
            service_addresses=list(self._config.datapath.service_addresses),
            service_ports=list(self._config.datapath.service_ports),
            instances=len(self._known()),
            states=states,
            workers=[shapes.WorkerView(w.pid, w.connections, w.restarts) for w in self._workers.all],
            ailments=self._ailments(),
            tokens=self._config.tokens.mode,
            routes=dict(self._config.forward.routes),
            backends=[
                shapes.BackendView(one.backend, one.address, one.healthy, one.why)
                for one in self._workers.ledger.backends()
            ],
        )

    async def ports(self) -> list[shapes.PortView]:
        held = self._enrolment.ports
        views = [self._view(port) for port in held.values()]
        return views + [_failed(i, e) for i, e in self._enrolment.failures.items() if i not in held]

    def _view(self, port: Port) -> shapes.PortView:
        resolution = self._enrolment.resolutions.get(port.ifindex, Resolution())
        error = self._enrolment.failures.get(port.ifindex)
        return shapes.PortView(
            tap=port.tap,
            netns=port.netns,
            ifindex=port.ifindex,
            slot=port.slot,
            generation=port.generation,
            instance=port.instance,
            source=resolution.source,
            state="failed" if error else state_of(port),
            v4=port.policy.v4.value,
            v6=port.policy.v6.value,
            conflict=resolution.conflict,
            error=str(error) if error else "",
        )

    def _known(self) -> set[UUID]:
        owners = {port.instance for port in self._enrolment.ports.values() if port.instance}
        return owners | self._store.instances()

    async def instances(self) -> list[shapes.InstanceSummary]:
        documents = self._store.documents()
        return [
            shapes.InstanceSummary(
                instance,
                self._policy_view(instance),
                [port.tap for port in self._enrolment.ports_of(instance)],
                documents[instance].revision if instance in documents else 0,
            )
            for instance in sorted(self._known(), key=str)
        ]

    async def instance(self, instance: UUID) -> shapes.InstanceView:
        if instance not in self._known():
            raise NotFoundError(f"no instance {instance}", "`metashim list` shows those that are known")
        revision, raw = self._store.body(instance)
        ports = [self._view(port) for port in self._enrolment.ports_of(instance)]
        document = json.loads(raw) if raw is not None else None
        return shapes.InstanceView(instance, self._policy_view(instance), ports, revision, document)

    async def put_document(self, instance: UUID, raw: bytes) -> int:
        async with self._writing:
            return self._store.put_document(instance, raw)

    async def delete_instance(self, instance: UUID) -> None:
        if instance not in self._store.documents() and instance not in self._policies:
            raise NotFoundError(f"nothing is kept of instance {instance}", "`metashim list` shows what is known")
        async with self._writing:
            before = self._policies.get(instance, self._default)
            await self._change(instance, before, self._default, lambda: self._forget(instance))
            self._policies.pop(instance, None)

    def _forget(self, instance: UUID) -> None:
        self._store.delete_document(instance)
        self._store.delete_policy(instance)

    def policy_of(self, instance: UUID | None) -> Policy:
        """The policy in force; of no instance: the default, though nobody is served by it."""
        return self._policies.get(instance, self._default) if instance else self._default

    def _policy_view(self, instance: UUID) -> shapes.PolicyView:
        policy = self.policy_of(instance)
        routes: dict[str, str] = dict(self._config.forward.routes if policy.routes is None else policy.routes)
        return shapes.PolicyView(
            policy.v4.value, policy.v6.value, policy.hop_limit, instance in self._policies, self._mode(policy), routes,
            policy.tokens is not None, policy.routes is not None,
        )  # fmt: skip

    def _mode(self, policy: Policy) -> str:
        return policy.tokens.value if policy.tokens else self._config.tokens.mode

    async def policy(self, instance: UUID) -> shapes.PolicyView:
        return self._policy_view(instance)

    async def set_policy(self, instance: UUID, change: PolicyChange) -> shapes.PolicyView:
        if change.routes is not UNSET and (absent := self._absent_backends(change.routes)):
            name = absent[0]
            hint = f"set {name}.addresses and {name}.secret_file in the configuration, then restart the agent"
            raise InputError(f"the backend {name} is not set up", hint)
        async with self._writing:
            before = self.policy_of(instance)
            after = change.of(before)
            await self._change(instance, before, after, lambda: self._store.put_policy(instance, after))
            view = self._policy_view(instance)
            self._journal.note("policy", _told(view), instance=instance)
            return view

    def _absent_backends(self, routes: Routes | None) -> list[str]:
        """Backends that routes lead to although no address of them is configured."""
        known = {EMBEDDED} | {name for name in FORWARDED if getattr(self._config, name).addresses}
        return sorted({backend for _, backend in routes or ()} - known)

    def down(self) -> list[shapes.Ailment]:
        """Addresses that are down, and backends of which all are."""
        addresses = self._workers.ledger.backends()
        up = {one.backend for one in addresses if one.healthy}
        lost = dict.fromkeys(one.backend for one in addresses if one.backend not in up)
        again = "it is asked again twice a second"
        gone = "no address of it is up: guests get 503"
        return [
            shapes.Ailment(f"backend {one.backend}", f"{one.address} is down: {one.why}", again)
            for one in addresses
            if not one.healthy
        ] + [shapes.Ailment(f"backend {name}", gone, "what is said of each address tells why") for name in lost]

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

    async def tokens(self) -> shapes.TokensView:
        usage = self._workers.ledger.usage()
        views = []
        for instance in sorted(self._known(), key=str):
            policy, used = self.policy_of(instance), usage.get(instance, Usage())
            counts = (used.with_token, used.without_token, used.token_refused)
            views.append(shapes.TokenUseView(instance, self._mode(policy), policy.tokens is not None, *counts))
        return shapes.TokensView(self._config.tokens.mode, views)

    async def rotate_keys(self, drop: bool) -> shapes.KeysView:
        async with self._writing:
            number, keys = self._signing.rotate(drop=drop)
            await self._workers.settled(number)
            self._journal.note("agent", "session tokens: a new key" + (", and no other holds any more" if drop else ""))
            return shapes.KeysView(keys, 0.0 if drop else LEAD_SECONDS)

    async def _change(self, instance: UUID, before: Policy, after: Policy, keep: Callable[[], None]) -> None:
        """Closes first, then keeps, then opens; if it cannot be kept, all is as before."""
        own = instance in self._policies
        try:
            with self._store.transaction():
                keep()
                await self._enforce(instance, closing(before, after))
        except MetashimError:
            await self._restore(instance, before if own else None)
            raise
        await self._enforce(instance, after, opening=True)

    async def _restore(self, instance: UUID, before: Policy | None) -> None:
        """Puts back what was in force, None for the default; where the kernel will not, the agent goes on trying."""
        with contextlib.suppress(KernelError):
            await self._enforce(instance, before or self._default, opening=True)
        if before is None:
            self._policies.pop(instance, None)

    async def _enforce(self, instance: UUID, policy: Policy, *, opening: bool = False) -> None:
        """Puts a policy in force, kernel first when closing, workers first when opening, as each knows least then."""
        self._policies[instance] = policy
        ports = await self._enrolment.ports_by_now(instance)
        if opening:
            await self._tell(ports, policy)
        await self._enrolment.settle([port.ifindex for port in ports])
        failed = [error for port in ports if (error := self._enrolment.failures.get(port.ifindex))]
        if failed:
            raise KernelError(f"{instance}: {failed[0]}", failed[0].hint, failed[0].errno)
        if not opening:
            await self._tell(ports, policy)

    async def _tell(self, ports: list[Port], policy: Policy) -> None:
        number = 0
        for port in ports:
            entry = feed_entry(replace(port, policy=policy))
            if entry is not None:
                number = self._workers.put(entry)
        if number:
            await self._workers.settled(number)

    async def attachments(self) -> list[shapes.AttachmentView]:
        kept = self._store.attachments()
        return [shapes.AttachmentView(tap, instance, netns) for (netns, tap), instance in sorted(kept.items())]

    async def attach(self, netns: str, tap: str, instance: UUID) -> None:
        _own_namespace(netns)
        async with self._writing:
            self._store.attach(netns, tap, instance)
            await self._resolve_again()

    async def detach(self, netns: str, tap: str) -> None:
        async with self._writing:
            if not self._store.detach(netns, tap):
                raise NotFoundError(f"{tap} is not attached", "attachments: GET /v1/attachments")
            await self._resolve_again()

    async def _resolve_again(self) -> None:
        self._resolver.refresh()
        await self._enrolment.settle()

    async def counters(self, instance: UUID | None, netns: str, tap: str | None) -> list[shapes.CounterView]:
        ports = self._enrolment.ports_of(instance) if instance else list(self._enrolment.ports.values())
        if tap is not None:
            ports = [port for port in ports if (port.netns, port.tap) == (netns, tap)]
        if not ports and (instance or tap):
            raise NotFoundError(f"{tap or instance} has no port", "`metashim list` shows the taps that are guarded")
        return [shapes.CounterView(p.tap, p.netns, p.instance, self._counted(p)) for p in ports]

    def _counted(self, port: Port) -> dict[str, int]:
        return {verdict.label: number for verdict, number in self._kernel.datapath.counters(port.slot).items()}

    async def events(self, after: int, wait: float) -> shapes.EventsView:
        return await self._journal.after(after, wait)


def _told(view: shapes.PolicyView) -> str:
    """A policy in a line of the journal."""
    routes = ", ".join(f"{prefix} {backend}" for prefix, backend in view.routes.items())
    return f"IPv4 {view.v4}, IPv6 {view.v6}, hop limit {view.hop_limit}, tokens {view.tokens}, routes {routes}"


def _own_namespace(netns: str) -> None:
    if netns != OWN_NETNS:
        raise NotFoundError(
            f"taps inside the network namespace {netns} cannot be guarded", "attach taps of the agent's own namespace"
        )


def state_of(port: Port) -> str:
    """A port's state, one of shapes.STATES, unless it failed."""
    if port.instance is None:
        return "no-identity"
    closed = port.policy.v4 is not Access.OPEN and port.policy.v6 is not Access.OPEN
    return "refused" if closed else "serving"


def _failed(ifindex: int, error: KernelError) -> shapes.PortView:
    return shapes.PortView(
        tap="", netns="", ifindex=ifindex, slot=None, generation=0, instance=None, source="", state="failed",
        v4="", v6="", error=str(error),
    )  # fmt: skip
