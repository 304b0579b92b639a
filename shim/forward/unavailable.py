"""What a guest gets that can be answered later: come again. PURE."""

from __future__ import annotations

from shim.core.exchange import Headers, Response

RETRY_AFTER: Headers = ((b"content-type", b"text/plain"), (b"retry-after", b"2"))

_BODIES = {
    502: b"the metadata service broke off its answer\n",
    504: b"the metadata service did not answer in time\n",
}


def unavailable(backend: str) -> Response:
    """503 (RFC 9110, 15.6.4). `backend` is who would have answered, empty for the proxy itself."""
    return Response(503, RETRY_AFTER, b"metadata is not available now\n", backend=backend)


def broken_off(backend: str, *, late: bool) -> Response:
    """502, or 504 of one that was silent for too long: its answer had begun, or it had the request at least."""
    status = 504 if late else 502
    return Response(status, RETRY_AFTER, _BODIES[status], backend=backend)
