"""What a source that lives in a child says: lines of JSON on its standard output, one message each. PURE.

A child reads what is large, foreign or slow (libvirt, Open vSwitch), so that the agent need not. What it says is
bounded and checked here, once more and by the agent: a line that breaks a rule says nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from shim.core.exchange import Subject
from shim.core.instance import parse_instance
from shim.core.names import NETNS_NAME_MAX, parse_ip, parse_netns, parse_project, parse_tap

LINE_BYTES = 1 << 23
"""The longest line, its end included."""

CLAIMS_MAX = 20_000
TEXT_MAX = 255
TROUBLE_MAX = 2000

Key = tuple[str, str]
"""(namespace, tap); the namespace is empty for the agent's own."""

Mapping = dict[Key, Subject]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

Text = Annotated[str, Meta(max_length=TEXT_MAX)]


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who is behind a tap. All but `tap` and `instance` may be empty: not known.

    netns     the tap's network namespace as `ip netns` lists it, empty for the agent's own
    instance  its uuid, project and address as shim.core.names has them
    name, flavor, port   free text (of Nova's domain, its flavor, Neutron's port), see `plain`
    mac       the guest's, as 52:54:00:12:34:56 in lower case
    """

    tap: Annotated[str, Meta(max_length=64)]
    instance: Annotated[str, Meta(max_length=64)]
    netns: Annotated[str, Meta(max_length=NETNS_NAME_MAX)] = ""
    project: Text = ""
    address: Text = ""
    name: Text = ""
    flavor: Text = ""
    port: Text = ""
    mac: Text = ""

    @property
    def key(self) -> Key:
        """Where it is."""
        return self.netns, self.tap


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message. `gone` is taken out first, then `claims` are put in; `whole`: they are all that there are.

    `trouble` is what is wrong now, for an operator, empty when all is well; each message replaces the last one's.
    """

    whole: bool = False
    claims: Annotated[tuple[Claim, ...], Meta(max_length=CLAIMS_MAX)] = ()
    gone: Annotated[tuple[Key, ...], Meta(max_length=CLAIMS_MAX)] = ()
    trouble: Annotated[str, Meta(max_length=TROUBLE_MAX)] = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Said)


def encode(said: Said) -> bytes:
    """The line. Raises ValueError for one that is too long."""
    line = _encoder.encode(said) + b"\n"
    if len(line) > LINE_BYTES:
        raise ValueError(f"{len(said.claims)} claims are more than {LINE_BYTES} bytes")
    return line


def decode(line: bytes) -> Said:
    """The message in a line. Raises ValueError."""
    try:
        return _decoder.decode(line)
    except RecursionError:
        raise ValueError("nested too deep") from None


def applied(known: Mapping, said: Said) -> Mapping:
    """The mapping after a message, `known` being that before it. Raises ValueError naming the tap of a bad claim."""
    now = {} if said.whole else dict(known)
    for key in said.gone:
        now.pop(key, None)
    now.update(_subjects(said.claims))
    if len(now) > CLAIMS_MAX:
        raise ValueError(f"more than {CLAIMS_MAX} taps")
    return now


def _subjects(claims: Iterable[Claim]) -> Mapping:
    found: Mapping = {}
    for claim in claims:
        if claim.key in found:
            raise ValueError(f"{claim.tap!r} is claimed twice")
        found[claim.key] = subject_of(claim)
    return found


def subject_of(claim: Claim) -> Subject:
    """Who it says is there. Raises ValueError where anything of it is not as it must be."""
    try:
        parse_netns(claim.netns)
        parse_tap(claim.tap)
        return Subject(
            instance=parse_instance(claim.instance),
            project=parse_project(claim.project),
            address=parse_ip(claim.address),
            name=_text(claim.name),
            flavor=_text(claim.flavor),
            port=_text(claim.port),
            mac=parse_mac(claim.mac),
        )
    except ValueError as error:
        raise ValueError(f"{claim.tap!r}: {error}") from None


def parse_mac(text: str) -> str:
    """A MAC address, unchanged; empty where there is none. Raises ValueError."""
    if text and not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address in lower case")
    return text


def plain(text: str, most: int = TEXT_MAX) -> str:
    """Free text as a claim may hold it, made of any: without what is no character to be shown, and cut to `most`."""
    return _CONTROL.sub(" ", text).strip()[:most].rstrip()


def _text(text: str) -> str:
    if text != plain(text):
        raise ValueError(f"{text!r} has control characters, or white space around it")
    return text
