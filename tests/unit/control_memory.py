"""The control API's Operations in memory, and a plain stdlib server that puts the API on a Unix socket."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from uuid import UUID

import msgspec

from shim.control import shapes
from shim.control.api import Api
from shim.control.operations import PolicyChange
from shim.control.trace_shapes import TraceView
from shim.control.why_shapes import WhyView
from shim.core.exchange import Request
from shim.core.policy import Policy
from shim.core.prospect import Prospect, Question, Rule
from shim.errors import ConflictError, InputError, NotFoundError
from tests.unit.control_memory_live import MemoryLive

ONE = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
TWO = UUID("c0ffee00-1111-4222-8333-444455556666")
NOBODY = UUID("00000000-0000-4000-8000-00000000dead")


class Memory(MemoryLive):
    """A tap of ONE's, one of TWO's, and one that nobody claims. The next operation raises `fail`."""

    def __init__(self) -> None:
        super().__init__()
        self.documents: dict[UUID, bytes] = {}
        self.policies: dict[UUID, Policy] = {}
        self.attached: dict[tuple[str, str], UUID] = {("rack1", "tap9"): TWO}
        self.taps: dict[tuple[str, str], UUID | None] = {
            ("", "tap10"): ONE,
            ("", "tap2"): None,
            ("rack1", "tap9"): TWO,
        }
        self.log: list[shapes.EventView] = []
        self.waited: list[float] = []
        self.reports: dict[UUID, shapes.ReportsView] = {}
        self.refuse: set[UUID] = set()
        self.datapath, self.fallback = "ebpf", ""
        self.lacks: list[str] = []
        self.used: dict[UUID, tuple[int, int, int]] = {ONE: (5, 2, 1)}
        self.keys = 2
        self.backends: list[shapes.BackendView] = []
        self.questions: list[Question] = []
        self.shown: list[TraceView] = []
        self.tracers: list[str] = []
        self.courses: dict[UUID, WhyView] = {}

    def _port(self, netns: str, tap: str) -> shapes.PortView:
        owner = self.taps[netns, tap]
        policy = self._policy(owner) if owner else shapes.PolicyView("reset", "reset", 64, False)
        state = "serving" if "open" in (policy.v4, policy.v6) else "refused"
        state = state if owner else "no-identity"
        source = "" if owner is None else "operator" if (netns, tap) in self.attached else "alias"
        return shapes.PortView(tap, netns, 7, 1, 1, owner, source, state, policy.v4, policy.v6)

    def _policy(self, instance: UUID) -> shapes.PolicyView:
        policy = self.policies.get(instance, Policy())
        policy = policy.with_latches(policy.latched)
        own = instance in self.policies
        auto = policy.auto and shapes.AutoView(
            policy.auto.how.value, policy.auto.until, policy.auto.on_read, policy.auto.on_ready
        )
        composition = policy.composition.value if policy.composition else "merged"
        tokens = policy.tokens.value if policy.tokens else "optional"
        routes = {"/": "embedded"} if policy.routes is None else dict(policy.routes)
        return shapes.PolicyView(
            policy.v4.value, policy.v6.value, policy.hop_limit, own, tokens, routes,
            policy.tokens is not None, policy.routes is not None,
            list(policy.closed), list(policy.latched), auto, composition, policy.composition is not None,
        )  # fmt: skip

    def _known(self) -> set[UUID]:
        return {i for i in self.taps.values() if i} | set(self.documents) | set(self.policies)

    async def status(self) -> shapes.StatusView:
        self._begin()
        ports = await self.ports()
        states = {s: sum(p.state == s for p in ports) for s in ("serving", "refused", "no-identity")}
        ill = [shapes.Ailment("identity", "file: bad", "mend it")]
        workers = [shapes.WorkerView(4242, 3, 1), shapes.WorkerView(0, 0, 2)]
        addresses = ["169.254.169.254", "fd00:ec2::254"]
        return shapes.StatusView(
            "0.1.0", 4141, 11530.5, self.datapath, addresses, [80], 2, states, workers, ill, self.fallback, self.lacks,
            "optional", {"/": "embedded", "/openstack": "nova"}, self.backends,
        )  # fmt: skip

    async def ports(self) -> list[shapes.PortView]:
        self._begin()
        return [self._port(*key) for key in self.taps]

    async def instances(self) -> list[shapes.InstanceSummary]:
        self._begin()
        return [
            shapes.InstanceSummary(i, self._policy(i), [t for (_, t), o in self.taps.items() if o == i])
            for i in sorted(self._known())
        ]

    async def instance(self, instance: UUID) -> shapes.InstanceView:
        self._begin()
        if instance not in self._known():
            raise NotFoundError(f"{instance} is not known", "`metashim list` shows those that are")
        ports = [self._port(*key) for key, owner in self.taps.items() if owner == instance]
        raw = self.documents.get(instance)
        document, revision = (msgspec.json.decode(raw), self.revision) if raw else (None, 0)
        sources = [source.id for source in self.kept.values()]
        reports = self.reports.get(instance, shapes.ReportsView())
        keys = sum(owner == instance for owner, _ in self.stored)
        return shapes.InstanceView(
            instance, self._policy(instance), ports, revision, document, sources, reports, keys
        )

    async def put_document(self, instance: UUID, raw: bytes, *, who: str) -> int:
        self._begin()
        try:
            found = msgspec.json.decode(raw, type=dict)
        except msgspec.MsgspecError as error:
            raise InputError(f"the document: {error}", "write a JSON object") from None
        if unknown := set(found) - {"hostname", "name", "user_data", "networks"}:
            raise InputError(f"unknown field {min(unknown)!r}", "did you mean hostname?")
        self.documents[instance] = raw
        self.revision += 1
        return self.revision

    async def delete_instance(self, instance: UUID, *, who: str) -> None:
        self._begin()
        if self.documents.pop(instance, None) is None:
            raise NotFoundError(f"{instance} has no document")

    async def policy(self, instance: UUID) -> shapes.PolicyView:
        self._begin()
        return self._policy(instance)

    async def set_policy(self, instance: UUID, change: PolicyChange, *, who: str) -> shapes.PolicyView:
        self._begin()
        if instance in self.refuse:
            raise ConflictError("not that one", "try another")
        after = change.of(self.policies.get(instance, Policy()))
        if "http" in dict(after.routes or ()).values():
            raise InputError("the backend http is not set up", "set http.addresses")
        self.policies[instance] = after
        self.note(who, instance, "policy")
        return self._policy(instance)

    async def trace(self, instance: UUID, *, who: str) -> AsyncGenerator[TraceView, None]:
        """All that is in `shown`, then nothing once, and the end."""
        self._begin()
        if instance not in self._known():
            raise NotFoundError(f"no instance {instance}", "`metashim list` shows those that are known")
        self.tracers.append(who)
        try:
            for view in [TraceView([], 0, ["tap10"]), *self.shown, TraceView([])]:
                yield view
        finally:
            self.tracers.remove(who)

    async def why(self, instance: UUID, question: Question) -> WhyView:
        self._begin()
        if instance not in self._known():
            raise NotFoundError(f"no instance {instance}", "`metashim list` shows those that are known")
        self.questions.append(question)
        return self.courses.get(instance) or WhyView(
            instance, question.family, question.method, question.target,
            (Rule("tap", "identity", "no tap", decides=True),), Prospect("dropped", "nothing"),
        )  # fmt: skip

    async def unlock(self, instance: UUID, prefix: str | None, *, who: str) -> shapes.UnlockedView:
        self._begin()
        before = self.policies.get(instance, Policy())
        opened = tuple(one for one in before.latched if prefix in (None, one))
        if opened:
            left = tuple(one for one in before.latched if one not in opened)
            self.policies[instance] = replace(before, latched=left)
            self.note(who, instance, "unlock", " ".join(opened))
        return shapes.UnlockedView(list(opened), self._policy(instance))

    async def tokens(self) -> shapes.TokensView:
        self._begin()
        views = []
        for instance in sorted(self._known()):
            policy = self._policy(instance)
            used = self.used.get(instance, (0, 0, 0))
            views.append(shapes.TokenUseView(instance, policy.tokens, policy.own_tokens, *used))
        return shapes.TokensView("optional", views)

    async def rotate_keys(self, drop: bool, *, who: str) -> shapes.KeysView:
        self._begin()
        self.keys = 1 if drop else self.keys + 1
        return shapes.KeysView(self.keys, 0.0 if drop else 60.0)

    async def attachments(self) -> list[shapes.AttachmentView]:
        self._begin()
        return [shapes.AttachmentView(tap, owner, netns) for (netns, tap), owner in self.attached.items()]

    async def attach(self, netns: str, tap: str, instance: UUID, *, who: str) -> None:
        self._begin()
        if self.attached.get((netns, tap), instance) != instance:
            raise ConflictError(f"{tap} is attached to another", f"`metashim detach {tap}` first")
        self.attached[netns, tap] = instance

    async def detach(self, netns: str, tap: str, *, who: str) -> None:
        self._begin()
        if self.attached.pop((netns, tap), None) is None:
            raise NotFoundError(f"{tap} is not attached", "see `metashim list`")

    async def counters(self, instance: UUID | None, netns: str, tap: str | None) -> list[shapes.CounterView]:
        self._begin()
        keys = [k for k, o in self.taps.items() if (instance in (None, o)) and tap in (None, k[1])]
        keys = [k for k in keys if tap is None or k[0] == netns]
        if not keys:
            raise NotFoundError("no such tap or instance", "see `metashim list`")
        numbers = {"delivered": 1234, "replied": 999, "opened": 5, "wrong_port": 7, "spoofed_arp": 2}
        return [shapes.CounterView(tap, netns, self.taps[netns, tap], numbers) for netns, tap in keys]

    async def events(self, after: int, wait: float) -> shapes.EventsView:
        self._begin()
        self.waited.append(wait)
        return shapes.EventsView([e for e in self.log if e.seq > after], len(self.log))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Host

    def address_string(self) -> str:
        return "operator"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, _, query = self.path.partition("?")
        headers = tuple((name.lower().encode(), value.encode()) for name, value in self.headers.items())
        request = Request(self.command.encode(), path.encode(), query.encode(), headers, body)
        with suppress(BrokenPipeError):  # who interrupted a long poll does not wait for its answer
            asyncio.run(self._answer(request))

    async def _answer(self, request: Request) -> None:
        answer = await self.server.api.handle(request, "tester (uid 7)")
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name.decode(), value.decode())
        if answer.parts is None:
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            return
        self.close_connection = True
        self.send_header("connection", "close")
        self.end_headers()
        async for part in answer.parts:
            self.wfile.write(part)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _serve


class Host(socketserver.ThreadingUnixStreamServer):
    """The API on a real Unix socket, in a thread; a context manager."""

    daemon_threads = True

    def __init__(self, path: Path, operations: Memory) -> None:
        super().__init__(str(path), _Handler)
        self.api = Api(operations)

    def __enter__(self) -> Host:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()
