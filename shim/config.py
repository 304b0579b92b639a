"""The one configuration: typed, read from TOML, every setting described where it is declared.

`settings()` lists name, type, default and sentence of each, and a test holds README's table to it.
Every error is a ConfigError that names the file, the field, and what is allowed there.
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from shim.errors import ConfigError

DEFAULT_PATH = Path("/etc/metashim/metashim.toml")
ADDRESSES_PER_FAMILY = 4
UNIX_PATH_MAX = 107  # bytes of sockaddr_un.sun_path, its NUL aside: unix(7)
LINK_NAME_MAX = 15  # IFNAMSIZ, its NUL aside

SLOTS_V4 = ipaddress.IPv4Network("100.64.0.0/10")
SLOTS_V6 = ipaddress.IPv6Network("fd6d:7368:696d::/96")
"""The addresses that ports are stamped with inside the gateway namespace."""

_V6_ALLOWED = (ipaddress.IPv6Network("fe80::/10"), ipaddress.IPv6Network("fc00::/7"))
_V4_REFUSED = tuple(map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", str(SLOTS_V4))))

AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", max_length=4096)]


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


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the file. A ValueError of `__post_init__` begins with the field's name and a colon."""


class Host(_Section, frozen=True):
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


class Datapath(_Section, frozen=True):
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


class DefaultPolicy(_Section, frozen=True):
    """What holds for an instance that no operator gave a policy."""

    enabled: Annotated[
        bool, Meta(description="Whether instances without a policy of their own are served; else: reset.")
    ] = True


class Identity(_Section, frozen=True):
    """Who says which instance is behind a tap."""

    sources: Annotated[
        tuple[Literal["operator", "file", "alias"], ...],
        Meta(
            min_length=1,
            description="Who maps taps to instances, first that knows wins: `operator` (attach), "
            "`file`, `alias` (`metashim:<uuid>` on the link).",
        ),
    ] = ("operator", "file", "alias")
    file: Annotated[AbsolutePath, Meta(description="The static mapping that the source `file` reads.")] = (
        "/etc/metashim/instances.toml"
    )

    def __post_init__(self) -> None:
        if len(set(self.sources)) != len(self.sources):
            raise ValueError("sources: the same source twice")


class Proxy(_Section, frozen=True):
    """The unprivileged side, which guests talk to, and its limits."""

    workers: Annotated[int, Meta(ge=1, le=64, description="Worker processes; one a core that is spared.")] = 1
    user: Annotated[str, Meta(min_length=1, description="The user that workers run as.")] = "metashim"
    head_bytes: Annotated[
        int, Meta(ge=1024, le=1048576, description="The longest head of a request: request line and headers.")
    ] = 16384
    body_bytes: Annotated[int, Meta(ge=0, le=16777216, description="The longest body of a request.")] = 65536
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

    def __post_init__(self) -> None:
        if self.connections < self.connections_per_instance:
            raise ValueError("connections: less than connections_per_instance")


class Control(_Section, frozen=True):
    """The operators' socket."""

    group: Annotated[
        str, Meta(description="Group that may use the control socket; empty: root only.")
    ] = ""


class Log(_Section, frozen=True):
    """What is written to the journal or to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The least severe messages that are written."),
    ] = "info"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings; `Config()` is a working default."""

    host: Host = Host()
    datapath: Datapath = Datapath()
    policy: DefaultPolicy = DefaultPolicy()
    identity: Identity = Identity()
    proxy: Proxy = Proxy()
    control: Control = Control()
    log: Log = Log()

    def __post_init__(self) -> None:
        link = f"{self.host.name}0"
        if clash := [p for p in self.datapath.taps if fnmatchcase(link, p)]:
            raise ValueError(f"datapath.taps: {clash[0]!r} also matches metashim's own link {link}")

    def on(self, datapath: Literal["ebpf", "nft", "auto"]) -> Config:
        """The same with another datapath."""
        replace = msgspec.structs.replace
        return replace(self, datapath=replace(self.datapath, datapath=datapath))

    @property
    def control_socket(self) -> Path:
        """Where operators reach the agent."""
        return Path(self.host.run_dir) / "control.sock"

    @property
    def feed_socket(self) -> Path:
        """Where the proxy's workers reach the agent."""
        return Path(self.host.run_dir) / "feed.sock"

    @property
    def lock(self) -> Path:
        """Held by the one agent that runs."""
        return Path(self.host.run_dir) / "agent.lock"

    @property
    def store(self) -> Path:
        """The database of documents, policies and attachments."""
        return Path(self.host.state_dir) / "metashim.db"

    @property
    def pins(self) -> Path:
        """Folder on bpffs that keeps programs and maps alive."""
        return Path(self.host.bpffs) / self.host.name


