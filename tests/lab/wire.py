"""Packet sockets: a capture that loses nothing in silence, and a sender of frames made by hand."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from types import TracebackType

from tests.lab.namespace import Namespace

SERVICE_ADDRESSES = ("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe")

# linux/if_packet.h and linux/if_ether.h
ETH_P_ALL = 0x0003
ETH_P_8021Q = 0x8100
PACKET_ADD_MEMBERSHIP = 1
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
TP_STATUS_CSUMNOTREADY = 1 << 3
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6
SOL_PACKET = 263
SO_RCVBUFFORCE = 33

AUXDATA = struct.Struct("=IIIHHHH")  # tp_status, len, snaplen, mac, net, vlan_tci, vlan_tpid
MEMBERSHIP = struct.Struct("=iHH8s")
MACS_LENGTH = 12
LARGEST_FRAME = 1 << 18  # more than the kernel's largest GSO packet here
RECEIVE_BUFFER = 256 << 20  # bytes; a minimum frame takes about 768 of them


class FramesLostError(AssertionError):
    """The kernel had to drop frames that a capture should have seen: it proves nothing."""


class Frame(bytes):
    """A frame from its destination MAC on, VLAN tags where the wire has them.

    `outgoing`: the host sent it out of this interface, rather than received it there.
    `partial`: its TCP or UDP checksum is still the pseudo header's, for the hardware to complete.
    """

    outgoing: bool
    partial: bool

    def __new__(cls, data: bytes, *, outgoing: bool = False, partial: bool = False) -> Frame:
        frame = super().__new__(cls, data)
        frame.outgoing = outgoing
        frame.partial = partial
        return frame


def mentions(frame: bytes, addresses: Iterable[str] = SERVICE_ADDRESSES) -> bool:
    """Whether any of the addresses is anywhere behind the frame's MACs, whatever the frame is.

    Stricter than parsing: ARP, NDP, tunnels and nonsense are covered. 169.254.169.254 is also found within
    fe80::a9fe:a9fe, whose last four bytes it is.
    """
    return any(ip_address(address).packed in frame[MACS_LENGTH:] for address in addresses)


def service_frames(frames: Iterable[Frame], addresses: Iterable[str] = SERVICE_ADDRESSES) -> list[Frame]:
    """Those of the frames that mention a service address."""
    wanted = tuple(addresses)
    return [frame for frame in frames if mentions(frame, wanted)]


class Wire:
    """A packet socket on one interface: sees every frame that passes from its making on, and can send.

    What it sent itself it does not see; another `Wire` on the interface does.

    A packet socket sees what comes in *before* tc and netfilter ingress, so look behind a guarded tap (at the
    bridge, the other ports, the uplink), not at it. With `incoming` it sees only what the interface receives:
    what a guest sees of its own.
    """

    def __init__(self, namespace: Namespace, ifname: str, *, incoming: bool = False) -> None:
        self.ifname = ifname
        # For no protocol at first: it would collect every interface's frames until it is bound to one.
        self._socket = namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, int(incoming))
            request = MEMBERSHIP.pack(namespace.index(ifname), PACKET_MR_PROMISC, 0, b"")
            self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
            self._socket.bind((ifname, ETH_P_ALL))
            self._socket.setblocking(False)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        except BaseException:
            self._socket.close()
            raise

    def send(self, frame: bytes) -> None:
        """Send a frame as it is, tags and all. OSError if the link is down or its MTU too small."""
        self._socket.send(frame)

    def recv(self, timeout: float = 1.0, want: Callable[[Frame], bool] | None = None) -> list[Frame]:
        """What arrives within `timeout` seconds; with `want`, only up to the first frame it is true of."""
        frames: list[Frame] = []
        end = time.monotonic() + timeout
        while self._readable(end - time.monotonic()):
            frames.append(self._read())
            if want is not None and want(frames[-1]):
                break
        self._check_losses()
        return frames

    def frames(self, settle: float = 0.1) -> list[Frame]:
        """Everything since the start or the last call, read until nothing has come for `settle` seconds."""
        frames: list[Frame] = []
        while self._readable(settle):
            frames.append(self._read())
        self._check_losses()
        return frames

    def _readable(self, seconds: float) -> bool:
        return bool(self._poll.poll(max(0.0, seconds) * 1000))

    def _read(self) -> Frame:
        data, ancillary, flags, address = self._socket.recvmsg(LARGEST_FRAME, socket.CMSG_SPACE(AUXDATA.size))
        if flags & socket.MSG_TRUNC:
            raise FramesLostError(f"a frame on {self.ifname} was cut at {LARGEST_FRAME} bytes")
        status, _, _, _, _, tci, tpid = AUXDATA.unpack(ancillary[0][2])
        if status & TP_STATUS_VLAN_VALID:
            # The kernel keeps the outer tag beside the packet: put it back where the wire had it.
            kind = tpid if status & TP_STATUS_VLAN_TPID_VALID else ETH_P_8021Q
            data = data[:MACS_LENGTH] + struct.pack("!HH", kind, tci) + data[MACS_LENGTH:]
        outgoing = address[2] == socket.PACKET_OUTGOING
        return Frame(data, outgoing=outgoing, partial=bool(status & TP_STATUS_CSUMNOTREADY))

    def _check_losses(self) -> None:
        _, dropped = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            raise FramesLostError(f"{dropped} frames on {self.ifname} did not fit the capture's buffer")

    def close(self) -> None:
        """Stop seeing frames; those not read are gone."""
        self._socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
