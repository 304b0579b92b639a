"""What vagrant/run decides without a machine: what is missing here, a box's recipe, and what a report says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vagrant import boxes, ground, inside, main, recipe, report
from vagrant.ground import Ground
from vagrant.recipe import HYPERVISOR, MACHINES, OTHER

TREE = Path(__file__).resolve().parents[2]
WELL = Ground(root=True, tun=True, memory_mib=8000, disk_mib=20000, cache=Path("/cache"), missing=())
FILES = {name: (TREE / name).read_text() for name in (*boxes.BUILT_BY, *boxes.SET_UP_BY)}


def test_a_machine_that_has_all_is_not_complained_of() -> None:
    assert ground.complaints(WELL) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"root": False}, ("not root", "run it as root")),
        ({"tun": False}, ("/dev/net/tun", "modprobe tun")),
        ({"memory_mib": 900}, ("900 MiB of memory",)),
        ({"disk_mib": 70}, ("70 MiB are free in /cache", "METASHIM_CACHE")),
        ({"missing": ("qemu-img", "virsh")}, ("qemu-img, virsh", "./setup.sh libvirt-clients qemu-utils")),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(change: dict[str, object], words: tuple[str, ...]) -> None:
    (said,) = ground.complaints(dataclasses.replace(WELL, **change))  # type: ignore[arg-type]
    for word in words:
        assert word in said


def test_all_that_is_missing_is_said_at_once() -> None:
    assert len(ground.complaints(Ground(False, False, 1, 1, Path("/cache"), ("vagrant",)))) == 5


def test_free_memory_is_what_the_kernel_says_can_be_had() -> None:
    assert ground.available("MemTotal: 9000000 kB\nMemFree: 10 kB\nMemAvailable:    4096000 kB\n") == 4000


def test_every_package_that_a_command_comes_from_is_installed_by_make() -> None:
    (line,) = [part for part in (TREE / "Makefile").read_text().split("\n\n") if part.startswith("test-vagrant:")]
    here_anyway = {"util-linux"}
    assert set(ground.COMMANDS.values()) - here_anyway <= set(line.split())


def test_a_box_has_what_setup_installs() -> None:
    (line,) = [line for line in (TREE / "setup.sh").read_text().splitlines() if line.startswith("PACKAGES=")]
    assert line == f'PACKAGES=({" ".join(recipe.SETUP)} "$@")'


def test_requirements_are_those_to_run_to_test_and_to_build() -> None:
    text = """
        project = {dependencies = ["one>=1"], optional-dependencies = {dev = ["two"]}}
        build-system = {requires = ["three"]}
    """
    assert recipe.requirements(text) == ["one>=1", "two", "three"]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_box_is_built_again_when_what_builds_it_has_changed(name: str) -> None:
    distribution = HYPERVISOR.distribution
    changed = FILES | {name: FILES[name] + "\n# changed\n"}
    assert recipe.box(distribution, changed) != recipe.box(distribution, FILES)


def test_wheels_are_fetched_again_when_a_requirement_has_changed_and_only_then() -> None:
    distribution, text = HYPERVISOR.distribution, FILES["pyproject.toml"]
    assert recipe.wheels(distribution, text) == recipe.wheels(distribution, text + "\n[tool.other]\n")
    assert recipe.wheels(distribution, text) != recipe.wheels(distribution, text.replace("pytest>=8", "pytest>=9"))
    assert recipe.wheels(distribution, text) != recipe.wheels(OTHER.distribution, text)


def test_the_machines_are_those_of_the_vagrantfile() -> None:
    text = (TREE / "vagrant/Vagrantfile").read_text()
    for machine in MACHINES:
        assert f'"{machine.name}" => {{ address: "{machine.address}"' in text


def test_boxes_lie_where_vagrant_and_libvirt_look(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "box.img").write_text("disk")
    boxes.known(tmp_path / "home", tmp_path / "pool", {"trixie": box})
    assert (tmp_path / "home/boxes/metashim-trixie/1.0.0/libvirt/box.img").read_text() == "disk"
    assert (tmp_path / "pool/metashim-trixie_vagrant_box_image_1.0.0_box.img").samefile(box / "box.img")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("==> other: Creating domain with the following settings...", True),
        ("    hypervisor: install: # metashim check (12 s)", True),
        ("==> other:  -- Memory:            1536M", False),
        ("==> other: Warning: Connection refused. Retrying...", False),
        ("    hypervisor: SSH username: vagrant", False),
    ],
)
def test_of_what_vagrant_says_the_steps_are_told(line: str, told: bool) -> None:
    assert bool(inside.TOLD.match(line)) == told


REPORT = """<testsuites><testsuite name="Debian, 6.1" time="12.5">
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="assert 1 == 2&#10;more">text</failure></testcase>
<testcase classname="a" name="broken"><error message="no tap"/></testcase>
<testcase classname="a" name="left"><skipped message="no KVM"/></testcase>
</testsuite></testsuites>"""


def test_a_report_names_what_failed_and_what_was_skipped() -> None:
    (suite,) = report.read(REPORT)
    assert (suite.passed, suite.seconds, suite.green) == (1, 12.5, False)
    assert suite.failed == (("a::bad", "assert 1 == 2"), ("a::broken", "no tap"))
    assert report.summary([suite]) == [
        "RED    Debian, 6.1: 1 passed, 2 failed, 1 skipped in 12 s",
        "       failed   a::bad: assert 1 == 2",
        "       failed   a::broken: no tap",
        "       skipped  a::left: no KVM",
    ]


@pytest.mark.parametrize(
    ("cases", "green"),
    [
        ("<testcase name='one'/>", True),
        ("<testcase name='one'><skipped message='no'/></testcase>", False),
        ("", False),
    ],
)
def test_only_a_run_in_which_something_was_tested_is_green(cases: str, green: bool) -> None:
    (suite,) = report.read(f"<testsuite name='s'>{cases}</testsuite>")
    assert suite.green == green


def test_a_report_that_was_cut_is_none() -> None:
    with pytest.raises(ValueError, match="not a JUnit report"):
        report.read(REPORT[:100])


GREEN = "<testsuite name='s'><testcase name='one'/></testsuite>"


@pytest.mark.parametrize(
    ("texts", "wanted", "pytests", "status"),
    [
        ({"a": GREEN, "b": GREEN}, ["a", "b"], 0, 0),
        ({"a": GREEN}, ["a", "b"], 0, 1),
        ({"a": GREEN, "b": GREEN[:30]}, ["a", "b"], 0, 1),
        ({"a": REPORT}, ["a"], 0, 1),
        ({"a": GREEN}, ["a"], 3, 3),
        ({}, ["a"], 2, 2),
    ],
)
def test_a_report_that_is_missing_or_red_is_a_failure(
    tmp_path: Path, texts: dict[str, str], wanted: list[str], pytests: int, status: int
) -> None:
    for name, text in texts.items():
        (tmp_path / f"{name}.xml").write_text(text)
    assert main.judged(tmp_path, wanted, pytests) == status
