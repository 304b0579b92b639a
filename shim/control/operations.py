"""What the control API asks of the agent. The agent implements it; tests have one in memory."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from shim.control import shapes
from shim.core.policy import Access, Family


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

    async def set_policy(
        self, instance: UUID, access: Access | None, families: frozenset[Family], hop_limit: int | None
    ) -> shapes.PolicyView:
        """Change what is not None, and return when the kernel enforces it."""

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
