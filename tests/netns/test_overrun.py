"""What the agent was not told: more changes than its sockets hold while it stood still, lists that change while they
are read. Then all is looked at anew, and nobody was, or is, taken for another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from uuid import UUID

import pytest

from shim.netlink import links, rtnl
from tests.lab import Lab, Namespace
from tests.netns.conftest import on_both
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import await_outcome, outcome

EVENTS = 20_000
"""Some kilobytes of the kernel's memory each: several times what the agent's socket holds."""

SECONDS = 15.0
"""By when all is right again; on an idle machine one or two are enough."""


def plug(lab: Lab, name: str, tap: str, instance: UUID, index: int = 0) -> Namespace:
    """A guest on a tap with that name, of that number; all have the same face."""
    guest = lab.namespace(name)
    number = ["index", str(index)] if index else []
    peer = ["peer", "name", "eth0", "netns", guest.name, "address", "02:00:00:00:00:08"]
    lab.host.run(["ip", "link", "add", tap, *number, "type", "veth", *peer])
    lab.host.run(["ip", "link", "set", tap, "up", "alias", f"metashim:{instance}"])
    for words in ("link set eth0 up", "addr add 10.0.0.8/24 dev eth0", "route add 169.254.0.0/16 dev eth0 scope link"):
        guest.run(["ip", *words.split()])
    return guest


def unplug(lab: Lab, guest: Namespace, tap: str) -> int:
    """Removes a guest and its tap; the number that the tap had."""
    index = lab.host.index(tap)
    lab.host.run(["ip", "link", "del", tap])
    guest.close()
    return index


def overrun(lab: Lab) -> None:
    """More changes of one link than anybody is told of who does not listen."""
    lines = "".join(f"link set dev br0 alias n{number}\n" for number in range(EVENTS))
    lab.host.run(["ip", "-batch", "-"], input=lines, stdin=None, timeout=120)


def believed(site: Hypervisor, reuse: str) -> bool:
    """Whether a tap may be taken for the former one until the agent looks: from Linux 6.16 on nftables' chains are on
    whatever has the name (README, Limits and known weak points)."""
    return site.datapath == "nft" and reuse == "name and number"


@on_both
@pytest.mark.parametrize("reuse", ["name", "number", "name and number"])
def test_what_happened_while_the_agent_stood_still(shared, reuse):
    """A tap's name, its number or both are another guest's by then, and no message tells of that."""
    lab, site = shared.lab, shared
    kind = reuse[-4:].strip()
    former, present, bystander = (uuid_of(number) for number in (1, 2, 3))
    beside = plug(lab, f"b{kind}", f"tapb{kind}", bystander)
    guest = plug(lab, f"f{kind}", f"tapf{kind}", former)
    await_outcome(beside, str(bystander), seconds=SECONDS)
    await_outcome(guest, str(former), seconds=SECONDS)
    said = site.log_text().count("reading all of them again")
    assert site.agent is not None
    with site.stopped(site.agent.pid):
        index = unplug(lab, guest, f"tapf{kind}")
        tap = f"tapf{kind}" if "name" in reuse else f"tapg{kind}"
        guest = plug(lab, f"g{kind}", tap, present, index if "number" in reuse else 0)
        if not believed(site, reuse):
            assert outcome(guest, timeout=0.5) in ("timeout", "Host is unreachable", "No route to host")
        assert outcome(beside) == str(bystander)
        overrun(lab)
    met = {outcome(guest, timeout=0.2) for _ in range(20)}
    await_outcome(guest, str(present), seconds=SECONDS)
    assert str(former) not in met or believed(site, reuse)
    assert outcome(beside) == str(bystander)
    assert site.log_text().count("reading all of them again") > said, "nothing was lost: the test shows nothing"
    unplug(lab, guest, tap)
    unplug(lab, beside, f"tapb{kind}")


@contextlib.contextmanager
def churning(lab: Lab) -> Iterator[None]:
    """Links that come and go all the while."""
    over = threading.Event()
    lines = "".join(f"tuntap add dev tapx{number} mode tap\n" for number in range(100))
    lines += "".join(f"link del dev tapx{number}\n" for number in range(100))

    def churn() -> None:
        while not over.is_set():
            lab.host.run(["ip", "-batch", "-"], input=lines, stdin=None)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_list_that_is_never_whole_shows_all_that_stays(lab):
    """Among a thousand links that stay, others come and go faster than all of them are read."""
    stay = "".join(f"tuntap add dev tapd{number} mode tap\n" for number in range(1000))
    lab.host.run(["ip", "-batch", "-"], input=stay, stdin=None, timeout=120)
    asked = rtnl.Rtnl(lab.host.enter)
    interrupted = 0
    with churning(lab):
        for _ in range(8):
            try:
                list(asked.dump(rtnl.GETLINK, bytes(16)))
            except rtnl.InterruptedDumpError:
                interrupted += 1
            found = {link.name for link in links.dump(enter=lab.host.enter).values()}
            assert {f"tapd{number}" for number in range(1000)} <= found
    asked.close()
    assert interrupted, "no list was interrupted: the test shows nothing"


def test_an_agent_that_starts_in_a_storm(lab, site):
    """A thousand taps are there, others come and go, and all that stay are served."""
    stay = "".join(
        f"tuntap add dev tapd{number} mode tap\nlink set dev tapd{number} alias metashim:{uuid_of(number)}\n"
        for number in range(1000)
    )
    lab.host.run(["ip", "-batch", "-"], input=stay, stdin=None, timeout=120)
    guest = plug(lab, "guest", "tapg", uuid_of(5000))
    with churning(lab):
        site.start()
        await_outcome(guest, str(uuid_of(5000)), seconds=SECONDS)
        served = {port.tap for port in site.api.ports() if port.state == "serving"}
        assert {"tapg", *(f"tapd{number}" for number in range(1000))} <= served
