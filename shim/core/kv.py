"""The key-value store of one instance: keys, entity tags, limits. PURE.

`host/…` is written by operators and read by the guest, `guest/…` the other way round (operators may write there too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from shim.core.source import Reads

KEY_BYTES = 256
SEGMENTS_MAX = 8
_SEGMENT = re.compile(r"[A-Za-z0-9._~:@+=,-]{1,128}")
ROOTS = ("host", "guest")


def parse_key(text: str) -> str:
    """A key, `host/…` or `guest/…`, unchanged. Raises ValueError, in words that hold nothing of the key."""
    segments = text.split("/")
    if segments[0] not in ROOTS or len(segments) < 2:
        raise ValueError("a key begins with host/ or guest/")
    if len(text) > KEY_BYTES or len(segments) > SEGMENTS_MAX + 1:
        raise ValueError(f"a key has at most {KEY_BYTES} bytes, in {SEGMENTS_MAX} segments below its root")
    if not all(_SEGMENT.fullmatch(one) and one not in (".", "..") for one in segments):
        raise ValueError("a key's segments are 1 to 128 letters, digits, . _ ~ : @ + = , and -")
    return text


def etag(body: bytes) -> str:
    """The entity tag of what is read, 16 hexadecimal digits, without quotes."""
    return blake2b(body, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Value:
    """What a key holds. `reads` and `until` as in Source; only operators set them."""

    key: str
    body: bytes
    reads: Reads = Reads.MANY
    until: float | None = None
    revision: int = 0
    changed: float = 0.0

    @property
    def etag(self) -> str:
        """Of the value, as `etag` makes it."""
        return etag(self.body)

    @property
    def item(self) -> str:
        """What counts as read once; another item once it is written again."""
        return f"kv {self.key} {self.revision}"


@dataclass(frozen=True, slots=True)
class KvLimits:
    """What one instance's guest/ may hold: keys, bytes of a value, bytes of all keys and values, writes a second."""

    keys: int = 256
    value_bytes: int = 262_144
    total_bytes: int = 524_288
    writes_per_second: int = 10


def clash(key: str, others: Iterable[str]) -> str | None:
    """A key that is a folder of this one, or the other way round: both cannot be. None if there is none. The rule; the
    store asks its index instead."""
    for other in others:
        if other != key and (other.startswith(key + "/") or key.startswith(other + "/")):
            return other
    return None
