#!/bin/sh
# A first boot: what the guest's units would call, up to the modules that make users and write their keys. What came
# of it is told as JSON.
cloud-init --version 2>&1
cloud-init init >/run/said 2>&1 || { cat /run/said /var/log/cloud-init.log; exit 1; }
exec /usr/bin/python3 - <<'PROGRAM'
import json
import pathlib
import re
import socket

instance = pathlib.Path("/var/lib/cloud/instance")
log = pathlib.Path("/var/log/cloud-init.log").read_text()
print(
    json.dumps(
        {
            "datasource": (instance / "datasource").read_text().split(":")[0],
            "instance-id": pathlib.Path("/var/lib/cloud/data/instance-id").read_text().strip(),
            "hostname": socket.gethostname(),
            "keys": [
                line
                for line in pathlib.Path("/home/debian/.ssh/authorized_keys").read_text().splitlines()
                if line and not line.startswith("#")
            ],
            "user-data": (instance / "user-data.txt").read_text(),
            "warnings": re.findall("WARNING.*|ERROR.*", log),
        }
    )
)
PROGRAM
