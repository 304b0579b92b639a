"""A guest that speaks TCP by hand through a real tap, with partial checksums as virtio's drivers leave them."""

from __future__ import annotations

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.bpf.frames import BROADCAST, GUEST_MAC, GUEST_OF, GUEST_V4, SERVICE_MAC, SERVICE_OF
from tests.lab import TapGuest, offloaded
from tests.netns.talk import ID

PATIENCE = 20.0
REQUEST = f"GET {ID} HTTP/1.1\r\nhost: metadata\r\nconnection: close\r\n\r\n".encode()


def mac_of_service(tap: TapGuest) -> str:
    """Who answers an ARP request for the service's address."""
    ask = ARP(op="who-has", hwsrc=GUEST_MAC, psrc=GUEST_V4, pdst=SERVICE_OF[4])
    tap.send(bytes(Ether(src=GUEST_MAC, dst=BROADCAST) / ask))
    answer = tap.recv(PATIENCE, want=lambda frame: Ether(frame).haslayer(ARP))[-1]
    return str(Ether(answer)[ARP].hwsrc)


class Speaker:
    """One connection over an address family, whose frames are sent to the MAC `to`."""

    def __init__(self, tap: TapGuest, family: int, port: int, to: str = SERVICE_MAC) -> None:
        self.tap, self.family, self.port, self.to = tap, family, port, to
        self._sequence, self._expected = 1000, 0

    def ask(self) -> bytes:
        """A GET of the instance's id, from the SYN on: all of the answer. ConnectionRefusedError for a reset."""
        self._send("S")
        self._expected = self._receive().seq + 1
        self._send("A")
        self._send("PA", REQUEST)
        got = b""
        while True:
            part = self._receive()
            data = bytes(part.payload)[: len(part.payload)] if part.seq == self._expected else b""
            got, self._expected = got + data, self._expected + len(data)
            if "F" in part.flags and part.seq + len(data) == self._expected:
                self._send("R")
                return got
            if data:
                self._send("A")

    def _send(self, flags: str, data: bytes = b"") -> None:
        network = (IP if self.family == 4 else IPv6)(src=GUEST_OF[self.family], dst=SERVICE_OF[self.family])
        ports = {"sport": self.port, "dport": 80, "seq": self._sequence, "ack": self._expected}
        frame = bytes(Ether(src=GUEST_MAC, dst=self.to) / network / TCP(flags=flags, window=65535, **ports) / data)
        self._sequence += len(data) + ("S" in flags)
        if self.tap.vnet_hdr:
            self.tap.send(*offloaded(frame)[:1], vnet=offloaded(frame)[1])
        else:
            self.tap.send(frame)

    def _receive(self) -> Packet:
        got = self.tap.recv(PATIENCE, want=lambda frame: self._is_ours(Ether(frame)))
        if not got or not self._is_ours(Ether(got[-1])):
            raise TimeoutError(f"nothing came for port {self.port}")
        segment = Ether(got[-1])[TCP]
        if "R" in segment.flags:
            raise ConnectionRefusedError(f"port {self.port}: {segment.flags}")
        return segment

    def _is_ours(self, frame: Packet) -> bool:
        return frame.haslayer(TCP) and (frame[TCP].sport, frame[TCP].dport) == (80, self.port)
