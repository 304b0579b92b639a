"""What a part holds once it is opened: gzip unpacked, a MIME message taken apart. PURE.

cloud-init takes all that it is given apart into one flat list before it looks at any of it, so what several parts are
composed of is that list. To open parts here, and not to nest them, keeps what nesting would lose or break:

- the merge type of a gzip'd part: cloud-init drops it when it unpacks one inside an archive;
- a MIME message inside gzip inside an archive: it would not be walked into;
- all the others, where one part is gzip that is damaged or no text, or a message that is not UTF-8: cloud-init gives
  up the whole user-data then, everybody's.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from shim.metadata.parts import (
    BINARY,
    CONFIG,
    GZIP,
    GZIP_MAGIC,
    JINJA,
    MESSAGE,
    SCRIPT,
    TEXT,
    Part,
    beginning,
    content_type_of,
    is_text,
    says_mime,
)

if TYPE_CHECKING:
    from email.message import Message

UNPACKED_BYTES = 1 << 20
"""The most that a part's gzip may unpack to."""
ENTITIES_MAX = 256
"""The most that one part may be taken apart into."""
# Who writes an instance's user-data may be its tenant, and all guests' worker reads it: what of a message costs
# Python's parser more than it is long (its depth times its lines, a header's parameters) is bounded before.
_LINES_MAX = 10_000
_MULTIPARTS_MAX = 16
_MULTIPART = re.compile(rb"^content-type:\s*multipart/", re.IGNORECASE | re.MULTILINE)
_LONG_HEADER = re.compile(rb"^content-(?:type|disposition):(?:[^\n\r]|\r?\n[ \t]){1000}", re.IGNORECASE | re.MULTILINE)
_GZIP_TYPES = frozenset(
    f"application/{name}"
    for name in (
        "gzip", "gzip-compressed", "gzipped", "x-compress", "x-compressed", "x-gunzip", "x-gzip", "x-gzip-compressed",
    )
)  # fmt: skip
_LOOKED_INTO = (TEXT, "text/x-not-multipart", SCRIPT)
"""Types that cloud-init does not believe: it looks at how the text begins."""
_MERGED = (CONFIG, JINJA)
"""What has a merge type. A jinja template's is that of what the guest renders it to."""
_MERGE_HEADERS = ("merge-type", "x-merge-type")
_WRITTEN_ANEW = {
    "content-type", "content-transfer-encoding", "content-disposition", "content-length", "mime-version",
    "number-attachments", *_MERGE_HEADERS,
}  # fmt: skip
_HEADER_BYTES = 512


class Entity(msgspec.Struct, frozen=True):
    """One thing that cloud-init handles. `part`: the id of the part it is from. `merge`: as in Part; `name`: of its
    file, where it has one of its own; `headers`: others that came with it."""

    part: str
    content_type: str
    body: bytes
    merge: str = ""
    name: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Unopened(ValueError):
    """A part cannot be opened: it is too large. Says why."""


def entities(part: Part, *, alone: bool = False) -> Iterator[Entity]:
    """What a part holds. `alone`: it is all there is and goes as it is, so its source's merge type does not go along.
    Raises Unopened."""
    merge = "" if alone else part.merge
    body, kind = part.body, part.content_type
    if kind == GZIP:
        unpacked = unpack(body)
        body, kind = (unpacked, content_type_of(unpacked)) if unpacked is not None else (body, BINARY)
    if kind == MESSAGE or kind.startswith("multipart/"):
        if says_mime(body) or not alone:
            yield from _of_message(part.id, body, merge, alone)
            return
        kind = TEXT
    if kind in (BINARY, GZIP):
        yield Entity(part.id, BINARY, part.body)  # as small as it came
    else:
        yield Entity(part.id, kind, body, merge if kind in _MERGED else "")


def unpack(body: bytes) -> bytes | None:
    """What gzip was made of, all of its members; None if it is damaged. Raises Unopened: too large."""
    pieces, size = [], 0
    while body.startswith(GZIP_MAGIC):
        one = zlib.decompressobj(31)
        try:
            piece = one.decompress(body, UNPACKED_BYTES + 1 - size)
        except zlib.error:
            return None
        size += len(piece)
        if size > UNPACKED_BYTES:
            raise Unopened(f"its gzip unpacks to more than {UNPACKED_BYTES} bytes")
        if not one.eof:
            return None
        pieces.append(piece)
        body = one.unused_data.lstrip(b"\0")  # padding between members, as gzip(1) has it
    return None if body else b"".join(pieces)


def pack(body: bytes) -> bytes:
    """As gzip; the same bytes each time, since no time is in it."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()


def _of_message(part: str, body: bytes, merge: str, alone: bool) -> Iterator[Entity]:
    from email import message_from_bytes  # loaded where it is needed

    _must_be_simple(body)
    try:
        every = list(islice(message_from_bytes(body).walk(), ENTITIES_MAX + 1))
    except RecursionError:
        raise Unopened("it is a MIME message that is nested too deeply") from None
    if len(every) > ENTITIES_MAX:
        raise Unopened(f"it is a MIME message of more than {ENTITIES_MAX} parts")
    for message in every:
        if not message.is_multipart() and message.get_content_maintype() != "multipart":
            yield _of_leaf(part, message, merge, alone)


def _must_be_simple(body: bytes) -> None:
    if body.count(b"\n") + body.count(b"\r") > _LINES_MAX:
        raise Unopened(f"it is a MIME message of more than {_LINES_MAX} lines")
    if sum(1 for _ in islice(_MULTIPART.finditer(body), _MULTIPARTS_MAX + 1)) > _MULTIPARTS_MAX:
        raise Unopened(f"it is a MIME message with more than {_MULTIPARTS_MAX} multiparts in it")
    if _LONG_HEADER.search(body):
        raise Unopened("it is a MIME message with a header of more than 1000 bytes")


def _of_leaf(part: str, message: Message, merge: str, alone: bool) -> Entity:
    payload = message.get_payload(decode=True)
    body = payload if isinstance(payload, bytes) else b""
    kind = message.get_content_type()
    unpacked = None
    if kind in _GZIP_TYPES:
        unpacked = unpack(body)
        kind = TEXT if unpacked is not None and is_text(unpacked) else BINARY
        body = unpacked if unpacked is not None and kind == TEXT else body
    if kind in _LOOKED_INTO:
        kind = beginning(body) or kind
    lost = alone and unpacked is not None  # cloud-init keeps no header of what it unpacks
    return Entity(
        part,
        kind if _is_clean(kind) else BINARY,
        body,
        ("" if lost else _merge_header(message) or merge) if kind in _MERGED else "",
        _file_name(message),
        () if lost else tuple(_others(message)),
    )


def _file_name(message: Message) -> str:
    """As it is written, in whatever charset: not decoded, as that may need a codec that is not loaded."""
    name = message.get_param("filename", header="content-disposition") or message.get_param("name") or ""
    return str(name[2] if isinstance(name, tuple) else name)


def _merge_header(message: Message) -> str:
    # Two spellings, of which cloud-init takes the first that is not empty; both only in this very case.
    values = {name: " ".join(str(value).split()) for name, value in message.items()}
    found = values.get("Merge-Type") or values.get("X-Merge-Type") or ""
    return found if _is_clean(found) else ""


def _others(message: Message) -> Iterator[tuple[str, str]]:
    for name, value in message.items():
        text = " ".join(str(value).split())
        if name.lower() not in _WRITTEN_ANEW and _is_clean(name) and _is_clean(text):
            yield name, text


def _is_clean(text: str) -> bool:
    return text.isascii() and text.isprintable() and len(text) <= _HEADER_BYTES
