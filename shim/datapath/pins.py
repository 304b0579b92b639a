"""The pins of the eBPF datapath in bpffs, and how one version of them becomes the next.

They lie in `<bpffs>/<name>/v<ABI>-<max_ports>-<flows_per_port>/`, so what differs in shape has a folder of its own
and no state is ever misread. A version that finds no folder of its own but a former one's

  - pins the very maps whose records are unchanged: programs of both versions share connections, counters, taps;
  - makes the others anew, and translates what they hold (former.py). The former programs go on with their own until
    each is replaced, in one step, by one that finds the same port here.

So nothing is lost at any instant. All is made in a folder `next…`, which becomes this version's with the programs in
it; whoever dies before that has changed nothing. It is each run's own, since the compiler of an agent that was killed
goes on for a second, and would pin programs of its own among another agent's maps.

Where that cannot be (other sizes, a newer version's folder, pins that are not what they should be) this version cuts
over: it begins with empty maps. Folders that it could not go on with stay until `prune`, and as long as one is there
every start cuts over again, since nobody knows how far the last one came. What is to be done about it beyond the pins
is the caller's: `cut` says so.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from shim.datapath import bpf
from shim.datapath.abi import MapShape
from shim.datapath.former import RECORDS, RENEWED, Former, record_of
from shim.errors import KernelError

log = logging.getLogger(__name__)

STAGE, ASIDE = "next", "aside"
IDENTITIES = "ports"
"""A folder without this one was never in use."""

UNREADABLE = (0, errno.ENOENT, errno.EACCES, errno.EINVAL)
"""Errors that say what a pin is: of another shape (0), missing, no map at all (the kernel says EACCES of that)."""

_FOLDER = re.compile(r"v(\d+)-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a folder is named by."""

    version: int
    max_ports: int
    flows_per_port: int

    def __str__(self) -> str:
        return f"v{self.version}-{self.max_ports}-{self.flows_per_port}"

    @classmethod
    def read(cls, name: str) -> Shape | None:
        """The shape that a folder's name says; None: it is none of ours."""
        found = _FOLDER.fullmatch(name)
        return cls(*map(int, found.groups())) if found else None

    def before(self, other: Shape) -> bool:
        """Whether `other` can go on with what is of this one, as far as the names tell."""
        return self.version < other.version and replace(self, version=other.version) == other


