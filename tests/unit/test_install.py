"""vagrant/install.sh does what README tells an admin to do on a hypervisor, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vagrant import told

SCRIPT = Path(__file__).parents[2] / "vagrant" / "install.sh"
RUNS = ("as_told ", "once ")
SAME = {'fetch "$source"': "git clone <this repository>"}
"""What the script says in other words: the tree may be a folder there."""


def lines_run() -> list[str]:
    """What the script runs as README has it, in README's words."""
    lines = [line.strip() for line in SCRIPT.read_text().splitlines()]
    said = [line.removeprefix(run) for line in lines for run in RUNS if line.startswith(run) and '"$@"' not in line]
    for mine, readmes in SAME.items():
        said = [line.replace(mine, readmes) for line in said]
    return said


def test_runs_readmes_lines_in_their_order():
    assert lines_run() == told.commands(told.INSTALLATION)


def test_readmes_upgrade_is_one_line():
    assert told.command(told.UPGRADE).endswith("systemctl reload metashim")


def test_a_block_that_is_not_there_is_said():
    with pytest.raises(LookupError, match="no block"):
        told.commands("Nowhere")
    with pytest.raises(LookupError, match="0 commands"):
        told.command("rm -rf")


def test_is_well_formed():
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here")
def test_refuses_where_no_systemd_runs():
    done = subprocess.run([SCRIPT, "/nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "systemd does not run here" in done.stderr or "not root" in done.stderr
