"""What the control API asks of the agent. The agent implements it; tests have one in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from msgspec import UNSET, UnsetType

from shim.control import shapes
from shim.core.policy import Access, Family, Policy, Routes, Tokens


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What of a policy an operator changes: access over `families`, and what else is given.

    `tokens` and `routes` of None are a change too: what holds for the host is to hold again.
    """

    access: Access | None = None
    families: frozenset[Family] = frozenset(Family)
    hop_limit: int | None = None
    tokens: Tokens | UnsetType | None = UNSET
    routes: Routes | UnsetType | None = UNSET

    def of(self, before: Policy) -> Policy:
        """The policy that it makes of one."""
        after = before if self.access is None else before.with_access(self.access, self.families)
        return replace(
            after,
            hop_limit=after.hop_limit if self.hop_limit is None else self.hop_limit,
            tokens=after.tokens if self.tokens is UNSET else self.tokens,
            routes=after.routes if self.routes is UNSET else self.routes,
        )


class Operations(Protocol):
    """What the agent does for operators. Any method may raise an error of shim.errors, nothing changed."""

    async def status(self) -> shapes.StatusView:
        """How the agent, the datapath and the proxy are."""

    async def ports(self) -> list[shapes.PortView]:
        """Every guarded tap."""

    async def instances(self) -> list[shapes.InstanceSummary]:
        """Every instance with a port, a document or a policy of its own."""

    async def instance(self, instance: UUID) -> shapes.InstanceView:
        """One of them. Raises NotFoundError for any other."""

    async def put_document(self, instance: UUID, raw: bytes) -> int:
        """Keep an instance's document (JSON) and return its revision. Raises InputError."""

    async def delete_instance(self, instance: UUID) -> None:
        """Forget an instance's document and its own policy: the default holds then. Raises NotFoundError."""

    async def policy(self, instance: UUID) -> shapes.PolicyView:
        """The policy in force, for any uuid: instances may get a policy before they are seen."""

    async def set_policy(self, instance: UUID, change: PolicyChange) -> shapes.PolicyView:
        """Change it, and return when kernel and proxy enforce it. Raises InputError: a backend is not set up."""

    async def tokens(self) -> shapes.TokensView:
        """What session tokens are to each known instance, and what it made of that so far."""

    async def rotate_keys(self, drop: bool) -> shapes.KeysView:
        """Make a new key for tokens, and return when every worker knows it. `drop`: no token given before holds."""

    async def attachments(self) -> list[shapes.AttachmentView]:
        """What operators attached by hand."""

    async def attach(self, netns: str, tap: str, instance: UUID) -> None:
        """Say that a tap is an instance's; again is fine. Raises ConflictError if attached to another."""

    async def detach(self, netns: str, tap: str) -> None:
        """Take that back. Raises NotFoundError."""

    async def counters(self, instance: UUID | None, netns: str, tap: str | None) -> list[shapes.CounterView]:
        """The counters of all ports, of one instance's, or of one tap. Raises NotFoundError."""

    async def events(self, after: int, wait: float) -> shapes.EventsView:
        """Events with a sequence above `after`, waiting up to `wait` seconds for the first.

        A sequence above any known is from before a restart: all that are known are the answer.
        """
