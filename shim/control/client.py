"""The operators' end of the control API: synchronous, over the agent's Unix socket.

Raises what the agent's answer says (InputError, NotFoundError, ConflictError, KernelError, StoreError),
or UnreachableError when there is no answer.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

import msgspec

from shim.control import shapes
from shim.errors import (
    ConflictError,
    InputError,
    KernelError,
    MetashimError,
    NotFoundError,
    StoreError,
    UnreachableError,
)

if TYPE_CHECKING:  # a twelfth of what the short verbs take to start
    from shim.core.policy import Access, Composition, Family, Tokens

T = TypeVar("T")

_FAMILIES: dict[int, type[MetashimError]] = {
    400: InputError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    413: InputError,
    500: KernelError,
    503: StoreError,
}


ACCEPT = {"Accept": "application/json"}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("metashim", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One connection per request to the agent that listens on `path`; `timeout` in seconds."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self._path = path
        self._timeout = timeout

    def status(self) -> shapes.StatusView:
        """How the agent, the datapath and the proxy are."""
        return self._get("/v1/status", shapes.StatusView)

    def ports(self) -> list[shapes.PortView]:
        """Every guarded tap."""
        return self._get("/v1/ports", shapes.PortsView).ports

    def instances(self) -> list[shapes.InstanceSummary]:
        """Every known instance."""
        return self._get("/v1/instances", shapes.InstancesView).instances

    def instance(self, instance: UUID) -> shapes.InstanceView:
        """One instance with its ports and document."""
        return self._get(f"/v1/instances/{instance}", shapes.InstanceView)

    def put_document(self, instance: UUID, raw: bytes) -> int:
        """Replace an instance's document (JSON); its new revision."""
        if len(raw) > shapes.MAX_BODY:
            raise InputError(f"the document has {len(raw)} bytes", f"at most {shapes.MAX_BODY} are kept")
        return self._call("PUT", f"/v1/instances/{instance}", raw, shapes.RevisionView).revision

    def set_policy(
        self, instance: UUID, access: Access | None, families: Iterable[Family], hop_limit: int | None = None
    ) -> shapes.PolicyView:
        """Change access over `families`, the hop limit, or both; returns when the kernel enforces it."""
        change: dict[str, Any] = {}
        if access is not None:
            change = {"access": access, "families": sorted(f.value for f in families)}
        if hop_limit is not None:
            change["hop_limit"] = hop_limit
        return self._change(instance, change)

    def set_tokens(self, instance: UUID, mode: Tokens | None) -> shapes.PolicyView:
        """What session tokens are to an instance; None: what they are to the host."""
        return self._change(instance, {"tokens": mode})

    def set_routes(self, instance: UUID, routes: Mapping[str, str] | None) -> shapes.PolicyView:
        """An instance's routes, backend by path prefix; None: the host's."""
        return self._change(instance, {"routes": routes})

    def set_composition(self, instance: UUID, composition: Composition | None) -> shapes.PolicyView:
        """How an instance's sources become its user-data; None: as the host's do."""
        return self._change(instance, {"composition": composition})

    def set_closed(self, instance: UUID, close: Sequence[str] = (), open: Sequence[str] = ()) -> shapes.PolicyView:
        """Close some prefixes and topics, and open some that operators closed."""
        return self._change(instance, {"close": close, "open": open})

    def set_auto(self, instance: UUID, auto: Mapping[str, object] | None) -> shapes.PolicyView:
        """When an instance will be disabled, as the API's `auto` says it; None: no longer."""
        return self._change(instance, {"auto": auto})

    def unlock(self, instance: UUID, prefix: str | None = None) -> shapes.UnlockedView:
        """Open what the guest locked: one prefix or topic, or all."""
        raw = msgspec.json.encode({"prefix": prefix})
        return self._call("POST", f"/v1/instances/{instance}/unlock", raw, shapes.UnlockedView)

    def policy(self, instance: UUID) -> shapes.PolicyView:
        """The policy in force."""
        return self._get(f"/v1/instances/{instance}/policy", shapes.PolicyView)

    def _change(self, instance: UUID, change: Mapping[str, object]) -> shapes.PolicyView:
        raw = msgspec.json.encode(change)
        return self._call("PUT", f"/v1/instances/{instance}/policy", raw, shapes.PolicyView)

    def tokens(self) -> shapes.TokensView:
        """What session tokens are to each known instance, and what it made of that so far."""
        return self._get("/v1/tokens", shapes.TokensView)

    def rotate_keys(self, drop: bool = False) -> shapes.KeysView:
        """Sign tokens with a new key; `drop`: those signed before end at once."""
        return self._call("POST", "/v1/tokens/rotate", msgspec.json.encode({"drop": drop}), shapes.KeysView)

    def attach(self, tap: str, instance: UUID, netns: str = "") -> None:
        """Say by hand that a tap is an instance's."""
        view = shapes.AttachmentView(tap, instance, netns)
        self._send("POST", "/v1/attachments", msgspec.json.encode(view))

    def detach(self, tap: str, netns: str = "") -> None:
        """Take that back."""
        self._send("DELETE", f"/v1/attachments/{quote(tap, safe='')}{query(netns=netns)}")

    def counters(
        self, instance: UUID | None = None, tap: str | None = None, netns: str = ""
    ) -> list[shapes.CounterView]:
        """The counters of all ports, of one instance's, or of one tap."""
        where = query(instance=instance, tap=tap, netns=netns if tap is not None else "")
        return self._get(f"/v1/counters{where}", shapes.CountersView).ports

    def events(self, after: int = 0, wait: int = 0) -> shapes.EventsView:
        """Events after a sequence number; waits up to `wait` seconds (at most 30) for one."""
        return self._get(f"/v1/events{query(after=after, wait=wait)}", shapes.EventsView, wait)

    def audit(
        self, instance: UUID | None = None, after: int | None = None, limit: int = 100, wait: int = 0
    ) -> shapes.AuditView:
        """The last rows of the audit trail, or those after a sequence number, waiting up to `wait` seconds for one."""
        where = query(instance=instance, after=after, limit=limit, wait=wait)
        return self._get(f"/v1/audit{where}", shapes.AuditView, wait)

    @contextmanager
    def _opened(self, path: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """An answer that is read as it comes."""
        connection = _UnixConnection(self._path, self._timeout)
        try:
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                problem = answer.read() if answer.status >= 400 else None
            except (OSError, http.client.HTTPException) as error:
                raise _unreachable(self._path, error) from None
            if problem is not None:
                raise _problem(answer.status, problem)
            yield answer
        finally:
            connection.close()

    def _get(self, path: str, shape: type[T], wait: float = 0.0) -> T:
        return self._call("GET", path, None, shape, wait)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        shape: type[T],
        wait: float = 0.0,
        headers: Mapping[str, str] = ACCEPT,
    ) -> T:
        raw = self._send(method, path, body, wait, headers)
        try:
            return msgspec.json.decode(raw, type=shape)
        except (msgspec.MsgspecError, ValueError) as error:
            raise UnreachableError(
                f"the answer on {self._path} is not understood: {error}",
                "the agent may be of another version: restart it after an upgrade",
            ) from None

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        wait: float = 0.0,
        headers: Mapping[str, str] = ACCEPT,
    ) -> bytes:
        connection = _UnixConnection(self._path, self._timeout + wait)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # not all taken: the answer says why
                connection.request(method, path, body, headers)
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self._path, error) from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise _problem(answer.status, raw)
        return raw


