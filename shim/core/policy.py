"""What an instance may do: the policy an operator sets and the kernel enforces. PURE."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from shim.core.closure import WHOLE

HOP_LIMIT_DEFAULT = 64


class Family(enum.Enum):
    """An address family, as operators name it."""

    V4 = "4"
    V6 = "6"


_V4 = Family.V4  # reaching it by its class takes 0.1 µs (Python 3.11), and every request asks


class Access(enum.Enum):
    """What happens to an instance's metadata requests over one address family.

    OPEN lets them through. RESET answers each with a TCP reset, DROP with nothing. FORBID lets packets
    pass and the proxy answers 403, for clients that stop at a 403 but retry a reset for minutes.
    """

    OPEN = "open"
    RESET = "reset"
    DROP = "drop"
    FORBID = "403"


class Tokens(enum.Enum):
    """What session tokens (IMDSv2) are to an instance: not given out, honoured, or asked of every request."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Composition(enum.Enum):
    """How an instance's sources become its user-data: all in one archive, or the document's (or the backend's) own
    untouched, with the others as vendor data."""

    MERGED = "merged"
    VENDOR = "vendor"


Routes = tuple[tuple[str, str], ...]
"""(path prefix, backend) of one instance: all of its routes, in place of the host's."""


@dataclass(frozen=True, slots=True)
class Auto:
    """When an instance is disabled without anybody's doing, by `how` over both families: at `until` (Unix seconds),
    once it has read its user-data to the last byte, once it says that it is ready; whatever comes first."""

    how: Access = Access.RESET
    until: float | None = None
    on_read: bool = False
    on_ready: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """One instance's policy: access by family, and the hop limit (TTL, 1 to 64) that replies leave with.

    `tokens`, `routes` and `composition` are the proxy's matter; None is what holds for the host. `closed` are prefixes
    and topics (shim.core.closure) that operators closed, `latched` those that the guest closed, which it cannot open.
    """

    v4: Access = Access.OPEN
    v6: Access = Access.OPEN
    hop_limit: int = HOP_LIMIT_DEFAULT
    tokens: Tokens | None = None
    routes: Routes | None = None
    composition: Composition | None = None
    closed: tuple[str, ...] = ()
    latched: tuple[str, ...] = ()
    auto: Auto | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.hop_limit <= 64:
            raise ValueError(f"hop limit {self.hop_limit} is not within 1 to 64")

    def access(self, family: Family) -> Access:
        """The access over one family."""
        return self.v4 if family is _V4 else self.v6

    def with_latches(self, latched: tuple[str, ...]) -> Policy:
        """This policy with what the guest closed. Where that is all, the kernel refuses what else would pass."""
        policy = replace(self, latched=latched)
        if WHOLE not in latched:
            return policy
        passing = (Access.OPEN, Access.FORBID)
        return replace(
            policy,
            v4=Access.RESET if self.v4 in passing else self.v4,
            v6=Access.RESET if self.v6 in passing else self.v6,
        )

    def with_access(self, access: Access, families: frozenset[Family]) -> Policy:
        """This policy with `access` over each of `families`."""
        return replace(
            self,
            v4=access if Family.V4 in families else self.v4,
            v6=access if Family.V6 in families else self.v6,
        )
