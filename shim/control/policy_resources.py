"""The control API's resources of an instance's policy, and of what its guest locked."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from shim.control import fields
from shim.control.call import Call, Resources, answer
from shim.control.operations import PolicyChange
from shim.core.exchange import Response
from shim.core.policy import Access, Auto, Composition, Family, Tokens
from shim.errors import InputError

_POLICY = (
    'a policy looks like {"access": "open|reset|drop|403", "families": ["4", "6"], "hop_limit": 64, '
    '"tokens": "off|optional|required", "routes": {"/": "embedded|nova|http"}, "composition": "merged|vendor", '
    '"closed": ["user-data"], "auto": {"seconds": 900, "on_read": true}}'
)
_UNLOCK = 'it looks like {"prefix": "user-data"}, or {} for all that the guest locked'
_AUTO = 'give "seconds" from now, "until" in Unix seconds, "on_read" or "on_ready", or several of them'


class _Auto(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    how: Access = Access.RESET
    until: float | None = None
    seconds: float | None = None
    on_read: bool = False
    on_ready: bool = False


class _PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    access: Access | None = None
    families: list[Family] | None = None
    hop_limit: int | None = None
    tokens: Tokens | UnsetType | None = UNSET
    routes: dict[str, str] | UnsetType | None = UNSET
    composition: Composition | UnsetType | None = UNSET
    closed: list[str] | UnsetType = UNSET
    close: list[str] = []
    open: list[str] = []
    auto: _Auto | UnsetType | None = UNSET


class _Unlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefix: str | None = None


_NO_CHANGE = _PolicyChange()


async def _get_policy(call: Call) -> Response:
    return answer(await call.operations.policy(fields.instance(call.item)))


async def _put_policy(call: Call) -> Response:
    instance, change = fields.instance(call.item), fields.body(call.request.body, _PolicyChange, _POLICY)
    _check(change)
    wanted = PolicyChange(
        access=change.access,
        families=frozenset(Family) if change.families is None else frozenset(change.families),
        hop_limit=change.hop_limit,
        tokens=change.tokens,
        routes=fields.routes(change.routes) if isinstance(change.routes, dict) else change.routes,
        composition=change.composition,
        auto=_auto(change.auto, call.now) if isinstance(change.auto, _Auto) else change.auto,
        closed=_prefixes(change.closed) if isinstance(change.closed, list) else change.closed,
        close=_prefixes(change.close),
        open=_prefixes(change.open),
    )
    return answer(await call.operations.set_policy(instance, wanted, who=call.who))


def _check(change: _PolicyChange) -> None:
    """Raises InputError for what does not go together."""
    if change.access is None and change.families is not None:
        raise InputError('"families" without "access"', 'add "access": all else holds for both families')
    if change == _NO_CHANGE:
        hint = f"give one or several of {', '.join(_PolicyChange.__struct_fields__)}"
        raise InputError("nothing to change", hint)
    if change.families == []:
        raise InputError('"families" is empty', 'name "4", "6" or both, or leave it out for both')
    if change.hop_limit is not None and not 1 <= change.hop_limit <= 64:
        raise InputError(f'"hop_limit" is {change.hop_limit}', "it is the replies' TTL: 1 to 64")
    if change.closed is not UNSET and (change.close or change.open):
        raise InputError('"closed" with "close" or "open"', '"closed" is all of it: leave the others out')
    if both := set(_prefixes(change.close)) & set(_prefixes(change.open)):
        raise InputError(f"{min(both)} is to be closed and opened", 'name it in "close" or in "open"')


def _prefixes(given: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(fields.prefix, given)))


def _auto(given: _Auto, now: float) -> Auto:
    """When an instance is to be disabled. Raises InputError."""
    if given.how is Access.OPEN:
        raise InputError('"auto" cannot open', '"how" is reset, drop or 403')
    until = fields.deadline(given.until, given.seconds, now)
    if until is None and not given.on_read and not given.on_ready:
        raise InputError('"auto" without a time', f"{_AUTO}; null takes it back")
    return Auto(given.how, until, given.on_read, given.on_ready)


async def _unlock(call: Call) -> Response:
    instance, unlock = fields.instance(call.item), fields.body(call.request.body or b"{}", _Unlock, _UNLOCK)
    prefix = None if unlock.prefix is None else fields.prefix(unlock.prefix)
    return answer(await call.operations.unlock(instance, prefix, who=call.who))


RESOURCES: Resources = {
    "instances/<uuid>/policy": {"GET": (_get_policy, ()), "PUT": (_put_policy, ())},
    "instances/<uuid>/unlock": {"POST": (_unlock, ())},
}
