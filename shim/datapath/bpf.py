"""bpf(2), as far as the agent needs it, by ctypes.

`import bcc` brings a compiler (about 60 MB resident), so the agent does its map work with this instead.
Every failure is a KernelError with the errno. Source: linux/bpf.h, `union bpf_attr`; bpf(2).
"""

from __future__ import annotations

import ctypes as ct
import errno
import mmap
import os
import platform
import select
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from shim.datapath.abi import MapShape
from shim.errors import KernelError

_SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_GET_NEXT, OBJ_PIN, OBJ_GET = 0, 1, 2, 3, 4, 6, 7
PROG_LOAD, PROG_TEST_RUN, OBJ_GET_INFO = 5, 10, 15
SCHED_CLS = 3
_ATTR_BYTES = 128
RDONLY_PROG = 1 << 7  # a map's flag that the kernel itself sets on arrays of devices

_libc = ct.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes, doing: str) -> tuple[int, bytes]:
    """One bpf(2) call: (its result, the attr as the kernel left it)."""
    block = ct.create_string_buffer(attr, _ATTR_BYTES)
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise KernelError(f"bpf(2) has no known number on {platform.machine()}", "use datapath = \"nft\"")
    result = _libc.syscall(number, command, block, _ATTR_BYTES)
    if result < 0:
        code = ct.get_errno()
        raise KernelError(f"{doing}: {os.strerror(code)}", _hint(code), code)
    return result, block.raw


def _hint(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "the agent needs root (CAP_BPF, CAP_NET_ADMIN); is lockdown on?"
    if code in (errno.ENOMEM, errno.E2BIG):
        return "lower datapath.max_ports or datapath.flows_per_port"
    return ""


def _address(buffer: ct.Array[ct.c_char]) -> int:
    return ct.addressof(buffer)


def pin(fd: int, path: Path) -> None:
    """Gives a map or program a name in bpffs."""
    name = ct.create_string_buffer(bytes(path))
    _bpf(OBJ_PIN, struct.pack("=QII", _address(name), fd, 0), f"cannot pin {path}")


def open_pin(path: Path) -> int:
    """A new descriptor of what is pinned at `path`."""
    name = ct.create_string_buffer(bytes(path))
    return _bpf(OBJ_GET, struct.pack("=QII", _address(name), 0, 0), f"cannot open {path}")[0]


def _open_map_pin(path: Path) -> int:
    """The same of a map. Raises KernelError (EINVAL) for a program: that has the same calls, and other answers."""
    fd = open_pin(path)
    if not Path(f"/proc/self/fd/{fd}").readlink().name.endswith("bpf-map"):
        os.close(fd)
        raise KernelError(f"what is pinned at {path} is no map", errno=errno.EINVAL)
    return fd


def load_program(code: bytes, name: str) -> int:
    """A descriptor of a program for tc, once the kernel has verified it."""
    instructions, license_name = ct.create_string_buffer(code, len(code)), ct.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16s", SCHED_CLS, len(code) // 8, _address(instructions), _address(license_name), 0, 0, 0, 0, 0,
        name.encode()[:15],
    )  # fmt: skip
    return _bpf(PROG_LOAD, attr, f"cannot load {name}")[0]


def test_run(prog: int, frame: bytes, repeat: int = 1, room: int = 4096) -> tuple[int, bytes, int]:
    """Runs a program on a frame (BPF_PROG_TEST_RUN): (its return value, the frame after, ns a run)."""
    data = ct.create_string_buffer(frame, len(frame))
    out = ct.create_string_buffer(len(frame) + room)
    attr = struct.pack(
        "=IIIIQQII", prog, 0, len(frame), len(out), _address(data), _address(out), repeat, 0
    )
    _, after = _bpf(PROG_TEST_RUN, attr, "cannot test-run the program")
    _, retval, _, size, _, _, _, duration = struct.unpack_from("=IIIIQQII", after)
    return retval, out.raw[:size], duration


