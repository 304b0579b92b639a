"""A client: a program or library that guests run, how it is run here, and what it has to find out."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.sites import EMBEDDED, NOVA, URLS, V4, Place, Site, Truth
from tests.lab import VethGuest

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
DEBIAN, PYPI, NPM = "Debian", "PyPI", "npm"
EC2, OPENSTACK, GCE, ANY = "EC2", "OpenStack", "Compute Engine", "any"
BOTH = (EMBEDDED, NOVA)
LONGEST = 100.0
"""Seconds; most take one or two, of a CPU of their own."""
ROOM = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", str(HERE / "room.sh"))


@dataclass(frozen=True)
class Room:
    """A machine of its own for a client that would change the host's, or that looks at the firmware first.

    `files` by path, `dmi` by name; `layer`: packages in it that are not installed here, `trixie` or none.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    dmi: Mapping[str, str] = field(default_factory=dict)
    layer: str = ""

    def furnish(self, folder: Path, words: Callable[[str], str]) -> None:
        for top, entries in (("files", self.files), ("dmi", self.dmi)):
            for name, text in entries.items():
                path = folder / top / name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(words(text))
        (folder / "files").mkdir(exist_ok=True)
        (folder / "dmi").mkdir(exist_ok=True)


@dataclass(frozen=True)
class Client:
    """One row of the table.

    argv      its command. {url}, {host}: where the service is; {python}, {node}, {debian}: folders of what was
              installed; {programs}: ours
    expect    what `read` makes of its output, for a guest of which this is true
    addresses what it can ask over; tokens: modes beside `optional` in which it has to find the same
    uses      of tokens: what it speaks, v1 or v2
    """

    name: str
    origin: str
    package: str
    face: str
    argv: tuple[str, ...]
    expect: Callable[[Truth], Any]
    read: Callable[[str], Any] = json.loads
    addresses: tuple[str, ...] = (V4,)
    tokens: tuple[str, ...] = ()
    backends: tuple[str, ...] = BOTH
    environment: Mapping[str, str] = field(default_factory=dict)
    room: Room | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """What tells it from all others, in letters that may be of a test's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.origin}-{self.name}-{self.face}").strip("-")

    def places(self, datapath: str, backend: str) -> list[Place]:
        """Where it has to work. What tokens are needed does not depend on the datapath, nor on who answers; nor does it
        depend on who answers over what it is asked."""
        if backend not in self.backends:
            return []
        if backend == NOVA:
            return [Place(self.addresses[0])]
        found = [Place(address) for address in self.addresses]
        return found + [Place(V4, mode) for mode in self.tokens if datapath == "ebpf"]


@dataclass(frozen=True)
class Run:
    """What came of one run; `error` is empty where it was as it has to be."""

    client: str
    datapath: str
    backend: str
    address: str
    tokens: str
    seconds: float
    error: str = ""


@functools.cache
def installed() -> Path:
    """The folder that install.sh prints."""
    done = subprocess.run([str(HERE / "install.sh")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"tests/clients/install.sh: {done.stderr}")
    return Path(done.stdout.strip())


def version(client: Client) -> str:
    """As its package says; of Debian's, without the part that is Debian's."""
    if client.origin == NPM:
        return str(json.loads((HERE / "package.json").read_text())["dependencies"][client.package])
    if client.origin == PYPI:
        pinned = re.search(rf"(?im)^{re.escape(client.package)}==(.*)$", (HERE / "requirements.txt").read_text())
        assert pinned, f"{client.package} is not in requirements.txt"
        return pinned[1]
    layer = client.room.layer if client.room else ""
    unpacked = (installed() / (layer or "debian") / "versions").read_text().splitlines()
    found = dict(line.split("\t") for line in unpacked).get(client.package) or _installed_version(client.package)
    return re.split(r"[-+~]", found.partition(":")[2] or found)[0]


def _installed_version(package: str) -> str:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{package} is not installed: run `make test`, or ./setup.sh {package}"
    return done.stdout


def run(client: Client, site: Site, place: Place, folder: Path) -> Run:
    """Run it in the guest of that place, with `folder`, which is made, as its home; what it found is compared."""
    folder.mkdir()
    began = time.monotonic()
    try:
        error = _compare(client, site.truth(place), _output(client, site.guests[place], place, folder))
    except (OSError, RuntimeError, ValueError, KeyError, subprocess.TimeoutExpired) as fault:
        error = f"{type(fault).__name__}: {fault}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took = time.monotonic() - began
    return Run(client.key, site.datapath, site.backend, place.address, place.tokens, round(took, 2), error)


def _compare(client: Client, truth: Truth, output: str) -> str:
    found, expected = client.read(output), client.expect(truth)
    if found == expected:
        return ""
    if isinstance(found, dict) and isinstance(expected, dict):  # they may hold user-data
        names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        found, expected = ({name: one.get(name) for name in names} for one in (found, expected))
    return f"it found {found!r} in the place of {expected!r}; it wrote: {output[-2000:]}"


def _output(client: Client, guest: VethGuest, place: Place, folder: Path) -> str:
    words = functools.partial(_filled, place=place, folder=folder)
    argv = [words(word) for word in client.argv]
    if client.room is not None:
        client.room.furnish(folder, words)
        layer = str(installed() / client.room.layer) if client.room.layer else ""
        argv = [*ROOM, str(folder), layer, *argv]
    environment = {
        "PATH": f"{os.environ['PATH']}:{installed() / 'debian/usr/bin'}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "CLIENTS_NODE": str(installed() / "node"),
        **{name: words(value) for name, value in client.environment.items()},
    }
    cwd = "/" if client.room else str(folder)
    return guest.run(argv, env=environment, cwd=cwd, timeout=LONGEST).stdout


def _filled(text: str, place: Place, folder: Path) -> str:
    url = URLS[place.address]
    known = {
        "url": url,
        "host": url.removeprefix("http://"),
        "python": str(installed() / "python/bin"),
        "debian": str(installed() / "debian"),
        "programs": str(PROGRAMS),
        "mode": "IPv4" if place.address == V4 else "IPv6",
        "folder": str(folder),
    }
    return re.sub(r"\{(\w+)\}", lambda word: known[word[1]] if word[1] in known else word[0], text)


def python(program: str, *words: str) -> tuple[str, ...]:
    """A program of ours, by the Python that PyPI's clients are installed for."""
    return ("{python}/python", f"{{programs}}/{program}", *words)


def node(program: str, *words: str) -> tuple[str, ...]:
    return ("node", f"{{programs}}/{program}", *words)


