"""What can be set: one struct a table of the configuration file, every setting described where it is declared. PURE.

What a type cannot say is checked in `__post_init__`, by a ValueError that begins with the setting's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from shim.core.address import UNIX_PATH_MAX, Address, parse_address

ADDRESSES_PER_FAMILY = 4
LINK_NAME_MAX = 15  # IFNAMSIZ, its NUL aside

SLOTS_V4 = ipaddress.IPv4Network("100.64.0.0/10")
SLOTS_V6 = ipaddress.IPv6Network("fd6d:7368:696d::/96")
"""The addresses that ports are stamped with inside the gateway namespace."""

ROUTE_PATTERN = r"^/([A-Za-z0-9._~-]+/)*([A-Za-z0-9._~-]+/?)?\Z"
OVSDB_PATTERN = r"^(unix:/[^\x00\n]+|(tcp|ssl):(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z.-]+):[0-9]{1,5})\Z"
PORT_MAX = 65535
HEADER_PATTERN = r"^[A-Za-z0-9-]{1,64}\Z"  # without _, which WSGI servers take for -

HEADERS_TAKEN = frozenset(
    (
        "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect",
        "http2-settings", "x-metashim-signature",
    )
)  # fmt: skip
"""What frames a message, and what metashim itself writes."""

_VARIABLE = re.compile(r"\{(instance|project|address)\}")

_V6_ALLOWED = (ipaddress.IPv6Network("fe80::/10"), ipaddress.IPv6Network("fc00::/7"))
_V4_REFUSED = tuple(map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", str(SLOTS_V4))))

AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", max_length=4096)]
PathOrEmpty = Annotated[str, Meta(pattern=r"^(/[^\x00]*)?\Z", max_length=4096)]

BackendName = Literal["embedded", "nova", "http"]
BACKENDS: tuple[str, ...] = get_args(BackendName)
EMBEDDED, *FORWARDED = BACKENDS
ROUTES_MAX = 32


def check_routes(prefixes: Iterable[str]) -> None:
    """Raises ValueError for prefixes of which there can be no table: without `/`, or with one that is there twice."""
    plain = [prefix.removesuffix("/") for prefix in prefixes]
    if "" not in plain:
        raise ValueError('no backend for "/"')
    for prefix in plain:
        if plain.count(prefix) > 1:
            raise ValueError(f"{prefix!r} is there twice, with and without a slash at its end")
        if {".", ".."} & set(prefix.split("/")):
            raise ValueError(f"{prefix!r} has a segment of dots alone, which no path has")


def _check_taps(patterns: tuple[str, ...]) -> None:
    if loose := [p for p in patterns if fnmatchcase("lo", p)]:
        raise ValueError(f"taps: {loose[0]!r} matches the loopback too")


def _check_addresses(texts: tuple[str, ...]) -> None:
    seen: set[IPv4Address | IPv6Address] = set()
    for text in texts:
        address = _service_address(text)
        if address in seen:
            raise ValueError(f"service_addresses: {text} is there twice")
        seen.add(address)
    for version in (4, 6):
        if sum(a.version == version for a in seen) > ADDRESSES_PER_FAMILY:
            raise ValueError(f"service_addresses: more than {ADDRESSES_PER_FAMILY} of IPv{version}")


def _service_address(text: str) -> IPv4Address | IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"service_addresses: {text!r} is not an IP address") from None
    if isinstance(address, IPv4Address):
        if any(address in net for net in _V4_REFUSED):
            raise ValueError(f"service_addresses: {text} is not unicast, is loopback or within {SLOTS_V4}")
    elif address.scope_id or address in SLOTS_V6 or not any(address in net for net in _V6_ALLOWED):
        raise ValueError(f"service_addresses: {text} is not in fe80::/10 or fc00::/7")
    return address


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the file. A ValueError of `__post_init__` begins with the field's name and a colon."""


