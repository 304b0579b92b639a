"""What the agent and the proxy's workers say to each other: JSON lines over a Unix socket. PURE.

Agent to worker: Keys and Table (the whole, at first), Put, Gone, Changed, Told, Explain, Finish. Worker to agent:
Hello, Done (a Table, Put, Gone, Keys or Changed of that `number` is in force), Asked, Explained, Load, Totals, Usage,
Backends. What is counted is told as sums since the worker began, so that nothing is lost with a message. The worker
parses what guests send, so the agent believes none of it: its messages are bounded, carry numbers and the names of what
is configured, texts that are passed on to operators and no more (why an address of a backend is not well, and what a
request would get: shim.core.prospect), and what a guest asks to have written (shim.core.ask), as opaque bytes.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from shim.core.ask import Ask, Outcome
from shim.core.prospect import Course, Question
from shim.http.limits import Limits
from shim.settings import Forward, Http, Kv, Nova, Sources

LINE_BYTES = 1 << 19
"""The longest line a worker may send: that of a value of 256 KiB, in base64."""

PROTOCOL = 4
"""What this version speaks. A worker of another one, which a former agent left, is ended and another one started."""

CODES = ("2xx", "3xx", "4xx", "5xx", "other")
TOKENS = ("with", "without", "refused")
"""What became of a request's session token: there was a good one, there was none, or it was turned away for it."""
COUNTS = (*CODES, "bytes", *TOKENS, "limited")
"""What is counted of a guest, in the order of Counts: requests by class of status, bytes of the bodies they were
answered with, requests by their token, and those that were answered 429."""
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds; one more bucket has what took longer."""
SPENT = len(CODES) + 1 + len(BUCKETS) + 1
OWNERS_PER_LINE = 50  # what the agent can take in within half a millisecond, and far from LINE_BYTES

Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Counts = Annotated[tuple[Number, ...], Meta(min_length=len(COUNTS), max_length=len(COUNTS))]
Spent = Annotated[tuple[Number, ...], Meta(min_length=SPENT, max_length=SPENT)]
"""Of a backend: requests by CODES, microseconds that they took in all, and how many took as long as each of BUCKETS."""
Name = Annotated[str, Meta(max_length=32)]


class Task(msgspec.Struct, frozen=True):
    """What a worker is started with: listening sockets by descriptor, who to be, its limits, and who answers.

    It holds no secret: any user may read a process's arguments.
    """

    sockets: list[int]
    feed: str
    store: str
    uid: int
    gid: int
    limits: Limits
    level: str
    access_rate: int
    request_rate: int
    request_burst: int
    tokens: str
    forward: Forward
    nova: Nova
    http: Http
    sources: Sources
    kv: Kv


class Entry(msgspec.Struct, frozen=True):
    """Whose a slot is, and what it may do; access, tokens, routes and composition as in shim.core.policy.

    `closed` is by operators and by the guest. `until` is when it is disabled (Unix seconds), `on_read` whether the
    agent is to be told when it has read its user-data."""

    slot: int
    generation: int
    instance: UUID
    v4: str
    v6: str
    tokens: str | None = None
    routes: tuple[tuple[str, str], ...] | None = None
    project: str = ""
    address: str = ""
    composition: str | None = None
    closed: tuple[str, ...] = ()
    until: float | None = None
    on_read: bool = False
    name: str = ""
    flavor: str = ""


class Table(msgspec.Struct, frozen=True, tag=True):
    """All slots; those not named are nobody's."""

    number: int
    entries: list[Entry]


class Put(msgspec.Struct, frozen=True, tag=True):
    """One slot has this entry now."""

    number: int
    entry: Entry


class Gone(msgspec.Struct, frozen=True, tag=True):
    """One slot is nobody's any more: end its connections."""

    number: int
    slot: int
    generation: int


class Keys(msgspec.Struct, frozen=True, tag=True):
    """The keys of session tokens, (id, key), the one that signs first. No others hold any more."""

    number: int
    keys: tuple[tuple[int, bytes], ...]


class Changed(msgspec.Struct, frozen=True, tag=True):
    """The store has changed: look what did."""

    number: int


class Told(msgspec.Struct, frozen=True, tag=True):
    """What became of an Asked of that number, of this worker's."""

    number: int
    outcome: Outcome


class Explain(msgspec.Struct, frozen=True, tag=True):
    """Say what a request of the entry's instance would get, with nothing of it happening.

    `entry` of slot 0 is no slot's: the instance has no tap. `latched` are those of its `closed` that the guest closed.
    """

    number: int
    entry: Entry
    question: Question
    latched: tuple[str, ...] = ()


class Finish(msgspec.Struct, frozen=True, tag=True):
    """Accept no more, as a successor does; end what is open within `grace` seconds, then exit."""

    grace: float


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first that a worker says. `protocol` was not told by the first version."""

    pid: int
    protocol: int = 1


class Done(msgspec.Struct, frozen=True, tag=True):
    """The message of that number is in force."""

    number: int


class Asked(msgspec.Struct, frozen=True, tag=True):
    """What the guest of a slot asks to have written."""

    number: Number
    slot: Number
    generation: Number
    ask: Ask


class Explained(msgspec.Struct, frozen=True, tag=True):
    """What an Explain of that number comes to, from the worker on."""

    number: Number
    course: Course


class Load(msgspec.Struct, frozen=True, tag=True):
    """How much a worker has to do: connections open now, and requests that wait for a change; since it began: requests,
    connections, and connections that were over a limit."""

    connections: Number
    requests: Number
    accepted: Number = 0
    turned_away: Number = 0
    watches: Number = 0


class Totals(msgspec.Struct, frozen=True, tag=True):
    """What all guests together had of a worker since it began. Backend "" is the proxy itself."""

    counts: Counts
    malformed: Number
    backends: Annotated[dict[Name, Spent], Meta(max_length=16)]


class Usage(msgspec.Struct, frozen=True, tag=True):
    """What some owners of slots had of a worker since it began: (slot, generation, counts)."""

    owners: Annotated[list[tuple[Number, Number, Counts]], Meta(max_length=OWNERS_PER_LINE)]


class AddressHealth(msgspec.Struct, frozen=True):
    """What a worker thinks of an address, as configured, of a backend. `why` is empty while it is well."""

    backend: Name
    address: str
    healthy: bool
    why: str = ""


class Backends(msgspec.Struct, frozen=True, tag=True):
    """All addresses of all backends."""

    addresses: Annotated[list[AddressHealth], Meta(max_length=64)]


ToWorker = Table | Put | Gone | Keys | Changed | Told | Explain | Finish
ToAgent = Hello | Done | Asked | Explained | Load | Totals | Usage | Backends

_encoder = msgspec.json.Encoder()
_to_worker: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
_to_agent: msgspec.json.Decoder[ToAgent] = msgspec.json.Decoder(ToAgent)


def encode(message: ToWorker | ToAgent) -> bytes:
    """A message as its line."""
    return _encoder.encode(message) + b"\n"


def read_from_agent(line: bytes) -> ToWorker:
    """A line of the agent's. Raises ValueError (msgspec.MsgspecError)."""
    return _to_worker.decode(line)


def read_from_worker(line: bytes) -> ToAgent:
    """A line of a worker's. Raises ValueError (msgspec.MsgspecError)."""
    return _to_agent.decode(line)
