"""What several contributors write for one guest, and what its cloud-init must have made of it."""

from __future__ import annotations

import gzip
import json
from uuid import UUID

from tests.clients.boot import Boot

HOST_CONFIG = b"""#cloud-config
packages: [host-package]
users: [{name: host-user}]
timezone: Etc/UTC
"""
PROJECT_CONFIG = b"""#cloud-config
packages: [project-package]
users: [{name: project-user}]
runcmd: [[echo, project]]
"""
USER_DATA = """#cloud-config
packages: [own-package]
users: [{name: own-user}]
"""
TEMPLATE = b"""#cloud-config
packages: ["package-{{ meta_data.name }}"]
final_message: "{{ instance_id }} of {{ project_id }} is {{ tags.role }}"
"""
INSTANCE_SCRIPT = b"#!/bin/sh\necho hello\n"
LARGE = b"#cloud-config\npackages: [large-package]\n" + b"# text that gzip makes little of\n" * 2000

DOCUMENT = json.dumps(
    {
        "name": "web-1",
        "project_id": "blue",
        "tags": {"role": "web"},
        "user_data": USER_DATA,
        "vendor_data": {"cloud-init": "#cloud-config\npackages: [vendor-package]\n"},
    }
).encode()
"""The instance's own."""

ORDER = ["host-package", "project-package", "own-package", "package-web-1"]


def check_merged(found: Boot, instance: UUID) -> None:
    """All of them as user-data; the document's vendor data as before."""
    _check_user(found, instance, ORDER)
    assert found.raw.count(b"\nMerge-Type: ") == 4


def check_large(found: Boot, instance: UUID, limit: int) -> None:
    """The same and LARGE, more than the guest may be given but for gzip."""
    assert len(found.raw) <= limit < len(gzip.decompress(found.raw))
    _check_user(found, instance, [*ORDER, "large-package"])


def _check_user(found: Boot, instance: UUID, packages: list[str]) -> None:
    assert found.instance == str(instance)
    assert found.warnings == []
    assert found.user["packages"] == packages
    assert [user["name"] for user in found.user["users"]] == ["host-user", "project-user", "own-user"]
    assert found.user["runcmd"] == [["echo", "project"]]
    assert found.user["final_message"] == f"{instance} of blue is web"
    assert found.merged["packages"] == packages, "user-data goes before vendor data"
    assert found.merged["timezone"] == "Etc/UTC"
    assert list(found.scripts.values()) == [INSTANCE_SCRIPT.decode()]


def check_vendor(found: Boot, instance: UUID) -> None:
    """The document's own alone as user-data, byte for byte; all others as vendor data, under it."""
    assert found.instance == str(instance)
    assert found.warnings == []
    assert found.raw == USER_DATA.encode()
    assert found.user["packages"] == ["own-package"]
    assert found.vendor["packages"] == ["host-package", "project-package", "vendor-package", "package-web-1"]
    assert found.merged["packages"] == ["own-package"]
    assert [user["name"] for user in found.merged["users"]] == ["own-user"]
    assert found.merged["timezone"] == "Etc/UTC", "what user-data does not say comes of vendor data"
    assert found.merged["final_message"] == f"{instance} of blue is web"
    assert list(found.scripts.values()) == [INSTANCE_SCRIPT.decode()]