class Host(Section, frozen=True):
    """What is made on the host, and where."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9-]{0,11}\Z",
            description="Prefix of all that is made in the kernel: namespace `<name>`, link `<name>0`, pins; "
            "at most 12 of a-z, 0-9, -.",
        ),
    ] = "metashim"
    run_dir: Annotated[
        AbsolutePath, Meta(description="Folder of the sockets and the agent's lock.")
    ] = "/run/metashim"
    state_dir: Annotated[AbsolutePath, Meta(description="Folder of the store.")] = "/var/lib/metashim"
    bpffs: Annotated[
        AbsolutePath, Meta(description="Where the BPF file system is mounted; pins go to `<bpffs>/<name>`.")
    ] = "/sys/fs/bpf"

    def __post_init__(self) -> None:
        if len(f"{self.run_dir}/control.sock".encode()) > UNIX_PATH_MAX:
            raise ValueError("run_dir: too long for the path of a Unix socket (at most 94 bytes)")


class Datapath(Section, frozen=True):
    """What the kernel takes off the taps, and its limits."""

    datapath: Annotated[
        Literal["ebpf", "nft", "auto"],
        Meta(description="What takes packets off the taps; `auto`: eBPF, or nftables where that cannot be had."),
    ] = "auto"
    taps: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^\s/]{1,15}\Z")], ...],
        Meta(
            min_length=1,
            max_length=32,
            description="Shell patterns of the interfaces to guard; a match without identity is refused.",
        ),
    ] = ("tap*", "vnet*")
    namespaces: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^\s/]{1,255}\Z")], ...],
        Meta(
            max_length=32,
            description="Shell patterns of other network namespaces (as `ip netns` names them) whose taps are guarded "
            "too; those in which an operator or the file names a tap are anyway.",
        ),
    ] = ()
    service_addresses: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="Addresses of the service: unicast IPv4, link-local or unique local IPv6; "
            "at most 4 of each.",
        ),
    ] = ("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe")
    service_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        Meta(min_length=1, max_length=4, description="TCP ports of the service; at most 4."),
    ] = (80,)
    max_ports: Annotated[
        int,
        Meta(
            ge=1,
            le=65535,  # a filter's class id reaches the program as 16 bits
            description="The most taps enrolled at a time, those that went in the last minute among them.",
        ),
    ] = 4096
    connection_rate: Annotated[
        int, Meta(ge=1, le=1000000, description="New TCP connections a second that one port may open.")
    ] = 50
    connection_burst: Annotated[
        int, Meta(ge=1, le=1000000, description="New TCP connections that one port may open at once.")
    ] = 200
    flows_per_port: Annotated[
        int,
        Meta(
            ge=1,
            le=32768,
            description="TCP connections that one port may hold open; costs the kernel 32 bytes times `max_ports`.",
        ),
    ] = 128
    event_rate: Annotated[
        int, Meta(ge=0, le=10000, description="Refusals a second and port that become events; 0: none.")
    ] = 10
    hop_limit: Annotated[
        int, Meta(ge=1, le=64, description="TTL of replies, where an instance has none of its own.")
    ] = 64

    def __post_init__(self) -> None:
        _check_taps(self.taps)
        _check_addresses(self.service_addresses)
        if len(set(self.service_ports)) != len(self.service_ports):
            raise ValueError("service_ports: the same port twice")

    @property
    def service_v4(self) -> tuple[IPv4Address, ...]:
        """The IPv4 service addresses, in the configured order."""
        return tuple(IPv4Address(a) for a in self.service_addresses if ":" not in a)

    @property
    def service_v6(self) -> tuple[IPv6Address, ...]:
        """The IPv6 service addresses, in the configured order."""
        return tuple(IPv6Address(a) for a in self.service_addresses if ":" in a)


class DefaultPolicy(Section, frozen=True):
    """What holds for an instance that no operator gave a policy."""

    enabled: Annotated[
        bool, Meta(description="Whether instances without a policy of their own are served; else: reset.")
    ] = True


class Identity(Section, frozen=True):
    """Who says which instance is behind a tap."""

    sources: Annotated[
        tuple[Literal["operator", "file", "alias", "netns", "libvirt", "ovs"], ...],
        Meta(
            min_length=1,
            description="Who maps taps to instances, first that knows wins: `operator` (attach), "
            "`file`, `alias` (`metashim:<uuid>` on the link), `netns` (a namespace's name), `libvirt`, "
            "`ovs` (Open vSwitch).",
        ),
    ] = ("operator", "file", "alias")
    file: Annotated[AbsolutePath, Meta(description="The static mapping that the source `file` reads.")] = (
        "/etc/metashim/instances.toml"
    )
    netns_prefix: Annotated[
        str,
        Meta(
            pattern=r"^[^\s/]{0,64}\Z",
            description="What stands before the uuid in the namespaces' names that the source `netns` reads.",
        ),
    ] = ""
    libvirt_uri: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9+.-]*://[!-~]*\Z",
            max_length=4096,
            description="The libvirtd that the source `libvirt` asks, by a read-only connection.",
        ),
    ] = "qemu:///system"
    libvirt_state: Annotated[
        PathOrEmpty,
        Meta(description="Folder of that libvirtd's state files, which tell of domains sooner, and without it."),
    ] = "/run/libvirt/qemu"
    ovs: Annotated[
        str,
        Meta(
            pattern=OVSDB_PATTERN,
            max_length=4096,
            description="The Open vSwitch database that the source `ovs` follows: "
            "`unix:<absolute path>`, `tcp:<host>:<port>` or `ssl:<host>:<port>`.",
        ),
    ] = "unix:/run/openvswitch/db.sock"
    ovs_tls: Annotated[
        AbsolutePath, Meta(description="Folder of `key.pem`, `cert.pem` and `ca.pem`, for an `ssl:` database.")
    ] = "/etc/metashim/ovs"

    def __post_init__(self) -> None:
        if not self.ovs.startswith("unix:") and int(self.ovs.rpartition(":")[2]) > PORT_MAX:
            raise ValueError(f"ovs: no port is above {PORT_MAX}")
        if len(set(self.sources)) != len(self.sources):
            raise ValueError("sources: the same source twice")


class Proxy(Section, frozen=True):
    """The unprivileged side, which guests talk to, and its limits."""

    workers: Annotated[int, Meta(ge=1, le=64, description="Worker processes; one a core that is spared.")] = 1
    user: Annotated[str, Meta(min_length=1, description="The user that workers run as.")] = "metashim"
    head_bytes: Annotated[
        int, Meta(ge=1024, le=1048576, description="The longest head of a request: request line and headers.")
    ] = 16384
    body_bytes: Annotated[int, Meta(ge=0, le=16777216, description="The longest body of a request.")] = 262144
    head_seconds: Annotated[int, Meta(ge=1, le=3600, description="Time for a whole head to arrive.")] = 10
    idle_seconds: Annotated[
        int, Meta(ge=1, le=3600, description="Time that a connection may wait between requests.")
    ] = 75
    connections_per_instance: Annotated[
        int, Meta(ge=1, le=65536, description="Open connections of one instance, in each worker.")
    ] = 64
    connections: Annotated[
        int, Meta(ge=1, le=1048576, description="Open connections of all, in each worker.")
    ] = 4096
    request_rate: Annotated[
        int,
        Meta(ge=1, le=1000000, description="Requests a second of one instance, in each worker; over it 429."),
    ] = 100
    request_burst: Annotated[
        int, Meta(ge=1, le=1000000, description="Requests that one instance may make at once.")
    ] = 500

    def __post_init__(self) -> None:
        if self.connections < self.connections_per_instance:
            raise ValueError("connections: less than connections_per_instance")


class Tokens(Section, frozen=True):
    """Session tokens (IMDSv2)."""

    mode: Annotated[
        Literal["off", "optional", "required"],
        Meta(description="Where an instance has no mode of its own; `required` answers 401 without a token."),
    ] = "optional"


class Forward(Section, frozen=True):
    """Who answers, and how long that may take."""

    routes: Annotated[
        dict[Annotated[str, Meta(pattern=ROUTE_PATTERN)], BackendName],
        Meta(
            min_length=1,
            max_length=ROUTES_MAX,
            description="Path prefix to backend, the longest that fits: `embedded`, `nova` or `http`; "
            "an instance may have its own.",
        ),
    ] = msgspec.field(default_factory=lambda: {"/": "embedded"})
    connect_seconds: Annotated[
        float, Meta(ge=0.05, le=10, description="Time to connect to one address of a backend.")
    ] = 0.4
    read_seconds: Annotated[
        float, Meta(ge=0.1, le=600, description="How long a backend may be silent within an answer.")
    ] = 30.0
    connections: Annotated[
        int, Meta(ge=1, le=4096, description="Connections to each address of a backend, in each worker.")
    ] = 128
    requests_per_instance: Annotated[
        int,
        Meta(ge=1, le=4096, description="Forwarded requests of one instance at a time, in each worker; over it 429."),
    ] = 16

    def __post_init__(self) -> None:
        try:
            check_routes(self.routes)
        except ValueError as error:
            raise ValueError(f"routes: {error}") from None


class Backend(Section, frozen=True):
    """What the backends that requests are forwarded to have in common."""

    addresses: Annotated[
        tuple[str, ...],
        Meta(
            max_length=16,
            description="Where it listens: `http://HOST:PORT`, `https://HOST:PORT`, `unix:/PATH`; taken in turn.",
        ),
    ] = ()
    secret_file: Annotated[
        PathOrEmpty, Meta(description="File with the shared secret that requests are signed with; root's, mode 0600.")
    ] = ""
    ca_file: Annotated[
        PathOrEmpty, Meta(description="Who may sign an https backend's certificate (PEM); empty: the system's own.")
    ] = ""
    certificate_file: Annotated[
        PathOrEmpty, Meta(description="The client certificate to show an https backend (PEM).")
    ] = ""
    key_file: Annotated[PathOrEmpty, Meta(description="The key of that certificate (PEM); root's, mode 0600.")] = ""

    def __post_init__(self) -> None:
        for text in self.addresses:
            try:
                parse_address(text)
            except ValueError as error:
                raise ValueError(f"addresses: {error}") from None
        if len(set(self.addresses)) != len(self.addresses):
            raise ValueError("addresses: the same address twice")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("key_file: a certificate and its key go together")

    @property
    def parsed_addresses(self) -> tuple[Address, ...]:
        """The addresses, in the configured order."""
        return tuple(map(parse_address, self.addresses))


class Nova(Backend, frozen=True):
    """Nova's metadata API (`[neutron] service_metadata_proxy = True` there)."""