class Map:
    """One map by its descriptor; keys and values are bytes of the shapes in abi.py."""

    def __init__(self, fd: int, shape: MapShape) -> None:
        self.fd = fd
        self.shape = shape

    @classmethod
    def create(cls, shape: MapShape) -> Map:
        """A new map, not pinned yet."""
        name = shape.name.encode()[:15]
        attr = struct.pack(
            "=IIIIIII16s", shape.kind, shape.key_bytes, shape.value_bytes, shape.entries, shape.flags, 0, 0, name
        )
        return cls(_bpf(MAP_CREATE, attr, f"cannot make the map {shape.name}")[0], shape)

    @classmethod
    def open(cls, path: Path, shape: MapShape) -> Map:
        """The map pinned at `path`. Raises KernelError (errno 0) when it was made with another shape."""
        found = cls(_open_map_pin(path), shape)
        if found._info() != (shape.kind, shape.key_bytes, shape.value_bytes, shape.entries, shape.flags):
            found.close()
            raise KernelError(f"the map pinned at {path} has another shape than this version and its settings need")
        return found

    @classmethod
    def of_any_shape(cls, path: Path) -> Map:
        """The map pinned at `path`, whatever version made it."""
        found = cls(_open_map_pin(path), MapShape(path.name, 0, 0, 0, 0))
        found.shape = MapShape(path.name, *found._info())
        return found

    @property
    def id(self) -> int:
        """What tells this map from all others in the kernel."""
        return self._look()[1]

    def _info(self) -> tuple[int, int, int, int, int]:
        """Kind, bytes of key and value, entries and flags as they were asked for."""
        kind, _, key, value, entries, flags = self._look()
        return kind, key, value, entries, flags & ~RDONLY_PROG

    def _look(self) -> tuple[int, int, int, int, int, int]:
        """struct bpf_map_info, as far as its flags."""
        info = ct.create_string_buffer(80)
        attr = struct.pack("=IIQ", self.fd, len(info), _address(info))
        _bpf(OBJ_GET_INFO, attr, f"cannot look at the map {self.shape.name}")
        return struct.unpack_from("=IIIIII", info.raw)

    def _call(self, command: int, key: bytes, value: ct.Array[ct.c_char] | None, doing: str) -> None:
        block = ct.create_string_buffer(key, max(len(key), 1))
        pointer = _address(value) if value is not None else 0
        attr = struct.pack("=IIQQQ", self.fd, 0, _address(block), pointer, 0)
        _bpf(command, attr, f"cannot {doing} the map {self.shape.name}")

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value = ct.create_string_buffer(self.shape.value_bytes)
        try:
            self._call(MAP_LOOKUP, key, value, "read")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Sets the value; the programs see it at once."""
        self._call(MAP_UPDATE, key, ct.create_string_buffer(value, len(value)), "write")

    def delete(self, key: bytes) -> None:
        """Removes the entry if it is there."""
        try:
            self._call(MAP_DELETE, key, None, "delete from")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def keys(self) -> Iterator[bytes]:
        """Every key, as far as the map holds still."""
        key: bytes | None = None
        while True:
            after = ct.create_string_buffer(self.shape.key_bytes)
            block = ct.create_string_buffer(key, len(key)) if key is not None else None
            attr = struct.pack("=IIQQQ", self.fd, 0, _address(block) if block else 0, _address(after), 0)
            try:
                _bpf(MAP_GET_NEXT, attr, f"cannot list the map {self.shape.name}")
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = after.raw
            yield key

    def close(self) -> None:
        """Closes the descriptor; a pin keeps the map."""
        os.close(self.fd)


def ids(paths: Mapping[str, Path]) -> dict[int, str]:
    """By every descriptor of a map that this process has, the name of the one of `paths` that it is."""
    known = {}
    for name, path in paths.items():
        found = Map.of_any_shape(path)
        known[found.id] = name
        found.close()
    return {fd: known[map_id] for fd, map_id in _map_ids() if map_id in known}


def _map_ids() -> Iterator[tuple[int, int]]:
    for entry in list(Path("/proc/self/fdinfo").iterdir()):
        with suppress(FileNotFoundError):
            said = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
            if "map_id" in said:
                yield int(entry.name), int(said["map_id"])


class Ring:
    """The reading end of a ring buffer map. Its descriptor becomes readable when there is something."""

    _BUSY, _DISCARDED, _HEADER = 1 << 31, 1 << 30, 8

    def __init__(self, ring: Map) -> None:
        page, size = mmap.PAGESIZE, ring.shape.entries
        self.fd = ring.fd
        self._mask = size - 1
        self._consumer = mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The data pages are mapped twice in a row, so that no record is split at the end.
        self._data = mmap.mmap(ring.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def read(self) -> list[bytes]:
        """Every record that is complete by now."""
        records = []
        at = struct.unpack_from("=Q", self._consumer)[0]
        while at < struct.unpack_from("=Q", self._data)[0]:
            start = mmap.PAGESIZE + (at & self._mask)
            length = struct.unpack_from("=I", self._data, start)[0]
            if length & self._BUSY:
                break
            size = length & ~self._DISCARDED
            if not length & self._DISCARDED:
                body = start + self._HEADER
                records.append(self._data[body : body + size])
            at += (size + self._HEADER + 7) // 8 * 8
        struct.pack_into("=Q", self._consumer, 0, at)
        return records

    def close(self) -> None:
        """Unmaps the ring."""
        self._consumer.close()
        self._data.close()


class Rings:
    """Some ring buffer maps, by name, with one descriptor that is readable when any of them is."""

    def __init__(self, *maps: Map) -> None:
        self._rings = {ring.shape.name: Ring(ring) for ring in maps}
        self._poll = select.epoll()
        for ring in self._rings.values():
            self._poll.register(ring.fd, select.EPOLLIN)

    @property
    def fd(self) -> int:
        """Readable when any ring is."""
        return self._poll.fileno()

    def read(self, name: str) -> list[bytes]:
        """Every record of one ring that is complete by now."""
        return self._rings[name].read()

    def close(self) -> None:
        """Unmaps them."""
        self._poll.close()
        for ring in self._rings.values():
            ring.close()
