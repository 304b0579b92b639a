"""A source: one contributor's piece of the user-data or vendor data of all instances in its scope. PURE."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from shim.core.instance import parse_instance

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VALUE = re.compile(r"[!-~]{1,256}")
ORDER_DEFAULT = 500
MERGE_DEFAULT = "list(append)+dict(recurse_array)+str()"
"""How a part's top-level keys meet those of the parts before it: lists append, so that nobody is trumped."""

_RANKS = ("host", "project", "image", "tag", "instance")
DOCUMENT = "document"
"""Name of the source that an instance's own document is: nobody else's may have it in that scope."""
BACKEND = "backend"
"""Scope of the source that a backend's own user-data is; none of the store's has it."""


class Kind(enum.Enum):
    """Which of cloud-init's two data a source is part of."""

    USER = "user"
    VENDOR = "vendor"


class Reads(enum.Enum):
    """How often it can be read: until it is taken back, once, or until the guest confirms that it has it."""

    MANY = "many"
    ONCE = "once"
    CONFIRM = "confirm"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which instances: `host` (all), those of a `project`, `image` or `tag` (KEY=VALUE), or one `instance`."""

    kind: str
    value: str = ""

    @property
    def text(self) -> str:
        """As operators write it and the store keeps it: `host`, `project:blue`, `tag:role=web`."""
        return f"{self.kind}:{self.value}" if self.value else self.kind

    @property
    def label(self) -> str:
        """As guests see it, who know their own project, image and id: `host`, `project`, `tag:role`."""
        return f"tag:{self.value.partition('=')[0]}" if self.kind == "tag" else self.kind

    @property
    def rank(self) -> int:
        """The broadest first."""
        return _RANKS.index(self.kind)


HOST = Scope("host")


def parse_scope(text: str) -> Scope:
    """A scope as `Scope.text` writes it; a bare uuid is that instance's. Raises ValueError."""
    kind, colon, value = text.partition(":")
    if not colon and kind != "host":
        try:
            return Scope("instance", str(parse_instance(text)))
        except ValueError:
            pass
    if kind == "instance":
        return Scope(kind, str(parse_instance(value)))
    fits = (kind == "tag" and bool(re.match(r"[^=]+=", value))) or kind in ("project", "image")
    if (kind == "host" and not colon) or (fits and _VALUE.fullmatch(value)):
        return Scope(kind, value)
    raise ValueError(
        f"{text!r} is no scope: write host, project:ID, image:ID, tag:KEY=VALUE, or an instance's uuid"
    )


def parse_name(text: str) -> str:
    """A source's name, unchanged. Raises ValueError."""
    if not NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a source: 1 to 64 letters, digits, . _ and -, the first no sign")
    return text


def scopes_of(instance: UUID, project: str, image: str, tags: Mapping[str, str]) -> tuple[Scope, ...]:
    """All scopes that an instance is in, each once, the broadest first. What is empty is in none."""
    found = [HOST]
    if project:
        found.append(Scope("project", project))
    if image:
        found.append(Scope("image", image))
    found += [Scope("tag", f"{key}={value}") for key, value in sorted(tags.items())]
    return tuple(dict.fromkeys((*found, Scope("instance", str(instance)))))  # a tag's key may have a = in it


@dataclass(frozen=True, slots=True)
class Source:
    """One source. Its key is scope and name.

    owner    who answers for it, in the operators' own words; guests are shown it
    order    0 to 999; sources are composed in this order, then the broadest scope first, then by name
    merge    cloud-init's merge type for its cloud-config; empty: cloud-init's own default, which trumps
    template whether it is rendered by Jinja2 for each instance
    until    Unix seconds after which nobody reads it; None: no such time
    origin   `operator`, or `directory` for one that a watched file is
    revision of the store when it was written; changed: Unix seconds of that
    """

    scope: Scope
    name: str
    body: bytes
    kind: Kind = Kind.USER
    owner: str = "operator"
    order: int = ORDER_DEFAULT
    merge: str = MERGE_DEFAULT
    template: bool = False
    reads: Reads = Reads.MANY
    until: float | None = None
    origin: str = "operator"
    revision: int = 0
    changed: float = 0.0

    @property
    def id(self) -> str:
        """As guests see it: `host/base`."""
        return f"{self.scope.label}/{self.name}"

    @property
    def item(self) -> str:
        """What counts as read once; another item once it is written again."""
        return f"source {self.scope.text}/{self.name} {self.revision}"


def in_order(sources: Iterable[Source]) -> tuple[Source, ...]:
    """As they are composed."""
    return tuple(sorted(sources, key=lambda s: (s.order, s.scope.rank, s.scope.text, s.name)))
