"""Versions of the pins: what each finds of a former one's, what is new, and when it begins anew. No program runs."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from shim.datapath import bpf
from shim.datapath.abi import ARRAY, HASH, RINGBUF, MapShape
from shim.datapath.former import Former
from shim.datapath.pins import ASIDE, STAGE, Pins, Shape
from shim.errors import KernelError
from tests.bpf import loaded

PORTS, FLOWS = 4, 8
BEFORE = [
    MapShape("settings", ARRAY, 4, 8, 1),
    MapShape("ports", ARRAY, 4, 4, PORTS + 1),
    MapShape("flows", HASH, 4, 8, PORTS * FLOWS, 1),
    MapShape("events", RINGBUF, 0, 0, 4096),
]
WIDER = Former(1, 4, lambda raw: raw + b"\xaa" * 4)
AFTER = [
    *BEFORE[:1],
    MapShape("ports", ARRAY, 4, 8, PORTS + 1, since=2),
    *BEFORE[2:],
    MapShape("news", RINGBUF, 0, 0, 4096, since=2),
]
OWNERS = {1: b"one.", 3: b"tri."}
CONNECTIONS = {7: b"seven...", 8: b"eight..."}


def key(number: int) -> bytes:
    return struct.pack("=I", number)


@pytest.fixture
def root() -> Iterator[Path]:
    with loaded.pins("versions") as folder:
        yield folder / "host"


def former(root: Path, *, ports: int = PORTS) -> Pins:
    return Pins(root, Shape(1, ports, FLOWS), BEFORE, {})


def present(root: Path) -> Pins:
    return Pins(root, Shape(2, PORTS, FLOWS), AFTER, {"ports": [WIDER]})


def started(pins: Pins) -> dict[str, bpf.Map]:
    maps = pins.open()
    pins.settle()
    return maps


@pytest.fixture
def used(root: Path) -> dict[str, bpf.Map]:
    """A former version with some owners and connections."""
    maps = started(former(root))
    for number, owner in OWNERS.items():
        maps["ports"].update(key(number), owner)
    for number, connection in CONNECTIONS.items():
        maps["flows"].update(key(number), connection)
    return maps


def held(found: bpf.Map) -> dict[int, bytes]:
    """What is in a map, but for zeroes."""
    values = {struct.unpack("=I", one)[0]: found.lookup(one) or b"" for one in list(found.keys())}
    return {number: value for number, value in values.items() if any(value)}


def ids(maps: dict[str, bpf.Map]) -> dict[str, int]:
    return {name: found.id for name, found in maps.items()}


WIDENED = {number: owner + b"\xaa" * 4 for number, owner in OWNERS.items()}


class TestTheNextVersion:
    def test_shares_what_is_unchanged(self, root, used):
        after = ids(started(present(root)))
        before = ids(used)
        assert {name for name in before if before[name] == after[name]} == {"settings", "flows", "events"}

    def test_has_what_changed_in_its_own_way(self, root, used):
        pins = present(root)
        assert held(started(pins)["ports"]) == WIDENED
        assert not pins.cut

    def test_leaves_the_former_ones_alone_while_they_are_in_use(self, root, used):
        started(present(root))
        assert held(used["ports"]) == OWNERS

    def test_sees_what_the_former_one_still_does(self, root, used):
        after = started(present(root))
        used["flows"].update(key(9), b"nine....")
        assert held(after["flows"]) == {**CONNECTIONS, 9: b"nine...."}

    def test_translates_once(self, root, used):
        """What is in force is this version's own from the moment that it has any."""
        started(present(root))["ports"].update(key(2), b"two.two.")
        used["ports"].update(key(1), b"late")
        assert held(started(present(root))["ports"]) == {**WIDENED, 2: b"two.two."}

    def test_changes_nothing_before_it_is_settled(self, root, used):
        """The programs may not load: the former version is started again then, and finds all as it was."""
        present(root).open()
        pins = former(root)
        assert ids(pins.open()) == ids(used)
        assert not pins.cut
        assert [path.name for path in root.iterdir()] == ["v1-4-8"]

    def test_takes_the_newest_that_there_is(self, root, used):
        started(present(root))["ports"].update(key(2), b"two.two.")
        third = Pins(root, Shape(3, PORTS, FLOWS), AFTER)
        assert held(started(third)["ports"]) == {**WIDENED, 2: b"two.two."}

    def test_prunes_the_former_one_whose_programs_serve_nobody_any_more(self, root, used):
        pins = present(root)
        maps = started(pins)
        pins.prune(())
        assert [path.name for path in root.iterdir()] == ["v2-4-8"]
        assert held(used["ports"]) == {}
        assert held(maps["ports"]) == WIDENED
        assert held(maps["flows"]) == CONNECTIONS

    def test_prunes_what_it_shares_all_of_without_harm(self, root, used):
        """A version whose ports are the former one's own."""
        pins = Pins(root, Shape(2, PORTS, FLOWS), BEFORE)
        started(pins)
        pins.prune(())
        assert held(used["ports"]) == OWNERS


