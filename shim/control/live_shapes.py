"""The JSON of the control API that is about sources and keys, as shapes.py has the rest. Times are Unix seconds.

The core's own are imported late: every verb imports this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

if TYPE_CHECKING:
    from shim.core.kv import Value
    from shim.core.source import Source


def text_or_base64(body: bytes) -> tuple[str | None, str | None]:
    """Bytes as text; those that are none in base64."""
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        import base64

        return None, base64.b64encode(body).decode()


class SourceView(msgspec.Struct, frozen=True):
    """A source without its body: what shim.core.source.Source is, `scope` as Scope.text writes it, and its body's
    size and entity tag."""

    scope: str
    name: str
    kind: str
    owner: str
    order: int
    merge: str
    template: bool
    reads: str
    until: float | None
    origin: str
    bytes: int
    etag: str
    revision: int
    changed: float

    @classmethod
    def of(cls, source: Source) -> SourceView:
        """Of a source."""
        from shim.core.kv import etag as etag_of

        return cls(
            scope=source.scope.text,
            name=source.name,
            kind=source.kind.value,
            owner=source.owner,
            order=source.order,
            merge=source.merge,
            template=source.template,
            reads=source.reads.value,
            until=source.until,
            origin=source.origin,
            bytes=len(source.body),
            etag=etag_of(source.body),
            revision=source.revision,
            changed=source.changed,
        )


class SourcesView(msgspec.Struct, frozen=True):
    """GET /v1/sources, as they are composed."""

    sources: list[SourceView]


class SourceBodyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """GET /v1/sources/<scope>/<name> for who accepts JSON alone: `body` where that is text, else `body_base64`."""

    source: SourceView
    body: str | None = None
    body_base64: str | None = None

    @classmethod
    def of(cls, source: Source) -> SourceBodyView:
        """Of a source."""
        return cls(SourceView.of(source), *text_or_base64(source.body))


class SourceWrittenView(msgspec.Struct, frozen=True):
    """The answer to a source that was put. `problems`: what does not go well with it now, in words that name the
    instance: a template that cannot be rendered for one, a cloud-config that cannot be read."""

    source: SourceView
    created: bool
    problems: list[str] = []


class PartView(msgspec.Struct, frozen=True):
    """One part of composed data, as it goes to the guest.

    id      as guests see it; scope: as operators write it, empty for the document's own and the backend's
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


class KeyView(msgspec.Struct, frozen=True):
    """A top-level key of the merged cloud-config: ids of the parts whose values are in it, in order, and of those
    whose value another part replaced."""

    key: str
    parts: list[str]
    lost: list[str] = []


class PartProblem(msgspec.Struct, frozen=True):
    """What is wrong with a part (its id), or with all of them together (empty), in words."""

    id: str
    what: str


class DataView(msgspec.Struct, frozen=True):
    """User-data, or vendor data, as the instance would be given it now.

    keys      of the merged cloud-config, sorted; config: that as YAML, empty where no part is cloud-config
    problems  empty where all is well; what is too large is one
    bytes     that the guest would be sent; gzipped: whether they are gzip
    """

    parts: list[PartView]
    keys: list[KeyView] = []
    problems: list[PartProblem] = []
    config: str = ""
    bytes: int = 0
    gzipped: bool = False


class PreviewView(msgspec.Struct, frozen=True):
    """GET /v1/instances/<uuid>/userdata. Nothing of it is used up by this. `limit` is in bytes, of each of the two."""

    instance: UUID
    composition: str
    limit: int
    user: DataView
    vendor: DataView


class ValueView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key's value: `value` where that is text, else `value_base64`. A listing is an object of these by key."""

    etag: str
    revision: int
    changed: float
    value: str | None = None
    value_base64: str | None = None
    reads: str = "many"
    until: float | None = None

    @classmethod
    def of(cls, value: Value) -> ValueView:
        """Of a value."""
        text, base64 = text_or_base64(value.body)
        return cls(value.etag, value.revision, value.changed, text, base64, value.reads.value, value.until)


class KeyWrittenView(msgspec.Struct, frozen=True):
    """The answer to a key that was put."""

    key: str
    etag: str
    revision: int
    created: bool


class ChangeView(msgspec.Struct, frozen=True):
    """A key of an instance's that changed. `op`: put, or delete (by somebody, or because it is used up); a key whose
    time is over is not told. `etag` and `bytes` are the new value's, empty and 0 of a delete."""

    seq: int
    time: float
    instance: UUID
    key: str
    op: str
    etag: str = ""
    bytes: int = 0


class ChangesView(msgspec.Struct, frozen=True):
    """GET /v1/kv/changes: oldest first. `next` is the next `after`; `missed`, of all instances, were gone unread."""

    changes: list[ChangeView]
    next: int
    missed: int = 0
