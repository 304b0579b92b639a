"""The access log: one line of JSON a request, of which no character was chosen by a guest.

    {"instance": "…", "project": "…", "port": 7, "family": 4, "method": "GET", "path": "ec2/meta-data", "status": 200,
     "bytes": 19, "ms": 0.214, "backend": "embedded", "token": true, "trace": "4bf92f3577b34da6a3ce929d0e0e4736"}

Methods and paths are told by words of a fixed list, a trace id only where it is 32 hexadecimal digits. Lines have a
bounded rate, as a guest decides how many there are: what is left out is counted, and told by a line of its own.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TextIO

import msgspec

from shim.core.exchange import Caller, Request
from shim.core.policy import Family
from shim.forward.tag import is_traceparent
from shim.log import to_journal

logger = logging.getLogger("shim.access")

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")}
_EC2_VERSION = re.compile(rb"latest|1\.0|20[0-9]{2}-[0-9]{2}-[0-9]{2}")
_EC2 = {name.encode(): f"ec2/{name}" for name in ("meta-data", "user-data", "dynamic", "api")}
_OPENSTACK = {
    name.encode(): f"openstack/{name}"
    for name in (
        "meta_data.json", "network_data.json", "password", "user_data", "vendor_data.json", "vendor_data2.json",
    )
}  # fmt: skip
_GCE = {name.encode(): f"gce/{name}" for name in ("instance", "project", "oslogin", "universe")}
_OWN = {
    name.encode(): f"metashim/{name}"
    for name in ("meta-data", "user-data", "vendor-data", "sources", "kv", "confirm", "ready", "lock")
}
OTHER = "other"
_WHOLE = ("root", "ec2", "ec2/token", "openstack", "openstack/content", "gce", "metashim", OTHER)
PATH_CLASSES = frozenset({*_WHOLE, *_EC2.values(), *_OPENSTACK.values(), *_GCE.values(), *_OWN.values()})

_REMEMBERED_PATH = 256  # bytes; what is longer is not worth the memory
_FAMILIES = {Family.V4: "4", Family.V6: "6"}


def path_class(path: bytes) -> str:
    """What kind of thing a path asks for: one of PATH_CLASSES."""
    return _known(path) if len(path) <= _REMEMBERED_PATH else _classify(path)


@lru_cache(1024)
def _known(path: bytes) -> str:
    return _classify(path)


def _classify(path: bytes) -> str:
    segments = [*path.split(b"/", 5)[1:], b"", b"", b""]
    first, second, third = segments[:3]
    if not first:
        return "root" if path == b"/" else OTHER
    if first == b"openstack":
        if second == b"content":
            return "openstack/content"
        return _OPENSTACK.get(third, OTHER) if third else "openstack"
    if first == b"computeMetadata":
        return _GCE.get(third, OTHER) if third else "gce"
    if first == b"metashim":
        return _OWN.get(third, OTHER) if third else "metashim"
    if not _EC2_VERSION.fullmatch(first):
        return OTHER
    if second == b"api" and third == b"token":
        return "ec2/token"
    return _EC2.get(second, OTHER) if second else "ec2"


def sink(stream: TextIO | None = None) -> Callable[[str], object]:
    """Where lines go: `stream` (None: standard error), in the form that all of the log has there."""
    target = stream or sys.stderr
    if not to_journal(target, os.environ.get("JOURNAL_STREAM", "")):
        logger.setLevel(logging.INFO)  # log.access_rate decides, not log.level
        return logger.info
    fd = target.fileno()

    def write(line: str) -> None:
        try:
            os.write(fd, f"<6>{line}\n".encode())
        except OSError:  # a journal that restarts takes lines with it: not worth a request
            pass

    return write


class AccessLog:
    """`write` is given whole lines without their end. At most `rate` a second, of which a second's worth at once; 0:
    none at all. Times are seconds of any clock that does not go back."""

    def __init__(self, write: Callable[[str], object], rate: int) -> None:
        self._write = write
        self._interval = 1 / rate if rate else 0.0
        self._spent_until = 0.0 if rate else float("inf")
        self._lead = 1.0 - self._interval / 2  # half of one more than whole lines, as sums of fractions are not exact
        self._left_out = 0
        self._owners: dict[int, tuple[int, str, str]] = {}

    def request(
        self,
        now: float,
        caller: Caller,
        project: str,
        request: Request | None,
        status: int,
        size: int,
        seconds: float,
        backend: str,
        token: bool,
    ) -> None:
        """One request and its answer; see Tally.request. `request` is None for what was none, `token`: a good one."""
        until = self._spent_until
        if until - now > self._lead:
            self._left_out += 1
            return
        self._spent_until = (until if until > now else now) + self._interval
        if request is None:
            method, path, trace = OTHER, "malformed", ""
        else:
            method, path = _METHODS.get(request.method, OTHER), path_class(request.path)
            trace = _trace(request)
        self._write(
            f'{self._owner(caller, project)},"family":{_FAMILIES[caller.family]},"method":"{method}","path":"{path}",'
            f'"status":{status},"bytes":{size},"ms":{seconds * 1e3:.3f},"backend":"{backend or "proxy"}",'
            f'"token":{"true" if token else "false"}{trace}}}'
        )

    def flush(self) -> None:
        """Tells how many were left out since the last time, if any. To be called every second or so, and at the end."""
        if self._left_out and self._interval:
            self._write(f'{{"left_out":{self._left_out}}}')
        self._left_out = 0

    def forget(self, slot: int) -> None:
        """The slot is nobody's any more."""
        self._owners.pop(slot, None)

    def _owner(self, caller: Caller, project: str) -> str:
        """How the lines of an owner of a slot begin: made once."""
        known = self._owners.get(caller.slot)
        if known is not None and known[0] == caller.generation and known[1] == project:
            return known[2]
        shown = msgspec.json.encode(project).decode()
        text = f'{{"instance":"{caller.instance}","project":{shown},"port":{caller.slot}'
        self._owners[caller.slot] = (caller.generation, project, text)
        return text


def _trace(request: Request) -> str:
    for name, value in request.headers:
        if name == b"traceparent":
            return f',"trace":"{value[3:35].decode()}"' if is_traceparent(value) else ""
    return ""
