"""What an instance would be given, part by part, and what cloud-init makes of it: for operators. PURE.

Nothing is used up by it. YAML is read in it, so it is for an unprivileged process: see shim.rehearse.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from shim.core.source import Kind
from shim.metadata.compose import Composed, Unready, compose_user, compose_vendor, parts, said
from shim.metadata.merge import Problem, merged
from shim.metadata.parts import Part
from shim.metadata.view import View

CONFIG_BYTES = 1 << 20
"""The most of the merged cloud-config that is shown."""


class PartShown(msgspec.Struct, frozen=True):
    """One part, as it goes to the guest.

    scope   as operators write it, empty for the document's own and the backend's
    type    as in `text/cloud-config`
    text    the bytes (of a template: rendered), None where they are no UTF-8
    """

    id: str
    scope: str
    name: str
    owner: str
    order: int
    type: str
    merge: str
    template: bool
    reads: str
    until: float | None
    bytes: int
    text: str | None


class KeyShown(msgspec.Struct, frozen=True):
    """A top-level key of the merged cloud-config: ids of the parts whose values are in it, in order, and of those
    whose values are not."""

    key: str
    parts: list[str]
    lost: list[str]


class Data(msgspec.Struct, frozen=True):
    """User-data, or vendor data.

    keys      of the merged cloud-config, sorted; config: that as YAML, empty where no part is cloud-config
    bytes     that the guest would be sent, 0 if it cannot be composed; gzipped: whether they are gzip
    """

    parts: list[PartShown]
    keys: list[KeyShown]
    problems: list[Problem]
    config: str
    bytes: int
    gzipped: bool


class Preview(msgspec.Struct, frozen=True):
    """Of one instance. `limit` is the view's, in bytes."""

    instance: UUID
    composition: str
    limit: int
    user: Data
    vendor: Data


def preview(view: View, backend: bytes | None = None) -> Preview:
    """All of an instance; `backend` as in shim.metadata.compose. Raises nothing."""
    user, vendor = (_data(view, kind, backend) for kind in (Kind.USER, Kind.VENDOR))
    return Preview(view.instance, view.composition.value, view.limit, user, vendor)


def check(view: View, backend: bytes | None = None) -> list[Problem]:
    """What keeps an instance from being given its user-data or vendor data; of the rest, what is grave."""
    both = (_data(view, kind, backend) for kind in (Kind.USER, Kind.VENDOR))
    return [problem for data in both for problem in data.problems if problem.grave]


def _data(view: View, kind: Kind, backend: bytes | None) -> Data:
    faults: list[Unready] = []
    every = parts(view, kind, backend, faults)
    composed: Composed | None = None
    try:
        composed = compose_user(every, view.limit) if kind is Kind.USER else compose_vendor(every)
    except Unready as fault:
        faults.append(fault)
    outcome = merged(said(every))
    return Data(
        [_shown(part) for part in every],
        [
            KeyShown(key, list(outcome.winners.get(key, ())), list(outcome.lost.get(key, ())))
            for key in sorted(outcome.winners.keys() | outcome.lost.keys())
        ],
        [Problem(fault.source, fault.why) for fault in faults] + outcome.problems,
        _written(outcome.config),
        len(composed.body) if composed is not None else 0,
        composed is not None and composed.gzipped,
    )


def _written(config: dict[object, object]) -> str:
    from shim.metadata.cloud_config import dump

    text = dump(config) if config else ""
    return text if len(text) <= CONFIG_BYTES else f"# longer than {CONFIG_BYTES} characters\n"


def _shown(part: Part) -> PartShown:
    try:
        text: str | None = part.body.decode()
    except UnicodeDecodeError:
        text = None
    return PartShown(
        part.id, part.scope, part.name, part.owner, part.order, part.content_type, part.merge, part.template,
        part.reads.value, part.until, len(part.body), text,
    )  # fmt: skip
