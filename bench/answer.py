"""A backend that always answers the same, made to cost little: haproxy's `http-request return`, one body a path."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

from tests.lab import Namespace

BODIES = (200, 16_384)
"""Bytes of the bodies that there are."""
PORT = 8080

SETTINGS = """\
global
  nbthread 1
  maxconn 4000
  tune.bufsize 32768
defaults
  mode http
  timeout client 60s
  timeout http-keep-alive 60s
  timeout connect 5s
  timeout server 60s
frontend answer
{binds}
{answers}
  http-request return status 404
"""
ANSWER = "  http-request return status 200 content-type application/octet-stream file {file}"


def path_of(body: int) -> str:
    """What to ask for to get a body of so many bytes, of those in BODIES."""
    return f"/{body}"


@contextlib.contextmanager
def serve(space: Namespace, addresses: Sequence[str], prefix: Sequence[str] = ()) -> Iterator[Popen[Any]]:
    """Answers at PORT of these addresses of a namespace; `prefix` is a command that runs it, as taskset."""
    folder = Path(tempfile.mkdtemp(prefix="metashim-bench-answer-"))
    try:
        path = folder / "haproxy.cfg"
        path.write_text(_settings(folder, addresses))
        process = space.popen([*prefix, "haproxy", "-q", "-db", "-f", str(path)])
        yield process
        process.terminate()
    finally:
        shutil.rmtree(folder)


def _settings(folder: Path, addresses: Sequence[str]) -> str:
    answers = []
    for body in BODIES:
        file = folder / str(body)
        file.write_bytes(b"x" * body)
        answers.append(f"{ANSWER.format(file=file)} if {{ path_end {path_of(body)} }}")
    binds = [f"  bind {address}:{PORT}" for address in addresses]
    return SETTINGS.format(binds="\n".join(binds), answers="\n".join(answers))