class TestBeginsAnew:
    def cut(self, pins: Pins, caplog: pytest.LogCaptureFixture, why: str) -> dict[str, bpf.Map]:
        with caplog.at_level(logging.WARNING):
            maps = started(pins)
        (line,) = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
        assert why in line
        assert "open connections are reset" in line
        assert pins.cut
        assert held(maps["ports"]) == {}
        return maps

    def test_with_other_sizes(self, root, used, caplog):
        self.cut(former(root, ports=9), caplog, "v1-4-8 is of other sizes")

    def test_after_a_newer_version(self, root, used, caplog):
        new = started(present(root))
        self.cut(former(root), caplog, "v2-4-8 is of a newer version")
        assert held(new["ports"]) == {}, "its programs may still be on taps"

    def test_when_nothing_is_known_of_a_former_record(self, root, used, caplog):
        pins = Pins(root, Shape(2, PORTS, FLOWS), AFTER, {})
        self.cut(pins, caplog, "nothing is known of the ports of version 1")

    def test_when_a_former_map_is_of_another_shape(self, root, used, caplog):
        other = [MapShape("flows", HASH, 4, 16, 99, 1) if shape.name == "flows" else shape for shape in AFTER]
        self.cut(Pins(root, Shape(2, PORTS, FLOWS), other, {"ports": [WIDER]}), caplog, "another shape")

    def test_when_a_former_map_is_gone(self, root, used, caplog):
        (root / "v1-4-8/flows").unlink()
        self.cut(present(root), caplog, "No such file")

    @pytest.mark.parametrize("name", ["ports", "flows"])
    @pytest.mark.parametrize("version", [former, present])
    def test_when_something_else_is_pinned(self, root, used, caplog, name, version):
        path = root / "v1-4-8" / name
        path.unlink()
        bpf.pin(used["settings"].fd, path)
        self.cut(version(root), caplog, "another shape")

    def test_when_a_folder_is_where_a_map_should_be(self, root, used, caplog):
        (root / "v1-4-8/flows").unlink()
        (root / "v1-4-8/flows").mkdir()
        pins = former(root)
        self.cut(pins, caplog, "flows")
        pins.prune(())
        assert [path.name for path in root.iterdir()] == ["v1-4-8"]

    def test_silences_the_programs_of_what_it_put_aside(self, root, used, caplog):
        (root / "v1-4-8/flows").unlink()
        self.cut(former(root), caplog, "No such file")
        assert held(used["ports"]) == {}

    def test_again_until_it_has_come_to_its_end(self, root, used, caplog):
        (root / "v1-4-8/flows").unlink()
        started(former(root))["ports"].update(key(2), b"two.")
        caplog.clear()
        pins = former(root)
        self.cut(pins, caplog, "not completed")
        pins.prune(())
        assert not pins.cut
        again = former(root)
        started(again)
        assert not again.cut


