"""Whether this kernel takes the eBPF programs: `python -m shim.datapath.trial FOLDER`, in a mount namespace of its own.

They are compiled for maps of the smallest sizes, in a bpf file system on that folder, which goes with the namespace.
What they would be refused for (the compiler's headers, the verifier, a helper or a kind of map that is not there) does
not depend on the sizes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shim.datapath import abi, bpf, compile
from shim.datapath.ebpf import RULES


def run(folder: Path) -> None:
    """Raises whatever mount(8), the kernel or bcc has against it."""
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    for shape in abi.maps(2, 1):
        bpf.pin(bpf.Map.create(shape).fd, folder / shape.name)
    compile.load(RULES, folder)


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 (bcc raises no other; a traceback would hide what the verifier said)
        sys.exit(str(error))
