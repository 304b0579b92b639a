"""Debian's cloud-init at a guest's first boot, up to where its modules would act: run in the guest's namespace by the
system's own Python, as `cloudinit_guest.py OpenStack|Ec2 FOLDER URL...`.

It finds the data source, fetches, and processes what it got, by its own stages in the order of its own main program.
All that it writes lies below FOLDER; its configuration is there too, in place of /etc/cloud. What a namespace has not
is a firmware: the words in it that tell whose cloud this is are said here. Prints JSON: see tests.clients.boot.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from pathlib import Path

from cloudinit import dmi, helpers, settings, stages

_SERIAL = "ec2e1916-9099-7caf-fd21-012345abcdef"
FIRMWARE = {
    "OpenStack": {"system-product-name": "OpenStack Nova"},
    "Ec2": {"system-uuid": _SERIAL, "system-serial-number": _SERIAL},
}


class Complaints(logging.Handler):
    """What it warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def configure(datasource: str, folder: Path, urls: list[str]) -> None:
    """The configuration of a cloud image that knows one data source, with everything below `folder`."""
    short = {"metadata_urls": urls, "max_wait": 15, "timeout": 5, "retries": 2}
    paths = {"cloud_dir": folder / "cloud", "run_dir": folder / "run", "templates_dir": folder / "templates"}
    written = {
        "datasource_list": [datasource],
        "datasource": {datasource: short},
        "def_log_file": str(folder / "cloud-init.log"),
        "syslog_fix_perms": ["root:root"],
        "network": {"config": "disabled"},
        "system_info": {"distro": "debian", "paths": {name: str(path) for name, path in paths.items()}},
    }
    config = folder / "cloud.cfg"
    config.write_text(json.dumps(written))  # YAML holds JSON
    stages.CLOUD_CONFIG = settings.CLOUD_CONFIG = str(config)
    stages.RUN_CLOUD_CONFIG = settings.RUN_CLOUD_CONFIG = str(folder / "run" / "cloud.cfg")
    firmware = FIRMWARE[datasource]
    dmi.read_dmi_data = firmware.get


def boot() -> stages.Init:
    """The stages of `cloud-init init`, up to the modules."""
    init = stages.Init()
    init.read_cfg()
    init.initialize()
    init.fetch(existing="trust")
    init.instancify()
    init.setup_datasource()
    init.update()
    init.cloudify().run("consume_data", init.consume_data, args=["once-per-instance"], freq="once-per-instance")
    return init


def report(init: stages.Init) -> dict[str, object]:
    """What came of it."""
    merged = helpers.ConfigMerger(
        paths=init.paths, datasource=init.datasource, base_cfg=stages.fetch_base_config(), additional_fns=[]
    ).cfg
    instance = Path(init.paths.get_ipath_cur())
    raw = (instance / "user-data.txt").read_bytes()
    scripts = {path.name: path.read_text() for path in instance.glob("scripts/**/*") if path.is_file()}
    return {
        "datasource": str(init.datasource),
        "instance": init.datasource.get_instance_id(),
        "raw": base64.b64encode(raw).decode(),
        "user": read(instance / "cloud-config.txt"),
        "vendor": read(instance / "vendor-cloud-config.txt"),
        "merged": {name: merged.get(name) for name in ("packages", "users", "timezone", "runcmd", "final_message")},
        "scripts": scripts,
    }


def read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def main() -> None:
    datasource, folder, *urls = sys.argv[1:]
    complaints = Complaints()
    logger = logging.getLogger()
    logger.addHandler(complaints)
    logger.setLevel(logging.INFO)
    configure(datasource, Path(folder), urls)
    told = report(boot())
    json.dump({**told, "warnings": complaints.said}, sys.stdout)


main()
