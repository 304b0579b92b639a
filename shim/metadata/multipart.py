"""The archive that several parts become: multipart/mixed (RFC 2046, section 5.1), a flat list of all they hold. PURE.

Its bytes follow from what is in it alone. It is ASCII throughout: cloud-init decodes it as UTF-8 before it looks, and
what is 8-bit in it would not come out as it went in.
"""

from __future__ import annotations

import re
from base64 import encodebytes
from collections.abc import Iterable
from hashlib import blake2b

from shim.metadata.entities import Entity
from shim.metadata.parts import is_text

_PLAIN = re.compile(rb"[\t\n -~]*")
"""What goes as it is. Lines may be longer than RFC 2045's 998, as no mail server is on the way and base64 is a third
more. With other line ends a parser would be free to change them."""
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_MAX = 100


def multipart(entities: Iterable[Entity]) -> bytes:
    """The archive's bytes, its own head first."""
    pieces = [_piece(number, entity) for number, entity in enumerate(entities, 1)]
    boundary = _boundary(pieces)
    head = b'Content-Type: multipart/mixed; boundary="%b"\nMIME-Version: 1.0\n\n' % boundary
    line = b"--" + boundary
    return head + b"".join(line + b"\n" + piece + b"\n" for piece in pieces) + line + b"--\n"


def _piece(number: int, entity: Entity) -> bytes:
    """A part with its head, without the line end that belongs to the boundary after it."""
    as_it_is = bool(_PLAIN.fullmatch(entity.body))
    kind = entity.content_type
    if not as_it_is and kind.startswith("text/") and is_text(entity.body):
        kind += '; charset="utf-8"'
    head = [
        f"Content-Type: {kind}",
        f"Content-Transfer-Encoding: {'7bit' if as_it_is else 'base64'}",
        f'Content-Disposition: attachment; filename="{_name(number, entity)}"',
    ]
    if entity.merge and entity.merge.isascii() and entity.merge.isprintable():
        head.append(f"Merge-Type: {entity.merge}")
    head += [f"{name}: {value}" for name, value in entity.headers]
    body = entity.body if as_it_is else encodebytes(entity.body).rstrip(b"\n")
    return "\n".join(head).encode("ascii") + b"\n\n" + body


def _name(number: int, entity: Entity) -> str:
    """`002-host-base`. Guests run scripts in the order of their files' names, and keep one of each name: the number
    keeps that the archive's order, and tells apart what is called alike."""
    return f"{number:03d}-{_NOT_IN_A_NAME.sub('-', entity.name or entity.part)[:_NAME_MAX]}"


def _boundary(pieces: list[bytes]) -> bytes:
    """Letters and digits that are in no part."""
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big") + piece)
    while True:
        boundary = b"metashim-" + digest.hexdigest().encode()
        if not any(boundary in piece for piece in pieces):
            return boundary
        digest.update(b"again")
