"""The story's second half: user-data of several owners, a secret, a guest that waits, and one that locks itself."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from demo import guest as guests
from demo.guest import INSTANCE_ID, curl, curl_status, knock
from demo.show import WrongError, expect
from tests.lab import VethGuest

if TYPE_CHECKING:
    from demo.story import Scene

BASE = "#cloud-config\npackages: [chrony]\n"
WEB = "#cloud-config\npackages: [nginx]\n"
TOKEN = "hunter2-hunter2"
SECRET = "/metashim/v1/sources/instance/join"
ROLE = "/metashim/v1/kv/host/role"
READERS = 20


def live(scene: Scene, alice: str) -> None:
    """All of it; alice is served again at its end. Raises WrongError at the first step that comes out wrong."""
    composed(scene, alice)
    read_once(scene, alice)
    waited_for(scene, alice)
    locked(scene, alice)


def add(scene: Scene, scope: str, name: str, body: str, *options: str) -> None:
    """One more source, as an operator writes it."""
    file = scene.stage.folder / name
    file.write_text(body)
    scene.show.command(" ".join(["metashim userdata add", scope, name, file.name, *options]))
    scene.verb("userdata", "add", scope, name, str(file), *options)


def composed(scene: Scene, alice: str) -> None:
    """Two owners, one answer, and what cloud-init will make of it."""
    scene.show.part("User-data of two owners")
    add(scene, "host", "base", BASE, "--owner", "net")
    add(scene, alice, "web", WEB, "--owner", "shop")
    with scene.show.step("alice gets both, bob gets the host's alone"):
        both = curl(scene.alice, guests.V4, "/openstack/latest/user_data")
        expect("parts", (both.count("chrony"), both.count("nginx")), (1, 1))
        expect("bob's user-data", curl(scene.bob, guests.V4, "/latest/user-data"), BASE)
    user = scene.answer("userdata", "preview", alice)["user"]
    rows = [(part["id"], part["owner"], part["type"], f"{part['bytes']} bytes") for part in user["parts"]]
    scene.show.table(("PART", "OWNER", "TYPE", ""), rows)
    with scene.show.step("merged as cloud-init does: packages of both, in order"):
        expect("merged", user["config"].split(), ["packages:", "-", "chrony", "-", "nginx"])


def read_once(scene: Scene, alice: str) -> None:
    """Many at once, and one of them gets it."""
    scene.show.part("A secret that is read once")
    add(scene, alice, "join", TOKEN, "--once")
    with scene.show.step(f"{READERS} readers at once: one gets it"), ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda _: curl(scene.alice, guests.V4, SECRET), range(READERS)))
        expect("who got it", found.count(TOKEN), 1)


def waited_for(scene: Scene, alice: str) -> None:
    """A long poll, woken by the operator."""
    scene.show.part("A guest that waits for a change")
    scene.verb("kv", "set", alice, "host/role", "standby")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_next_state, scene.alice)
        time.sleep(0.5)
        scene.show.command(f"metashim kv set {alice} host/role primary")
        began = time.perf_counter()
        scene.verb("kv", "set", alice, "host/role", "primary")
        body, at = waiting.result()
    expect("what alice was told", body, "primary")
    scene.show.fact("alice knows, counted from the command", at - began)


def _next_state(guest: VethGuest) -> tuple[str, float]:
    """The state after this one, and when it came, of time.perf_counter()."""
    head = guest.run(["curl", "-sSI", guests.url(guests.V4, ROLE)]).stdout
    tag = next(line.split('"')[1] for line in head.splitlines() if line.lower().startswith("etag"))
    return curl(guest, guests.V4, f"{ROLE}?wait=2&etag={tag}"), time.perf_counter()


def locked(scene: Scene, alice: str) -> None:
    """What the guest closes, the host alone opens."""
    scene.show.part("Alice locks herself")
    with scene.show.step("POST /metashim/v1/lock, from inside"):
        scene.alice.run(["curl", "-sSf", "-X", "POST", guests.url(guests.V4, "/metashim/v1/lock")])
        _until_refused(scene.alice)
    with scene.show.step("`enable` does not open it, `unlock` does"):
        try:
            scene.verb("enable", alice)
        except WrongError:
            pass
        expect("a new connection refused", knock(scene.alice)[0], True)
        scene.shown_verb("unlock", alice)
        expect("alice's instance id", curl(scene.alice, guests.V4, INSTANCE_ID), alice)
    scene.show.command(f"metashim audit {alice}")
    trail = [json.loads(line) for line in scene.verb("audit", alice, "--json").splitlines()]
    told = [row for row in trail if row["what"] in ("lock", "unlock", "read once")]
    rows = [(row["who"], row["what"], row["detail"][:48]) for row in told]
    scene.show.table(("WHO", "WHAT", ""), rows)


def _until_refused(guest: VethGuest) -> None:
    """The workers refuse at once, the kernel once the answer has had its time. WrongError after 3 s."""
    end = time.monotonic() + 3
    while curl_status(guest, guests.V4) != (guests.REFUSED, 0):
        if time.monotonic() > end:
            raise WrongError("expected the kernel to refuse a guest that locked itself")
        time.sleep(0.05)
