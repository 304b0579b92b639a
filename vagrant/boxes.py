"""The boxes, built where they are not kept already, and how Vagrant finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.vm import cache
from vagrant import recipe
from vagrant.progress import Say
from vagrant.recipe import Distribution

TREE = Path(__file__).resolve().parent.parent
BUILT_BY = ("vagrant/box/build.sh", "vagrant/box/settings.sh", "vagrant/box/init", "vagrant/box/Vagrantfile")
SET_UP_BY = ("pyproject.toml", "setup.sh")
BOX_MIB = 3500  # one, and what is aside as it is built, where that is not in memory
WHEELS_MIB = 200
VERSION = "1.0.0"


def made(distributions: list[Distribution], say: Say) -> dict[str, Path]:
    """The folders of their boxes by suite; side by side, as one waits for the network while another computes."""
    builds: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor() as pool:
        try:
            return dict(pool.map(lambda one: (one.suite, _box(one, builds, say)), distributions))
        except BaseException:
            for build in builds:
                build.kill()  # and all that it runs: it is the first process of a namespace's
            raise


def _box(distribution: Distribution, builds: list[subprocess.Popen[str]], say: Say) -> Path:
    files = {name: (TREE / name).read_text() for name in (*BUILT_BY, *SET_UP_BY)}
    suite = distribution.suite

    def build(path: Path) -> None:
        wheels = _wheels(distribution, files["pyproject.toml"], say)
        argv = [str(TREE / "vagrant/box/build.sh"), str(path), suite, str(wheels), *recipe.PACKAGES]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        builds.append(process)
        for line in process.stdout or ():
            say(f"box {suite}: {line.rstrip()}")
        process.wait()
        if process.returncode:
            raise RuntimeError(f"the box of {suite} could not be built: see above; it needs a Debian mirror")

    path = cache.made(f"box-{suite}", recipe.box(distribution, files), build, needs_mib=BOX_MIB)
    say(f"box {suite}: {path}")
    return path


def _wheels(distribution: Distribution, pyproject: str, say: Say) -> Path:
    def build(path: Path) -> None:
        say(f"box {distribution.suite}: Python packages")
        # The system's pip is not there on every host; setup.sh has made one.
        argv = [str(TREE / ".venv/bin/pip"), "--disable-pip-version-check", "-qq", "download", "--dest", str(path)]
        argv += ["--only-binary=:all:", "--python-version", distribution.python]
        done = subprocess.run([*argv, *recipe.requirements(pyproject)], stdout=sys.stderr, check=False)
        if done.returncode:
            raise RuntimeError("pip could not download metashim's requirements: see above")

    text = recipe.wheels(distribution, pyproject)
    return cache.made(f"wheels-{distribution.python}", text, build, needs_mib=WHEELS_MIB)


def name(suite: str) -> str:
    """How Vagrant calls it."""
    return f"metashim-{suite}"


def known(home: Path, pool: Path, boxes: dict[str, Path]) -> None:
    """Lay them where Vagrant (its `home`) and libvirt (its `pool` of volumes) look: `vagrant box add` and the upload
    to the pool would copy each twice, for half a minute."""
    pool.mkdir(parents=True)
    for suite, box in boxes.items():
        folder = home / "boxes" / name(suite) / VERSION
        folder.mkdir(parents=True)
        (folder / "libvirt").symlink_to(box)
        os.link(box / "box.img", pool / f"{name(suite)}_vagrant_box_image_{VERSION}_box.img")
