"""A guest that does not wait: it sends from before its tap is up, and so before anybody can have enrolled it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Sequence

from tests.lab import Lab
from tests.lab.tap import IFF_NO_PI, IFF_TAP, IFREQ, TUNSETIFF


class Restless:
    """A guest that sends for the service all the time, from before its tap is up."""

    def __init__(self, lab: Lab, name: str, frames: Sequence[bytes], pause: float = 0.0) -> None:
        self.sent, self._over, self._frames, self._pause = 0, False, frames, pause
        self.fd = lab.host.call(os.open, "/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._send)
        fcntl.ioctl(self.fd, TUNSETIFF, IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI))
        self._thread.start()

    def _send(self) -> None:
        while not self._over:
            for frame in self._frames:
                with contextlib.suppress(OSError):  # the tap is down
                    os.write(self.fd, frame)
                    self.sent += 1
                if self._pause:
                    time.sleep(self._pause)

    def close(self) -> None:
        self._over = True
        self._thread.join()
        os.close(self.fd)
