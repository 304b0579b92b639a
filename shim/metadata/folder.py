"""A folder's files as sources: what their places, names and options say, and what is wrong with them. PURE.

    host/10-base.yaml                     for every instance; order 10, named base.yaml
    host/10-base.yaml.options.toml        how: kind, owner, order, merge, template, reads, until; all may be left out
    project/blue/motd.yaml.j2             order 500, a template, named motd.yaml
    tag/role=web/nginx.yaml, image/debian-12/fix.sh, instance/<uuid>/disk.yaml

What is wrong with one file is told, and concerns no other: its last good version holds, if there was one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from shim.core.source import (
    DOCUMENT,
    HOST,
    MERGE_DEFAULT,
    ORDER_DEFAULT,
    Kind,
    Reads,
    Scope,
    Source,
    parse_name,
    parse_scope,
)
from shim.errors import InputError
from shim.metadata import merge_type

ORIGIN = "directory"
FILE_BYTES = 262_144
OPTIONS = ".options.toml"
_TEMPLATE = ".j2"
_ORDER = re.compile(r"([0-9]+)-(.*)", re.DOTALL)
_LEFT_OUT = re.compile(r"\..*|.*~|#.*#|.*\.(swp|tmp|dpkg-[^.]*|rpm[^.]*)|lost\+found", re.DOTALL)
_OWNER = r"^[!-~]([ -~]{0,62}[!-~])?\Z"
_UNTIL_MAX = 253_402_300_800.0  # the year 10000

_NAMED = {
    "project": "name it by the project's id",
    "image": "name it by the image's id",
    "tag": "name it KEY=VALUE",
    "instance": "name it by the instance's uuid",
}
"""The folders that hold a folder for each scope."""

_TAKES = {
    "kind": "it takes user or vendor",
    "owner": "it takes 1 to 64 printable ASCII characters, in quotes",
    "order": "it takes a number, 0 to 999",
    "merge": f'it takes what cloud-init does, as in "{MERGE_DEFAULT}", or "" for its default',
    "template": "it takes true or false",
    "reads": "it takes many, once or confirm",
    "until": "it takes a time with its zone, as in 2030-01-31T12:00:00Z, or Unix seconds",
}

Key = tuple[Scope, str]
"""A source's scope and name."""


class Fault(NamedTuple):
    """What is wrong, and what to do."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class File:
    """A file by its path below the folder, with the bytes of its options where it has some; or why they could not be
    read."""

    path: str
    body: bytes = b""
    options: bytes | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What there is. `lost` are the folders that could not be read (`""`: all of it), `faults` what else is wrong
    beside the files."""

    files: tuple[File, ...] = ()
    lost: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """What a file's path says of it."""

    scope: Scope
    name: str
    order: int = ORDER_DEFAULT
    template: bool = False


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Kind = Kind.USER
    owner: Annotated[str, Meta(pattern=_OWNER)] = ORIGIN
    order: Annotated[int, Meta(ge=0, le=999)] | None = None
    merge: str = MERGE_DEFAULT
    template: bool | None = None
    reads: Reads = Reads.MANY
    until: Annotated[datetime, Meta(tz=True)] | float | None = None

    def __post_init__(self) -> None:
        try:
            merge_type.check(self.merge)
        except ValueError:
            raise ValueError("merge") from None
        if self.until is not None and not 0 < _seconds(self.until) < _UNTIL_MAX:
            raise ValueError("until")


def _seconds(until: datetime | float) -> float:
    return until.timestamp() if isinstance(until, datetime) else until


def is_left_out(name: str) -> bool:
    """Whether a file or folder is an editor's, a package manager's or hidden: not looked at."""
    return bool(_LEFT_OUT.fullmatch(name))


def shown(path: str) -> str:
    """A path for an operator's eyes: on one line, whatever bytes it has."""
    return path if path.isprintable() else ascii(path)[1:-1]


def scope_of(folder: str) -> Scope | None:
    """Whose files lie right in a folder (a path below ours), None where folders do. Raises InputError: neither."""
    kind, slash, value = folder.partition("/")
    if folder == HOST.text:
        return HOST
    if kind not in _NAMED or "/" in value:
        _refuse_folder(folder, kind)
    if not slash:
        return None
    try:
        return parse_scope(f"{kind}:{value}")
    except ValueError:
        raise InputError(f"{shown(folder)}/: no {kind} can be called that", _NAMED[kind]) from None


