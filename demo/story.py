"""The story, told while it happens. Each step is checked; the first that comes out wrong ends it (WrongError).

Verbs are called as `shim.cli.main`, what the command `metashim` is, but in this process: so the times beside
them are metashim's, without the 0.1 s that starting Python takes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from demo import guest as guests
from demo.guest import ADDRESSES, INSTANCE_ID, Kept, Load, curl, curl_status, knock
from demo.live import live
from demo.show import Show, WrongError, expect
from demo.stage import ROOT, Stage
from shim import cli
from shim.core.verdict import Verdict
from tests.lab import Lab, VethGuest, Wire, mentions, service_frames

Agent = subprocess.Popen[Any]

MAC, ADDRESS = "02:11:22:33:44:55", "10.0.0.5/24"
ALICE = "a11ce000-0000-4000-8000-00000000000a"
BOB = "b0b00000-0000-4000-8000-00000000000b"
NAMES = {ALICE: "alice", BOB: "bob"}
TAPS = {ALICE: "tap-alice", BOB: "tap-bob"}
DOCUMENTS: dict[str, dict[str, Any]] = {
    ALICE: {
        "name": "alice",
        "networks": [{"mac": MAC, "addresses": ["192.0.2.11/24"], "gateway4": "192.0.2.1"}],
    },
    BOB: {
        "name": "bob",
        "networks": [{"mac": MAC, "addresses": ["192.0.2.22/24"], "gateway4": "192.0.2.1"}],
    },
}
NEIGHBOUR = "10.0.0.77"
"""Nobody: whoever asks for it is heard on the whole bridge."""

LOAD_SECONDS = 2.0
START_SECONDS = 20.0


@dataclass(frozen=True)
class Scene:
    """All who take part."""

    show: Show
    stage: Stage
    lab: Lab
    wires: tuple[Wire, ...]
    alice: VethGuest
    bob: VethGuest

    @property
    def guests(self) -> tuple[tuple[VethGuest, str], tuple[VethGuest, str]]:
        """Each guest with the instance that it is."""
        return (self.alice, ALICE), (self.bob, BOB)

    def verb(self, *words: str) -> str:
        """One of metashim's verbs; what it prints. Raises WrongError unless it succeeds."""
        written, err = io.BytesIO(), io.StringIO()
        out = io.TextIOWrapper(written)  # which closes what it wraps, once nobody has it
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(["--config", str(self.stage.config), *words])
            sys.stdout.flush()
        if status:
            raise WrongError(f"expected `metashim {' '.join(words)}` to succeed, but {err.getvalue().strip()}")
        return written.getvalue().decode()

    def shown_verb(self, *words: str) -> str:
        """The same, shown first."""
        self.show.command(" ".join(["metashim", *words]))
        return self.verb(*words)

    def answer(self, *words: str) -> Any:
        """The JSON of a verb that only looks."""
        return json.loads(self.verb(*words, "--json"))


def tell(show: Show, stage: Stage) -> None:
    """All of it, in order. Raises WrongError at the first step that comes out wrong."""
    show.part("The stage: all of it real, in network namespaces of its own")
    with contextlib.ExitStack() as made:
        with show.step("a hypervisor with a bridge, and a network behind it"):
            lab = made.enter_context(Lab(stage.prefix))
        wires = lab.capture("br0"), lab.capture("uplink", lab.wire)
        agent = start_agent(show, stage, lab)
        with show.step(f"two guests, both {ADDRESS} at {MAC}"):
            scene = Scene(show, stage, lab, wires, plug(lab, ALICE), plug(lab, BOB))
        expect("the datapath", scene.answer("status")["datapath"], stage.datapath)
        look_alikes(scene)
        identities(scene)
        own_answers(scene)
        both_at_once(scene)
        kept = {scene.alice: Kept(scene.alice), scene.bob: Kept(scene.bob)}
        switch_off(scene, kept)
        agent = agent_dies(scene, agent, kept[scene.bob])
        switch_on(scene, kept[scene.bob])
        live(scene, ALICE)
        accounts(scene)
        nothing_leaked(scene)
        take_down(scene, agent)


