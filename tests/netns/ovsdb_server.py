"""A real ovsdb-server with Open vSwitch's schema, in a folder of its own: no switch, no kernel module, rows alone.

    with OvsdbServer() as server:
        server.vsctl("add-port", "br0", "tap1", "--", "set", "Interface", "tap1", "external_ids:vm-uuid=...")
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from uuid import UUID

import ovs.jsonrpc
import ovs.stream

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
BRIDGE = "br0"
READY_SECONDS = 10.0
ROWS_AT_ONCE = 1000


class OvsdbServer:
    """Runs within the `with`. `remote` is how it is reached; `options` are further ones of ovsdb-server's."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ovsdb-"))
        self.socket = self.folder / "db.sock"
        self.remote = f"unix:{self.socket}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = 0

    def __enter__(self) -> OvsdbServer:
        try:
            subprocess.run(["ovsdb-tool", "create", self.folder / "conf.db", SCHEMA], check=True)
            self.start()
            self.vsctl("init")
            self.vsctl("add-br", BRIDGE)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, again after `kill`, and wait until it takes connections."""
        self._process = subprocess.Popen(
            [
                "ovsdb-server", f"--remote=punix:{self.socket}", *self._options,
                f"--unixctl={self.folder / 'ctl'}", "-vconsole:off", self.folder / "conf.db",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + READY_SECONDS
        while not self._listens():
            assert self._process.poll() is None, "ovsdb-server ended"
            assert time.monotonic() < end, "ovsdb-server takes no connection"
            time.sleep(0.01)

    def _listens(self) -> bool:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            return sock.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """kill -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing for a while (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def vsctl(self, *words: str) -> str:
        """ovs-vsctl, which waits for no switch."""
        argv = ["ovs-vsctl", f"--db={self.remote}", "--no-wait", "--timeout=20", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def plug(self, name: str, instance: UUID | str, **ids: str) -> None:
        """A port as Nova's os-vif makes it: in one transaction with what it says."""
        self.vsctl("add-port", BRIDGE, name, *_set(name, {"vm-uuid": str(instance), **ids}))

    def say(self, name: str, **ids: str) -> None:
        """Write external_ids of a port that is there; `_` of a key is `-`."""
        self.vsctl(*_set(name, ids)[1:])

    def unplug(self, *names: str) -> None:
        """Remove ports."""
        self.vsctl(*[word for name in names for word in ("--", "del-port", BRIDGE, name)])

    def plug_many(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        """Ports and their external_ids by name, a thousand in each transaction."""
        names = list(rows)
        for at in range(0, len(names), ROWS_AT_ONCE):
            self.transact(*self._insertions({name: rows[name] for name in names[at : at + ROWS_AT_ONCE]}))

    def _insertions(self, rows: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, object]]:
        ports = []
        for name, ids in rows.items():
            self._numbers += 1
            interface, port = f"i{self._numbers}", f"p{self._numbers}"
            row: dict[str, object] = {"name": name, "external_ids": ["map", [list(pair) for pair in ids.items()]]}
            yield {"op": "insert", "table": "Interface", "uuid-name": interface, "row": row}
            row = {"name": name, "interfaces": ["named-uuid", interface]}
            yield {"op": "insert", "table": "Port", "uuid-name": port, "row": row}
            ports.append(["named-uuid", port])
        where = [["name", "==", BRIDGE]]
        yield {"op": "mutate", "table": "Bridge", "where": where, "mutations": [["ports", "insert", ["set", ports]]]}

    def clear(self) -> None:
        """No port any more, in one transaction."""
        self.transact({"op": "update", "table": "Bridge", "where": [], "row": {"ports": ["set", []]}})

    def transact(self, *operations: dict[str, object]) -> None:
        """One transaction of OVSDB (RFC 7047, 4.1.3)."""
        error, stream = ovs.stream.Stream.open_block(ovs.stream.Stream.open(self.remote))
        assert not error, os.strerror(error)
        connection = ovs.jsonrpc.Connection(stream)
        try:
            request = ovs.jsonrpc.Message.create_request("transact", ["Open_vSwitch", *operations])
            error, reply = connection.transact_block(request)
            assert not error, os.strerror(error)
            assert not [one for one in reply.result if one and "error" in one], reply.result
        finally:
            connection.close()


def _set(name: str, ids: Mapping[str, str]) -> list[str]:
    quoted = [f"external_ids:{key.replace('_', '-')}={_quoted(value)}" for key, value in ids.items()]
    return ["--", "set", "Interface", name, *quoted]


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
