"""The JSON of the control API, shared by its two ends. Namespaces are by name, empty for the agent's own.

Access is `open`, `reset`, `drop` or `403`; times are Unix seconds. Members may be added, never renamed.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

MAX_BODY = 1048576
"""Bytes of a request's body: user-data and vendor data with room to spare."""


class AutoView(msgspec.Struct, frozen=True):
    """When an instance will be disabled without anybody's doing, and how: see shim.core.policy.Auto."""

    how: str
    until: float | None = None
    on_read: bool = False
    on_ready: bool = False


class PolicyView(msgspec.Struct, frozen=True):
    """The policy in force for an instance. `own`: an operator set it; else it is the configured default.

    v4, v6      as enforced: where the guest locked all (`/` in `latched`) refused, whatever an operator set
    tokens      off, optional or required; routes: the backend by path prefix; composition: merged or vendor. Of these
                three it is said apart (`own_…`) whether an operator set them
    closed      prefixes and topics that operators closed; latched: those that the guest closed
    auto        None where there is none, and once it has happened
    """

    v4: str
    v6: str
    hop_limit: int
    own: bool
    tokens: str = "optional"
    routes: dict[str, str] = {}
    own_tokens: bool = False
    own_routes: bool = False
    closed: list[str] = []
    latched: list[str] = []
    auto: AutoView | None = None
    composition: str = "merged"
    own_composition: bool = False


STATES = ("serving", "refused", "no-identity", "failed")


class PortView(msgspec.Struct, frozen=True):
    """One guarded tap. `instance` is None where no source knows one: such a port is refused.

    `source` says who named the instance, `conflict` who disagrees. `state` is one of STATES: refused (by policy),
    failed (`error` says why; nothing passes). `name` to `mac` are what that source says beside, where it does: of the
    instance, and of the tap, whose port in the network's own words is `port_id`.
    """

    tap: str
    netns: str
    ifindex: int
    slot: int | None
    generation: int
    instance: UUID | None
    source: str
    state: str
    v4: str
    v6: str
    conflict: str = ""
    error: str = ""
    name: str = ""
    flavor: str = ""
    project: str = ""
    address: str = ""
    port_id: str = ""
    mac: str = ""


class PortsView(msgspec.Struct, frozen=True):
    """GET /v1/ports."""

    ports: list[PortView]


class InstanceSummary(msgspec.Struct, frozen=True):
    """An instance with a port, a document or a policy of its own. `revision` 0: no document."""

    instance: UUID
    policy: PolicyView
    taps: list[str]
    revision: int = 0


class InstancesView(msgspec.Struct, frozen=True):
    """GET /v1/instances."""

    instances: list[InstanceSummary]


class ReportsView(msgspec.Struct, frozen=True):
    """When a guest last said that it is ready, and last read its user-data to the last byte; None: never."""

    ready: float | None = None
    read: float | None = None


class InstanceView(msgspec.Struct, frozen=True):
    """GET /v1/instances/<uuid>. `document` is None (revision 0) when no operator wrote one.

    `sources` are the ids (Source.id, as in `host/base`) of all that it can read, user-data's and vendor data's, as
    they are composed; `keys` is how many it has in the store, host/ and guest/ together.
    """

    instance: UUID
    policy: PolicyView
    ports: list[PortView]
    revision: int = 0
    document: dict[str, Any] | None = None
    sources: list[str] = []
    reports: ReportsView = ReportsView()
    keys: int = 0


class RevisionView(msgspec.Struct, frozen=True):
    """The answer to a document that was put."""

    instance: UUID
    revision: int


class UnlockedView(msgspec.Struct, frozen=True):
    """The answer to POST /v1/instances/<uuid>/unlock: what the guest had locked and is open again, and the policy
    in force now."""

    opened: list[str]
    policy: PolicyView


class AttachmentView(msgspec.Struct, frozen=True):
    """One tap that an operator attached to an instance."""

    tap: str
    instance: UUID
    netns: str = ""


