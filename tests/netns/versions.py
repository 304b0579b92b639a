"""Another version of metashim, as an upgrade would bring it: a copy of this tree whose ABI is one further."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from shim.datapath import abi
from tests.netns.hypervisor import ROOT

FIELD = "later"


def later(folder: Path) -> Path:
    """The next version, made in `folder`: a port's record has one more field there, so the map is another one."""
    for room in ("shim", "rules"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    header, python, former = (
        folder / "rules/bpf/lib/abi.h", folder / "shim/datapath/abi.py", folder / "shim/datapath/former.py",
    )  # fmt: skip
    _change(header, r"(struct port \{.*?)\n\};", rf"\1\n    u32 {FIELD};\n}};")
    _change(python, r"\nVERSION = \d+", f"\nVERSION = {abi.VERSION + 1}")
    _change(python, r"(class PortRecord.*?)\n    \]", rf'\1\n        ("{FIELD}", ct.c_uint32),\n    ]')
    ports = f'sized("ports", ARRAY, u32, PortRecord, slots, since={abi.VERSION + 1})'
    _change(python, r'sized\("ports", [^)]*\)', ports)
    size = next(shape.value_bytes for shape in abi.maps(1, 1) if shape.name == "ports")
    entry = f"Former({abi.VERSION}, {size}, lambda raw: raw + bytes(4))"
    former.write_text(f'{former.read_text()}\n\nRECORDS = {{**RECORDS, "ports": [{entry}]}}\n')
    return folder


def _change(path: Path, pattern: str, into: str) -> None:
    text, times = re.subn(pattern, into, path.read_text(), count=1, flags=re.DOTALL)
    assert times == 1, (path, pattern)
    path.write_text(text)
