"""Debian's own cloud-init, made to read user-data as it does at a guest's first boot, in a folder of the test's."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cloudinit", reason="Debian's package cloud-init is not installed: ./setup.sh cloud-init")

from cloudinit import handlers, helpers, safeyaml
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
from cloudinit.handlers.jinja_template import JinjaTemplatePartHandler
from cloudinit.handlers.shell_script import ShellScriptPartHandler
from cloudinit.user_data import UserDataProcessor


class Datasource:
    """As much of one as paths are made from."""

    def get_instance_id(self) -> str:
        return "i-1"


@dataclass
class Read:
    """What came of it: the merged configuration, scripts by file name, and what was warned of."""

    config: Any
    scripts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def consume(raw: Any, folder: Path) -> Read:
    """Bytes of user-data; of vendor data what convert_vendordata makes of it."""
    warnings = _Warnings()
    logger = logging.getLogger("cloudinit")
    level = logger.level
    logger.addHandler(warnings)
    logger.setLevel(logging.WARNING)
    try:
        return _consumed(raw, folder, warnings.said)
    finally:
        logger.removeHandler(warnings)
        logger.setLevel(level)


def _consumed(raw: Any, folder: Path, warnings: list[str]) -> Read:
    paths = helpers.Paths({"cloud_dir": str(folder / "cloud"), "run_dir": str(folder / "run")}, ds=Datasource())
    instance = Path(paths.get_ipath_cur("cloud_config")).parent
    Path(paths.get_ipath("cloud_config")).parent.mkdir(parents=True, exist_ok=True)
    for name in ("scripts", "handlers"):
        (instance / name).mkdir(parents=True, exist_ok=True)
    message = UserDataProcessor(paths).process(raw)
    config, script = CloudConfigPartHandler(paths), ShellScriptPartHandler(paths)
    found = helpers.ContentHandlers()
    for handler in (config, script, JinjaTemplatePartHandler(paths, sub_handlers=[config, script])):
        found.register(handler)
        handlers.call_begin(handler, None, "once-per-instance")
    data = {
        "handlers": found, "handlerdir": str(instance / "handlers"), "data": None,
        "frequency": "once-per-instance", "handlercount": 0, "excluded": [],
    }  # fmt: skip
    handlers.walk(message, handlers.walker_callback, data=data)
    handlers.call_end(config, None, "once-per-instance")
    written = Path(paths.get_ipath("cloud_config")).read_text()
    scripts = {file.name: file.read_text() for file in sorted(Path(paths.get_ipath_cur("scripts")).iterdir())}
    return Read(safeyaml.load(written) if written else None, scripts, warnings)
