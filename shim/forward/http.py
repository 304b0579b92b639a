"""Any HTTP service as a backend: told who asks by the headers that the operator chose, signed if there is a secret."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from shim.core.exchange import Headers, Pending, Request, Response, Subject
from shim.forward.tag import NONCE_BYTES, Identity, clean
from shim.forward.tagged import Tagged, with_headers
from shim.forward.upstream import Upstream


class Http:
    """A backend: call it with who asks and what.

    `templates`: header name → value, see tag.Identity. Without a `secret` nothing is signed. `now` is Unix time,
    `nonce` gives that many bytes that never came before. Raises ValueError for a template that cannot be.
    """

    def __init__(
        self,
        upstream: Upstream,
        templates: Mapping[str, str],
        secret: bytes = b"",
        now: Callable[[], float] = time.time,
        nonce: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._upstream = upstream
        self._identity = Identity(templates, secret)
        self._signs = bool(secret)
        self._now = now
        self._nonce = nonce
        self._tagged = Tagged(self._headers)

    def __call__(self, subject: Subject, request: Request) -> Response | Pending:
        """The answer; never raises for what a guest sends."""
        tagged = self._tagged(subject, request)
        assert tagged is not None  # _headers always gives some
        return self._upstream.ask(self._signed(subject, tagged) if self._signs else tagged)

    def _headers(self, subject: Subject, headers: Headers) -> Headers:
        return clean(headers, self._identity.names) + self._identity.headers(subject)

    def _signed(self, subject: Subject, request: Request) -> Request:
        nonce = self._nonce(NONCE_BYTES)
        field = self._identity.signature(subject, request.method, request.target, self._now(), nonce)
        return with_headers(request, (*request.headers, field))