def start_agent(show: Show, stage: Stage, lab: Lab, words: str = "the agent is up, and its proxy") -> Agent:
    """Start `metashim agent` in the hypervisor, and wait until it says that it is ready."""
    user = stage.proxy_user
    with show.step(f"{words} (as user {user})"):
        return _started(stage, lab)


def _started(stage: Stage, lab: Lab) -> Agent:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(stage.notify)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, stage.log.open("ab") as log:
        stage.notify.unlink(missing_ok=True)
        ready.bind(str(stage.notify))
        ready.settimeout(START_SECONDS)
        agent = lab.run_in_host(stage.argv("agent"), env=environment, stdout=log, stderr=log)
        try:
            while (word := ready.recv(64)).startswith(b"FDSTORE=1"):  # sockets for systemd to keep
                pass
        except TimeoutError:
            raise WrongError(f"expected the agent to be ready within {START_SECONDS:.0f} s") from None
    if word != b"READY=1":
        raise WrongError(f"expected the agent to be ready, but it ended with status {agent.wait()}")
    return agent


def plug(lab: Lab, instance: str) -> VethGuest:
    """A guest with its own kernel stack, behind a tap that the agent guards."""
    return lab.veth_guest(NAMES[instance], TAPS[instance], mac=MAC, v4=ADDRESS)


def look_alikes(scene: Scene) -> None:
    """They have the same addresses and nothing else; and as long as nobody knows them, no metadata."""
    with scene.show.step("no DHCP, no default route, and neither knows who it is"):
        for guest in (scene.alice, scene.bob):
            expect("MAC and address", guests.addresses(guest), (MAC, ADDRESS))
            expect("default routes", guests.default_routes(guest), "")
    with scene.show.step("a tap that no source knows is refused, not served"):
        wait_for_states(scene, dict.fromkeys(TAPS.values(), "no-identity"))
        for guest in (scene.alice, scene.bob):
            expect("curl", curl_status(guest, guests.V4, patience=0.2), (guests.SILENCE, 0))
            # Or its kernel waits out the ARP requests that nobody answered: up to a second.
            guest.run(["ip", "neighbour", "flush", "dev", "eth0"])


def identities(scene: Scene) -> None:
    """Documents by `set`; one instance is named by its link's alias, the other by `attach`."""
    scene.show.part("The operator says who is who")
    with scene.show.step("a document for each instance"):
        for instance, document in DOCUMENTS.items():
            file = scene.stage.folder / f"{NAMES[instance]}.json"
            file.write_text(json.dumps(document))
            scene.show.command(f"metashim set {instance} {file.name}")
            scene.verb("set", instance, str(file))
    with scene.show.step("one by its link's alias, one by hand"):
        alias = ["ip", "link", "set", TAPS[ALICE], "alias", f"metashim:{ALICE}"]
        scene.show.command(" ".join(alias))
        scene.lab.host.run(alias)
        scene.shown_verb("attach", TAPS[BOB], BOB)
        wait_for_states(scene, dict.fromkeys(TAPS.values(), "serving"))
        sources = {port["tap"]: port["source"] for port in scene.answer("list")["ports"]}
        expect("who named them", sources, {TAPS[ALICE]: "alias", TAPS[BOB]: "operator"})


def wait_for_states(scene: Scene, wanted: dict[str, str]) -> None:
    """Until every tap is in its state; WrongError after 5 s."""
    end = time.monotonic() + 5
    while (found := {port["tap"]: port["state"] for port in scene.answer("list")["ports"]}) != wanted:
        if time.monotonic() > end:
            expect("the taps", found, wanted)
        time.sleep(0.01)


def wait_until_well(scene: Scene) -> None:
    """Until `status` has nothing to complain of, as the proxy has found the agent; WrongError after 5 s."""
    end = time.monotonic() + 5
    while ailments := scene.answer("status")["ailments"]:
        if time.monotonic() > end:
            expect("what is not well", ailments, [])
        time.sleep(0.01)


