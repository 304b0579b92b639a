"""The control API's resource of what a request of an instance's would get."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from shim.control import fields
from shim.control.call import Call, Resources, answer
from shim.core.exchange import Response
from shim.core.prospect import BODY_MAX, HEADERS_MAX, TARGET_MAX, Question
from shim.errors import InputError

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LOOKS = (
    'it looks like {"path": "/latest/user-data", "family": "4|6", "method": "GET", '
    '"headers": [["x-aws-ec2-metadata-token", "…"]], "body": "", "with_token": false}'
)


class _Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    family: Literal["4", "6"] = "4"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    with_token: bool = False


def question(asked: _Why) -> Question:
    """A request that can be sent at all; what is wrong with it otherwise the proxy is to say. Raises InputError."""
    if not asked.path.startswith("/") or _CONTROL.search(asked.path) or len(asked.path.encode()) > TARGET_MAX:
        hint = f"write it as a guest sends it, with its query, in at most {TARGET_MAX} bytes: /latest/user-data"
        raise InputError(f"{asked.path[:80]!r} is no path", hint)
    if not _TOKEN.fullmatch(asked.method) or len(asked.method) > 32:
        raise InputError(f"{asked.method[:80]!r} is no method", "as in GET or PUT")
    for name, value in asked.headers:
        if not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            raise InputError(f"{name[:80]!r}: no name of a header, or a control character in its value", "see RFC 9110")
    if len(asked.headers) > HEADERS_MAX or len(asked.body.encode()) > BODY_MAX:
        raise InputError("too much", f"at most {HEADERS_MAX} headers, and {BODY_MAX} bytes of a body")
    return Question(asked.path, asked.family, asked.method, asked.headers, asked.body, asked.with_token)


async def _post_why(call: Call) -> Response:
    asked = question(fields.body(call.request.body, _Why, _LOOKS))
    return answer(await call.operations.why(fields.instance(call.item), asked))


RESOURCES: Resources = {"instances/<uuid>/why": {"POST": (_post_why, ())}}
