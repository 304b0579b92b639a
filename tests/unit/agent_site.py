"""The agent's operations over the shipped fake datapath and a real store, with what workers would be told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

from shim import feed
from shim.config import Config, parse
from shim.core.link import Link, Place
from shim.core.policy import Policy
from shim.core.port import Port, Slots
from shim.datapath import abi
from shim.datapath.fake import Fake
from shim.enrolment import Enrolment
from shim.errors import KernelError
from shim.identity.alias import Alias
from shim.identity.resolve import Resolver
from shim.journal import Changes, Journal
from shim.keys import Ring
from shim.metadata.store import Store
from shim.operations import AgentOperations
from shim.policies import end_overdue
from shim.signing import Signing
from shim.usage import Ledger

ONE, TWO = UUID(int=1), UUID(int=2)
SETTINGS = abi.pack_settings(["169.254.169.254"], [80], rate=50, burst=200, event_rate=10, flows_per_port=8)
NOVA = b'[nova]\naddresses = ["http://127.0.0.1:8775"]\nsecret_file = "/etc/metashim/nova.secret"\n'
WHO = "root (uid 0)"
NOBODY = 65_534


@dataclass
class Workers:
    """What workers would be told, in order; `entries` is what each slot has now."""

    ledger: Ledger
    told: list[tuple[str, object]] = field(default_factory=list)
    entries: dict[int, feed.Entry] = field(default_factory=dict)
    all: tuple[()] = ()

    def put(self, entry: feed.Entry) -> int:
        self.told.append(("put", entry.tokens))
        self.entries[entry.slot] = entry
        return len(self.told)

    def changed(self) -> int:
        self.told.append(("changed", None))
        return len(self.told)

    def keys(self, ring: Ring) -> int:
        self.told.append(("keys", ring))
        return len(self.told)

    async def settled(self, number: int) -> None:
        self.told.append(("settled", number))
        await asyncio.sleep(0)


class Sick(Fake):
    """A fake whose kernel may refuse a policy. `steps` gets what is put into it."""

    refuses: Callable[[Policy], bool] = staticmethod(lambda policy: False)
    steps: list[tuple[str, object]] | None = None

    async def ensure(self, port: Port) -> None:
        if self.refuses(port.policy):
            raise KernelError(f"cannot write the policy of {port.tap}")
        if self.steps is not None:
            self.steps.append(("kernel", (port.policy.v4.value, port.policy.v6.value)))
        await super().ensure(port)

    def policy(self, ifindex: int = 1) -> Policy:
        """What the kernel goes by."""
        found = self._model.state.slot(self._guarded[Place("", ifindex)]).port
        assert found is not None
        return found.policy


class Host:
    """ONE on tap1, of project p (or whom `aliases` say, by interface), with operations over it."""

    def __init__(self, folder: Path, config: Config, aliases: Iterable[str] = (f"metashim:{ONE}/p",)) -> None:
        self.store = Store(folder / "m.db")
        self.workers = Workers(Ledger(lambda slot, generation: ONE, {"nova": config.nova.addresses}))
        self.datapath = Sick(SETTINGS, lambda: 0)
        self.policies = self.store.policies()
        end_overdue(self.store, self.policies, time.time())
        self.journal, self.changes = Journal(lambda: 0.0), Changes(lambda: 0.0)
        self.links = {Place("", number): Link(number, f"tap{number}", alias) for number, alias in enumerate(aliases, 1)}
        resolver = Resolver([Alias()])
        self.enrolment = Enrolment(
            self.datapath, Slots(4096), resolver, self.links, ("tap*",), lambda i: self.operations.policy_of(i),
            lambda port, here: None, lambda: 0.0,
        )  # fmt: skip
        self.signing = Signing(folder / "token.keys", lambda: 1e9, self.workers.keys)
        kernel = SimpleNamespace(datapath=self.datapath, fallback="")
        self.operations = AgentOperations(
            config, self.store, kernel, self.enrolment, resolver, self.workers, self.journal, self.changes,
            self.policies, Policy(), self.signing, list, (NOBODY, NOBODY),
        )  # type: ignore[arg-type]  # fmt: skip

    @property
    def audited(self) -> list[tuple[str, str, str]]:
        """The trail: who, what, which."""
        return [(row.who, row.what, row.detail) for row in self.store.audits()]

    async def noted(self) -> list[str]:
        """The journal's texts."""
        return [event.text for event in (await self.journal.after(0, 0)).events]


Story = Callable[[Host], Coroutine[None, None, None]]


def tell(folder: Path, story: Story, config: bytes = b"", **more: Iterable[str]) -> None:
    """Tells a story of a host with this configuration. Another one in the same folder is after a restart."""

    async def whole() -> None:
        host = Host(folder, parse(config, "m.toml"), **more)
        try:
            await host.enrolment.settle()
            host.operations.plan_all()
            await asyncio.wait_for(story(host), 30)
        finally:
            host.store.close()

    asyncio.run(whole())


async def soon(holds: Callable[[], object], seconds: float = 5.0) -> None:
    """Returns once that holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)