def own_answers(scene: Scene) -> None:
    """Each guest gets its own instance id from each service address, and its own network's configuration."""
    scene.show.part("Each guest asks, with curl, and hears of itself")
    for address in ADDRESSES:
        with scene.show.step(f"instance id from {address}"):
            for guest, instance in scene.guests:
                expect(f"{NAMES[instance]}'s instance id", curl(guest, address, INSTANCE_ID), instance)
    with scene.show.step("openstack/latest/network_data.json, from fe80::a9fe:a9fe"):
        learnt = {instance: learn_network(guest) for guest, instance in scene.guests}
        expect("addresses", learnt, {ALICE: "192.0.2.11", BOB: "192.0.2.22"})
    rows = [(NAMES[i], TAPS[i], i, learnt[i]) for i in learnt]
    scene.show.table(("GUEST", "TAP", "INSTANCE ID IT GOT", "NETWORK"), rows)


def learn_network(guest: VethGuest) -> str:
    """The static address that a guest finds with nothing but its link-local one."""
    raw = curl(guest, guests.LINK_LOCAL, "/openstack/latest/network_data.json")
    return str(json.loads(raw)["networks"][0]["ip_address"])


def both_at_once(scene: Scene) -> None:
    """Load from both, every answer read and compared."""
    loads = [Load(guest, instance, LOAD_SECONDS) for guest, instance in scene.guests]
    with scene.show.step("both in haste, over all three addresses, every answer checked"):
        guests.at_once(loads)
        fewest = min(load.answers for load in loads)
        expect("at least 500 answers for each", fewest >= 500, True)
    for load, (_, instance) in zip(loads, scene.guests, strict=True):
        words = f"{load.answers:,} answers on {load.connections} connections, each its own"
        scene.show.say(f"{NAMES[instance]:<6} {words}")


def switch_off(scene: Scene, kept: dict[VethGuest, Kept]) -> None:
    """The operator disables alice while both hold a connection: by a reset, then by 403, then by a reset again."""
    scene.show.part("The operator disables alice while both hold a connection open")
    for guest, instance in scene.guests:
        expect("on the open connection", kept[guest].ask(), instance)
    watch = kept[scene.alice].watch()
    began, took = timed_verb(scene, "disable", ALICE)
    scene.show.fact("the command is done: the kernel refuses", took)
    scene.show.fact("alice's open connection had ended, counted from the command", watch.ended() - began)
    scene.show.fact("alice's next connection is refused by a reset", refused(scene.alice))
    for address in ADDRESSES[1:]:
        expect(f"curl to {address}", curl_status(scene.alice, address), (guests.REFUSED, 0))
    with scene.show.step("bob's open connection goes on, and so do his new ones"):
        expect("bob's open connection", kept[scene.bob].ask(), BOB)
        expect("bob's instance id", curl(scene.bob, guests.V4, INSTANCE_ID), BOB)
    _, took = timed_verb(scene, "disable", ALICE, "--how", "403")
    with scene.show.step("alice gets HTTP 403, for clients that would retry a reset"):
        expect("curl", curl_status(scene.alice, guests.V4), (0, 403))
    timed_verb(scene, "disable", ALICE)
    refused(scene.alice)


def timed_verb(scene: Scene, *words: str) -> tuple[float, float]:
    """When a verb began, of time.perf_counter(), and the seconds it took."""
    scene.show.command(" ".join(["metashim", *words]))
    began = time.perf_counter()
    scene.verb(*words)
    return began, time.perf_counter() - began


def refused(guest: VethGuest) -> float:
    """Seconds until a guest's new connection was refused. Raises WrongError if it was not."""
    reset, seconds = knock(guest)
    expect("a new connection refused", reset, True)
    return seconds


def agent_dies(scene: Scene, agent: Agent, bobs: Kept) -> Agent:
    """kill -9: what was refused stays refused, what was open stays open; the next agent takes over."""
    scene.show.part("kill -9 of the agent")
    agent.kill()
    expect("the agent's end", agent.wait(), -signal.SIGKILL)
    with scene.show.step("nobody runs it: alice stays refused, bob's connection goes on"):
        refused(scene.alice)
        expect("bob's open connection", bobs.ask(), BOB)
    agent = start_agent(scene.show, scene.stage, scene.lab, "started again; it takes the proxy over")
    with scene.show.step("alice is still refused, and bob's connection is still the same"):
        wait_until_well(scene)
        refused(scene.alice)
        expect("bob's open connection", bobs.ask(), BOB)
        wait_for_states(scene, {TAPS[ALICE]: "refused", TAPS[BOB]: "serving"})
    return agent


