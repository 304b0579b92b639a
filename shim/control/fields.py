"""Operators' input, checked: each function returns the value or raises InputError, saying what is allowed."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import TypeVar
from urllib.parse import unquote
from uuid import UUID

import msgspec

from shim.core.ask import Etags
from shim.core.closure import parse_prefix
from shim.core.instance import parse_instance
from shim.core.kv import ROOTS, parse_key
from shim.core.names import parse_netns, parse_tap
from shim.core.policy import Routes
from shim.core.source import Reads, Scope, parse_name, parse_scope
from shim.errors import InputError
from shim.settings import BACKENDS, ROUTE_PATTERN, ROUTES_MAX, check_routes

T = TypeVar("T")
G = TypeVar("G")
E = TypeVar("E", bound=enum.Enum)

_SECONDS = re.compile(r"\d{1,11}(\.\d{1,6})?", re.ASCII)
_SECONDS_MAX = 99_999_999_999  # the year 5138: what clients make of it has four digits
_OWNER = re.compile(r"[!-~]([ -~]{0,62}[!-~])?")  # goes to guests in a header
_MERGER = r"(?:dict|list|str)\([a-z_]*(?:,[a-z_]+)*\)"
_MERGE = re.compile(rf"(?:{_MERGER}(?:\+{_MERGER})*)?")
_ETAG = re.compile(r'"?([0-9A-Za-z]{1,64})"?|\*')
_ETAGS_MAX = 16


def decode(text: str) -> str:
    """A part of the address (bytes as latin-1), percent-decoded to UTF-8."""
    try:
        return unquote(text.encode("latin-1"), errors="strict")
    except UnicodeDecodeError:
        raise InputError("the address is not UTF-8", "percent-encode names as UTF-8") from None


def query(raw: bytes, allowed: tuple[str, ...]) -> dict[str, str]:
    """The parameters after the address's `?`, each at most once and one of `allowed`."""
    found: dict[str, str] = {}
    for pair in filter(None, raw.decode("latin-1").split("&")):
        key, _, value = (decode(text) for text in pair.partition("="))
        if key not in allowed:
            raise InputError(f"unknown parameter {key!r}", _near(key, allowed) or "this resource takes none")
        if key in found:
            raise InputError(f"{key} is there twice", "give it once")
        found[key] = value
    return found


def number(parameters: dict[str, str], key: str) -> int:
    """A parameter that counts something; 0 when it is absent."""
    text = parameters.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InputError(f"{key}={text!r} is not a number", "write digits only, as in ?after=17&wait=10")
    return int(text)


def body(raw: bytes, shape: type[T], hint: str) -> T:
    """The JSON of a request's body as one of the API's structs; `hint` says what it looks like."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: text not UTF-8
        raise InputError(f"the body: {_plain(error)}", hint) from None


def _plain(error: Exception) -> str:
    what = str(error).replace("`", "")
    return what[:1].lower() + what[1:] if what.startswith(("Expected", "Invalid", "Object")) else what


def _near(word: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1)
    return f"did you mean {near[0]}?" if near else ", ".join(allowed) and f"it takes {', '.join(allowed)}"


def instance(text: str) -> UUID:
    """An instance's uuid."""
    return _checked(parse_instance, text, "`metashim list` shows those that are known")


def tap(text: str) -> str:
    """The name of a tap."""
    return _checked(parse_tap, text, "`ip link` shows the interfaces")


def netns(text: str) -> str:
    """The name of a network namespace, empty for the agent's own."""
    return _checked(parse_netns, text, "leave it empty for the agent's own namespace")


def routes(given: Mapping[str, str]) -> Routes:
    """An instance's routes, by the same rules as the configured ones."""
    for prefix, backend in given.items():
        if not re.match(ROUTE_PATTERN, prefix):
            hint = "a prefix is / or segments of letters, digits, . _ ~ and -, as in /latest/user-data"
            raise InputError(f"{prefix!r} is no path prefix", hint)
        if backend not in BACKENDS:
            raise InputError(f"there is no backend {backend!r}", f"there are {', '.join(BACKENDS)}")
    _checked(check_routes, given, 'one backend a prefix, and one for "/", which answers what no other prefix fits')
    if len(given) > ROUTES_MAX:
        raise InputError(f"{len(given)} routes", f"at most {ROUTES_MAX}")
    return tuple(given.items())


