"""What the agent and the proxy's workers say to each other: JSON lines over a Unix socket. PURE.

Agent to worker: Keys and Table (the whole, at first), Put, Gone, Finish. Worker to agent: Hello, Done (a Table,
Put, Gone or Keys of that `number` is in force), Load. The worker parses what guests send, so the agent
believes none of it: its messages carry numbers only, and are bounded.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from shim.http.limits import Limits

LINE_BYTES = 1 << 16
"""The longest line a worker may send."""


class Task(msgspec.Struct, frozen=True):
    """What a worker is started with: listening sockets by descriptor, who to be, and its limits."""

    sockets: list[int]
    feed: str
    store: str
    uid: int
    gid: int
    limits: Limits
    level: str


class Entry(msgspec.Struct, frozen=True):
    """Whose a slot is, and what it may do; access, tokens and routes as in shim.core.policy."""

    slot: int
    generation: int
    instance: UUID
    v4: str
    v6: str
    tokens: str | None = None
    routes: tuple[tuple[str, str], ...] | None = None
    project: str = ""
    address: str = ""


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


class Finish(msgspec.Struct, frozen=True, tag=True):
    """Accept no more, end what is begun within `grace` seconds, then exit."""

    grace: float


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first that a worker says."""

    pid: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The message of that number is in force."""

    number: int


class Load(msgspec.Struct, frozen=True, tag=True):
    """How much a worker has to do."""

    connections: int
    requests: int


ToWorker = Table | Put | Gone | Keys | Finish
ToAgent = Hello | Done | Load

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