class Http(Backend, frozen=True):
    """Any HTTP service."""

    headers: Annotated[
        dict[Annotated[str, Meta(pattern=HEADER_PATTERN)], Annotated[str, Meta(pattern=r"^[\x20-\x7e]{0,200}\Z")]],
        Meta(
            max_length=16,
            description="Headers that tell it who asks; values may hold `{instance}`, `{project}`, `{address}`.",
        ),
    ] = msgspec.field(
        default_factory=lambda: {"X-Metashim-Instance": "{instance}", "X-Metashim-Project": "{project}"}
    )
    health_path: Annotated[
        str,
        Meta(pattern=r"^/[!-~]{0,200}\Z", description="What it is asked for every 3 s; below 500 it is well."),
    ] = "/"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.headers.items():
            if set(_VARIABLE.sub("", value)) & set("{}"):
                raise ValueError(f"headers: {name}: {value!r} may hold {{instance}}, {{project}} and {{address}} alone")
        names = {name.lower() for name in self.headers}
        if taken := sorted(names & HEADERS_TAKEN):
            raise ValueError(f"headers: {taken[0]} is HTTP's own or metashim's")
        if len(names) != len(self.headers):
            raise ValueError("headers: the same header twice")


class Sources(Section, frozen=True):
    """What user-data and vendor-data are composed of."""

    directory: Annotated[
        PathOrEmpty,
        Meta(description="Folder whose files are sources: `host/NAME`, `project/ID/NAME`, …; watched; empty: none is."),
    ] = ""
    composition: Annotated[
        Literal["merged", "vendor"],
        Meta(description="`merged`: all sources are user-data; `vendor`: the document's is, others vendor data."),
    ] = "merged"
    limit_bytes: Annotated[
        int,
        Meta(ge=1024, le=1048576, description="The largest user-data a guest is given; above it gzip, then a refusal."),
    ] = 49149