def switch_on(scene: Scene, bobs: Kept) -> None:
    """Enabled again."""
    scene.show.part("The operator enables alice again")
    _, took = timed_verb(scene, "enable", ALICE)
    scene.show.fact("the command is done", took)
    with scene.show.step("alice hears of herself again"):
        for address in ADDRESSES:
            expect("alice's instance id", curl(scene.alice, address, INSTANCE_ID), ALICE)
        expect("bob's open connection", bobs.ask(), BOB)
    bobs.close()


def accounts(scene: Scene) -> None:
    """Counters and events say what happened, and to whom."""
    scene.show.part("What was counted and noted")
    scene.show.command("metashim counters --json")
    with scene.show.step("refusals are counted by reason; bob has none"):
        ports = {port["tap"]: port["counters"] for port in scene.answer("counters")["ports"]}
        for tap, refusals in ((TAPS[ALICE], {"disabled_reset"}), (TAPS[BOB], set())):
            expect(f"reasons at {tap}", refusals_of(ports[tap]), refusals)
    names = ("opened", "delivered", "replied", "disabled_reset")
    rows = [(tap, *(f"{ports[tap].get(name, 0):,}" for name in names)) for tap in sorted(ports)]
    scene.show.table(("TAP", *(name.upper() for name in names)), rows)
    scene.show.command("metashim events --json")
    lines = scene.verb("events", "--json").splitlines()
    with scene.show.step("the refusals after the restart are among the events"):
        events = [json.loads(line) for line in lines]
        seen = {event["tap"] for event in events if event["reason"] == "disabled_reset"}
        expect("taps with refusals", seen, {TAPS[ALICE]})
    scene.show.table(("TIME", "EVENT", "TAP", "WHAT"), [event_row(event) for event in events[-4:]])


def refusals_of(counters: dict[str, int]) -> set[str]:
    """The labels of the refusals among a port's counters."""
    return {label for label in counters if Verdict[label.upper()].refusal}


def event_row(event: dict[str, Any]) -> tuple[str, str, str, str]:
    """An event in four words or so."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"])) + f".{int(event['time'] % 1 * 1000):03d}"
    what = f"{event['reason']} {event['text']}".strip()
    return clock, event["kind"], event["tap"] or "-", what if len(what) < 42 else f"{what[:40]}…"


def nothing_leaked(scene: Scene) -> None:
    """The captures saw the guests' other frames, so they were awake; and nothing of the service."""
    with scene.show.step("the bridge and the uplink carried nothing of the service"):
        scene.alice.run(["curl", "-s", "--max-time", "0.1", f"http://{NEIGHBOUR}/"], check=False)
        bridge, uplink = (wire.frames() for wire in scene.wires)
        seen = any(mentions(frame, [NEIGHBOUR]) for frame in uplink)
        expect("alice's call for a neighbour seen on the uplink", seen, True)
        expect("frames with a service address", len(service_frames(bridge + uplink)), 0)
    scene.show.say(f"{len(bridge) + len(uplink)} frames of other kinds were captured")


def take_down(scene: Scene, agent: Agent) -> None:
    """SIGTERM ends agent and proxy; `teardown` removes what they left in the kernel."""
    scene.show.part("The end")
    with scene.show.step("SIGTERM: the agent and the proxy's workers end"):
        agent.terminate()
        expect("the agent's exit status", agent.wait(10), 0)
        expect("processes in the hypervisor", scene.lab.host.pids(), [])
    with scene.show.step("teardown: no program, table, filter, link or namespace is left"):
        scene.show.command("metashim teardown")
        scene.lab.host.run(scene.stage.argv("teardown"), cwd=ROOT)
        expect("pins", [path.name for path in scene.stage.pins.glob("*")], [])
        tables = scene.lab.host.run(["nft", "list", "tables"]).stdout
        expect("tables", [line for line in tables.splitlines() if scene.stage.name in line], [])
        expect("links", {name for name in scene.lab.host.links() if name.startswith(scene.stage.name)}, set())
        filters = [scene.lab.host.run(["tc", "filter", "show", "dev", tap, "ingress"]).stdout for tap in TAPS.values()]
        expect("filters", "".join(filters), "")
        expect("the gateway", scene.stage.gateway.exists(), False)
