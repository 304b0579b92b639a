"""Programs that were compiled once are loaded again, and do as they did; what is not they is compiled."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.datapath import abi, bpf, bytecode, compile
from shim.datapath.ebpf import RULES
from tests.bpf import loaded
from tests.bpf.frames import arp_request, segment, solicitation

FRAMES = [bytes(arp_request()), bytes(solicitation()), segment(4), segment(6), segment(4, "A"), segment(4, dport=81)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a compile left."""
    path = tmp_path_factory.mktemp("kept") / "programs-0123"
    (path.parent / "programs-4567").write_text("of other sources")
    with Pinned("first") as folder:
        asyncio.run(compile.run(RULES, folder, sys.executable, path))
        yield path


class Pinned:
    """A folder with this version's maps."""

    def __init__(self, name: str) -> None:
        self.folder = loaded.BPFFS / f"kept{os.getpid()}{name}"

    def __enter__(self) -> Path:
        self.folder.mkdir()
        for shape in abi.maps(4, loaded.FLOWS):
            made = bpf.Map.create(shape)
            bpf.pin(made.fd, self.folder / shape.name)
            made.close()
        return self.folder

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder)


def test_what_was_compiled_for_other_sources_is_removed(kept):
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.stat().st_mode & 0o777 == 0o600


def test_programs_do_as_those_did_that_were_compiled(kept, monkeypatch):
    """Whole frames, one after the other, through both: the same actions, the same frames after, the same counts."""

    def runs() -> list[loaded.Run]:
        with loaded.loaded(f"kept{os.getpid()}") as programs:
            programs.reset()
            return [programs.from_instance(frame) for frame in FRAMES]

    compiled = runs()

    async def found(rules: Path, folder: Path, python: str) -> None:
        assert bytecode.load(kept, folder)

    monkeypatch.setattr(loaded.compile, "run", found)
    assert runs() == compiled
    assert len({run.action for run in compiled}) > 1


@pytest.mark.parametrize("harm", ["cut", "changed", "no json", "writable", "another's", "missing"])
def test_what_is_not_as_it_was_written_is_not_loaded(kept, tmp_path, harm, caplog):
    path = tmp_path / "programs-0123"
    raw = kept.read_bytes()
    changed = {"cut": raw[:-100], "changed": raw.replace(b"AAAA", b"AAAB", 1), "no json": b"x\ny"}
    path.write_bytes(changed.get(harm, raw))
    path.chmod(0o622 if harm == "writable" else 0o600)
    if harm == "another's":
        os.chown(path, 1, 1)
    if harm == "missing":
        path.unlink()
    with Pinned(harm.split()[0].strip("'")) as folder:
        assert not bytecode.load(path, folder)
        assert not list(folder.glob("*-new"))
    assert ("compiling" in caplog.text) == (harm != "missing")


def test_what_the_verifier_refuses_is_not_loaded(tmp_path, caplog):
    path = tmp_path / "programs-0123"
    bytecode.keep(path, {"from_instance": bytecode.Program(bytes(8), {})})
    with Pinned("refused") as folder:
        assert not bytecode.load(path, folder)
    assert "cannot be loaded" in caplog.text


def test_maps_that_are_not_there_are_no_end(kept, tmp_path):
    with Pinned("less") as folder:
        (folder / "ports").unlink()
        assert not bytecode.load(kept, folder)
