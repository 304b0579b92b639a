"""The pure parts of real guests: the initramfs, what a kernel's modules need, QEMU's options, what a console said."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from tests.vm import debian, image
from tests.vm.initramfs import archive, device, file, folder, link
from tests.vm.machine import Hardware, Nic, worded
from tests.vm.tiny import Output, output_of

MAC = "02:00:00:00:00:05"


def test_an_archive_is_read_by_cpio(tmp_path):
    entries = [folder("bin"), file("bin/box", b"#!/bin/sh\n", 0o755), link("bin/sh", "box"), file("empty", b""),
               device("console", 5, 1)]  # fmt: skip
    data = archive(entries)
    assert len(data) % 4 == 0, "so that another one may follow"
    done = subprocess.run(["busybox", "cpio", "-i"], input=data, cwd=tmp_path, capture_output=True, check=True)
    assert done.returncode == 0
    assert (tmp_path / "bin/sh").read_text() == "#!/bin/sh\n" and (tmp_path / "bin/sh").is_symlink()
    assert (tmp_path / "bin/box").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "empty").read_bytes() == b""


def module(path: Path, depends: str) -> Path:
    path.write_bytes(b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
    return path


def test_modules_come_behind_what_they_need(tmp_path):
    there = {name: module(tmp_path / f"{name}.ko", depends) for name, depends in
             {"net": "failover,ring", "failover": "", "ring": "", "pci-x": "ring", "idle": ""}.items()}  # fmt: skip
    assert list(image.in_order(["pci_x", "net"], there)) == ["ring", "pci_x", "failover", "net"]
    with pytest.raises(LookupError, match="no module away"):
        image.in_order(["away"], there)


def test_modules_may_be_packed(tmp_path):
    plain = module(tmp_path / "ring.ko", "")
    packed = tmp_path / "net.ko.xz"
    packed.write_bytes(lzma.compress(b"\0depends=ring\0"))
    found = image.in_order(["net"], {"ring": plain, "net": packed})
    assert found == {"ring": plain.read_bytes(), "net": b"\0depends=ring\0"}


def test_both_kinds_of_guests_have_a_busybox_and_their_modules_in_order(tmp_path, monkeypatch):
    """Made as on a machine whose cache is empty, of a kernel and a busybox that stand in for Debian's."""
    box = tmp_path / "busybox"
    box.write_text("#!/bin/sh\nprintf 'busybox\\nsh\\nwget\\n'\n")
    box.chmod(0o755)
    for name in {*image.MODULES, *debian.MODULES, "virtio"}:
        module(tmp_path / f"{name}.ko", "virtio" if name.startswith("virtio_") else "")
    monkeypatch.setenv("METASHIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "kernel_modules", lambda: tmp_path)
    monkeypatch.setattr(image, "busybox", lambda: box)
    for made, wanted in ((image.initrd, image.MODULES), (debian.initrd, debian.MODULES)):
        kind = tmp_path / made.__module__
        kind.mkdir()
        subprocess.run(["busybox", "cpio", "-i"], input=made.__wrapped__().read_bytes(), cwd=kind, check=True)
        assert (kind / "init").stat().st_mode & 0o777 == 0o755
        assert (kind / "bin/wget").resolve() == kind / "bin/busybox"
        loaded = [one.name[3:-3] for one in sorted((kind / "lib/modules").iterdir())]
        assert loaded[0] == "virtio" and set(loaded) == {"virtio", *wanted}


def test_the_package_behind_a_kernel_that_only_names_another():
    depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n"
    assert image.real_package(depends, "linux-image-cloud-amd64") == "linux-image-6.1.0-56-cloud-amd64"
    assert image.real_package("busybox-static\n  Conflicts: busybox\n", "busybox-static") == "busybox-static"


def test_a_nic_of_one_queue_and_of_several():
    plain = Nic("tap1", MAC).argv(0)
    assert plain[1] == "tap,id=net0,ifname=tap1,script=no,downscript=no,vhost=off"
    assert plain[3] == f"virtio-net-pci,netdev=net0,mac={MAC},romfile="
    several = Nic("tap1", MAC, queues=4, mtu=9000, options={"csum": "off"}).argv(1)
    assert several[1].endswith(",vhost=off,queues=4")
    assert several[3] == f"virtio-net-pci,netdev=net1,mac={MAC},romfile=,mq=on,vectors=10,host_mtu=9000,csum=off"


def test_options_of_a_machine():
    argv = Hardware(kernel=Path("/k"), disk=Path("/d,1"), smbios=["type=1,product=x"], append="quiet").argv()
    assert argv[argv.index("-append") + 1] == "console=ttyS0 no_timer_check quiet"
    assert argv[argv.index("-drive") + 1] == "file=/d,,1,format=raw,if=virtio,snapshot=on"
    assert argv[argv.index("-smbios") + 1] == "type=1,product=x"
    assert "-initrd" not in argv and "-no-reboot" in argv
    assert "-no-reboot" not in Hardware(kernel=Path("/k"), reboots=True).argv()
    assert worded("tap", {"id": "a,b"}) == "tap,id=a,,b"


def test_what_a_script_said():
    said = output_of("[ 0.1] kernel\n=== begin\none=1\none=2\n\n=== end 3\n[ 9.9] reboot: Power down\n")
    assert said == Output("one=1\none=2\n", 3) and said.value("one") == "2"
    assert output_of("=== begin\nno newline\n=== end 0\n") == Output("no newline\n", 0)
    with pytest.raises(LookupError, match="did not say two="):
        said.value("two")
    with pytest.raises(ValueError, match="did not end:\nhalf"):
        output_of("=== begin\nhalf")
    with pytest.raises(ValueError, match="did not end:\npanic"):
        output_of("panic")
