"""A guest that dies in the middle, its tap that comes back as another's, and an agent that is away as a guest boots."""

from __future__ import annotations

import signal
import threading
import time
from hashlib import md5

from tests.backends.raw import Connection, Heard, Raw, message
from tests.lab import Lab, service_frames
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.vm.machine import Nic, Tap
from tests.vm.plug import MAC, STATIC, plugged, tiny
from tests.vm.tiny import Tiny

A, B = uuid_of(1), uuid_of(2)
STEP_SECONDS = 150.0
PIECE = 64 << 10
PIECES = 64

ASKING = STATIC + """
PORT=40000 ask $V4 GET /long >/tmp/long
head -n 1 /tmp/long
tail -n +2 /tmp/long | md5sum | cut -c1-32
get $V4 $ID
"""


class Trickle:
    """A backend that sends each instance a long text of its own, but stops after some pieces until `go`."""

    def __init__(self) -> None:
        self.go, self.half_way = threading.Event(), threading.Event()

    @staticmethod
    def text(instance: str) -> bytes:
        return (f"only for {instance}. " * PIECE)[:PIECE].encode()

    def __call__(self, connection: Connection, heard: Heard) -> None:
        piece = self.text(heard.header("X-Metashim-Instance")[0])
        connection.send(message(piece * PIECES)[: -PIECE * (PIECES - 4)])
        self.half_way.set()
        while not self.go.wait(0.1) and not connection.stopped.is_set():
            pass
        for _ in range(PIECES - 4):
            connection.send(piece)


def test_killed_in_mid_transfer_and_its_tap_becomes_anothers(lab: Lab, datapath: str) -> None:
    """The next guest has the same tap, by name, MAC, address and even port. While half of its own answer is there it is
    paused, as for a snapshot, and the rest of the former's is sent."""
    backend, trickle = Raw(lab.host), Trickle()
    settings = f'{PLENTY}[forward]\nroutes = {{"/" = "embedded", "/long" = "http"}}\n[http]\n'
    settings += f'addresses = ["{backend.url}"]\nsecret_file = "{backend.secret_file}"\n'
    backend.play("/long", trickle)
    with Hypervisor(lab, settings, datapath=datapath) as site, backend:
        site.start()
        with plugged(site, "tapsame", A) as tap, tiny(site, tap).start(ASKING) as guest:
            assert trickle.half_way.wait(STEP_SECONDS), guest.text()
            guest.kill()
        trickle.half_way.clear()
        with plugged(site, "tapsame", B) as tap, lab.capture("tapsame") as wire, tiny(site, tap).start(ASKING) as guest:
            assert trickle.half_way.wait(STEP_SECONDS), guest.text()
            with site.stopped(guest.pid):
                trickle.go.set()
                time.sleep(1)
            said = guest.output()
            frames = wire.frames()
    assert said.text == f"200\n{md5(trickle.text(str(B)) * PIECES).hexdigest()}\n{B}\n"
    assert service_frames(frames)
    assert not [frame for frame in frames if str(A).encode() in frame]


BOOTED = """
configure eth0 10.0.0.5/24 fd00:1::5/64
up eth1; settled eth1
new=fe80::a9fe:a9fe%eth1
echo "without $(outcome $V4) $(outcome $V6) new: $(outcome $new $ID 3)"
count=0
until [ "$(outcome $new $ID 3)" = INSTANCE ]; do
    [ "$(outcome $V4)" = INSTANCE ] && count=$((count + 1)) || echo "failed at $count"
done
echo "new served $count"
"""


def test_an_agent_that_is_killed_as_a_guest_boots_and_started_again(lab: Lab, datapath: str) -> None:
    """The guest's first tap was there before and is served throughout. The second is new, and is once there is an
    agent; until then nothing of it gets out."""
    with Hypervisor(lab, PLENTY, datapath=datapath) as site:
        site.start()
        site.api.attach("tapnew", A)
        with plugged(site, "tapold", A), lab.capture("uplink") as uplink, lab.capture("br0") as bridge:
            site.end(signal.SIGKILL)
            Tap(lab.host, "tapnew")
            guest = Tiny(lab.host, [Nic("tapold", MAC), Nic("tapnew", "02:00:00:00:00:06")])
            with guest.start(BOOTED.replace("INSTANCE", str(A))) as running:
                running.await_line(f"^without {A} {A} new: timeout$", STEP_SECONDS)
                site.start()
                said = running.output()
            assert "failed" not in said.text and "new served" in said.text, said.text
            assert not service_frames([*uplink.frames(), *bridge.frames()])