class Pins:
    """The folders below `root`, for a version of that shape with those maps. `folder` is where its pins are; `cut`
    says, once `open` has returned, whether something was there that it could not go on with."""

    def __init__(
        self, root: Path, shape: Shape, maps: Sequence[MapShape], records: Mapping[str, Sequence[Former]] = RECORDS
    ) -> None:
        self._root = root
        self._shape = shape
        self._shapes = maps
        self._records = records
        self._final = root / str(shape)
        self._stage = root / f"{STAGE}{secrets.token_hex(4)}"
        self.folder = self._final
        self.cut = False

    def open(self) -> dict[str, bpf.Map]:
        """Every map of this version: its own, a former version's, or new ones. Raises KernelError."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._root.glob(f"{STAGE}*"):
            shutil.rmtree(path, ignore_errors=True)  # its compiler may be at it still: `prune` has the rest
        others = self._others()
        try:
            self._must_be_known(others)
            if self._final.exists():
                return _opened(self._final, self._shapes)
            made = self._assemble(max(others, key=lambda one: one.version, default=None))
        except KernelError as error:
            if error.errno not in UNREADABLE:
                raise
            self._cut_over(error)
            made = self._assemble(None)
        self.folder = self._stage
        return made

    def _others(self) -> list[Shape]:
        """The folders of other versions and sizes that were in use."""
        names = [path.name for path in self._root.iterdir() if (path / IDENTITIES).exists()]
        shapes = [Shape.read(name) for name in names]
        return [shape for shape in shapes if shape and shape != self._shape]

    def _must_be_known(self, others: Iterable[Shape]) -> None:
        if (self._root / ASIDE).exists():
            raise KernelError("an earlier cut-over was not completed")
        for shape in others:
            if not shape.before(self._shape):
                newer = shape.version > self._shape.version
                raise KernelError(f"{shape} is of {'a newer version' if newer else 'other sizes'}")

    def _cut_over(self, why: KernelError) -> None:
        log.warning(
            "%s cannot go on with the former state (%s): it begins anew, open connections are reset; identities "
            "and policies hold", self._shape, why,
        )  # fmt: skip
        self.cut = True
        _remove(self._stage)
        if self._final.exists():
            _remove(self._root / ASIDE)
            self._final.rename(self._root / ASIDE)

    def _assemble(self, source: Shape | None) -> dict[str, bpf.Map]:
        """All maps in the folder `next`; of the former version `source`, if there is one."""
        self._stage.mkdir(mode=0o700)
        made: dict[str, bpf.Map] = {}
        try:
            for shape in self._shapes:
                made[shape.name] = self._carried(shape, source) if source else bpf.Map.create(shape)
                bpf.pin(made[shape.name].fd, self._stage / shape.name)
        except KernelError:
            _close(made.values())
            raise
        if source is not None:
            log.info("%s goes on with the state of %s", self._shape, source)
        return made

    def _carried(self, shape: MapShape, source: Shape) -> bpf.Map:
        """The former version's own map, or one that holds what that one does. Raises KernelError."""
        path = self._root / str(source) / shape.name
        if shape.since <= source.version:
            return bpf.Map.open(path, shape)
        record = record_of(shape.name, source.version, self._records)
        if record is not None:
            return _translated(shape, path, record)
        if path.exists() and shape.name not in RENEWED:
            raise KernelError(f"nothing is known of the {shape.name} of version {source.version}")
        return bpf.Map.create(shape)

    def settle(self) -> None:
        """What was made is this version's from here on: to be called once the programs are pinned beside the maps."""
        if self.folder != self._final:
            self.folder.rename(self._final)
            self.folder = self._final
        if self.cut:
            self._silence()

    def _silence(self) -> None:
        """Has the programs of all former versions refuse everybody, wherever one may still be."""
        ours = bpf.Map.of_any_shape(self._final / IDENTITIES)
        for folder in self._root.iterdir():
            with suppress(KernelError):  # what is no map serves nobody
                _empty(folder / IDENTITIES, ours.id)
        ours.close()

    def prune(self, programs: Iterable[str]) -> None:
        """Removes all but this version's maps and these programs. A tap where another is still, as it could not be
        replaced, is refused from here on."""
        self._silence()
        current = {*programs, *(shape.name for shape in self._shapes)}
        for path in [*self._root.iterdir(), *self._final.iterdir()]:
            if path != self._final and not (path.parent == self._final and path.name in current):
                _remove(path)
        self.cut = False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _opened(folder: Path, shapes: Sequence[MapShape]) -> dict[str, bpf.Map]:
    found: dict[str, bpf.Map] = {}
    try:
        for shape in shapes:
            found[shape.name] = bpf.Map.open(folder / shape.name, shape)
    except KernelError:
        _close(found.values())
        raise
    return found


def _empty(path: Path, spared: int) -> None:
    """Zeroes every record of a map, unless it is the one of that id: a zeroed port serves nobody, in any version."""
    found = bpf.Map.of_any_shape(path)
    try:
        for key in found.keys() if found.id != spared else ():
            found.update(key, bytes(found.shape.value_bytes))
    finally:
        found.close()


def _close(maps: Iterable[bpf.Map]) -> None:
    for made in maps:
        made.close()


def _translated(shape: MapShape, path: Path, record: Former) -> bpf.Map:
    """No program writes to a map that is translated, so it holds still."""
    old = bpf.Map.open(path, replace(shape, value_bytes=record.value_bytes))
    made = bpf.Map.create(shape)
    try:
        for key in list(old.keys()):
            value = old.lookup(key)
            if value is not None and any(value):
                made.update(key, record.translate(value))
    finally:
        old.close()
    return made
