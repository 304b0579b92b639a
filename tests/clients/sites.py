"""Where clients are tried: a hypervisor, and guests that differ in what addresses they have and what tokens they need.

A guest that is to ask over IPv4 has no IPv6 at all, and the other way round, so an answer proves over what it came.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from shim.core.policy import Tokens
from tests.backends.wiring import forward_to
from tests.lab import Lab, VethGuest
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.nova.rig import Nova, Server

MAC = "02:00:00:00:00:05"
V4, V6, LINK_LOCAL = "IPv4", "IPv6", "link-local"
EMBEDDED, NOVA = "embedded", "Nova"
OPTIONAL, REQUIRED, OFF = "optional", "required", "off"
URLS = {V4: "http://169.254.169.254", V6: "http://[fd00:ec2::254]", LINK_LOCAL: "http://[fe80::a9fe:a9fe%25eth0]"}

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1wDbBrW7yQlkXnHVEyVwyXkRGVqXUbXVzRqXrUq1nX ops@example.org"
PROJECT = "5f1d0e2c9a3b4c5d8e7f60718293a4b5"
HOST = "web-1.example.org"
USER_DATA = "#cloud-config\npackages: [nginx]\n# more than one segment\n" + "# a line of user-data\n" * 200
DOCUMENT = {
    "name": "web-1",
    "fqdn": HOST,
    "project_id": PROJECT,
    "instance_type": "m1.small",
    "image_id": "ami-debian12",
    "availability_zone": "eu-north-1a",
    "region": "eu-north-1",
    "meta": {"role": "web", "enable-guest-attributes": "TRUE", "startup-script": "echo started > /run/started"},
    "tags": {"team": "shop"},
    "tags_in_metadata": True,
    "public_keys": {"ops": KEY},
    "user_data": USER_DATA,
    "vendor_data": {"cloud-init": "#cloud-config\ntimezone: Etc/UTC\n"},
    "networks": [
        {
            "mac": MAC,
            "mtu": 1500,
            "addresses": ["10.0.0.5/24", "fd00:1::5/64"],
            "gateway4": "10.0.0.1",
            "dns": ["10.0.0.53"],
        }
    ],
}


@dataclass(frozen=True)
class Truth:
    """What a client has to find out about the guest that it runs in."""

    backend: str
    uuid: UUID
    address: str

    @property
    def ec2_id(self) -> str:
        """EC2's name of the instance: Nova has one of its own for each."""
        return str(self.uuid) if self.backend == EMBEDDED else "i-00000001"

    @property
    def host(self) -> str:
        return HOST if self.backend == EMBEDDED else "web-1.novalocal"

    @property
    def type(self) -> str:
        return "m1.small" if self.backend == EMBEDDED else "m1.tiny"

    @property
    def zone(self) -> str:
        return "eu-north-1a" if self.backend == EMBEDDED else "nova"

    @property
    def image(self) -> str:
        return "ami-debian12" if self.backend == EMBEDDED else "ami-00000001"


@dataclass(frozen=True)
class Place:
    """What a guest differs in."""

    address: str = V4
    tokens: str = OPTIONAL


PLACES = (Place(V4), Place(V6), Place(LINK_LOCAL), Place(V4, REQUIRED), Place(V4, OFF))


class Site:
    """A hypervisor that runs, with a guest for each place."""

    def __init__(self, datapath: str, backend: str, hypervisor: Hypervisor, guests: dict[Place, VethGuest]) -> None:
        self.datapath, self.backend, self.hypervisor, self.guests = datapath, backend, hypervisor, guests

    def truth(self, place: Place) -> Truth:
        return Truth(self.backend, instance_of(place), place.address)


def instance_of(place: Place) -> UUID:
    return uuid_of(1 + PLACES.index(place))


@contextlib.contextmanager
def opened(datapath: str, backend: str) -> Iterator[Site]:
    """A site of that datapath, whose guests are answered by the documents or by the real Nova."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        nova = Nova([_server(place) for place in PLACES], namespace=lab.host) if backend == NOVA else None
        settings = forward_to("nova", nova) if nova is not None else PLENTY
        hypervisor = stack.enter_context(Hypervisor(lab, settings, datapath=datapath))
        if nova is not None:
            stack.enter_context(nova)
        hypervisor.start()
        guests = {place: _plug(hypervisor, place, backend) for place in PLACES}
        yield Site(datapath, backend, hypervisor, guests)


def _server(place: Place) -> Server:
    return Server(
        instance_of(place), PROJECT, "web-1", USER_DATA.encode(), {"ops": KEY}, {"role": "web"}, "10.0.0.5/24", MAC
    )


def _plug(hypervisor: Hypervisor, place: Place, backend: str) -> VethGuest:
    """All have one MAC, and those of a family one address."""
    number = 1 + PLACES.index(place)
    addresses = {
        V4: {"v4": "10.0.0.5/24", "link_local": False},
        V6: {"v6": "fd00:1::5/64"},
        LINK_LOCAL: {},
    }[place.address]
    guest = hypervisor.lab.veth_guest(f"c{number}", f"tap{number}", mac=MAC, bridge=None, **addresses)
    instance = instance_of(place)
    document = DOCUMENT if backend == EMBEDDED else {"project_id": PROJECT}
    hypervisor.api.put_document(instance, json.dumps(document).encode())
    hypervisor.api.attach(guest.tap, instance)
    hypervisor.await_port(guest.tap, instance)
    hypervisor.api.set_tokens(instance, Tokens(place.tokens))
    return guest
