"""The real Nova metadata API on a socket, its instances in memory. Run by `.venv-nova/bin/python`; see rig.py.

Nova's own: `MetadataRequestHandler` (header checks, HMAC, tenant match, paths, the cache), `InstanceMetadata` (all
rendering), the password's handler, the objects. Replaced is what would ask a database or Neutron, and nothing else:

- `Instance.get_by_uuid` finds the instances of a JSON file, and raises InstanceNotFound as the database would;
- `Instance.save` writes there (the password's POST calls it);
- `Instance.get_bdms` has no block devices, `get_instance_security_groups` one group.

The real setting `local_metadata_per_cell` keeps Nova from looking for cells first; `metadata_cache_expiration` is 0,
as the 409 of a second password comes only once what is cached has expired.
HTTP is the standard library's WSGI server with threads and kept connections: it merges `X_Instance_ID` into
`X-Instance-ID`, as most WSGI servers did for long. A chunked body is refused with 411, as by some of them.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler

# ruff: noqa: E402 - how Nova waits has to be said before anything else of it is imported
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"  # threads, as Nova has them under uWSGI

from nova import monkey_patch

monkey_patch.patch(backend="threading")

import nova.conf
from nova import config, exception, objects
from nova.api.metadata.handler import MetadataRequestHandler
from nova.network import model, security_group_api

CONF = nova.conf.CONF


class Memory:
    """What Nova would have in its database: a row an instance, as the JSON file has it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = {row["uuid"]: row for row in rows}
        self.kept: dict[str, dict[str, str]] = {row["uuid"]: {} for row in rows}  # system metadata

    def get_by_uuid(self, ctxt: Any, uuid: str, expected_attrs: Any = None, use_slave: bool = False) -> Any:
        if uuid not in self.rows:
            raise exception.InstanceNotFound(instance_id=uuid)
        return _instance(ctxt, self.rows[uuid], self.kept[uuid])

    def save(self, instance: Any, *args: Any, **kwargs: Any) -> None:
        self.kept[instance.uuid] = dict(instance.system_metadata)


def _instance(ctxt: Any, row: dict[str, Any], kept: dict[str, str]) -> Any:
    """An Instance as `get_by_uuid` gives it, with all that the metadata API expects to be loaded."""
    keys = [
        objects.KeyPair(name=name, public_key=key, type="ssh", user_id="u", fingerprint="")
        for name, key in row["keys"].items()
    ]
    return objects.Instance(
        ctxt,
        uuid=row["uuid"],
        project_id=row["project"],
        user_id="u",
        hostname=row["hostname"],
        display_name=row["hostname"],
        launch_index=0,
        reservation_id="r-1",
        availability_zone="nova",
        user_data=row["user_data"],
        key_name=keys[0].name if keys else None,
        key_data=keys[0].public_key if keys else None,
        keypairs=objects.KeyPairList(objects=keys),
        metadata=row["metadata"],
        system_metadata=dict(kept),
        info_cache=objects.InstanceInfoCache(network_info=_network(row)),
        ec2_ids=objects.EC2Ids(instance_id="i-00000001", ami_id="ami-00000001", kernel_id=None, ramdisk_id=None),
        flavor=objects.Flavor(name="m1.tiny", vcpus=1, memory_mb=64, root_gb=1, ephemeral_gb=0, swap=0, flavorid="1"),
        root_device_name="/dev/vda",
        default_ephemeral_device=None,
        default_swap_device=None,
        device_metadata=None,
        numa_topology=None,
    )


def _network(row: dict[str, Any]) -> Any:
    """Nova's model of one port with one fixed address ("10.0.0.5/24"), or of none."""
    if not row["address"]:
        return model.NetworkInfo()
    interface = ipaddress.ip_interface(row["address"])
    subnet = model.Subnet(
        cidr=str(interface.network),
        gateway=model.IP(address=str(interface.network[1]), type="gateway"),
        ips=[model.FixedIP(address=str(interface.ip))],
        dns=[],
        routes=[],
        version=interface.version,
    )
    network = model.Network(id="net-1", bridge="br0", label="private", subnets=[subnet], mtu=1500)
    vif = model.VIF(id="port-1", address=row["mac"], network=network, type="bridge", devname="tap1")
    return model.NetworkInfo([vif])


def make_app(rows: list[dict[str, Any]], secret: str) -> MetadataRequestHandler:
    """The handler, configured and with its instances in memory."""
    config.parse_args([sys.argv[0]], default_config_files=[], configure_db=False, init_rpc=False)
    objects.register_all()
    CONF.set_override("service_metadata_proxy", True, "neutron")
    CONF.set_override("metadata_proxy_shared_secret", secret, "neutron")
    CONF.set_override("local_metadata_per_cell", True, "api")
    CONF.set_override("metadata_cache_expiration", 0, "api")
    memory = Memory(rows)
    objects.Instance.get_by_uuid = memory.get_by_uuid
    objects.Instance.save = lambda instance, *args, **kwargs: memory.save(instance)
    objects.Instance.get_bdms = lambda instance: objects.BlockDeviceMappingList(objects=[])
    security_group_api.get_instance_security_groups = lambda ctxt, instance: [{"name": "default"}]
    return MetadataRequestHandler()


class Body:
    """At most `length` bytes of a connection: what WSGI calls the input."""

    def __init__(self, file: Any, length: int) -> None:
        self._file, self._left = file, length

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readline(self, size: int = -1) -> bytes:
        data = self._file.readline(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


class Answer(SimpleHandler):
    """wsgiref's, but saying HTTP/1.1: Nova's answers all have a Content-Length."""

    http_version = "1.1"


class Handler(WSGIRequestHandler):
    """wsgiref's request handler with kept connections."""

    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 60

    def handle(self) -> None:
        BaseHTTPRequestHandler.handle(self)  # wsgiref's own serves one request

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            self.close_connection = True
        elif not self.raw_requestline:
            self.close_connection = True
        elif self.parse_request():
            self._answer()

    def _answer(self) -> None:
        if "transfer-encoding" in self.headers:
            self.send_error(411)
            self.close_connection = True
            return
        body = Body(self.rfile, int(self.headers.get("content-length") or 0))
        Answer(body, self.wfile, sys.stderr, self.get_environ(), multithread=True).run(self.server.app)
        while body.read(65536):
            pass

    def address_string(self) -> str:
        return self.client_address[0] if self.client_address else "unix"

    def get_environ(self) -> dict[str, Any]:
        self.client_address = self.client_address or ("unix", 0)
        return super().get_environ()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Threads, and a queue of connections long enough for tests."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024
    base_environ: dict[str, str]

    def __init__(self, address: Any, app: Callable[..., Any]) -> None:
        self.app = app
        self.address_family = socket.AF_UNIX if isinstance(address, str) else _family(address[0])
        self.base_environ = {"SERVER_NAME": "nova", "SERVER_PORT": "8775", "SCRIPT_NAME": "", "GATEWAY_INTERFACE": ""}
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if request.family != socket.AF_UNIX:
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are two writes
        super().process_request(request, client_address)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=Path, required=True, help="JSON: a list of instances, see rig.py")
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--unix", default="", help="path of a Unix socket instead")
    options = parser.parse_args()
    app = make_app(json.loads(options.instances.read_text()), options.secret_file.read_text().strip())
    sys.argv[1:] = []
    with Server(options.unix or (options.host, options.port), app) as server:
        if options.unix:
            Path(options.unix).chmod(0o666)
        print("ready", options.unix or server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
