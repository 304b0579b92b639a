"""What a tiny guest is made of: Debian's cloud kernel and static busybox, unpacked from their packages.

Neither is installed, as busybox-static and busybox exclude each other, and a kernel is for who boots it.
"""

from __future__ import annotations

import functools
import lzma
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.vm import cache
from tests.vm.initramfs import Entry, archive, file, folder, link

INIT, WORDS = Path(__file__).with_name("init"), Path(__file__).with_name("guest.sh")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_net", "8021q", "tun")
FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp")


class UnobtainableError(RuntimeError):
    """A package could not be had."""


def kernel() -> Path:
    """The kernel that tiny guests run."""
    return next(_unpacked("linux", KERNEL_PACKAGE).glob("boot/vmlinuz-*"))


def kernel_modules() -> Path:
    """The folder of its modules, named by its release."""
    return next(_unpacked("linux", KERNEL_PACKAGE).glob("lib/modules/*"))


def busybox() -> Path:
    """A busybox that needs no library."""
    return _unpacked("busybox", "busybox-static") / "bin/busybox"


@functools.cache
def initrd() -> Path:
    """The tiny guest's initramfs: busybox, the modules that it needs, and `init`."""
    linux, box = kernel_modules(), busybox()
    recipe = f"4 {linux} {box} {MODULES} {INIT.read_text()} {WORDS.read_text()}"

    def build(path: Path) -> None:
        words = file("lib/guest", WORDS.read_bytes())
        path.write_bytes(archive([*contents(linux, box, INIT, MODULES, FOLDERS), words]))

    return cache.made("tiny", recipe, build, needs_mib=50)


def contents(linux: Path, box: Path, init: Path, modules: Iterable[str], folders: Iterable[str]) -> list[Entry]:
    """What is in an initramfs with a busybox and some modules of the folder `linux`, numbered in the order to load them
    in."""
    applets = subprocess.run([box, "--list"], capture_output=True, text=True, check=True).stdout.split()
    there = {one.name.partition(".ko")[0]: one for one in linux.rglob("*.ko*")}
    loaded = enumerate(in_order(modules, there).items())
    return [
        *map(folder, folders),
        file("init", init.read_bytes(), 0o755),
        file("bin/busybox", box.read_bytes(), 0o755),
        *(link(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"),
        *(file(f"lib/modules/{place:02}-{name}.ko", data) for place, (name, data) in loaded),
    ]


def in_order(wanted: Iterable[str], there: Mapping[str, Path]) -> dict[str, bytes]:
    """The modules wanted, and before each what it depends on. LookupError where one is missing.

    `there` has files by name. A package has no modules.dep, as that is made when it is installed; each module says
    itself what it depends on.
    """
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = there.get(name) or there.get(name.replace("_", "-"))
        if path is None:
            raise LookupError(f"no module {name}")
        if name not in found:
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            for needed in dependencies(data):
                add(needed)
            found[name] = data

    for name in wanted:
        add(name)
    return found


def dependencies(module: bytes) -> list[str]:
    """The names in a module's .modinfo section."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    return [name for name in found.group(1).decode().split(",") if name] if found else []


def _unpacked(name: str, package: str) -> Path:
    """The folder of a Debian package's files, of the version that was there when it was first asked for."""

    def build(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            _download(real_package(_depends(package), package), Path(aside))
            path.mkdir()
            subprocess.run(["dpkg-deb", "-x", next(Path(aside).glob("*.deb")), path], check=True)

    return cache.made(name, f"1 {package}", build)


def real_package(depends: str, package: str) -> str:
    """What a package that only names another one stands for, by `apt-cache depends`, or itself."""
    found = re.search(rf"Depends: ({package.rsplit('-image-')[0]}-image-\d\S+)", depends)
    return found.group(1) if found else package


def _depends(package: str) -> str:
    return _with_lists(lambda: _apt("apt-cache", "depends", package))


def _download(package: str, where: Path) -> None:
    where.chmod(0o755)
    _with_lists(lambda: _apt("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=where))


def _with_lists(ask: Callable[[], str]) -> str:
    """Ask apt; where that fails, its lists may be missing or old: ask again with new ones."""
    try:
        return ask()
    except subprocess.CalledProcessError:
        subprocess.run(["apt-get", "-qq", "update"], check=False)
    try:
        return ask()
    except subprocess.CalledProcessError as error:
        hint = f"it needs Debian's archive, or what was kept of it in {cache.folder()}"
        raise UnobtainableError(f"{error}: {hint}") from None


def _apt(*argv: str, cwd: Path | None = None) -> str:
    return subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout
