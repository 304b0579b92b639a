"""What a guest gets that can be answered later: come again. PURE."""

from __future__ import annotations

from shim.core.exchange import Headers, Response

RETRY_AFTER: Headers = ((b"content-type", b"text/plain"), (b"retry-after", b"2"))


def unavailable(backend: str) -> Response:
    """503 (RFC 9110, 15.6.4). `backend` is who would have answered, empty for the proxy itself."""
    return Response(503, RETRY_AFTER, b"metadata is not available now\n", backend=backend)
