"""What changes while a guest runs: keys that it watches and writes, sources and documents that operators edit."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from shim.core.policy import Access
from tests.lab import Lab, VethGuest
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.say import Reply, get, parse, request, say
from tests.netns.talk import connect

A, B = uuid_of(1), uuid_of(2)
KV = "/metashim/v1/kv"
SETTINGS = "[datapath]\nconnection_rate = 100000\nconnection_burst = 100000\n[kv]\nkeys = 20\ntotal_bytes = 300000\nwrites_per_second = 20\n"  # noqa: E501
GCE = {"Metadata-Flavor": "Google"}


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab, SETTINGS) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def guests(site: Hypervisor) -> tuple[VethGuest, VethGuest]:
    found = []
    for number, instance in enumerate((A, B), 1):
        made = site.lab.veth_guest(f"l{number}", f"tapl{number}", mac="02:00:00:00:00:07", v4="10.0.0.7/24")
        site.api.attach(made.tap, instance)
        site.await_port(made.tap, instance)
        site.api.put_document(instance, b'{"meta": {"enable-guest-attributes": "TRUE", "who": "%d"}}' % number)
        found.append(made)
    return found[0], found[1]


@pytest.fixture
def guest(guests: tuple[VethGuest, VethGuest]) -> VethGuest:
    return guests[0]


@pytest.fixture
def other(guests: tuple[VethGuest, VethGuest]) -> VethGuest:
    return guests[1]


class Waiting:
    """A GET that is under way."""

    def __init__(self, guest: VethGuest, path: str, headers: dict[str, str] | None = None) -> None:
        self.sock = connect(guest, timeout=15)
        self.sock.sendall(request("GET", path, headers=headers))
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self.at = 0.0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        raw = b""
        try:
            while more := self.sock.recv(65536):
                raw += more
            self.reply = parse(raw)
        except (OSError, ValueError) as error:
            self.error = error
        self.at = time.monotonic()
        self.sock.close()

    def result(self) -> Reply:
        self._thread.join()
        assert self.reply is not None, self.error
        return self.reply


def tag(reply: Reply) -> str:
    return reply.etag.strip('"')


def test_what_either_side_writes_the_other_reads(site: Hypervisor, guest: VethGuest, other: VethGuest) -> None:
    site.verb("kv", "set", str(A), "host/role", "db")
    assert get(guest, f"{KV}/host/role").body == b"db"
    assert say(guest, "PUT", f"{KV}/guest/state/phase", b"\x00booting").status == 201
    shown = subprocess.run(
        [*site.argv, "kv", "get", str(A), "guest/state/phase"], capture_output=True, check=True, cwd="."
    )
    assert shown.stdout == b"\x00booting"
    assert get(other, f"{KV}/host/role").status == get(other, f"{KV}/guest/state/phase").status == 404
    assert say(guest, "PUT", f"{KV}/host/role", b"mine").status == 403
    assert get(guest, f"{KV}/").body.split() == [b"guest/", b"host/"]
    assert say(guest, "DELETE", f"{KV}/guest/state/phase").status == 204
    assert say(guest, "DELETE", f"{KV}/guest/state/phase").status == 404


def test_conditions(guest: VethGuest) -> None:
    path = f"{KV}/guest/cas"
    made = say(guest, "PUT", path, b"1", {"If-None-Match": "*"})
    assert made.status == 201
    assert say(guest, "PUT", path, b"2", {"If-None-Match": "*"}).status == 412
    again = say(guest, "PUT", path, b"2", {"If-Match": made.etag})
    assert again.status == 204 and again.etag == get(guest, path).etag != made.etag
    assert say(guest, "PUT", path, b"3", {"If-Match": made.etag}).status == 412
    assert get(guest, path, If_None_Match=again.etag).status == 304
    assert say(guest, "DELETE", path, headers={"If-Match": made.etag}).status == 412
    assert say(guest, "DELETE", path, headers={"If-Match": again.etag}).status == 204


def test_twenty_who_count_with_conditions_lose_nothing(guest: VethGuest) -> None:
    path = f"{KV}/guest/counter"
    assert say(guest, "PUT", path, b"0").status == 201

    def count() -> None:
        for _ in range(4):
            while True:
                now = get(guest, path)
                status = say(guest, "PUT", path, b"%d" % (int(now.body) + 1), {"If-Match": now.etag}).status
                if status == 204:
                    break
                assert status in (412, 429)
                time.sleep(0.02)

    threads = [threading.Thread(target=count) for _ in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert get(guest, path).body == b"20"


def test_quotas_are_one_guests_own(guest: VethGuest, other: VethGuest) -> None:
    big = b"x" * 140_000
    assert say(other, "PUT", f"{KV}/guest/big1", big).status == 201
    assert say(other, "PUT", f"{KV}/guest/big2", big).status == 201
    assert say(other, "PUT", f"{KV}/guest/big3", big).status == 413
    assert say(other, "PUT", f"{KV}/guest/big1", b"small").status == 204
    assert say(other, "PUT", f"{KV}/guest/big3", big).status == 201
    assert get(other, f"{KV}/guest/big3").body == big
    statuses = [say(other, "PUT", f"{KV}/guest/k{n}", b"1").status for n in range(30)]
    assert 413 in statuses and statuses.index(413) == 17
    assert say(guest, "PUT", f"{KV}/guest/mine", b"1").status in (201, 204), "its neighbour may"
    assert say(other, "PUT", f"{KV}/guest/" + "x" * 300, b"1").status == 400
    flood = [say(other, "PUT", f"{KV}/guest/k1", b"%d" % n).status for n in range(700)]
    assert 429 in flood
    assert say(guest, "PUT", f"{KV}/guest/mine", b"2").status == 204


def test_long_poll(site: Hypervisor, guest: VethGuest, other: VethGuest) -> None:
    site.verb("kv", "set", str(A), "host/watched", "1")
    site.verb("kv", "set", str(B), "host/watched", "1")
    now = get(guest, f"{KV}/host/watched")
    assert get(guest, f"{KV}/host/watched?wait=5&etag=other").body == b"1", "another tag answers at once"
    waiting = [Waiting(guest, f"{KV}/host/watched?wait=10&etag={tag(now)}") for _ in range(5)]
    folder = Waiting(guest, f"{KV}/host/?wait=10&etag={tag(get(guest, f'{KV}/host/'))}")
    others = Waiting(other, f"{KV}/host/watched?wait=2&etag={tag(now)}")
    time.sleep(0.3)
    assert all(one.at == 0 for one in (*waiting, folder, others))
    site.verb("kv", "set", str(A), "host/watched", "2")
    returned = time.monotonic()
    assert [one.result().body for one in waiting] == [b"2"] * 5
    assert folder.result().status == 200
    assert max(one.at for one in (*waiting, folder)) - returned < 0.5
    assert others.result().status == 304


def test_what_was_written_between_a_read_and_a_wait_is_not_missed(site: Hypervisor, guest: VethGuest) -> None:
    """Hundreds of edits and a guest that follows them: the last one is always seen."""
    path = f"{KV}/host/steps"
    site.verb("kv", "set", str(A), "host/steps", "0")
    seen: list[int] = []

    def follow() -> None:
        etag = "none"
        while not seen or seen[-1] != 200:
            reply = get(guest, f"{path}?wait=5&etag={etag}", timeout=10)
            assert reply.status == 200, reply
            seen.append(int(reply.body))
            etag = tag(reply)

    thread = threading.Thread(target=follow)
    thread.start()
    with socket.socket(socket.AF_UNIX) as sock:  # one kept connection to the agent
        sock.connect(str(site.run / "control.sock"))
        for number in range(1, 201):
            body = b"%d" % number
            sock.sendall(
                b"PUT /v1/instances/%s/kv/host/steps HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
                % (str(A).encode(), len(body), body)
            )
            assert sock.recv(65536).startswith(b"HTTP/1.1 20")
    thread.join(15)
    assert not thread.is_alive() and seen == sorted(set(seen)), "in order, each once"


def test_events(site: Hypervisor, guest: VethGuest) -> None:
    site.verb("kv", "set", str(A), "host/stream", "one")
    with connect(guest, timeout=5) as sock:
        sock.sendall(request("GET", f"{KV}/host/stream", headers={"Accept": "text/event-stream"}))
        raw = b""
        for text in (b"one", b"two", b"three"):
            while b"data: " + text not in raw:
                raw += sock.recv(65536)
            site.verb("kv", "set", str(A), "host/stream", {b"one": "two", b"two": "three"}.get(text, "end"))
        assert b"text/event-stream" in raw and raw.count(b"\nid: ") + raw.count(b"\r\nid: ") >= 3
        began = time.monotonic()
        site.disable(A)
        with pytest.raises(ConnectionResetError):
            while sock.recv(65536):
                pass
        assert time.monotonic() - began < 1
    site.enable(A)


@pytest.mark.parametrize(("how", "status"), [(Access.RESET, 0), (Access.FORBID, 403)])
def test_a_watch_ends_with_the_access(site: Hypervisor, guest: VethGuest, how: Access, status: int) -> None:
    waiting = Waiting(guest, f"{KV}/host/?wait=60&etag={tag(get(guest, f'{KV}/host/'))}")
    time.sleep(0.2)
    began = time.monotonic()
    site.disable(A, how)
    waiting._thread.join(5)
    assert waiting.at - began < 1
    if status:
        assert waiting.result().status == status
    else:
        assert isinstance(waiting.error, ConnectionResetError)
    site.enable(A)


def test_a_watch_of_what_is_closed_ends(site: Hypervisor, guest: VethGuest) -> None:
    waiting = Waiting(guest, f"{KV}/host/?wait=60&etag={tag(get(guest, f'{KV}/host/'))}")
    time.sleep(0.2)
    site.verb("disable", str(A), "--path", "kv")
    assert waiting.result().status == 403
    site.verb("enable", str(A), "--path", "kv")


def test_a_watch_outlives_the_agent(site: Hypervisor, guest: VethGuest) -> None:
    site.verb("kv", "set", str(A), "host/long", "1")
    waiting = Waiting(guest, f"{KV}/host/long?wait=60&etag={tag(get(guest, f'{KV}/host/long'))}")
    site.end(signal.SIGKILL)
    assert say(guest, "PUT", f"{KV}/guest/x", b"1").status == 503
    site.start()
    site.verb("kv", "set", str(A), "host/long", "2")
    assert waiting.result().body == b"2"


def test_an_edit_shows_on_every_face_at_once(site: Hypervisor, guest: VethGuest) -> None:
    faces = {
        "/latest/user-data": {},
        "/openstack/latest/user_data": {},
        "/metashim/v1/user-data": {},
        "/computeMetadata/v1/instance/attributes/user-data": GCE,
    }
    tags = set()
    for number in range(5):
        text = f"#!/bin/sh\n: {number}\n"
        (site.folder / "edit").write_text(text)
        site.verb("userdata", "add", "host", "edit", str(site.folder / "edit"))
        replies = [say(guest, "GET", path, headers=headers) for path, headers in faces.items()]
        assert [reply.body for reply in replies] == [text.encode()] * 4
        (mark,) = {tag(reply) for reply in replies}
        tags.add(mark)
    assert len(tags) == 5
    waiting = Waiting(guest, f"/latest/user-data?wait=10&etag={tag(get(guest, '/latest/user-data'))}")
    time.sleep(0.1)
    site.verb("userdata", "remove", "host", "edit")
    assert waiting.result().status == 404


def test_gce_waits_and_writes_attributes(site: Hypervisor, guest: VethGuest) -> None:
    path = "/computeMetadata/v1/instance/attributes/"
    now = say(guest, "GET", path + "?recursive=true", headers=GCE)
    assert now.json["who"] == "1" and now.headers["metadata-flavor"] == "Google"
    query = f"?recursive=true&wait_for_change=true&last_etag={now.etag}&timeout_sec=1"
    late = say(guest, "GET", path + query, headers=GCE)
    assert (late.status, late.etag, late.body) == (200, now.etag, now.body), "nothing changed in time"
    waiting = Waiting(guest, path + query.replace("sec=1", "sec=10"), GCE)
    time.sleep(0.2)
    site.api.put_document(A, b'{"meta": {"enable-guest-attributes": "TRUE", "who": "me"}}')
    assert waiting.result().json["who"] == "me"
    attributes = "/computeMetadata/v1/instance/guest-attributes/hostkeys/ed25519"
    assert say(guest, "PUT", attributes, b"AAAA", GCE).status == 200
    assert say(guest, "GET", attributes, headers=GCE).body == b"AAAA"
    assert site.verb("kv", "get", str(A), "guest/hostkeys/ed25519").stdout == "AAAA"
    assert say(guest, "PUT", attributes, b"AAAA").status == 403
    assert say(guest, "DELETE", attributes, headers=GCE).status == 200


def test_an_operator_watches_all(site: Hypervisor, guest: VethGuest, other: VethGuest) -> None:
    command = site.lab.run_in_host([*site.argv, "kv", "watch", "--all", "--json"], cwd=".", stdout=subprocess.PIPE)
    try:
        time.sleep(1)
        assert say(guest, "PUT", f"{KV}/guest/ready", b"yes").status in (201, 204)
        assert say(other, "PUT", f"{KV}/guest/k1", b"yes").status == 204
        assert command.stdout is not None
        found = [json.loads(command.stdout.readline()) for _ in range(2)]
        assert [(one["instance"], one["key"], one["op"]) for one in found] == [
            (str(A), "guest/ready", "put"), (str(B), "guest/k1", "put"),
        ]  # fmt: skip
    finally:
        command.kill()
        command.wait()


def test_a_template_follows_its_variables(site: Hypervisor, guest: VethGuest) -> None:
    (site.folder / "t").write_text("#!/bin/sh\necho {{ kv['host/greeting'] }} {{ meta_data.uuid }}\n")
    site.verb("kv", "set", str(A), "host/greeting", "hello")
    site.verb("userdata", "add", str(A), "t", str(site.folder / "t"), "--template")
    assert get(guest, "/latest/user-data").body == f"#!/bin/sh\necho hello {A}\n".encode()
    site.verb("kv", "set", str(A), "host/greeting", "bye")
    assert get(guest, "/latest/user-data").body == f"#!/bin/sh\necho bye {A}\n".encode()
    site.verb("kv", "delete", str(A), "host/greeting")
    gone = get(guest, "/latest/user-data")
    assert gone.status == 503 and "retry-after" in gone.headers
    assert get(guest, "/latest/meta-data/instance-id").status == 200
    (site.folder / "t").write_text("#!/bin/sh\n{% if %}\n")
    wrong = site.verb("userdata", "add", str(A), "t", str(site.folder / "t"), "--template", check=False)
    assert wrong.returncode == 4 and "line 2" in wrong.stderr
    site.verb("userdata", "remove", str(A), "t")
