"""Lint and types are tests: the whole tree under ruff; the package under mypy's strict mode, the rest for its calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["mypy"]], ids=["ruff", "mypy"])
def test_is_clean(tool):
    run = subprocess.run(
        [sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    assert run.returncode == 0, run.stdout + run.stderr
