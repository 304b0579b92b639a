"""Operators' input, checked: each function returns the value or raises InputError, saying what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import unquote
from uuid import UUID

import msgspec

from shim.core.instance import parse_instance
from shim.core.names import parse_netns, parse_tap
from shim.core.policy import Routes
from shim.errors import InputError
from shim.settings import BACKENDS, ROUTE_PATTERN, ROUTES_MAX, check_routes

T = TypeVar("T")
G = TypeVar("G")


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


def _checked(parse: Callable[[G], T], text: G, hint: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(str(error), hint) from None
