"""Why a request of an instance's gets what it gets, from its tap to the proxy; what follows there a worker says.

The agent knows whose a tap is and what the kernel does with it. It renders nothing of guests and parses nothing for
them: shim.dry_run does, in a worker, whose words are passed on as they are.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from shim.config import Config
from shim.control.shapes import AuditRow, AutoView, PolicyView, PortView
from shim.control.why_shapes import WhyView
from shim.core.closure import WHOLE
from shim.core.policy import HOP_LIMIT_DEFAULT, Access, Family, Policy
from shim.core.prospect import Course, Part, Prospect, Question, Rule, cut

DOUBTS = 8
"""Taps that are spoken of beside the one that is an instance's."""

_CHANGES = ("policy", "disable", "forget")
"""Of the audit trail: what may have changed who is let in."""


@dataclass(frozen=True)
class Facts:
    """What the agent knows of an instance.

    ports    the taps that are its, those first that are as they should be
    doubts   in words, what is said of other taps that name it: not enrolled, or claimed by a better source elsewhere
    own      the policy that operators set, whatever the guest locked; `policy` is what is wanted in all
    changed  who last changed that, if anybody did
    limited  connections of the first tap that the kernel refused as too many
    workers  how many there are to be
    """

    ports: list[PortView]
    doubts: list[str]
    policy: PolicyView
    own: Policy
    changed: AuditRow | None
    limited: int
    workers: int


Ask = Callable[[], Awaitable[Course | None]]
"""What a worker says; None where none answers."""


@dataclass(frozen=True)
class Met:
    """Rules of one place; `prospect` where the last one decides."""

    rules: list[Rule]
    prospect: Prospect | None = None


async def explain(instance: UUID, config: Config, facts: Facts, question: Question, ask: Ask) -> WhyView:
    """The course of a request by the first of the taps."""
    tap = _tap(facts)
    beyond = await _beyond(config, facts, question, ask)
    met = Course((*tap.rules, *beyond.rules), beyond.prospect)
    if tap.prospect is not None:
        met = Course(tuple(tap.rules), tap.prospect)
    return WhyView(
        instance, question.family, question.method, question.target, met.rules, met.prospect,
        facts.ports[0].tap if facts.ports else "", facts.ports[0].netns if facts.ports else "",
        beyond if tap.prospect is not None else None,
    )  # fmt: skip


async def _beyond(config: Config, facts: Facts, question: Question, ask: Ask) -> Course:
    """From the kernel on."""
    kernel = _kernel(config, facts, question)
    if kernel.prospect is not None:
        return Course(tuple(kernel.rules), kernel.prospect)
    told = await ask() or _nobody(facts)
    return Course((*kernel.rules, *told.rules), told.prospect)


def _rule(part: Part, name: str, says: str, where: str = "", *, decides: bool = False) -> Rule:
    return Rule(part, name, cut(says), where, decides)


def last_change(rows: list[AuditRow]) -> AuditRow | None:
    """The last row of an instance's trail that may say who lets it in."""
    return next((row for row in reversed(rows) if row.what in _CHANGES), None)


# The tap.


def _tap(facts: Facts) -> Met:
    doubts = [_rule("tap", "conflict", text, "identity.sources") for text in facts.doubts]
    if not facts.ports:
        says = "no tap here is the instance's: what it sends to the service's addresses is dropped"
        decides = _rule("tap", "identity", says, "metashim attach TAP INSTANCE", decides=True)
        return Met([*doubts, decides], Prospect("dropped", "nothing: it has no tap here"))
    port, *others = facts.ports
    says = f"{_named(port)} is the instance's, as {port.source or 'a former run'} says"
    rules = [_rule("tap", "identity", says, _source(port))]
    if port.conflict:
        rules.append(_rule("tap", "conflict", port.conflict, "identity.sources"))
    if others:
        rules.append(_rule("tap", "others", f"so are {', '.join(map(_named, others))}"))
    if port.error:
        rules.append(_rule("tap", "failed", f"{port.error}; until that is mended the kernel goes by what it had"))
    return Met(rules + doubts)