def load(path: Path | None = None) -> Config:
    """The configuration in `path`; without one, of DEFAULT_PATH, or the defaults if that is not there.

    Raises ConfigError: unreadable, not TOML, an unknown name, a value that is not allowed.
    """
    chosen = path or DEFAULT_PATH
    try:
        raw = chosen.read_bytes()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigError(f"{path}: no such file", "name one that exists, or leave --config out") from None
    except OSError as error:
        raise ConfigError(f"{chosen}: {error.strerror}", "run as a user who may read it") from error
    return parse(raw, str(chosen))


def parse(raw: bytes, name: str) -> Config:
    """The configuration in a file's bytes; `name` is what errors call the file. Raises ConfigError."""
    try:
        tables = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not TOML: {error}", "text wants quotes, a table a [name]") from None
    sections = get_type_hints(Config)
    _known(tables, list(sections), f"{name}: unknown table [{{}}]")
    parts = {key: _section(name, key, value, sections[key]) for key, value in tables.items()}
    try:
        return Config(**parts)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", "change one of the two") from None


def _section(name: str, key: str, value: object, section: type[_Section]) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: {key} is not a table", f"write it as [{key}], its settings below")
    _known(value, list(section.__struct_fields__), f"{name}: unknown setting {key}.{{}}")
    try:
        return msgspec.convert(value, section)
    except msgspec.ValidationError as error:
        field, what = _blame(str(error))
        about = next(s for s in settings() if s.name == f"{key}.{field}")
        hint = f"it takes: {about.type}. {about.sentence} Default: {about.default}"
        raise ConfigError(f"{name}: {about.name}: {what}", hint) from None


def _blame(message: str) -> tuple[str, str]:
    """Which field a message is about, and what it says.

    msgspec writes "Expected `int` >= 1 - at `$.max_ports`" (or `$.taps[0]`), `__post_init__` "taps: ...".
    """
    what, at, path = message.rpartition(" - at `$.")
    if at:
        what = what if "regex" not in what else "not of the form that it must have"
        return path.rstrip("`").partition("[")[0], what[0].lower() + what[1:].replace("`", "")
    field, _, what = message.partition(": ")
    return field, what


def _known(given: dict[str, Any], allowed: list[str], what: str) -> None:
    for key in given:
        if key not in allowed:
            import difflib  # 10 ms, and only a mistake needs it

            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(allowed)}"
            raise ConfigError(what.format(key), hint)


class Setting(NamedTuple):
    """One setting, as the documentation shows it."""

    name: str  # dotted: datapath.max_ports
    type: str  # in words: number 1 to 64
    default: str  # as TOML
    sentence: str


def settings() -> list[Setting]:
    """Every setting, in the order of the file."""
    defaults = Config()
    return [
        Setting(f"{table}.{field}", _type_text(hint), _toml(defaults, table, field), _sentence(hint))
        for table, section in get_type_hints(Config).items()
        for field, hint in get_type_hints(section, include_extras=True).items()
    ]


def _sentence(hint: Any) -> str:
    return next(str(m.description) for m in reversed(hint.__metadata__) if m.description)


def _type_text(hint: Any) -> str:
    """A type in words: `number 1 to 64`, `list of text`, `one of debug, info`."""
    metas = getattr(hint, "__metadata__", ())
    kind = hint.__origin__ if metas else hint
    if get_origin(kind) is tuple:
        return f"list of {_type_text(get_args(kind)[0]).removeprefix('one of ')}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    bounds = next((f" {m.ge} to {m.le}" for m in metas if m.ge is not None), "")
    return {str: "text", int: "number", bool: "true or false"}[kind] + bounds


def _toml(config: Config, table: str, field: str) -> str:
    """A default as the file would have it: TOML's scalars and lists look like JSON's."""
    return json.dumps(getattr(getattr(config, table), field))
