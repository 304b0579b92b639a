"""A guest that sends one frame again and again: `python -m bench.flood IFNAME HEX`, until it is ended."""

from __future__ import annotations

import socket
import sys


def main(ifname: str, frame: bytes) -> None:
    """Sends as fast as the kernel takes it: the frame's whole way is walked within each call."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((ifname, 0))
        while True:
            try:
                sock.send(frame)
            except OSError:  # the queue was full, or the link went, and with it this process
                continue


if __name__ == "__main__":
    main(sys.argv[1], bytes.fromhex(sys.argv[2]))
