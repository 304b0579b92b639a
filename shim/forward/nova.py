"""Nova's metadata API as a backend: the headers of nova/api/metadata/handler.py, signed with its shared secret."""

from __future__ import annotations

import logging
from uuid import UUID

from shim.core.exchange import Headers, Pending, Request, Response, Subject
from shim.forward.tag import clean, nova_headers
from shim.forward.tagged import Tagged
from shim.forward.unavailable import RETRY_AFTER
from shim.forward.upstream import Upstream

logger = logging.getLogger("shim.forward")

TOLD = 4096
"""Instances that are remembered as logged."""
FORBIDDEN_SECONDS = 60.0
"""Time between two log lines about one and the same thing: the shared secret."""


class Nova:
    """A backend: call it with who asks and what.

    Nova answers 404 where it is not told the right project, and a guest's software takes that for an answer. So
    while no source knows an instance's project, it gets 503 and asks again.
    """

    def __init__(self, upstream: Upstream, secret: bytes) -> None:
        self._upstream = upstream
        self._secret = secret
        self._tagged = Tagged(self._headers)
        self._told: dict[UUID, None] = {}
        self._quiet_until = float("-inf")
        upstream.forbidden = self._forbidden
        body = b"the project of this instance is not known yet\n"
        self._unknown = Response(503, RETRY_AFTER, body, backend=upstream.name)

    def __call__(self, subject: Subject, request: Request) -> Response | Pending:
        """The answer; never raises for what a guest sends."""
        tagged = self._tagged(subject, request)
        if tagged is None:
            self._tell(subject.instance)
            return self._unknown
        return self._upstream.ask(tagged)

    def names(self, subject: Subject) -> tuple[str, ...] | Response:
        """The headers by which Nova would be told who asks; what the guest gets where it is not asked at all."""
        told = nova_headers(subject, self._secret)
        if told is None:
            return self._unknown
        return self._upstream.refusal or tuple(name.decode() for name, _ in told)

    def _headers(self, subject: Subject, headers: Headers) -> Headers | None:
        own = nova_headers(subject, self._secret)
        return None if own is None else clean(headers) + own

    def _tell(self, instance: UUID) -> None:
        if instance in self._told:
            return
        logger.warning("backend %s: no source knows the project of instance %s: 503", self._upstream.name, instance)
        if len(self._told) >= TOLD:
            del self._told[next(iter(self._told))]
        self._told[instance] = None

    def _forbidden(self) -> None:
        """Nova answers 403 to a signature that it does not find right, and to nothing else."""
        now = self._upstream.clock()
        if now < self._quiet_until:
            return
        self._quiet_until = now + FORBIDDEN_SECONDS
        logger.warning(
            "backend %s: answers 403: the secret in nova.secret_file must be Nova's metadata_proxy_shared_secret",
            self._upstream.name,
        )