class AttachmentsView(msgspec.Struct, frozen=True):
    """GET /v1/attachments."""

    attachments: list[AttachmentView]


class CounterView(msgspec.Struct, frozen=True):
    """Packets of one port by the label of their verdict; zeros are left out."""

    tap: str
    netns: str
    instance: UUID | None
    counters: dict[str, int]


class CountersView(msgspec.Struct, frozen=True):
    """GET /v1/counters."""

    ports: list[CounterView]


class TokenUseView(msgspec.Struct, frozen=True):
    """What session tokens are to one instance, and its requests: let through with a token and without one, and
    refused for the lack of a valid one. Requests are counted from the workers' start."""

    instance: UUID
    mode: str
    own: bool
    with_token: int
    without_token: int
    token_refused: int


class TokensView(msgspec.Struct, frozen=True):
    """GET /v1/tokens. `mode` is what holds for instances that have none of their own."""

    mode: str
    instances: list[TokenUseView]


class KeysView(msgspec.Struct, frozen=True):
    """The answer to a rotation: how many keys tokens hold by, the new one among them, and in how many seconds that
    one begins to sign."""

    keys: int
    begins_seconds: float


class EventView(msgspec.Struct, frozen=True):
    """Something that happened. `kind` is refusal (`reason`: the verdict), port, policy, proxy, agent."""

    seq: int
    time: float
    kind: str
    text: str
    tap: str = ""
    netns: str = ""
    instance: UUID | None = None
    reason: str = ""


class EventsView(msgspec.Struct, frozen=True):
    """GET /v1/events: oldest first. `next` is the next `after`; `missed` were gone unread."""

    events: list[EventView]
    next: int
    missed: int = 0


class AuditRow(msgspec.Struct, frozen=True):
    """One thing that somebody did. `instance` None: it concerns the host, or several.

    `who`: an operator as in `root (uid 0)`, `guest`, or `agent` (an auto that came due); `what`: a word or two, as in
    `disable`, `lock`, `source put`; `detail`: a line.
    """

    seq: int
    time: float
    who: str
    instance: UUID | None
    what: str
    detail: str = ""


class AuditView(msgspec.Struct, frozen=True):
    """GET /v1/audit: oldest first. `next` is the next `after`: the last row's `seq`, or what was asked for."""

    rows: list[AuditRow]
    next: int


class Ailment(msgspec.Struct, frozen=True):
    """One thing that is not well: which part, what, and what to do."""

    part: str
    what: str
    hint: str = ""


class WorkerView(msgspec.Struct, frozen=True):
    """One worker of the proxy. `pid` is 0 while it is down."""

    pid: int
    connections: int
    restarts: int


class BackendView(msgspec.Struct, frozen=True):
    """One address of a backend that requests are forwarded to. `why` says why it is not healthy."""

    name: str
    address: str
    healthy: bool
    why: str = ""


class SourceView(msgspec.Struct, frozen=True):
    """A source of identity, in the configured order: what is wrong with it, and for how many taps it is believed."""

    name: str
    what: str = ""
    taps: int = 0

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.what


class StatusView(msgspec.Struct, frozen=True):
    """GET /v1/status. `ailments` is empty when all is well; `states` counts ports by their state.

    `fallback` says why the datapath is not eBPF where the configuration leaves the choice, `lacks` what of the
    contract this datapath cannot do. `tokens` and `routes` hold for instances that have none of their own.
    """

    version: str
    pid: int
    uptime_seconds: float
    datapath: str
    service_addresses: list[str]
    service_ports: list[int]
    instances: int
    states: dict[str, int]
    workers: list[WorkerView]
    ailments: list[Ailment]
    fallback: str = ""
    lacks: list[str] = []
    tokens: str = "optional"
    routes: dict[str, str] = {}
    backends: list[BackendView] = []
    sources: list[SourceView] = []


class Problem(msgspec.Struct, frozen=True):
    """Every answer of status 400 and above: what happened, and what to do."""

    error: str
    hint: str = ""