def within(parameters: Mapping[str, str], key: str, default: int, least: int, most: int) -> int:
    """A parameter that is a number between two others."""
    text = parameters.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and least <= int(text) <= most):
        raise InputError(f"{key}={text!r} is no such number", f"it is {least} to {most}")
    return int(text)


def member(parameters: Mapping[str, str], key: str, default: E) -> E:
    """A parameter that is one of an enumeration's values."""
    text = parameters.get(key)
    if text is None:
        return default
    try:
        return type(default)(text)
    except ValueError:
        known = ", ".join(str(one.value) for one in type(default))
        raise InputError(f"{key}={text!r} is none of them", f"it is one of {known}") from None


def flag(parameters: Mapping[str, str], key: str) -> bool:
    """A parameter that is true or false; false when it is absent."""
    text = parameters.get(key, "false")
    if text not in ("true", "false"):
        raise InputError(f"{key}={text!r} is neither true nor false", f"write {key}=true")
    return text == "true"


def reads(parameters: Mapping[str, str]) -> Reads:
    """How often something can be read."""
    return member(parameters, "reads", Reads.MANY)


def until(parameters: Mapping[str, str], now: float) -> float | None:
    """The time that `until` (Unix seconds) or `seconds` (from now) says, None if neither is there."""
    return deadline(_seconds(parameters, "until"), _seconds(parameters, "seconds"), now)


def _seconds(parameters: Mapping[str, str], key: str) -> float | None:
    text = parameters.get(key)
    if text is None:
        return None
    if not _SECONDS.fullmatch(text):
        raise InputError(f"{key}={text!r} is no number of seconds", "write digits, as in ?seconds=900")
    return float(text)


def deadline(until: float | None, seconds: float | None, now: float) -> float | None:
    """A time to come, in Unix seconds, by one of the two; None if neither is given."""
    if until is not None and seconds is not None:
        raise InputError("both until and seconds", "give one of them: Unix seconds, or seconds from now")
    found = until if seconds is None else now + seconds
    if found is None:
        return None
    if not isfinite(found) or found > _SECONDS_MAX:
        raise InputError("that is no time", f"Unix seconds up to {_SECONDS_MAX}")
    if found <= now:
        raise InputError("that time is over", f"it is {now:.0f} (Unix seconds) now")
    return found


def scope(text: str) -> Scope:
    """Which instances a source is for."""
    return _checked(parse_scope, text, "as in project:blue or tag:role=web")


def source_name(text: str) -> str:
    """A source's name."""
    return _checked(parse_name, text, "as in base or 50-nginx")


def owner(text: str) -> str:
    """Who answers for a source."""
    if not _OWNER.fullmatch(text):
        raise InputError(f"{text!r} is no owner", "1 to 64 printable ASCII characters: guests are shown it in a header")
    return text


def merge(text: str) -> str:
    """A merge type of cloud-init's; empty: its own default."""
    if len(text) > 256 or not _MERGE.fullmatch(text):
        hint = "as in list(append)+dict(recurse_array)+str(), or empty for cloud-init's own default"
        raise InputError(f"{text!r} is no merge type", hint)
    return text


def prefix(text: str) -> str:
    """A path prefix or a topic that can be closed, folded."""
    return _checked(parse_prefix, text, "every version and face that shows it is meant")


def key(text: str) -> str:
    """A key of an instance's."""
    return _checked(parse_key, text, "as in host/role or guest/report/boot")


def key_prefix(text: str) -> str:
    """What keys begin with, whole segments; empty: all of them."""
    text = text.removesuffix("/")
    return text if text in ("", *ROOTS) else key(text)


def etags(header: bytes | None) -> Etags | None:
    """The tags of an If-Match or If-None-Match, without quotes; None where there is no such header."""
    if header is None:
        return None
    found = [one.strip() for one in header.decode("latin-1").split(",")]
    if len(found) > _ETAGS_MAX or not all(_ETAG.fullmatch(one) for one in found):
        raise InputError("a condition that is no entity tag", 'write If-Match: "TAG" as the ETag came, or *')
    return tuple(one.strip('"') for one in found)


def _checked(parse: Callable[[G], T], text: G, hint: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(str(error), hint) from None
