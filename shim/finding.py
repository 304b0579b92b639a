"""One thing that `metashim check` looked at. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Ok, warn (it runs, but) or fail (it does not), and what to do."""

    level: Level
    what: str
    hint: str = ""
