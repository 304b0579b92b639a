"""A real tap device held by the test, as a hypervisor holds it for a guest: frames in, frames out.

With `vnet_hdr` each frame travels behind a virtio_net_hdr, as with a Linux guest's virtio-net: checksums
may be left partial and TCP segments may be larger than the MTU, both ways.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.namespace import Namespace
from tests.lab.wire import LARGEST_FRAME, Frame

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
IFREQ = struct.Struct("16sH22x")

# linux/virtio_net.h; the header is little-endian on every machine this runs on
VNET = struct.Struct("<BBHHHH")
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_TCPV6 = 4

ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
VLAN_ETHERTYPES = (0x8100, 0x88A8)
IPPROTO_TCP, IPPROTO_UDP = 6, 17
CHECKSUM_AT = {IPPROTO_TCP: 16, IPPROTO_UDP: 6}


@dataclass(frozen=True, slots=True)
class Vnet:
    """A virtio_net_hdr (virtio 1.1, 5.1.6). Lengths and offsets in bytes, from the start of the frame."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        """The ten bytes before the frame."""
        return VNET.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset
        )


class TapFrame(Frame):
    """A frame that the tap gave the guest. `vnet` is None on a tap without vnet_hdr."""

    queue: int
    vnet: Vnet | None


def offloaded(frame: bytes, gso_size: int = 0) -> tuple[bytes, Vnet]:
    """A whole TCP or UDP frame as a guest with checksum offload sends it, and the header that says so.

    The checksum becomes the pseudo header's sum, for the host to complete. With `gso_size` (TCP only) the
    payload is to be cut into segments of that many bytes. IPv6 without extension headers. ValueError for
    anything else.
    """
    network = _network_offset(frame)
    protocol, transport, version = _transport(frame, network)
    if protocol not in CHECKSUM_AT or (gso_size and protocol != IPPROTO_TCP):
        raise ValueError(f"no offload for IP protocol {protocol}")
    at = transport + CHECKSUM_AT[protocol]
    addresses = frame[network + 12 : network + 20] if version == 4 else frame[network + 8 : network + 40]
    total = _ones_sum(addresses + struct.pack("!HH", protocol, len(frame) - transport))
    partial = frame[:at] + struct.pack("!H", total) + frame[at + 2 :]
    gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
    header = Vnet(
        flags=VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type=gso_type if gso_size else 0,
        hdr_len=transport + (frame[transport + 12] >> 4) * 4 if gso_size else 0,
        gso_size=gso_size,
        csum_start=transport,
        csum_offset=CHECKSUM_AT[protocol],
    )
    return partial, header


def _network_offset(frame: bytes) -> int:
    offset = 12
    while int.from_bytes(frame[offset : offset + 2]) in VLAN_ETHERTYPES:
        offset += 4
    if int.from_bytes(frame[offset : offset + 2]) not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        raise ValueError("neither IPv4 nor IPv6")
    return offset + 2


def _transport(frame: bytes, network: int) -> tuple[int, int, int]:
    """The IP protocol, where its header begins, and the IP version."""
    if frame[network] >> 4 == 4:
        return frame[network + 9], network + (frame[network] & 15) * 4, 4
    return frame[network + 6], network + 40, 6


def _ones_sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071), not inverted."""
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class TapGuest:
    """A tap device in `host`, up, and the guest's hold on it: one file descriptor a queue.

    The device goes with its last descriptor, like a hypervisor's after a crash, unless it is `persistent`.
    """

    def __init__(
        self,
        host: Namespace,
        tap: str,
        *,
        bridge: str | None = "br0",
        queues: int = 1,
        vnet_hdr: bool = False,
        persistent: bool = False,
    ) -> None:
        self.host = host
        self.tap = tap
        self.vnet_hdr = vnet_hdr
        self.fds: list[int] = []
        self._multi_queue = IFF_MULTI_QUEUE if queues > 1 else 0
        self._poll = select.poll()
        try:
            for _ in range(queues):
                self._open_queue()
            fcntl.ioctl(self.fds[0], TUNSETPERSIST, int(persistent))
            self.ifindex = host.index(tap)
            host.set_up(self.ifindex, None if bridge is None else host.index(bridge))
            host.await_up(self.ifindex)
        except BaseException:
            self.close()
            raise

    def _open_queue(self) -> None:
        # The tap is made in the namespace that the descriptor was opened in, whoever asks for it.
        fd = self.host.call(os.open, "/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.fds.append(fd)
        flags = IFF_TAP | IFF_NO_PI | self._multi_queue | (IFF_VNET_HDR if self.vnet_hdr else 0)
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(self.tap.encode(), flags))
        if self.vnet_hdr:
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
        self._poll.register(fd, select.POLLIN)

    def send(self, frame: bytes, queue: int = 0, vnet: Vnet | None = None) -> None:
        """Let the guest send a frame: a whole one, or one that `offloaded` made, with its header."""
        if self.vnet_hdr:
            frame = (vnet or Vnet()).pack() + frame
        elif vnet is not None:
            raise ValueError(f"{self.tap} was made without vnet_hdr")
        os.write(self.fds[queue], frame)

    def recv(self, timeout: float = 1.0, want: Callable[[TapFrame], bool] | None = None) -> list[TapFrame]:
        """What the guest gets within `timeout` seconds; with `want`, up to the first frame it is true of."""
        frames: list[TapFrame] = []
        end = time.monotonic() + timeout
        while ready := self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
            for fd, _ in ready:
                frames.append(self._read(fd))
                if want is not None and want(frames[-1]):
                    return frames
        return frames

    def _read(self, fd: int) -> TapFrame:
        data = os.read(fd, LARGEST_FRAME)
        vnet = None
        if self.vnet_hdr:
            vnet = Vnet(*VNET.unpack_from(data))
            data = data[VNET.size :]
        partial = vnet is not None and bool(vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        frame = TapFrame(data, partial=partial)
        frame.queue, frame.vnet = self.fds.index(fd), vnet
        return frame

    def close(self) -> None:
        """Let go of the device, which removes it unless it is persistent. May be called twice."""
        while self.fds:
            with contextlib.suppress(OSError):
                os.close(self.fds.pop())
