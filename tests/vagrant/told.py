"""What README tells an admin to type, to be run here as it stands there. PURE but for reading README."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def commands(heading: str, text: str = README) -> list[str]:
    """The lines behind root's prompt in the first block of code below a heading. LookupError."""
    found = re.search(rf"^#+ {re.escape(heading)}\n.*?^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"README has no block of commands below {heading!r}")
    return [line.removeprefix("# ") for line in found[1].splitlines() if line.startswith("# ")]


def command(beginning: str, text: str = README) -> str:
    """The one line behind root's prompt that begins so. LookupError."""
    found = re.findall(rf"^# ({re.escape(beginning)}.*)$", text, re.MULTILINE)
    if len(found) != 1:
        raise LookupError(f"README has {len(found)} commands that begin with {beginning!r}")
    return str(found[0])


INSTALLATION = "On a hypervisor"
UPGRADE = "systemctl kill --kill-whom=main --signal=SIGQUIT"