class TestIsNotIrritated:
    """What was never in use is nothing to begin anew for."""

    def test_by_the_first_start(self, root):
        pins = former(root)
        started(pins)
        assert not pins.cut
        assert sorted(path.name for path in (root / "v1-4-8").iterdir()) == sorted(shape.name for shape in BEFORE)

    @pytest.mark.parametrize("name", ["v9-4-8", "v1-9-9", "vx-1-1", "else", ASIDE + "x", STAGE + "1"])
    def test_by_a_folder_without_ports(self, root, used, name):
        (root / name).mkdir()
        pins = former(root)
        assert ids(started(pins)) == ids(used)
        assert not pins.cut
        pins.prune(())
        assert [path.name for path in root.iterdir()] == ["v1-4-8"]

    def test_by_a_pin_beside_the_folders(self, root, used):
        bpf.pin(used["flows"].fd, root / "v3-4-8")
        pins = former(root)
        started(pins)
        assert not pins.cut
        pins.prune(())
        assert [path.name for path in root.iterdir()] == ["v1-4-8"]

    def test_by_a_program_where_another_version_had_its_ports(self, root, used, programs):
        (root / "v1-4-8/ports").unlink()
        bpf.pin(programs._to, root / "v1-4-8/ports")
        pins = present(root)
        started(pins)
        pins.prune(())
        assert pins.folder.name == "v2-4-8"


def test_what_the_kernel_refuses_is_no_reason_to_begin_anew(root, used, monkeypatch):
    real = bpf._bpf

    def exhausted(command: int, attr: bytes, doing: str) -> tuple[int, bytes]:
        if command == bpf.OBJ_GET and "ports" in doing:
            raise KernelError(doing, errno=24)
        return real(command, attr, doing)

    monkeypatch.setattr(bpf, "_bpf", exhausted)
    with pytest.raises(KernelError):
        former(root).open()
    monkeypatch.undo()
    assert ids(former(root).open()) == ids(used)


def killed(act: Callable[[], object], calls: int) -> bool:
    """Whether a process that acts was killed at that call of the kernel's, from 0; not if it makes fewer."""
    process = os.fork()
    if process == 0:
        left = itertools.count(calls, -1)

        def counted(real: Callable[..., object], *arguments: object, **options: object) -> object:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        code = 1
        try:
            bpf._bpf = partial(counted, bpf._bpf)  # type: ignore[assignment]
            for name in ("mkdir", "rename", "unlink", "rmdir"):
                setattr(os, name, partial(counted, getattr(os, name)))
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def points(act: Callable[[], object]) -> Iterator[int]:
    """Kills a process that acts at its first call, another at its second, and so on until one comes to its end."""
    for calls in itertools.count():
        if not killed(act, calls):
            return
        yield calls


def test_the_programs_of_a_killed_agents_compiler_come_to_nothing(root, used):
    """It ends after the next agent began, and knows nothing of that."""
    killed(lambda: present(root).open(), 1000)
    (stage,) = root.glob(f"{STAGE}*")
    pins = present(root)
    pins.open()
    assert list(root.glob(f"{STAGE}*")) == [pins.folder]
    with pytest.raises(KernelError):
        bpf.pin(used["flows"].fd, stage / "from_instance-new")


def test_a_take_over_that_is_killed_anywhere_loses_nothing(root, used):
    """Each start goes on where the one before was killed, so the last ones are killed after the settling."""
    seen = 0
    for _ in points(lambda: started(present(root))):
        seen += 1
        assert held(used["ports"]) == OWNERS
        assert held(used["flows"]) == CONNECTIONS
    assert seen > 20
    maps = started(present(root))
    assert held(maps["ports"]) == WIDENED
    assert maps["flows"].id == used["flows"].id


def test_one_that_is_killed_before_it_is_settled_leaves_the_former_version_in_force(root, used):
    for _ in points(lambda: present(root).open()):
        pins = former(root)
        assert ids(pins.open()) == ids(used)
        assert not pins.cut


def test_a_cut_over_that_is_killed_anywhere_is_made_again(root, used):
    """Nobody may take what the killed one had begun for the state of a version that was in use."""

    def anew() -> None:
        pins = former(root, ports=9)
        started(pins)

    for _ in points(anew):
        pins = former(root, ports=9)
        assert held(pins.open()["ports"]) == {}
        assert pins.cut
    pins = former(root, ports=9)
    assert held(started(pins)["ports"]) == {}
    assert held(used["ports"]) == {}


def test_a_prune_that_is_killed_anywhere_leaves_this_version_whole(root, used):
    started(present(root))

    def prune() -> None:
        pins = present(root)
        pins.open()
        pins.prune(())

    for _ in points(prune):
        pins = present(root)
        assert held(pins.open()["ports"]) == WIDENED
        assert not pins.cut
    assert [path.name for path in root.iterdir()] == ["v2-4-8"]
