"""`metashim why` beside what a guest really gets: the same status and size, the same refusal, by the named rule."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from shim.control.why_shapes import WhyView
from shim.core.policy import Access, Family, Tokens
from shim.core.prospect import Prospect, Rule
from tests.backends.raw import Raw, message, says
from tests.backends.wiring import forward_to
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import on_both
from tests.netns.hypervisor import BOTH, Hypervisor, uuid_of
from tests.netns.live import add, enrol, parts_of, rest_of
from tests.netns.say import Reply, get, parse, request, say
from tests.netns.talk import ID, V4, V6, connect

TOKEN, TTL = "x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"
USER_DATA, GCE = "/latest/user-data", "/computeMetadata/v1/instance/"
SECRET = b"#!/bin/sh\necho hunter2\n"
DOCUMENT = b'{"name": "web", "project_id": "blue", "user_data": "#!/bin/sh\\n", "meta": {"role": "web"}}'

_numbers = itertools.count(100)


@dataclass
class Place:
    """A hypervisor with one guest, which is another instance in each case; what goes to /far goes to `far`."""

    site: Hypervisor
    guest: VethGuest
    far: Raw
    instance: UUID

    def becomes_new(self) -> None:
        self.site.api.detach(self.guest.tap)
        self.instance = uuid_of(next(_numbers))
        self.site.api.put_document(self.instance, DOCUMENT)
        self.site.api.attach(self.guest.tap, self.instance)
        self.site.await_port(self.guest.tap, self.instance)

    def why(self, path: str, **asked: object) -> WhyView:
        return self.site.api.why(self.instance, {"path": path, **asked})


@pytest.fixture(scope="module")
def shared_place(datapath: str) -> Iterator[Place]:
    with Lab() as lab, Raw(lab.host) as far:
        settings = forward_to("http", far).replace('{"/" = "http"}', '{"/" = "embedded", "/far" = "http"}')
        settings += f'[nova]\naddresses = ["http://127.0.0.1:9"]\nsecret_file = "{far.secret_file}"\n'
        with Hypervisor(lab, settings, datapath=datapath) as site:
            site.start()
            yield Place(site, enrol(site, "why", uuid_of(1), DOCUMENT), far, uuid_of(1))


@pytest.fixture
def place(shared_place: Place) -> Place:
    shared_place.becomes_new()
    shared_place.far.forget()
    return shared_place


Prepare = Callable[[Place], object]


def policy(how: Access, *families: Family) -> Prepare:
    return lambda place: place.site.disable(place.instance, how, frozenset(families) or BOTH)


def closed(*prefixes: str) -> Prepare:
    return lambda place: place.site.api.set_closed(place.instance, close=prefixes)


def tokens(mode: Tokens) -> Prepare:
    return lambda place: place.site.api.set_tokens(place.instance, mode)


def once(place: Place) -> None:
    add(place.site, place.instance, "secret", SECRET, reads="once")


def read_once(place: Place) -> None:
    once(place)
    assert get(place.guest, "/metashim/v1/sources/instance/secret").body == SECRET


def locked(prefix: str) -> Prepare:
    return lambda place: say(place.guest, "POST", f"/metashim/v1/lock{prefix}")


def locked_out(place: Place) -> None:
    say(place.guest, "POST", "/metashim/v1/lock")
    await_refused(place)


def due(place: Place) -> None:
    place.site.api.set_auto(place.instance, {"how": "reset", "seconds": 0.3})
    await_refused(place)


def await_refused(place: Place) -> None:
    def refused() -> bool:
        port = place.site.port(place.guest.tap)
        return port is not None and port.state == "refused"

    wait_until(refused, "the kernel to refuse")


def no_identity(place: Place) -> None:
    place.site.api.detach(place.guest.tap)
    place.site.await_port(place.guest.tap, None)


def back(place: Place) -> None:
    place.site.api.attach(place.guest.tap, place.instance)


def nothing(place: Place) -> None:
    pass


def has_token(place: Place) -> str:
    return say(place.guest, "PUT", "/latest/api/token", headers={TTL: "60"}).body.decode()


@dataclass(frozen=True)
class Case:
    """What is so, what is asked, and what both must come to: the deciding rule, and the kind and status."""

    name: str
    rule: str
    comes: str | int
    path: str = ID
    prepare: Prepare = nothing
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    family: str = "4"
    says: str = ""

    @property
    def address(self) -> str:
        return V4 if self.family == "4" else V6


REQUIRED = tokens(Tokens.REQUIRED)
CASES = [
    Case("open", "embedded", 200),
    Case("open over IPv6", "embedded", 200, family="6"),
    Case("reset", "access", "reset", prepare=policy(Access.RESET), says="last changed by root (uid 0)"),
    Case("drop", "access", "dropped", prepare=policy(Access.DROP)),
    Case("403", "access", 403, prepare=policy(Access.FORBID)),
    Case("refused over IPv4 alone", "access", "reset", prepare=policy(Access.RESET, Family.V4)),
    Case("and served over IPv6", "embedded", 200, prepare=policy(Access.RESET, Family.V4), family="6"),
    Case("locked out", "lock", "reset", prepare=locked_out, says="the guest locked all"),
    Case("time is over", "access", "reset", prepare=due, says="its time is over"),
    Case("no identity", "identity", "dropped", prepare=no_identity, says="no tap here"),
    Case("locked in part", "closed", 403, USER_DATA, locked("?prefix=/latest/user-data"), says="locked by the guest"),
    Case("one-shot", "embedded", 200, USER_DATA, once, says="this would use it up: source "),
    Case("closed by path", "closed", 403, USER_DATA, closed(USER_DATA), says="closed by an operator"),
    Case("closed by topic", "closed", 403, "/2009-04-04/user-data", closed("user-data"), says="user-data is closed"),
    Case("beside what is closed", "embedded", 200, "/openstack/latest/user_data", closed(USER_DATA)),
    Case("a token is required", "token", 401, prepare=REQUIRED, says="required: it has none"),
    Case("a bad one", "token", 401, headers={TOKEN: "x" * 44}, says="not ours"),
    Case("no tokens here", "token", 404, "/latest/api/token", tokens(Tokens.OFF), "PUT", {TTL: "60"}),
    Case("a token", "token", 200, "/latest/api/token", method="PUT", headers={TTL: "60"}, says="given a token"),
    Case("for too long", "token", 400, "/latest/api/token", method="PUT", headers={TTL: "99999"}),
    Case("for a proxy", "token", 403, "/latest/api/token", method="PUT", headers={TTL: "9", "x-forwarded-for": "::1"}),
    Case("GET of a token", "token", 405, "/latest/api/token"),
    Case("no such path", "embedded", 404, "/latest/meta-data/nothing"),
    Case("ambiguous", "route", 400, "/latest/../latest/user-data"),
    Case("no such method", "embedded", 405, method="DELETE"),
    Case("unknown method", "request", 501, method="BREW"),
    Case("forbidden method", "request", 405, method="TRACE"),
    Case("no path of HTTP's", "request", 400, '/latest/<"\\>'),
    Case("too long a head", "request", 431, headers={"x-long": "x" * 20_000}),
    Case("read already", "embedded", 404, "/metashim/v1/sources/instance/secret", read_once),
    Case("HEAD of it", "embedded", 200, "/metashim/v1/sources/instance/secret", once, "HEAD"),
    Case("GCE's face", "embedded", 200, f"{GCE}?recursive=true", headers={"metadata-flavor": "Google"}),
    Case("without its header", "embedded", 403, GCE, says="Metadata-Flavor"),
    Case("has it already", "embedded", 304, headers={"if-none-match": "*"}),
    Case("a wait that is no number", "embedded", 400, f"{ID}?wait=soon"),
    Case("one who waits for no change", "embedded", "waits", f"{ID}?wait=0.2&etag=ETAG"),
    Case("read-only key", "embedded", 403, "/metashim/v1/kv/host/x", method="PUT", body="v"),
    Case("a key", "embedded", "asked", "/metashim/v1/kv/guest/x", method="PUT", body="v", says="guest/x"),
    Case("not Google's to write", "embedded", 403, f"{GCE}guest-attributes/a/b", method="PUT", body="v"),
    Case("forwarded", "http", "forwarded", "/far/x"),
    Case("closed, and forwarded", "closed", 403, "/far/x", closed("/far")),
    Case("routed elsewhere", "http", "forwarded", prepare=lambda p: p.site.api.set_routes(p.instance, {"/": "http"})),
]


def meets(place: Place, case: Case, path: str) -> Reply | str:
    """What the guest gets."""
    try:
        with connect(place.guest, case.address, 1.5) as sock:
            sock.sendall(request(case.method, path, case.body.encode(), case.headers))
            raw = rest_of(sock)
        if case.method != "HEAD":
            return parse(raw)
        head = parse(re.sub(rb"content-length: \d+", b"content-length: 0", raw))
        return replace(head, body=bytes(int(re.search(rb"content-length: (\d+)", raw)[1])))
    except ConnectionRefusedError:
        return "reset"
    except TimeoutError:
        return "dropped"


def decider(view: WhyView) -> Rule:
    (rule,) = [rule for rule in view.rules if rule.decides]
    assert rule is view.rules[-1], "nothing is met after it"
    return rule


def named(view: WhyView, name: str, part: str = "backend") -> Rule:
    """The rule of that name."""
    (rule,) = [rule for rule in view.rules if (rule.name, rule.part) == (name, part)]
    return rule


def agree(told: Prospect, met: Reply | str, place: Place, case: Case) -> None:
    """What was told is what was met."""
    if told.kind in ("reset", "dropped"):
        assert met == told.kind
        return
    assert isinstance(met, Reply), met
    if told.kind == "answered":
        assert met.status == told.status
        assert met.headers.get("content-type", "") == told.content_type or met.status == 304
        assert met.headers.get("etag", "").strip('"') == told.etag
        assert told.bytes == len(met.body)
    elif told.kind == "forwarded":
        assert [heard.target for heard in place.far.heard(case.path)] == [case.path]
        assert str(place.instance) in told.words
    elif told.kind == "waits":
        assert met.status == 304
    else:
        assert told.kind == "asked" and met.status == 201


def tell(place: Place, case: Case) -> None:
    """What is told is what is met."""
    case.prepare(place)
    path = case.path.replace("ETAG", get(place.guest, ID).etag) if "ETAG" in case.path else case.path
    asked = {"method": case.method, "headers": list(case.headers.items()), "body": case.body, "family": case.family}
    view, again = place.why(path, **asked), place.why(path, **asked)
    met = meets(place, case, path)
    if case.rule == "identity":
        back(place)
    assert again == view, "nothing is used up by asking"
    rule = decider(view)
    comes = view.prospect.status if view.prospect.kind == "answered" else view.prospect.kind
    assert (rule.name, comes) == (case.rule, case.comes), view.rules
    assert case.says in rule.says
    agree(view.prospect, met, place, case)


@on_both
class TestOnBoth:
    @pytest.mark.parametrize("case", CASES[:12], ids=lambda case: case.name)
    def test_what_the_kernel_refuses(self, place: Place, case: Case) -> None:
        tell(place, case)


@pytest.mark.parametrize("case", CASES[12:], ids=lambda case: case.name)
def test_what_is_told_is_what_is_met(place: Place, case: Case) -> None:
    tell(place, case)


def test_with_a_token(place: Place) -> None:
    REQUIRED(place)
    assert decider(place.why(ID)).name == "token"
    view = place.why(ID, with_token=True)
    assert (decider(view).name, view.prospect.status) == ("embedded", 200)
    assert get(place.guest, ID, X_aws_ec2_metadata_token=has_token(place)).status == 200
    given = place.why(ID, headers=[[TOKEN, has_token(place)]])
    assert given.prospect == view.prospect, "the guest's own"


def test_no_secret_is_told(place: Place) -> None:
    once(place)
    add(place.site, "host", "base", b"#cloud-config\npackages: [nginx]\n")
    for asked in ({}, {"headers": [["accept", "text/event-stream"]]}, {"method": "HEAD"}):
        view = place.why(USER_DATA, **asked)
        assert "hunter2" not in repr(view) and "nginx" not in repr(view)
    assert named(place.why(USER_DATA), "sources").says == "host/base, instance/secret"
    place.site.api.delete_source("host", "base")
    secret = place.far.secret_file.read_text().strip()
    forwarded = place.why("/far/x")
    assert secret not in repr(forwarded) and not place.far.heard("/far/x"), "nobody was asked"
    identity = named(forwarded, "identity", "backend").says
    assert f"instance {place.instance}, project blue" in identity and "X-Metashim-Signature" in identity


def test_a_read_once_is_still_there_after_many_questions(place: Place) -> None:
    once(place)
    view = place.why("/metashim/v1/sources/instance/secret")
    assert len(view.prospect.uses_up) == 1
    for _ in range(20):
        assert place.why("/metashim/v1/sources/instance/secret") == view
    assert get(place.guest, "/metashim/v1/sources/instance/secret").body == SECRET
    counted = {one.instance: one for one in place.site.api.tokens().instances}[place.instance]
    assert counted.with_token == counted.token_refused == 0


def test_a_backend_that_is_not_asked(place: Place) -> None:
    place.site.api.set_routes(place.instance, {"/": "nova"})
    wait_until(lambda: "is down" in decider(place.why(ID)).says, "the check to find it down")
    assert place.why(ID).prospect.status == get(place.guest, ID).status == 503
    place.site.api.put_document(place.instance, b"{}")
    assert "the project of this instance is not known yet" in decider(place.why(ID)).says
    assert get(place.guest, ID).body == b"the project of this instance is not known yet\n"


def test_no_tap_and_what_it_would_get_with_one(place: Place) -> None:
    other = uuid_of(9)
    place.site.api.put_document(other, DOCUMENT)
    view = place.site.api.why(other, {"path": USER_DATA})
    assert view.tap == "" and view.prospect.kind == "dropped" and decider(view).part == "tap"
    assert view.supposed is not None and view.supposed.prospect.status == 200
    place.site.disable(other)
    supposed = place.site.api.why(other, {"path": USER_DATA}).supposed
    assert supposed is not None and supposed.prospect.kind == "reset"


def test_sources_that_disagree(place: Place) -> None:
    other, host = uuid_of(7), place.site.lab.host
    place.site.api.put_document(other, DOCUMENT)
    host.ip.link("set", index=place.guest.tap_ifindex, ifalias=f"metashim:{other}")
    try:
        wait_until(lambda: "conflict" in [rule.name for rule in place.why(ID).rules], "the alias to be seen")
        conflict = named(place.why(ID), "conflict", "tap")
        assert conflict.says == f"operator says {place.instance} and wins; alias says {other}"
        assert get(place.guest, ID).body.decode() == str(place.instance)
        view = place.site.api.why(other, {"path": ID})
        assert view.prospect.kind == "dropped" and "and wins" in named(view, "conflict", "tap").says
    finally:
        host.ip.link("set", index=place.guest.tap_ifindex, ifalias="")


def test_a_tap_in_another_namespace(place: Place) -> None:
    where, instance = place.site.lab.namespace("rack"), uuid_of(next(_numbers))
    guest = place.site.lab.veth_guest("far", "qvo1", host=where, bridge=None, mac="02:00:00:00:00:08", v4="10.0.0.8/24")
    place.site.api.attach("qvo1", instance, where.name)
    wait_until(lambda: place.site.api.instance(instance).ports[:1], "its port")
    view = place.site.api.why(instance, {"path": ID})
    assert (view.tap, view.netns, view.prospect.status) == ("qvo1", where.name, 200)
    assert get(guest, ID).body.decode() == str(instance)
    place.site.disable(instance)
    assert place.site.api.why(instance, {"path": ID}).prospect.kind == "reset"
    with pytest.raises(ConnectionRefusedError):
        get(guest, ID)
    place.site.api.detach("qvo1", where.name)


def test_what_is_composed_with_a_backends_answer(place: Place) -> None:
    theirs, ours = b"#cloud-config\npackages: [theirs]\n", b"#cloud-config\npackages: [ours]\n"
    place.site.api.set_routes(place.instance, {"/": "http"})
    place.site.api.put_document(place.instance, b'{"project_id": "blue"}')
    place.far.play(USER_DATA, says(message(theirs)))
    assert [rule.name for rule in place.why(USER_DATA).rules if rule.part == "backend"] == ["identity", "http"]
    assert get(place.guest, USER_DATA).body == theirs
    add(place.site, place.instance, "ours", ours)
    view = place.why(USER_DATA)
    assert (named(view, "sources").says, view.prospect.kind) == ("instance/ours", "forwarded")
    assert named(view, "overlay").says == "if http answers 200 or 404, the store's sources are composed with it"
    assert parts_of(get(place.guest, USER_DATA).body) == [ours, theirs]


def test_without_a_worker(place: Place) -> None:
    with place.site.stopped(place.site.worker):
        view = place.why(ID)
        assert (decider(view).name, view.prospect.kind) == ("worker", "waits")
        with pytest.raises(TimeoutError):
            get(place.guest, ID, timeout=0.5)
    assert place.why(ID).prospect.status == 200


def test_what_is_to_come_is_told(place: Place) -> None:
    place.site.api.set_auto(place.instance, {"how": "drop", "seconds": 3600, "on_read": True})
    place.site.verb("enable", str(place.instance), "--hop-limit", "1")
    view = place.why("/openstack/latest/user_data")
    assert named(view, "auto", "kernel").says.startswith("will be drop at")
    assert named(view, "auto").says == "once this was read to its end, the instance is disabled"
    assert named(view, "hop limit", "kernel").says.startswith("replies leave with 1")
    time.sleep(0.6)
    assert get(place.guest, ID).status == 200, "asking did not count as reading"


def test_the_verb(place: Place) -> None:
    tokens(Tokens.REQUIRED)(place)
    done = place.site.verb("why", str(place.instance), USER_DATA)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"GET {USER_DATA} of {place.instance}, by {place.guest.tap}, over IPv4")
    (decides,) = [line for line in lines if line.startswith(">")]
    assert "required: it has none" in decides and "metashim tokens" in decides
    assert lines[-1].startswith("= 401 Unauthorized")
    assert place.site.verb("why", str(uuid_of(8)), ID, check=False).returncode == 5
    assert place.site.verb("why", str(place.instance), "latest", check=False).returncode == 4


def test_a_worker_that_was_killed_is_asked_once_another_runs(place: Place) -> None:
    os.kill(place.site.worker, signal.SIGKILL)
    wait_until(lambda: place.why(ID).prospect.kind != "waits", "another worker to answer", 15)
    assert place.why(ID).prospect.status == get(place.guest, ID).status == 200
