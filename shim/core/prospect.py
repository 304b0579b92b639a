"""What a request would get, and which rules say so, in the order in which it meets them. PURE.

A worker says its part of it to the agent, and the agent all of it to operators. The worker parses what guests send, so
all of this is bounded, and words for people: nothing follows from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

TEXT_MAX = 400
RULES_MAX = 24
BODY_MAX = 262_144
TARGET_MAX = 8_192
HEADERS_MAX = 64

Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Word = Annotated[str, Meta(max_length=32)]
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Items = Annotated[tuple[Text, ...], Meta(max_length=64)]

Part = Literal["tap", "kernel", "proxy", "backend"]
"""Where a rule is met. A backend's may be the embedded one's."""

Kind = Literal["answered", "reset", "dropped", "forwarded", "asked", "streamed", "waits", "unknown"]
"""answered: with `status`; reset: by TCP; dropped: nothing comes; forwarded: a backend's own answer; asked: the agent
keeps or does something, and what it finds decides; streamed: events, for ever; waits: until there is another state, or
somebody who answers; unknown: nobody can say."""


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule that a request meets.

    name     one word, as in `access`, `token`, `route`
    says     what it is for this request; where: the setting or the verb that changes it, empty where there is none
    decides  whether the outcome is this one's. One of a whole list is, at most
    """

    part: Part
    name: Word
    says: Text
    where: Text = ""
    decides: bool = False


class Prospect(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request would get. Of a body there is no more than its size: it may be secret.

    status   of an answer; None where it is not known before somebody is asked
    words    what it comes to, for people
    backend  who answers: embedded, tokens, the name of another; empty for the proxy itself
    uses_up  items (Source.item, Value.item) that this would use up, were it read
    """

    kind: Kind
    words: Text
    status: Annotated[int, Meta(ge=100, le=599)] | None = None
    backend: Word = ""
    content_type: Text = ""
    bytes: Size | None = None
    etag: Text = ""
    uses_up: Items = ()


class Course(msgspec.Struct, frozen=True):
    """The rules that a request meets, in order, up to the one that decides; and what it gets."""

    rules: Annotated[tuple[Rule, ...], Meta(max_length=RULES_MAX)]
    prospect: Prospect


class Question(msgspec.Struct, frozen=True):
    """A request that an instance might make: `target` is its path and query, as sent.

    family      "4" or "6"
    with_token  whether it has a session token that is good
    """

    target: Annotated[str, Meta(max_length=TARGET_MAX)]
    family: Literal["4", "6"] = "4"
    method: Word = "GET"
    headers: Annotated[tuple[tuple[str, str], ...], Meta(max_length=HEADERS_MAX)] = ()
    body: Annotated[str, Meta(max_length=BODY_MAX)] = ""
    with_token: bool = False


def cut(text: str) -> str:
    """A text that fits, without what could steer a terminal or forge a line."""
    shown = "".join(one if one.isprintable() else "?" for one in text[: TEXT_MAX + 1])
    return shown if len(shown) <= TEXT_MAX else f"{shown[: TEXT_MAX - 3]}..."
