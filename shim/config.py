"""The one configuration: typed, read from TOML.

`settings()` lists name, type, default and sentence of each, and a test holds README's table to it.
Every error is a ConfigError that names the file, the field, and what is allowed there.
"""

from __future__ import annotations

import json
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from shim.errors import ConfigError
from shim.settings import (
    Control,
    Datapath,
    DefaultPolicy,
    Forward,
    Host,
    Http,
    Identity,
    Kv,
    Log,
    Metrics,
    Nova,
    Proxy,
    Section,
    Sources,
    Tokens,
)

DEFAULT_PATH = Path("/etc/metashim/metashim.toml")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings; `Config()` is a working default."""

    host: Host = Host()
    datapath: Datapath = Datapath()
    policy: DefaultPolicy = DefaultPolicy()
    identity: Identity = Identity()
    proxy: Proxy = Proxy()
    tokens: Tokens = Tokens()
    forward: Forward = Forward()
    nova: Nova = Nova()
    http: Http = Http()
    sources: Sources = Sources()
    kv: Kv = Kv()
    metrics: Metrics = Metrics()
    control: Control = Control()
    log: Log = Log()

    def __post_init__(self) -> None:
        link = f"{self.host.name}0"
        if clash := [p for p in self.datapath.taps if fnmatchcase(link, p)]:
            raise ValueError(f"datapath.taps: {clash[0]!r} also matches metashim's own link {link}")
        for name in ("nova", "http"):
            backend = getattr(self, name)
            if name in self.forward.routes.values() and not backend.addresses:
                raise ValueError(f"forward.routes: {name} is to answer, but {name}.addresses is empty")
            if backend.addresses and not backend.secret_file:
                raise ValueError(f"{name}.addresses: without {name}.secret_file nobody could tell who asks")

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
    def token_keys(self) -> Path:
        """The keys that session tokens are signed with."""
        return Path(self.host.state_dir) / "token.keys"

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


def _section(name: str, key: str, value: object, section: type[Section]) -> Any:
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

    msgspec writes "Expected `int` >= 1 - at `$.max_ports`" (or `$.taps[0]`, or "`key` in `$.routes`"),
    `__post_init__` "taps: ...".
    """
    what, at, path = message.replace(" - at `key` in `$.", " (a key) - at `$.").rpartition(" - at `$.")
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
    if get_origin(kind) is dict:
        return f"table of {_type_text(get_args(kind)[1]).removeprefix('one of ')}"
    if get_origin(kind) is tuple:
        return f"list of {_type_text(get_args(kind)[0]).removeprefix('one of ')}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    bounds = next((f" {m.ge} to {m.le}" for m in metas if m.ge is not None), "")
    return {str: "text", int: "number", float: "number", bool: "true or false"}[kind] + bounds


def _toml(config: Config, table: str, field: str) -> str:
    """A default as the file would have it: TOML's scalars and lists look like JSON's, its tables almost."""
    value = getattr(getattr(config, table), field)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {json.dumps(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)
