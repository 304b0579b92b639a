"""Session tokens as EC2's IMDSv2 has them, in front of every backend. PURE: clock readings are Unix time.

Theory of operation. A token is 33 bytes in 44 characters of base64url: the id of the key that signed it (4), the
second it expires (5), and a MAC (24, of HMAC-SHA256) over these, the instance, the slot and the generation. So nothing
is stored, any worker verifies any worker's, and a token that leaks is worth nothing to who speaks through another tap.
A token is verified by making it again and comparing text: one that is spelt otherwise is another.
"""

from __future__ import annotations

import enum
import hmac
import math
import re
import struct
from base64 import urlsafe_b64encode
from binascii import Error, a2b_base64
from collections.abc import Sequence

from shim.core.exchange import Caller, Headers, Request, Response
from shim.core.policy import Tokens
from shim.forward.routes import decode

TTL_MAX = 21_600
"""Seconds that a token lives at most."""

KEY_BYTES = 32

HEADER = b"x-aws-ec2-metadata-token"
TTL_HEADER = b"x-aws-ec2-metadata-token-ttl-seconds"
BACKEND = "tokens"

_PATH = b"/latest/api/token"
_DATED_PATH = re.compile(rb"/(?:1\.0|[0-9]{4}-[0-9]{2}-[0-9]{2})/api/token")
_TTL = re.compile(rb"[0-9]{1,5}")
# An open proxy inside the guest adds these; whoever is behind it is not to get a token.
_FROM_A_PROXY = (b"x-forwarded-for", b"forwarded")

_LENGTH = 44
_CLAIM = struct.Struct("!IBI")  # key id, expiry: its high byte, the rest
_CLAIM_LENGTH = 12  # of 9 bytes in base64
_MAC_BYTES = 24
_HOLDER = struct.Struct("!16sQQ")  # instance, slot, generation


class Verdict(enum.Enum):
    """A request may pass: with a valid token, or without one."""

    TOKEN = "token"
    TOKENLESS = "tokenless"


_TOKEN, _TOKENLESS = Verdict.TOKEN, Verdict.TOKENLESS  # reaching them by their class takes 0.1 µs (Python 3.11)
_OFF, _REQUIRED = Tokens.OFF, Tokens.REQUIRED


class Keys:
    """The keys that tokens hold by: (id, key), the one that signs first. Ids are of 32 bits and differ."""

    __slots__ = ("_signers", "_signing")

    def __init__(self, keys: Sequence[tuple[int, bytes]] = ()) -> None:
        self._signers = {number: hmac.new(key, b"metashim token\0", "sha256") for number, key in keys}
        self._signing = keys[0][0] if keys else None

    @property
    def signing(self) -> int | None:
        """The id of the key that signs, None where there is none."""
        return self._signing

    def token(self, number: int, caller: Caller, expires: int) -> bytes | None:
        """What key `number` gives to `caller`; None if there is no such key."""
        signer = self._signers.get(number)
        if signer is None:
            return None
        claim = _CLAIM.pack(number, expires >> 32, expires & 0xFFFFFFFF)
        mac = signer.copy()
        mac.update(claim + _HOLDER.pack(caller.instance.bytes, caller.slot, caller.generation))
        return urlsafe_b64encode(claim + mac.digest()[:_MAC_BYTES])


def mint(keys: Keys, caller: Caller, now: float, ttl: int) -> bytes | None:
    """A token for `ttl` seconds (1 to TTL_MAX), rounded up to a whole second; None without keys."""
    if keys.signing is None:
        return None
    return keys.token(keys.signing, caller, math.ceil(now) + ttl)


def verify(keys: Keys, caller: Caller, now: float, token: bytes) -> bool:
    """Whether the token is one of ours, of this caller, and has not expired."""
    if len(token) != _LENGTH:
        return False
    try:
        claim = a2b_base64(token[:_CLAIM_LENGTH].translate(_FROM_URL_SAFE), strict_mode=True)
    except Error:
        return False
    number, high, low = _CLAIM.unpack(claim)
    expires = high << 32 | low
    # None lives longer than it may: this one would be from before the clock was set back.
    if not now < expires <= now + TTL_MAX + 1:
        return False
    genuine = keys.token(number, caller, expires)
    return genuine is not None and hmac.compare_digest(genuine, token)


_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")

_TEXT: Headers = ((b"content-type", b"text/plain"),)


def _says(status: int, body: bytes, *more: tuple[bytes, bytes]) -> Response:
    return Response(status, (*_TEXT, *more), body, backend=BACKEND)


UNAUTHORIZED = _says(401, b"a valid session token is required\n")
_NOT_GIVEN = _says(404, b"not found\n")
_NOT_TO_PROXIES = _says(403, b"no tokens through a proxy\n")
_NOT_DATED = _says(403, b"tokens are at /latest/api/token\n")
_ONLY_PUT = _says(405, b"method not allowed\n", (b"allow", b"PUT"))
_BAD_TTL = _says(400, b"x-aws-ec2-metadata-token-ttl-seconds must be 1 to 21600\n")
_NO_KEYS = _says(503, b"tokens are not available now\n", (b"retry-after", b"2"))


def front(mode: Tokens, keys: Keys, caller: Caller, request: Request, now: float) -> Response | Verdict:
    """What tokens have to say of a request: its answer if it is theirs or may not pass, else how it passes.

    Their paths are answered here whatever the mode, and so never reach a backend.
    """
    path = request.path
    if b"token" in path or b"%" in path:
        answer = _at_token_path(mode, keys, caller, request, now)
        if answer is not None:
            return answer
    if mode is _OFF:
        return _TOKENLESS
    token = None
    for name, value in request.headers:
        if name == HEADER:
            # Two are none: which of them counts must not depend on who reads.
            token = value if token is None else b""
    if token is None:
        return _TOKENLESS if mode is not _REQUIRED else UNAUTHORIZED
    return _TOKEN if verify(keys, caller, now, token) else UNAUTHORIZED


def _at_token_path(mode: Tokens, keys: Keys, caller: Caller, request: Request, now: float) -> Response | None:
    try:
        path = decode(request.path)
    except ValueError:
        return None  # no route either
    if path == _PATH:
        if mode is _OFF:
            return _NOT_GIVEN
        return _give(keys, caller, request, now) if request.method == b"PUT" else _ONLY_PUT
    if request.method == b"PUT" and _DATED_PATH.fullmatch(path):
        return _NOT_GIVEN if mode is _OFF else _NOT_DATED
    return None


def _give(keys: Keys, caller: Caller, request: Request, now: float) -> Response:
    if any(name in _FROM_A_PROXY for name, _ in request.headers):
        return _NOT_TO_PROXIES
    ttls = [value for name, value in request.headers if name == TTL_HEADER]
    if len(ttls) != 1 or not _TTL.fullmatch(ttls[0]) or not 1 <= int(ttls[0]) <= TTL_MAX:
        return _BAD_TTL
    token = mint(keys, caller, now, int(ttls[0]))
    if token is None:
        return _NO_KEYS
    return _says(200, token, (TTL_HEADER, b"%d" % int(ttls[0])))
