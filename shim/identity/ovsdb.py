"""The table Interface of an Open vSwitch database, followed over OVSDB (RFC 7047) by the ovs library's session.

The session connects, reconnects and probes by itself. Not by the library's replica, ovs.db.idl: that takes four times
as long to read 10,000 rows, and on every new connection it first forgets all of them, as if no tap were anybody's.
"""

from __future__ import annotations

import codecs
import errno
import os
import time
from collections.abc import Callable
from typing import Any

import ovs.jsonrpc
import ovs.reconnect
import ovs.stream
import ovs.timeval

from shim.identity.external_ids import COLUMNS, Interfaces

DATABASE = "Open_vSwitch"
TABLE = "Interface"
MONITOR = "metashim"
"""What this monitor is called in the server's updates. A connection has one only."""

MESSAGES_AT_ONCE = 256
"""After as many it is told what is new, also while more come without an end."""

PROBE_MS = 5000
"""After that long without a word the server is asked for one, and let go of when it stays silent as long again."""

BACKOFF_MS = (1000, 2000)
PATIENCE = 2.0
"""Seconds that a first answer may take before it is somebody's trouble."""

STRANGE = (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""What comes of a server that is none, out of the library or of what it lets through. TLS that fails is an OSError."""

Message = ovs.jsonrpc.Message


class _Reconnect(ovs.reconnect.Reconnect):  # type: ignore[misc]
    """The library's, which remembers why the last connection could not be made or ended."""

    why = ""

    def disconnected(self, now: float, error: int) -> None:
        if error > 0:
            self.why = os.strerror(error)
        else:
            self.why = "it closed the connection" if error == ovs.jsonrpc.EOF else "it does not answer"
        super().disconnected(now, error)


def _whole_characters(recv: Callable[[int], tuple[int, bytes]]) -> Callable[[int], tuple[int, bytes]]:
    """The library begins to decode anew whenever it read all there was, so one that the end of it cuts apart would end
    the connection (ovs 3.1, Connection.recv): it gets whole characters alone. Raises ValueError for what is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()

    def read(size: int) -> tuple[int, bytes]:
        while True:
            error, data = recv(size)
            if error or not data:
                return error, data
            if whole := decoder.decode(data).encode():
                return 0, whole

    return read


class Follower:
    """`interfaces` is the table as last read; `read` whether the server has it so now, as far as one can know."""

    def __init__(self, remote: str, tls: str = "") -> None:
        """`remote` as the library takes it: `unix:PATH`, `tcp:HOST:PORT` or `ssl:HOST:PORT`, which needs `tls`, the
        folder of its `key.pem`, `cert.pem` and `ca.pem`."""
        if remote.startswith("ssl:"):
            ovs.stream.Stream.ssl_set_private_key_file(f"{tls}/key.pem")
            ovs.stream.Stream.ssl_set_certificate_file(f"{tls}/cert.pem")
            ovs.stream.Stream.ssl_set_ca_cert_file(f"{tls}/ca.pem")
        self.interfaces = Interfaces()
        self.read = False
        self._remote = remote
        self._began = time.monotonic()
        self._reconnect = _Reconnect(ovs.timeval.msec())
        self._session = self._open(remote)
        self._connection: int | None = None
        self._asked: Any = None

    def _open(self, remote: str) -> Any:
        session = ovs.jsonrpc.Session(self._reconnect, None, [remote])
        session.pick_remote()
        self._reconnect.set_probe_interval(PROBE_MS)  # Unix sockets too: the server may hang
        self._reconnect.set_backoff(*BACKOFF_MS)
        self._reconnect.enable(ovs.timeval.msec())
        return session

    def run(self) -> bool:
        """Takes over what has arrived; True when there may be more. Never raises for what a server does, nor waits."""
        try:
            self._session.run()
            self._renew()
            return self._receive()
        except STRANGE as error:
            sense = isinstance(error, OSError | ValueError)
            self._give_up(str(error) if sense else f"it makes no sense ({error!r})")
            return False

    def _renew(self) -> None:
        """Begins anew on a new connection."""
        if not self._session.is_connected():
            self.read, self._connection = False, None
        elif self._connection != self._session.get_seqno():
            self._connection = self._session.get_seqno()
            self.read = False
            stream = self._session.rpc.stream
            stream.recv = _whole_characters(stream.recv)
            columns = {TABLE: {"columns": list(COLUMNS)}}
            request = Message.create_request("monitor", [DATABASE, MONITOR, columns])
            self._asked = request.id
            self._session.send(request)

    def _receive(self) -> bool:
        for _ in range(MESSAGES_AT_ONCE):
            message = self._session.recv()
            if message is None:
                return False
            self._take(message)
        return True

    def _take(self, message: Any) -> None:
        """Raises ValueError for what is no answer."""
        if message.type == Message.T_REPLY and message.id == self._asked:
            self.interfaces.replace(_table(message.result))
            self.read = True
            self._reconnect.why = ""
        elif message.type == Message.T_ERROR and message.id == self._asked:
            raise ValueError(f"it refuses to tell of {TABLE}: {message.error}")
        elif message.type == Message.T_NOTIFY and message.method == "update" and self.read:
            self.interfaces.update(_table(message.params[1]))

    def _give_up(self, why: str) -> None:
        """Lets go of the connection, or of one that is being made, to begin anew after a rest."""
        self.read = False
        self._session.close()
        self._reconnect.connect_failed(ovs.timeval.msec(), errno.EPROTO)
        self._reconnect.why = why

    @property
    def trouble(self) -> str:
        """What is wrong and what to do, empty when all is well."""
        if self.read:
            return self.interfaces.trouble
        if not self._reconnect.why and time.monotonic() - self._began < PATIENCE:
            return ""
        why = self._reconnect.why or "it does not answer"
        return f"no word from {self._remote}: {why} (is ovsdb-server running, and identity.ovs where it listens?)"

    def wait(self, poller: Any) -> None:
        """Has the poller wake up when there is something to run."""
        self._session.wait(poller)
        self._session.recv_wait(poller)
        if not self.read:
            poller.timer_wait(PATIENCE * 1000)


def _table(tables: Any) -> Any:
    """What a reply or an update tells of the table. Raises ValueError."""
    if not isinstance(tables, dict):
        raise ValueError(f"it tells of no tables, but {str(tables)[:60]!r}")
    return tables.get(TABLE, {})
