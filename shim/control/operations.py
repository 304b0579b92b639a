"""What the control API asks of the agent. The agent implements it; tests have one in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from msgspec import UNSET, UnsetType

from shim.control import live_shapes as live
from shim.control import shapes
from shim.control.trace_shapes import TraceView
from shim.control.why_shapes import WhyView
from shim.core.ask import Etags
from shim.core.kv import Value
from shim.core.policy import Access, Auto, Composition, Family, Policy, Routes, Tokens
from shim.core.prospect import Question
from shim.core.source import Scope, Source
from shim.errors import ConflictError, InputError

CLOSED_MAX = 64
"""Prefixes and topics that operators may close of one instance."""


class ChangedError(ConflictError):
    """A condition (If-Match, If-None-Match) does not hold; nothing was changed."""


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What of a policy an operator changes: access over `families`, and what else is given.

    `tokens`, `routes` and `composition` of None are a change too: what holds for the host is to hold again; `auto` of
    None takes it back. `closed` are all prefixes and topics that are to be closed; or else `close` and `open` say
    which more, and which no longer. All are as parse_prefix gives them.
    """

    access: Access | None = None
    families: frozenset[Family] = frozenset(Family)
    hop_limit: int | None = None
    tokens: Tokens | UnsetType | None = UNSET
    routes: Routes | UnsetType | None = UNSET
    composition: Composition | UnsetType | None = UNSET
    auto: Auto | UnsetType | None = UNSET
    closed: tuple[str, ...] | UnsetType = UNSET
    close: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def of(self, before: Policy) -> Policy:
        """The policy that it makes of one. Raises InputError where more would be closed than may be."""
        after = before if self.access is None else before.with_access(self.access, self.families)
        return replace(
            after,
            hop_limit=after.hop_limit if self.hop_limit is None else self.hop_limit,
            tokens=after.tokens if self.tokens is UNSET else self.tokens,
            routes=after.routes if self.routes is UNSET else self.routes,
            composition=after.composition if self.composition is UNSET else self.composition,
            auto=after.auto if self.auto is UNSET else self.auto,
            closed=self._closed(after.closed if self.closed is UNSET else self.closed),
        )

    def _closed(self, before: tuple[str, ...]) -> tuple[str, ...]:
        closed = tuple(dict.fromkeys(one for one in (*before, *self.close) if one not in self.open))
        if len(closed) > CLOSED_MAX:
            raise InputError(f"{len(closed)} closed prefixes", f"at most {CLOSED_MAX}: close what holds several")
        return closed


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of an instance at one moment, sorted; `seq` is of the last change (see `kv_changes`) that is in them."""

    values: tuple[Value, ...]
    seq: int


class Operations(Protocol):
    """What the agent does for operators. Any method may raise an error of shim.errors, nothing changed.

    `who` is the operator who asks, in a few words for the audit trail, as in `root (uid 0)`.
    """

    async def status(self) -> shapes.StatusView:
        """How the agent, the datapath and the proxy are."""

    async def ports(self) -> list[shapes.PortView]:
        """Every guarded tap."""

    async def instances(self) -> list[shapes.InstanceSummary]:
        """Every instance with a port, a document, a policy, a source or a key of its own."""

    async def instance(self, instance: UUID) -> shapes.InstanceView:
        """One of them. Raises NotFoundError for any other."""

    async def put_document(self, instance: UUID, raw: bytes, *, who: str) -> int:
        """Keep an instance's document (JSON) and return its revision. Raises InputError."""

    async def delete_instance(self, instance: UUID, *, who: str) -> None:
        """Forget an instance's document and its own policy: the default holds then. Raises NotFoundError."""

    async def policy(self, instance: UUID) -> shapes.PolicyView:
        """The policy in force, for any uuid: instances may get a policy before they are seen."""

    async def set_policy(self, instance: UUID, change: PolicyChange, *, who: str) -> shapes.PolicyView:
        """Change it, and return when kernel and proxy enforce it. Raises InputError: a backend is not set up.

        What the guest locked stays locked, whatever is set: `unlock` opens that.
        """

    async def unlock(self, instance: UUID, prefix: str | None, *, who: str) -> shapes.UnlockedView:
        """Open what the guest locked by this very prefix or topic (as parse_prefix gives it), None: all that it locked;
        return when kernel and proxy do. Nothing of the kind is locked: nothing was opened."""

    async def preview(self, instance: UUID) -> live.PreviewView:
        """What any instance would be given as user-data and vendor data now. What cannot be composed or rendered is
        among the problems, and no error."""

    async def why(self, instance: UUID, question: Question) -> WhyView:
        """What a request of an instance's would get and which rules say so; nothing is sent, and nothing is used up.
        Raises NotFoundError for an instance that is not known."""

    async def sources(self, scope: Scope | None, instance: UUID | None) -> list[live.SourceView]:
        """Those of a scope; or those of all scopes that an instance is in, but for the document's own and the
        backend's; or all. As they are composed. What is over, or used up by all that can read it, is not among them."""

    async def source(self, scope: Scope, name: str) -> Source:
        """One of them. Raises NotFoundError. Nothing is used up by this."""

    async def put_source(self, source: Source, *, who: str) -> live.SourceWrittenView:
        """Keep a source, in the place of any before it; `origin`, `revision` and `changed` are not the caller's.

        Returns when no worker shows the former. Raises InputError: a template of wrong syntax, or an instance's
        user-data would be larger than its limit; ConflictError: a watched file is the source of that name.
        """

    async def delete_source(self, scope: Scope, name: str, *, who: str) -> None:
        """Take a source back; returns as put_source does. Raises NotFoundError, ConflictError as put_source."""

    async def kv(self, instance: UUID, prefix: str) -> Keys:
        """The key of that name, or the keys below `prefix` (no slash at its end; empty: all). What is used up or over
        is not among them, and nothing is used up by this. Any uuid will do."""

    async def put_key(
        self,
        instance: UUID,
        value: Value,
        if_match: Etags | None,
        if_none_match: Etags | None,
        *,
        who: str,
    ) -> live.KeyWrittenView:
        """Keep a value (`revision` and `changed` are not the caller's), if the conditions hold; returns when no worker
        shows the former. Raises ChangedError, InputError: too large; ConflictError: it is a folder of another key."""

    async def delete_key(self, instance: UUID, key: str, if_match: Etags | None, *, who: str) -> None:
        """Remove a key, if the condition holds; returns as put_key does. Raises NotFoundError, ChangedError."""

    def trace(self, instance: UUID, *, who: str) -> AsyncGenerator[TraceView, None]:
        """The packets about the service of one known instance, from now on; it ends when that is closed. The first view
        says that it has begun. Raises NotFoundError."""

    async def kv_changes(self, after: int, wait: float, instance: UUID | None, prefix: str) -> live.ChangesView:
        """Changes with a sequence above `after` (of one instance; of keys at or below a prefix, empty: all), waiting
        up to `wait` seconds for the first. `next` is the last sequence known, whoever's that was.

        A sequence above any known is from before a restart: all that are known are the answer.
        """

    async def tokens(self) -> shapes.TokensView:
        """What session tokens are to each known instance, and what it made of that so far."""

    async def rotate_keys(self, drop: bool, *, who: str) -> shapes.KeysView:
        """Make a new key for tokens, and return when every worker knows it. `drop`: no token given before holds."""

    async def attachments(self) -> list[shapes.AttachmentView]:
        """What operators attached by hand."""

    async def attach(self, netns: str, tap: str, instance: UUID, *, who: str) -> None:
        """Say that a tap is an instance's; again is fine. Raises ConflictError if attached to another."""

    async def detach(self, netns: str, tap: str, *, who: str) -> None:
        """Take that back. Raises NotFoundError."""

    async def counters(self, instance: UUID | None, netns: str, tap: str | None) -> list[shapes.CounterView]:
        """The counters of all ports, of one instance's, or of one tap. Raises NotFoundError."""

    async def events(self, after: int, wait: float) -> shapes.EventsView:
        """Events with a sequence above `after`, waiting up to `wait` seconds for the first.

        A sequence above any known is from before a restart: all that are known are the answer.
        """

    async def audit(self, instance: UUID | None, after: int | None, limit: int, wait: float) -> shapes.AuditView:
        """The first `limit` rows of the trail with a sequence above `after` (of one instance), waiting up to `wait`
        seconds for the first; `after` None: the last `limit` of all, at once. Sequences outlive restarts."""
