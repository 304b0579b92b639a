"""What one listening side allows a peer. PURE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server; sizes in bytes, times in seconds.

    head_bytes                request line and headers with their blank line; over it 431, or 414
    headers                   header lines; over it 431
    target_bytes              the request target; over it 414
    body_bytes                the decoded body; over it 413
    whole_bytes               bodies up to it come whole in Request.body, larger ones in Request.parts
    head_seconds              connection start or first byte to a whole head; over it 408
    body_seconds              whole head to whole body; over it 408. Of a body in parts: for each `whole_bytes`
                              of it, while the handler takes what has come
    idle_seconds              end of a response to the next first byte; over it a close
    drain_seconds             for the peer to take what was written and not yet taken; over it a reset
    connections_per_instance  open at once under one limit key; over it 429
    connections               open at once in all; over it 503
    """

    head_bytes: int = 16_384
    headers: int = 100
    target_bytes: int = 8_192
    body_bytes: int = 65_536
    whole_bytes: int = 16_384
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    drain_seconds: float = 30.0
    connections_per_instance: int = 64
    connections: int = 4_096
