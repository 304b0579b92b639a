"""Any HTTP service as a backend: told who asks by the headers that the operator chose, signed if there is a secret."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from itertools import count

from msgspec.structs import replace

from shim.core.exchange import Headers, Pending, Request, Response, Subject
from shim.forward.tag import NONCE_BYTES, SIGNATURE, Identity, clean
from shim.forward.tagged import Tagged
from shim.forward.upstream import Upstream


class Http:
    """A backend: call it with who asks and what.

    `templates`: header name → value, see tag.Identity. Without a `secret` nothing is signed. `now` is Unix time,
    `nonce` gives 16 bytes that never came before. Raises ValueError for a template that cannot be.
    """

    def __init__(
        self,
        upstream: Upstream,
        templates: Mapping[str, str],
        secret: bytes = b"",
        now: Callable[[], float] = time.time,
        nonce: Callable[[], bytes] | None = None,
    ) -> None:
        self._upstream = upstream
        self._identity = Identity(templates, secret)
        self._signs = bool(secret)
        self._now = now
        self._nonce = nonce or Nonces(os.urandom(NONCE_BYTES - 8))
        self._tagged = Tagged(self._headers)

    def __call__(self, subject: Subject, request: Request) -> Response | Pending:
        """The answer; never raises for what a guest sends."""
        tagged = self._tagged(subject, request)
        assert tagged is not None  # _headers always gives some
        return self._upstream.ask(self._signed(subject, tagged) if self._signs else tagged)

    def names(self, subject: Subject) -> tuple[str, ...] | Response:
        """The headers by which it would be told who asks; what the guest gets where it is not asked at all."""
        told = (*(name for name, _ in self._identity.headers(subject)), *((SIGNATURE,) if self._signs else ()))
        return self._upstream.refusal or tuple(name.decode() for name in told)

    def _headers(self, subject: Subject, headers: Headers) -> Headers:
        return clean(headers, self._identity.names) + self._identity.headers(subject)

    def _signed(self, subject: Subject, request: Request) -> Request:
        nonce = self._nonce()
        field = self._identity.signature(subject, request.method, request.target, self._now(), nonce)
        return replace(request, headers=(*request.headers, field))


class Nonces:
    """Each call gives 16 bytes that no other gives: what is random of this object, and a count."""

    __slots__ = ("_count", "_prefix")

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._count = count()

    def __call__(self) -> bytes:
        """The next one."""
        return self._prefix + next(self._count).to_bytes(8)
