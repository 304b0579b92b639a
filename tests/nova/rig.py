"""Start the real Nova's metadata API for a test, and end it.

    nova = Nova([Server(uuid, project, user_data=b"...")], namespace=lab.host)
    with Hypervisor(lab, forward_to("nova", nova)) as site, nova:
        ...
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from tests.backends.process import LOOPBACK, Foreground
from tests.lab import Namespace

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-nova"
MISSING = "the real Nova is not installed: run `make nova`, which needs a network or an index of your own"


@dataclass(frozen=True)
class Server:
    """An instance, as Nova knows it. `address` is that of its port, "10.0.0.5/24"; empty: it has none."""

    uuid: UUID
    project: str
    hostname: str = "one"
    user_data: bytes | None = None
    keys: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    address: str = ""
    mac: str = "02:00:00:00:00:05"

    @property
    def row(self) -> dict[str, object]:
        """As server.py reads it."""
        user_data = None if self.user_data is None else base64.b64encode(self.user_data).decode()
        return self.__dict__ | {"uuid": str(self.uuid), "user_data": user_data}


def require_nova() -> None:
    """Skip the test, or fail it in continuous integration, where Nova could not be installed."""
    if not (VENV / "installed").exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)


class Nova(Foreground):
    """Nova with these instances, in a namespace or on the host's own loopback."""

    start_seconds = 30.0  # most of it is Python compiling Nova, once

    def __init__(
        self,
        servers: Iterable[Server],
        *,
        namespace: Namespace | None = None,
        host: str = LOOPBACK,
        unix: bool = False,
    ) -> None:
        require_nova()
        super().__init__(namespace, host=host, unix=unix)
        (self.folder / "instances.json").write_text(json.dumps([server.row for server in servers]))

    @property
    def argv(self) -> Sequence[str]:
        where = ["--unix", str(self.path)] if self.path else ["--host", self.host, "--port", str(self.port)]
        files = ["--instances", str(self.folder / "instances.json"), "--secret-file", str(self.secret_file)]
        return [str(VENV / "bin/python"), str(Path(__file__).with_name("server.py")), *files, *where]
