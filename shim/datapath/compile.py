"""Compiles the programs, loads them and pins them: `python -m shim.datapath.compile SOURCES PINS [KEPT]`.

A process of its own, ended as soon as it is done, since bcc brings a compiler that nobody needs
afterwards. The maps must be pinned in the folder PINS already; the programs are pinned beside them,
under names that end in `-new` (bpffs takes no dots) until the caller takes them over. In the file KEPT, if that is
given, they can be found the next time: bytecode.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from shim.errors import KernelError

PROGRAMS = ("from_instance", "to_instance")
SECONDS = 300.0
"""For all of it: an emulated processor takes minutes."""
_INCLUDE = re.compile(r'\s*#include "(.+)"')


def flatten(path: Path, seen: set[Path]) -> str:
    """A source with its own headers put in, each once: bcc rewrites map calls in the main file only."""
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        header = _INCLUDE.match(line)
        if header is None:
            lines.append(line if line != "#pragma once" else "")
            continue
        file = (path.parent / header[1]).resolve()
        if file not in seen:
            seen.add(file)
            lines += [flatten(file, seen), f'#line {number + 1} "{path.name}"']
    return "\n".join(lines)


def source(folder: Path) -> str:
    """Both programs as the one text that bcc is given."""
    seen: set[Path] = set()
    return "\n".join(flatten(folder / f"{name}.c", seen) for name in PROGRAMS)


def _flags(pins: Path) -> list[str]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    system = ["/usr/include", f"/usr/include/{multiarch}"]
    headers = [word for folder in system for word in ("-isystem", folder)]
    return [*headers, f'-DPINS="{pins}"', "-Wall", "-Wno-unused-function"]


def load(folder: Path, pins: Path, kept: Path | None = None) -> None:
    """Runs in the child: compile, load, pin, and keep."""
    os.environ["BCC_KERNEL_SOURCE"] = str(folder / "kernel")
    import bcc

    from shim.datapath.bpf import pin

    module = bcc.BPF(text=source(folder).encode(), cflags=_flags(pins))
    for name in PROGRAMS:
        function = module.load_func(name.encode(), bcc.BPF.SCHED_CLS)
        fresh = pins / f"{name}-new"
        fresh.unlink(missing_ok=True)
        pin(function.fd, fresh)
    if kept is not None:
        _keep({name: module.dump_func(name.encode()) for name in PROGRAMS}, pins, kept)


def _keep(code: dict[str, bytes], pins: Path, kept: Path) -> None:
    """Where that cannot be, it is compiled again the next time."""
    from shim.datapath import abi, bytecode
    from shim.datapath.bpf import ids

    names = {shape.name: pins / shape.name for shape in abi.maps(1, 1)}
    with contextlib.suppress(OSError):
        bytecode.keep(kept, {name: bytecode.program(each, ids(names)) for name, each in code.items()})


async def run(folder: Path, pins: Path, python: str, kept: Path | None = None) -> None:
    """Runs the child. Raises KernelError with what the compiler or the verifier said last."""
    command = [python, "-m", "shim.datapath.compile", str(folder), str(pins), *([str(kept)] if kept else [])]
    child = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
    try:
        async with asyncio.timeout(SECONDS):
            _, raw = await child.communicate()
    except TimeoutError:
        what = f"the eBPF programs are not compiled within {SECONDS:.0f} s"
        raise KernelError(what, "see `metashim check`") from None
    finally:
        if child.returncode is None:
            child.kill()
    if child.returncode:
        said = "\n".join(raw.decode(errors="replace").strip().splitlines()[-12:])
        raise KernelError(f"the eBPF programs cannot be compiled or loaded:\n{said}", "see `metashim check`")


if __name__ == "__main__":
    try:
        load(*map(Path, sys.argv[1:]))
    except Exception as error:  # noqa: BLE001 (bcc raises no other; a traceback would hide what the verifier said)
        sys.exit(str(error))
