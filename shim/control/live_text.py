"""Sources, composed user-data, keys and the audit trail as text for people: see text.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shim.control import live_shapes as live
from shim.control import shapes
from shim.control.text import clean, coloured, facts, lines, table, when
from shim.core.source import MERGE_DEFAULT


def sources(views: list[live.SourceView]) -> None:
    """One line a source, in the order of composition."""
    if not views:
        print("no sources: `metashim userdata add host NAME FILE` makes one for all instances")
        return
    rows = [
        (s.scope, s.name, s.kind, s.order, s.owner, s.bytes, when(s.changed), _notes(s) or "-") for s in views
    ]
    table(("SCOPE", "NAME", "KIND", "ORDER", "OWNER", "BYTES", "CHANGED", "NOTES"), rows)


def _notes(source: live.SourceView | live.PartView) -> str:
    """What is not as it is by default."""
    notes = (
        "template" if source.template else "",
        source.reads if source.reads != "many" else "",
        f"until {when(source.until)}" if source.until is not None else "",
        f"merge {source.merge or 'of cloud-init'}" if source.merge != MERGE_DEFAULT else "",
        "watched file" if isinstance(source, live.SourceView) and source.origin == "directory" else "",
    )
    return ", ".join(filter(None, notes))


def preview(view: live.PreviewView, vendor: bool) -> None:
    """All of one of the two data: its parts as they are, who each key is from, and what they become."""
    data, name = (view.vendor, "vendor data") if vendor else (view.user, "user-data")
    size = f"{data.bytes} bytes" + (" as gzip" if data.gzipped else "")
    many = f"{len(data.parts)} part{'' if len(data.parts) == 1 else 's'}, {size}; limit {view.limit}"
    facts(
        [
            ("instance", view.instance),
            ("composition", view.composition),
            (name, many if data.parts else "none"),
        ]
    )
    for part in data.parts:
        _part(part)
    if data.keys:
        _head("keys")
        table(("KEY", "FROM", "REPLACED"), [(k.key, ", ".join(k.parts), ", ".join(k.lost) or "-") for k in data.keys])
    if data.config:
        _head("merged cloud-config")
        _body(data.config)
    if data.problems:
        _head("problems")
        for problem in data.problems:
            print(coloured(clean(f"{problem.id}: {problem.what}" if problem.id else problem.what), "red"))


def _part(part: live.PartView) -> None:
    about = (f"owner {part.owner}", f"order {part.order}", part.type, f"{part.bytes} bytes", _notes(part))
    _head(f"{part.id}: {', '.join(filter(None, about))}")
    if part.text is None:
        print("  (no text)")
    else:
        _body(part.text)


def _head(words: str) -> None:
    print(f"\n{coloured(clean(words), 'cyan')}")


def _body(text: str) -> None:
    for line in lines(text.removesuffix("\n")):
        print(f"  {line}".rstrip())


def keys(values: Mapping[str, live.ValueView]) -> None:
    """One line a key."""
    if not values:
        print("no keys")
        return
    rows = [(key, _size(v), v.etag, when(v.changed), _limits(v) or "-") for key, v in sorted(values.items())]
    table(("KEY", "BYTES", "ETAG", "CHANGED", "NOTES"), rows)


def _size(value: live.ValueView) -> int:
    return len(body_of(value.value, value.value_base64))


def body_of(text: str | None, base64: str | None) -> bytes:
    """The bytes that a view holds as text or in base64."""
    from base64 import b64decode

    return b64decode(base64) if base64 is not None else (text or "").encode()


def _limits(value: live.ValueView) -> str:
    notes = (
        value.reads if value.reads != "many" else "",
        f"until {when(value.until)}" if value.until is not None else "",
    )
    return ", ".join(filter(None, notes))


def change(view: live.ChangeView, whose: bool) -> None:
    """One line: local time, whose key if that is not clear, key, what became of it."""
    instance = f"  {view.instance}" if whose else ""
    about = f"  {view.bytes} bytes  {view.etag}" if view.op == "put" else ""
    print(f"{when(view.time)}{instance}  {view.op:<6}  {clean(view.key)}{clean(about)}", flush=True)


def audit(rows: Iterable[shapes.AuditRow]) -> None:
    """One line a row: local time, who, whose instance, what, and more about it."""
    for row in rows:
        about = (f"{when(row.time)}", f"{row.who:<14}", f"{row.instance or '-'!s:<36}", row.what, row.detail)
        print("  ".join(clean(word) for word in about).rstrip(), flush=True)
