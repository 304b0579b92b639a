"""Programs as they were compiled once, in a file: a host that starts with a thousand guests does not compile again.

The file has the kernel's instructions, in which maps are referred to by descriptors; these are kept by name. It is the
state folder's, and is believed only while root alone can write to it and its digest fits. What is loaded from it goes
through the kernel's verifier as what was just compiled does.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from shim.datapath import bpf
from shim.errors import KernelError

log = logging.getLogger(__name__)

# linux/bpf.h: struct bpf_insn. Registers are bit fields, so their order is the machine's.
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_64_BITS, _MAP_DESCRIPTOR = 0x18, 1
_WRITABLE_BY_OTHERS = 0o022


class Program(msgspec.Struct, frozen=True):
    """One program. `maps` says which map is referred to where: the number of the instruction, and the map's name."""

    code: bytes
    maps: dict[int, str]


def _references(code: bytes) -> Iterator[tuple[int, int]]:
    """(number of the instruction, descriptor) of all that refer to maps."""
    for number, (operation, registers, _, value) in enumerate(_INSTRUCTION.iter_unpack(code)):
        source = registers >> 4 if sys.byteorder == "little" else registers & 0xF
        if operation == _LOAD_64_BITS and source == _MAP_DESCRIPTOR:
            yield number, value


def program(code: bytes, names: Mapping[int, str]) -> Program:
    """A program as the compiler made it; `names` tells the maps by the descriptors in it. KeyError for others."""
    return Program(code, {number: names[fd] for number, fd in _references(code)})


def _bound(one: Program, descriptors: Mapping[str, int]) -> bytes:
    """Its code, with descriptors of this process."""
    code = bytearray(one.code)
    for number, name in one.maps.items():
        at = number * _INSTRUCTION.size
        operation, registers, offset, _ = _INSTRUCTION.unpack_from(code, at)
        _INSTRUCTION.pack_into(code, at, operation, registers, offset, descriptors[name])
    return bytes(code)


def keep(path: Path, programs: Mapping[str, Program]) -> None:
    """Writes them, in place of what other sources were compiled to. Raises OSError."""
    raw = msgspec.json.encode(programs)
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    for other in path.parent.glob("programs-*"):
        if other != path:
            other.unlink(missing_ok=True)


def load(path: Path, folder: Path) -> bool:
    """Loads them for the maps that are pinned in a folder, and pins them there as the compiler's child does; whether
    that was possible. Never raises for what is in the file."""
    try:
        programs = _read(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        log.warning("%s is not what was compiled once (%s): compiling", path, error)
        return False
    try:
        _load(programs, folder)
    except (KernelError, KeyError, struct.error) as error:
        log.warning("what was compiled once cannot be loaded (%s): compiling", error)
        return False
    return True


def _read(path: Path) -> dict[str, Program]:
    """Raises OSError, ValueError."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        if about.st_uid or about.st_mode & _WRITABLE_BY_OTHERS:
            raise ValueError("others than root can write to it")
        digest, _, raw = file.read().partition(b"\n")
    if hashlib.sha256(raw).hexdigest().encode() != digest:
        raise ValueError("it is damaged")
    return msgspec.json.decode(raw, type=dict[str, Program])


def _load(programs: Mapping[str, Program], folder: Path) -> None:
    for name, one in programs.items():
        opened = {each: bpf.open_pin(folder / each) for each in set(one.maps.values())}
        try:
            fd = bpf.load_program(_bound(one, opened), name)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        try:
            fresh = folder / f"{name}-new"
            fresh.unlink(missing_ok=True)
            bpf.pin(fd, fresh)
        finally:
            os.close(fd)
