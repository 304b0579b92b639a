"""Running verbs, in this process or in one of their own, and what they said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shim.cli import main

ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs verbs in this process against one agent."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.path, self._capture = path, capture

    def __call__(self, *arguments: object) -> Result:
        self._capture.readouterr()
        code = main(["--socket", str(self.path), *map(str, arguments)])
        out, err = self._capture.readouterr()
        assert "Traceback" not in out + err
        if code not in (0, 130):
            assert err.startswith("metashim: ") and err.count("\n") >= 2, "what happened, then what to do"
        return Result(code, out, err)


def metashim(socket: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-m", "shim", "--socket", str(socket), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(socket: Path, words: str) -> list[str]:
    environment = {
        **os.environ,
        "_METASHIM_COMPLETE": "bash_complete",
        "COMP_WORDS": f"metashim --socket {socket} {words}",
        "COMP_CWORD": str(len(words.split(" ")) + 2),
    }
    done = subprocess.run(
        [sys.executable, "-m", "shim"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]
