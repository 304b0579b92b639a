"""Trying out what guests would be given, before they are: in a child that is nobody and may take its time.

Templates and YAML are read by no process with privileges. The child (shim.rehearse) gets all that it needs on its
standard input, gives up root, and answers on its standard output; it can open nothing, and what takes it too long or
too much memory ends it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from shim.core.kv import Value
from shim.core.policy import Composition
from shim.core.source import Source
from shim.errors import InputError, KernelError, MetashimError
from shim.metadata.merge import Problem
from shim.metadata.preview import Preview

SECONDS = 10.0
"""For all of one rehearsal, the child's start (0.2 s) included."""
TOO_MUCH = 3
"""The child's status when its memory is at its end."""
ANSWER_BYTES = 32 << 20
"""50 previews of 64 KiB of user-data, as they were written, rendered and merged, take 10 MiB."""


class Stage(msgspec.Struct, frozen=True):
    """One instance, as shim.metadata.view.View has it. `document` is its raw JSON, None without one; `sources` are
    all that apply, with the one that is being written; `backend` as in shim.metadata.compose."""

    instance: UUID
    now: float
    limit: int
    document: bytes | None = None
    project: str = ""
    sources: list[Source] = []
    values: list[Value] = []
    composition: Composition = Composition.MERGED
    backend: bytes | None = None


class Rehearsal(msgspec.Struct, frozen=True):
    """What is to be tried out. `check` asks for what is wrong alone, `preview` for all of it. `template` is compiled
    first, whether any instance would get it or not."""

    only: Literal["check", "preview"]
    instances: list[Stage] = []
    template: bytes | None = None


class Played(msgspec.Struct, frozen=True):
    """What came of one instance: what is wrong (if only that was asked for), or the preview. `fault`: it could not be
    tried out at all, and why."""

    instance: UUID
    problems: list[Problem] = []
    preview: Preview | None = None
    fault: str = ""


class Rehearsed(msgspec.Struct, frozen=True):
    """What came of it, the instances in the order of the rehearsal. `fault`: why the template does not compile; then
    no instance was tried."""

    instances: list[Played] = []
    fault: str = ""


async def rehearse(work: Rehearsal, uid: int, gid: int) -> Rehearsed:
    """Have it tried out, by a child that becomes `uid` and `gid` (unless this process is not root: then it stays what
    it is). Raises InputError: it takes too long or too much; KernelError: no child can be started."""
    child = await _started(f"{uid}:{gid}" if os.geteuid() == 0 else "-")
    try:
        async with asyncio.timeout(SECONDS):
            answer = await _converse(child, msgspec.json.encode(work))
            status = await child.wait()
    except TimeoutError:
        raise InputError(
            f"trying it out for {len(work.instances)} instances took longer than {SECONDS:.0f} s", _SIMPLER
        ) from None
    finally:
        await _buried(child)
    if status:
        if status > 0 and status != TOO_MUCH:
            raise MetashimError(f"trying it out failed (status {status})", "the agent's standard error says why")
        raise InputError(f"trying it out took too much time or memory ({_ended(status)})", _SIMPLER)
    return msgspec.json.decode(answer, type=Rehearsed)


_SIMPLER = "make its templates and its YAML simpler or smaller; nothing was changed"


async def _started(who: str) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "shim.rehearse", who,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True, cwd="/",
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
    except OSError as error:
        what = f"no process can be started: {error.strerror}"
        raise KernelError(what, "see what the host has too little of", error.errno or 0) from error


async def _converse(child: asyncio.subprocess.Process, question: bytes) -> bytes:
    """What the child answers. One that answers without end is not listened to."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(question)
    with contextlib.suppress(ConnectionError):  # it ended: its status says how
        await child.stdin.drain()
    child.stdin.close()
    pieces, size = [], 0
    while piece := await child.stdout.read(1 << 16):
        size += len(piece)
        if size > ANSWER_BYTES:
            raise InputError(f"what came of trying it out has more than {ANSWER_BYTES} bytes", _SIMPLER)
        pieces.append(piece)
    return b"".join(pieces)


async def _buried(child: asyncio.subprocess.Process) -> None:
    """Ends it, if it has not ended, and lets go of its pipes."""
    assert child.stdin is not None
    assert child.stdout is not None
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    while await child.stdout.read(1 << 16):  # before its end is waited for, which waits for the pipe's
        pass
    child.stdin.close()
    with contextlib.suppress(ConnectionError):
        await child.stdin.wait_closed()
    await child.wait()


def _ended(status: int) -> str:
    return "no memory" if status > 0 else signal.strsignal(-status) or f"signal {-status}"
