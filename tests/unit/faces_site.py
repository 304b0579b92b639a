"""Instances as faces see them, for tests: a view of what is told, and requests to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from shim.core.exchange import Headers, Request
from shim.core.kv import Value
from shim.core.policy import Composition
from shim.core.source import HOST, Kind, Reads, Scope, Source
from shim.metadata.document import Document
from shim.metadata.faces import respond
from shim.metadata.view import Rendered, View

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
NOW = 1_700_000_000.0
GOOGLE: Headers = ((b"metadata-flavor", b"Google"),)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d5mT1bG1lY3JldGtleWJ5dGVzMTIzNDU2Nzg5MDEy"


def view(
    document: Document | None = None,
    *,
    sources: Iterable[Source] = (),
    values: Iterable[Value] = (),
    closed: tuple[str, ...] = (),
    project: str = "",
    composition: Composition = Composition.MERGED,
) -> View:
    return View(
        A,
        document or Document(),
        now=NOW,
        project=project,
        load_sources=lambda: list(sources),
        load_values=lambda: {one.key: one for one in values},
        closed=closed,
        composition=composition,
    )


def source(name: str, body: bytes, reads: Reads = Reads.MANY, scope: Scope = HOST, **more: Any) -> Source:
    return Source(scope, name, body, reads=reads, revision=7, **more)


def vendor(name: str, body: bytes, reads: Reads = Reads.MANY) -> Source:
    return source(name, body, reads, kind=Kind.VENDOR)


def request(path: str, method: bytes = b"GET", headers: Headers = (), body: bytes = b"") -> Request:
    raw, _, query = path.encode().partition(b"?")
    return Request(method, raw, query, headers, body)


def get(seen: View, path: str, headers: Headers = (), method: bytes = b"GET") -> Rendered:
    return respond(seen, request(path, method, headers))


def header(rendered: Rendered, name: bytes) -> bytes | None:
    return dict(rendered.response.headers).get(name)
