"""What is known of an instance, as templates are told it. PURE."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

from shim.metadata.view import View


def meta_data(view: View) -> dict[str, Any]:
    """What the OpenStack face's latest meta_data.json holds."""
    document = view.document
    keys = {name: key.strip() for name, key in document.public_keys.items()}
    found: dict[str, Any] = {
        "uuid": str(view.instance),
        "launch_index": document.launch_index,
        "name": document.name,
        "hostname": document.full_host,
        "availability_zone": document.availability_zone,
        "meta": document.meta or None,
        "project_id": document.project_id,
        "devices": [],
        "public_keys": keys or None,
        "keys": [{"name": name, "type": "ssh", "data": data} for name, data in keys.items()] or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def addresses(view: View) -> list[str]:
    """All of its document's, in their order, without prefix lengths."""
    return [str(ip_interface(one).ip) for network in view.document.networks for one in network.addresses]
