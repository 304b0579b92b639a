"""A file of packets as other tools read them (libpcap's format), headers only: data may be secret."""

from __future__ import annotations

import struct
from typing import BinaryIO

MAGIC, ETHERNET, SNAP = 0xA1B2C3D4, 1, 256


class Capture:
    """Writes packets to an open file, each at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write(struct.pack("=IHHiIII", MAGIC, 2, 4, 0, 0, SNAP, ETHERNET))

    def add(self, time: float, headers: bytes, length: int) -> None:
        """One packet: as much of it as may be kept, and how long it is in all."""
        moment = struct.pack("=II", int(time), int(time % 1 * 1e6))
        self._write(moment + struct.pack("=II", len(headers), max(length, len(headers))) + headers)

    def _write(self, raw: bytes) -> None:
        self._file.write(raw)
        self._file.flush()

    def close(self) -> None:
        """Ends it."""
        self._file.close()
