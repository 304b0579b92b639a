"""What the agent does for operators: the control API's Operations, over the store, the enrolment and the workers."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from shim import __version__, why
from shim.control import shapes
from shim.control.trace_shapes import TraceView
from shim.control.why_shapes import WhyView
from shim.core.ask import Confirm, Delete, Lock, Outcome, Put, Read, Ready, Release, Spend
from shim.core.closure import parse_prefix
from shim.core.link import Place
from shim.core.policy import Access
from shim.core.port import Port
from shim.core.prospect import Question
from shim.core.reconcile import closing
from shim.core.verdict import Verdict
from shim.errors import KernelError, NotFoundError
from shim.held import feed_entry, to_its_end
from shim.identity.resolve import Resolution
from shim.key_operations import KeyOperations
from shim.keys import LEAD_SECONDS
from shim.policies import Policies
from shim.source_operations import SourceOperations
from shim.tracing import Tracing
from shim.usage import Usage
from shim.writes import Write


async def _nowhere() -> None:
    """There are no other namespaces."""


class AgentOperations(Policies, SourceOperations, KeyOperations):
    """See Operations for the methods. `enter` is called when other namespaces than before may have attached taps."""

    enter: Callable[[], Awaitable[None]] = staticmethod(_nowhere)
    tracing: Tracing

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._began = time.monotonic()

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
            sources=self._sources(),
        )

    def _sources(self) -> list[shapes.SourceView]:
        believed = Counter(found.source for found in self._enrolment.resolutions.values())
        health = self._resolver.health()
        return [
            shapes.SourceView(source.name, health.get(source.name, ""), believed[source.name])
            for source in self._resolver.sources
        ]

    def trace(self, instance: UUID, *, who: str) -> AsyncGenerator[TraceView, None]:
        if instance not in self._known():
            raise NotFoundError(f"no instance {instance}", "`metashim list` shows those that are known")
        self._journal.note("agent", f"traced by {who}", instance=instance)
        return self.tracing.packets(instance)

    async def ports(self) -> list[shapes.PortView]:
        held = self._enrolment.ports
        views = [self._port_view(port) for port in held.values()]
        return views + [_failed(place, error) for place, error in self._enrolment.failures.items() if place not in held]

    def _port_view(self, port: Port) -> shapes.PortView:
        resolution = self._enrolment.resolutions.get(port.place, Resolution())
        error = self._enrolment.failures.get(port.place)
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
            name=resolution.name,
            flavor=resolution.flavor,
            project=port.project,
            address=port.address,
            port_id=resolution.port,
            mac=resolution.mac,
        )

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
        ports = [self._port_view(port) for port in self._enrolment.ports_of(instance)]
        document = json.loads(raw) if raw is not None else None
        reports = self._store.reports(instance)
        return shapes.InstanceView(
            instance,
            self._policy_view(instance),
            ports,
            revision,
            document,
            [source.id for source in self._view(instance).sources],
            shapes.ReportsView(reports.get("ready"), reports.get("read")),
            len(self._store.values(instance)),
        )

    @to_its_end
    async def put_document(self, instance: UUID, raw: bytes, *, who: str) -> int:
        async with self.composing, self.writing:
            with self._store.transaction():
                revision = self._store.put_document(instance, raw)
                self._refuse_unfit(instance)
                self._store.audit(who, "document", instance, f"revision {revision}")
            await self._published()
            return revision

    @to_its_end
    async def delete_instance(self, instance: UUID, *, who: str) -> None:
        async with self.writing:
            if instance not in self._store.instances():
                raise NotFoundError(f"nothing is kept of instance {instance}", "`metashim list` shows what is known")
            latched, keys = self._latches.get(instance, ()), self._store.values(instance)

            def forget() -> None:
                self._store.forget(instance)
                self._store.audit(who, "forget", instance, f"opens {', '.join(latched)}" if latched else "")

            await self._close_and_keep(instance, closing(self._own_policy(instance), self._default), forget)
            self._latches.pop(instance, None)
            del self._policies[instance]
            self._plan(instance, self._default)
            for key in keys:
                self._changes.deleted(instance, key)
            await self._put_in_force(instance, workers_first=True)
            self._note_policy(instance)
            await self._published()
        self.freed()  # what the watched folder has for it is to be there again

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

    async def tokens(self) -> shapes.TokensView:
        usage = self._workers.ledger.usage()
        views = []
        for instance in sorted(self._known(), key=str):
            policy, used = self.policy_of(instance), usage.get(instance, Usage())
            counts = (used.with_token, used.without_token, used.token_refused)
            views.append(shapes.TokenUseView(instance, self._mode(policy), policy.tokens is not None, *counts))
        return shapes.TokensView(self._config.tokens.mode, views)

    @to_its_end
    async def rotate_keys(self, drop: bool, *, who: str) -> shapes.KeysView:
        async with self.writing:
            number, keys = self._signing.rotate(drop=drop)
            await self._workers.settled(number)
            self._journal.note("agent", "session tokens: a new key" + (", and no other holds any more" if drop else ""))
            self._store.audit(who, "rotate keys", None, "and drop the former" if drop else "")
            self._audited.ring()
            return shapes.KeysView(keys, 0.0 if drop else LEAD_SECONDS)

    async def attachments(self) -> list[shapes.AttachmentView]:
        kept = self._store.attachments()
        return [shapes.AttachmentView(tap, instance, netns) for (netns, tap), instance in sorted(kept.items())]

    @to_its_end
    async def attach(self, netns: str, tap: str, instance: UUID, *, who: str) -> None:
        async with self.writing:
            with self._store.transaction():
                self._store.attach(netns, tap, instance)
                self._store.audit(who, "attach", instance, tap)
            self._audited.ring()
            await self._resolve_again()

    @to_its_end
    async def detach(self, netns: str, tap: str, *, who: str) -> None:
        async with self.writing:
            with self._store.transaction():
                if not self._store.detach(netns, tap):
                    raise NotFoundError(f"{tap} is not attached", "attachments: GET /v1/attachments")
                self._store.audit(who, "detach", None, tap)
            self._audited.ring()
            await self._resolve_again()

    async def _resolve_again(self) -> None:
        self._resolver.refresh()
        await self.enter()
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

    async def why(self, instance: UUID, question: Question) -> WhyView:
        if instance not in self._known():
            raise NotFoundError(f"no instance {instance}", "`metashim list` shows those that are known")
        ports = sorted(self._enrolment.ports_of(instance), key=lambda port: bool(self._port_view(port).error))
        whose = ports[0] if ports else Port(0, 0, 0, "", "", instance, self.policy_of(instance))
        entry, policy = feed_entry(whose), self._policy_view(instance)
        assert entry is not None  # it is an instance's
        facts = why.Facts(
            [self._port_view(port) for port in ports],
            self._doubts(instance),
            policy,
            self._own_policy(instance),
            why.last_change((await self.audit(instance, None, 100, 0)).rows),
            self._kernel.datapath.counters(whose.slot).get(Verdict.RATE_LIMITED, 0) if ports else 0,
            len(self._workers.all),
        )
        latched = tuple(policy.latched)
        return await why.explain(
            instance, self._config, facts, question, lambda: self._workers.explained(entry, question, latched)
        )

    def _doubts(self, instance: UUID) -> list[str]:
        """Taps that are said to be an instance's, and are not enrolled as its."""
        ports, failures = self._enrolment.ports, self._enrolment.failures
        has_none, doubts = not self._enrolment.ports_of(instance), []
        for place, found in self._enrolment.resolutions.items():
            if found.instance == instance and place in failures and place not in ports:
                doubts.append(f"a tap of it cannot be enrolled: {failures[place]}")
            names_it = str(instance) in found.conflict or (found.waits and has_none)
            if found.instance != instance and place in ports and names_it:
                doubts.append(f"{ports[place].tap}: {found.conflict}")
        return doubts[: why.DOUBTS]

    async def events(self, after: int, wait: float) -> shapes.EventsView:
        return await self._journal.after(after, wait)

    async def audit(self, instance: UUID | None, after: int | None, limit: int, wait: float) -> shapes.AuditView:
        rows = self._store.audits(instance, after, limit)
        deadline = time.monotonic() + wait
        while not rows and after is not None and (left := deadline - time.monotonic()) > 0:
            await self._audited.heard(left)
            rows = self._store.audits(instance, after, limit)
        found = [shapes.AuditRow(row.seq, row.time, row.who, row.instance, row.what, row.detail) for row in rows]
        return shapes.AuditView(found, found[-1].seq if found else after or 0)

    async def written(self, done: Sequence[tuple[Write, Outcome]]) -> None:
        """What guests asked for was committed: returns when the workers know. Called while `writing` is held."""
        kept = [(write, outcome) for write, outcome in done if outcome.fate == "done"]
        for write, outcome in kept:
            await self._was_written(write, outcome)
        for write, outcome in done:
            if isinstance(write.ask, Read) and outcome.fate in ("full", "unavailable"):
                self.reported(write.instance, "read")  # it was read: what follows is tried until it can be kept
        if kept:
            await self._published()

    async def _was_written(self, write: Write, outcome: Outcome) -> None:
        ask, instance = write.ask, write.instance
        if isinstance(ask, Put):
            self._changes.put(instance, ask.key, outcome.etag, len(ask.value))
        elif isinstance(ask, Delete):
            self._changes.deleted(instance, ask.key)
        elif isinstance(ask, Lock):
            await self.latched(instance, parse_prefix(ask.prefix))
        elif isinstance(ask, Ready | Read):
            self.reported(instance, "ready" if isinstance(ask, Ready) else "read")
        elif isinstance(ask, Spend | Confirm | Release):
            for key in _keys_among(outcome.items):
                self._note_used(instance, key)

    def _note_used(self, instance: UUID, key: str) -> None:
        """A key was used up, or is back as it was not read after all."""
        value = self._store.value(instance, key)
        if value is None:
            self._changes.deleted(instance, key)
        else:
            self._changes.put(instance, key, value.etag, len(value.body))


def _keys_among(items: Iterable[str]) -> list[str]:
    """The keys that items (Value.item) are of; sources are left out."""
    return [item.split()[1] for item in items if item.startswith("kv ")]


def state_of(port: Port) -> str:
    """A port's state, one of shapes.STATES, unless it failed."""
    if port.instance is None:
        return "no-identity"
    closed = port.policy.v4 is not Access.OPEN and port.policy.v6 is not Access.OPEN
    return "refused" if closed else "serving"


def _failed(place: Place, error: KernelError) -> shapes.PortView:
    return shapes.PortView(
        tap="", netns=place.netns, ifindex=place.ifindex, slot=None, generation=0, instance=None, source="",
        state="failed", v4="", v6="", error=str(error),
    )  # fmt: skip