def _named(port: PortView) -> str:
    return f"{port.tap}{f' in {port.netns}' if port.netns else ''}"


def _source(port: PortView) -> str:
    return "metashim attach" if port.source == "operator" else "identity.sources"


# The kernel.


def _kernel(config: Config, facts: Facts, question: Question) -> Met:
    family = Family(question.family)
    mark = ":" if family is Family.V6 else "."
    if not any(mark in address for address in config.datapath.service_addresses):
        says = f"the service has no IPv{family.value} address"
        decides = _rule("kernel", "address", says, "datapath.service_addresses", decides=True)
        return Met([decides], Prospect("dropped", "nothing: nobody is at such an address"))
    met = _access(facts, family)
    if met.prospect is not None:
        return met
    return Met([*met.rules, *_later(facts.policy.auto), *_bounds(config, facts)])


def _access(facts: Facts, family: Family) -> Met:
    """What the kernel does with the family's packets by policy: by the one that it has, not the one that is wanted."""
    has = facts.ports[0] if facts.ports else facts.policy
    holds = Access(has.v4 if family is Family.V4 else has.v6)
    wanted = facts.policy.v4 if family is Family.V4 else facts.policy.v6
    rules = []
    if wanted != holds.value:
        rules.append(_rule("kernel", "behind", f"the policy says {wanted}; the kernel does not follow yet"))
    locked = WHOLE in facts.policy.latched and facts.own.access(family) in (Access.OPEN, Access.FORBID)
    verb = "disable" if holds is Access.OPEN else "enable"
    name, by, where = "access", _by(facts), f"metashim {verb} INSTANCE --family {family.value}"
    if locked and holds is Access.RESET:
        name, by, where = "lock", "the guest locked all", "metashim unlock INSTANCE"
    elif not facts.policy.own:
        where = "policy.enabled"
    prospect = _REFUSALS.get(holds)
    says = f"IPv{family.value} is {holds.value}: {by}"
    rules.append(_rule("kernel", name, says, where, decides=prospect is not None))
    return Met(rules, prospect)


_REFUSALS = {
    Access.RESET: Prospect("reset", "TCP reset: connection refused"),
    Access.DROP: Prospect("dropped", "nothing: the kernel drops its packets"),
}


def _by(facts: Facts) -> str:
    """Who says so."""
    if not facts.policy.own:
        return "as instances are that have no policy of their own"
    row = facts.changed
    return f"the policy was last changed by {row.who} at {_when(row.time)}" if row else "by its own policy"


def _later(auto: AutoView | None) -> list[Rule]:
    if auto is None:
        return []
    times = (
        f"at {_when(auto.until)}" if auto.until is not None else "",
        "once its user-data was read" if auto.on_read else "",
        "once the guest says that it is ready" if auto.on_ready else "",
    )
    says = f"will be {auto.how} {', or '.join(filter(None, times))}"
    return [_rule("kernel", "auto", says, "metashim auto INSTANCE --never")]


def _bounds(config: Config, facts: Facts) -> list[Rule]:
    """What may still refuse a connection, though nothing says that it does."""
    path = config.datapath
    refused = f"; {facts.limited} were refused so far" if facts.limited else ""
    says = f"{path.connection_rate} connections a second, {path.connection_burst} at once{refused}"
    rules = [_rule("kernel", "rate", says, "datapath.connection_rate, datapath.connection_burst")]
    if facts.policy.hop_limit != HOP_LIMIT_DEFAULT:
        says = f"replies leave with {facts.policy.hop_limit}: they reach nothing behind more routers within the guest"
        rules.append(_rule("kernel", "hop limit", says, "metashim enable INSTANCE --hop-limit"))
    return rules


# The proxy, where it does not speak for itself.


def _nobody(facts: Facts) -> Course:
    says = f"none of {facts.workers} answers: connections wait for one"
    rule = _rule("proxy", "worker", says, "metashim status", decides=True)
    return Course((rule,), Prospect("waits", "waits until a worker of the proxy runs"))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