def _refuse_folder(folder: str, kind: str) -> None:
    known = [HOST.text, *_NAMED]
    hint = "sources lie in host/, project/ID/, image/ID/, tag/KEY=VALUE/ and instance/UUID/"
    if kind not in known and (near := difflib.get_close_matches(kind, known, n=1)):
        hint = f"did you mean {near[0]}? {hint}"
    raise InputError(f"{shown(folder)}/: no sources are looked for there", hint)


def place_of(path: str) -> Place:
    """What a path says. Raises InputError."""
    folder, _, name = path.rpartition("/")
    scope = scope_of(folder) if folder else None
    if scope is None:
        hint = "move it to host/, or to the folder of a project, an image, a tag or an instance"
        raise InputError(f"{shown(path)}: it lies where only folders are looked for", hint)
    order = ORDER_DEFAULT
    if found := _ORDER.fullmatch(name):
        if len(found[1].lstrip("0")) > 3:
            what = f"{shown(path)}: the digits before the first dash are its order, and {found[1][:20]} is none"
            raise InputError(what, "write 0 to 999, or let the name begin with something else")
        order, name = int(found[1]), found[2]
    plain = name.removesuffix(_TEMPLATE)
    try:
        parse_name(plain)
    except ValueError as error:
        raise InputError(f"{shown(path)}: {error}", "rename it; an order before it (10-) and .j2 are apart") from None
    if scope.kind == "instance" and plain == DOCUMENT:
        raise InputError(f"{shown(path)}: that is the name of the instance's own document", "rename it")
    return Place(scope, plain, order, template=plain != name)


def sources_of(listing: Listing, known: Mapping[Key, Source]) -> tuple[dict[Key, Source], list[Fault]]:
    """All sources that there are to be, and what is wrong. `known` are the last good ones: they hold where a file or
    folder has a fault, and are gone where it is."""
    faults = list(listing.faults)
    claims: dict[Key, list[tuple[File, Place]]] = {}
    for file in sorted(listing.files, key=lambda file: file.path):
        try:
            place = place_of(file.path)
        except InputError as error:
            faults.append(Fault(str(error), error.hint))
        else:
            claims.setdefault((place.scope, place.name), []).append((file, place))
    wanted = {key: known[key] for key in known if key not in claims and _is_lost(key[0], listing.lost)}
    for key, claimants in claims.items():
        try:
            wanted[key] = _source(claimants)
        except InputError as error:
            holds = "; its last good version holds" if key in known else "; there is no source of it"
            faults.append(Fault(f"{error}{holds}", error.hint))
            if key in known:
                wanted[key] = known[key]
    return wanted, faults


def _is_lost(scope: Scope, lost: tuple[str, ...]) -> bool:
    return any(folder in ("", scope.kind) or ("/" in folder and scope_of(folder) == scope) for folder in lost)


def _source(claimants: list[tuple[File, Place]]) -> Source:
    """Raises InputError."""
    (file, place), *others = claimants
    if others:
        paths = " and ".join(shown(one.path) for one, _ in claimants)
        raise InputError(f"{paths} are both {place.name} in {place.scope.text}", "rename or remove one of them")
    if file.fault is not None:
        raise InputError(*file.fault)
    if not file.body:
        raise InputError(f"{shown(file.path)}: it is empty", "fill it, or delete it if nothing is to be there")
    options = _options(file)
    return Source(
        place.scope,
        place.name,
        file.body,
        kind=options.kind,
        owner=options.owner,
        order=place.order if options.order is None else options.order,
        merge=options.merge,
        template=place.template if options.template is None else options.template,
        reads=options.reads,
        until=None if options.until is None else _seconds(options.until),
        origin=ORIGIN,
    )


def _options(file: File) -> _Options:
    where = shown(file.path) + OPTIONS
    if file.options is None:
        return _Options()
    try:
        plain = tomllib.loads(file.options.decode())
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not TOML: {error}", 'write lines as in kind = "vendor"') from None
    except (ValueError, RecursionError):  # no UTF-8, a number of thousands of digits, brackets without end
        raise InputError(f"{where}: not TOML", 'write lines as in kind = "vendor"') from None
    _refuse_unknown(where, plain)
    try:
        return msgspec.convert(plain, _Options)
    except (msgspec.ValidationError, OverflowError) as error:
        field = str(error).rpartition("`$.")[2].rstrip("`") or str(error)
        raise InputError(f"{where}: {field} is not what it can be", _TAKES.get(field, "see its values")) from None


def _refuse_unknown(where: str, plain: dict[str, Any]) -> None:
    for field in plain:
        if field not in _TAKES:
            near = difflib.get_close_matches(field, _TAKES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(_TAKES)}"
            raise InputError(f"{where}: there is no option {shown(field[:80])}", hint)