def query(**parameters: object) -> str:
    """The same, what is empty left out too."""
    return encoded({key: value for key, value in parameters.items() if value != ""})


def encoded(parameters: Mapping[str, object]) -> str:
    """Parameters as an address has them, `?` before; those that are None left out."""
    given = {key: str(value) for key, value in parameters.items() if value is not None}
    return f"?{urlencode(given, quote_via=quote)}" if given else ""


def _problem(status: int, raw: bytes) -> MetashimError:
    try:
        problem = msgspec.json.decode(raw, type=shapes.Problem)
    except (msgspec.MsgspecError, ValueError):  # from the server around the API: overload, a fault
        return UnreachableError(f"the agent answered with status {status}", "see its log; try again")
    return _FAMILIES.get(status, MetashimError)(problem.error, problem.hint)


def _unreachable(path: Path, error: Exception) -> UnreachableError:
    if isinstance(error, PermissionError):
        return UnreachableError(f"no permission for {path}", "run as root, or join the configured group")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return UnreachableError(
            f"no agent answers on {path}",
            "is it running? `systemctl status metashim`, or start it with `metashim agent`",
        )
    if isinstance(error, TimeoutError):
        return UnreachableError(f"the agent on {path} did not answer in time", "see its log")
    what = str(error) or type(error).__name__
    return UnreachableError(f"the agent on {path} broke off: {what}", "see its log")