class Kv(Section, frozen=True):
    """What each instance's guest may keep below `guest/`."""

    keys: Annotated[int, Meta(ge=0, le=100000, description="Keys that a guest may keep; 0: it may not write.")] = 256
    value_bytes: Annotated[
        int, Meta(ge=1, le=262144, description="The longest value that a guest may write, within `proxy.body_bytes`.")
    ] = 262144
    total_bytes: Annotated[
        int, Meta(ge=1, le=16777216, description="Bytes of all keys and values that a guest may keep.")
    ] = 524288
    writes_per_second: Annotated[
        int, Meta(ge=1, le=10000, description="Writes a second of one guest, ten times as many at once; over it 429.")
    ] = 10


class Metrics(Section, frozen=True):
    """What Prometheus reads."""

    listen: Annotated[
        str,
        Meta(description="`http://127.0.0.1:PORT`, `http://[::1]:PORT` or `unix:/PATH`; empty: no metrics are served."),
    ] = ""
    instances: Annotated[
        bool, Meta(description="Whether there are series of each instance, beside those of the host.")
    ] = True

    def __post_init__(self) -> None:
        if self.listen:
            try:
                address = parse_address(self.listen)
            except ValueError as error:
                raise ValueError(f"listen: {error}") from None
            if not address.path and (address.tls or address.host not in ("127.0.0.1", "::1")):
                raise ValueError(f"listen: {self.listen} is neither http on a loopback address nor a Unix socket")


class Control(Section, frozen=True):
    """The operators' socket."""

    group: Annotated[
        str, Meta(description="Group that may use the control socket; empty: root only.")
    ] = ""


class Log(Section, frozen=True):
    """What is written to the journal or to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The least severe messages that are written."),
    ] = "info"
    access_rate: Annotated[
        int,
        Meta(ge=0, le=100000, description="Lines of the access log a second that each worker writes; 0: none."),
    ] = 100
