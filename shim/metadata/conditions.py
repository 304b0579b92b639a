"""If-Match and If-None-Match of what a guest writes (RFC 9110, 13.1). PURE."""

from __future__ import annotations

import re

from shim.core.exchange import Request

TAGS_MAX = 16
TAG_CHARACTERS = 64

_TAG = re.compile(rb'(W/)?"([\x21\x23-\x7e]*)"')
_BARE_TAG = re.compile(rb"()([0-9A-Za-z_-]+)")
_COMMA = re.compile(rb"[ \t]*,[ \t]*")


def if_match(request: Request, *, bare: bool = False) -> tuple[str, ...] | None:
    """The tags of If-Match without quotes, `*` for any; None if it is not there. One that is weak keeps its `W/`, and
    so matches nothing, as is the rule there. `bare`: tags may come without quotes. Raises ValueError."""
    return _tags(request, b"if-match", bare, keep_weak=True)


def if_none_match(request: Request, *, bare: bool = False) -> tuple[str, ...] | None:
    """The same of If-None-Match, where weak tags are compared as others are. Raises ValueError."""
    return _tags(request, b"if-none-match", bare, keep_weak=False)


def _tags(request: Request, name: bytes, bare: bool, *, keep_weak: bool) -> tuple[str, ...] | None:
    values = [value for key, value in request.headers if key == name]
    if not values:
        return None
    if values == [b"*"]:
        return ("*",)
    found = [tag for value in values for tag in _listed(value, bare, keep_weak)]
    if len(found) > TAGS_MAX or any(len(tag) > TAG_CHARACTERS for tag in found):
        raise ValueError(f"{name.decode()} takes {TAGS_MAX} tags of {TAG_CHARACTERS} characters at most")
    return tuple(found)


def _listed(value: bytes, bare: bool, keep_weak: bool) -> list[str]:
    found, position = [], 0
    while True:
        tag = _TAG.match(value, position) or (_BARE_TAG.match(value, position) if bare else None)
        if tag is None:
            raise ValueError('entity tags are in quotes, with commas between them: "a", "b"')
        found.append(((tag[1] or b"" if keep_weak else b"") + tag[2]).decode())
        if tag.end() == len(value):
            return found
        comma = _COMMA.match(value, tag.end())
        if comma is None:
            raise ValueError('entity tags are in quotes, with commas between them: "a", "b"')
        position = comma.end()
