"""The access log: what a line says, what it never says, and how many there are."""

from __future__ import annotations

import json
import os
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import access
from shim.access import PATH_CLASSES, AccessLog, path_class
from shim.core.exchange import Caller, Request
from shim.core.policy import Family

ONE = UUID("c0ffee00-1111-4222-8333-444455556666")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()


class Book:
    """An access log, its lines, and a clock to turn."""

    def __init__(self, rate: int = 1000) -> None:
        self.lines: list[str] = []
        self.log = AccessLog(self.lines.append, rate)
        self.now = 1000.0

    def ask(self, request: Request | None = None, **changes: Any) -> dict[str, Any]:
        """The line that a request makes; `changes` to its arguments."""
        arguments = {
            "caller": Caller(7, 2, ONE, Family.V4), "project": "blue",
            "request": request or Request(b"GET", b"/latest/meta-data/hostname"),
            "status": 200, "size": 19, "seconds": 0.0012345, "backend": "nova", "token": True,
        } | changes  # fmt: skip
        self.log.request(self.now, **arguments)
        return json.loads(self.lines[-1]) if self.lines else {}

    def written(self, times: int) -> int:
        """How many lines that many requests make now."""
        before = len(self.lines)
        for _ in range(times):
            self.ask()
        return len(self.lines) - before


def test_a_line():
    assert Book().ask(Request(b"GET", b"/latest/meta-data/x", headers=((b"traceparent", PARENT),))) == {
        "instance": str(ONE), "project": "blue", "port": 7, "family": 4, "method": "GET", "path": "ec2/meta-data",
        "status": 200, "bytes": 19, "ms": 1.234, "backend": "nova", "token": True, "trace": TRACE,
    }  # fmt: skip


def test_what_else_there_may_be():
    book = Book()
    line = book.ask(caller=Caller(7, 2, ONE, Family.V6), token=False, backend="", status=0)
    assert (line["family"], line["token"], line["backend"], line["status"]) == (6, False, "proxy", 0)
    assert "trace" not in line


def test_what_was_no_request():
    book = Book()
    book.log.request(1.0, Caller(7, 2, ONE, Family.V4), "", None, 400, 12, 0.0, "", False)
    line = json.loads(book.lines[0])
    assert (line["method"], line["path"], line["status"]) == ("other", "malformed", 400)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/", "root"),
        (b"/latest", "ec2"),
        (b"/latest/", "ec2"),
        (b"/latest/meta-data", "ec2/meta-data"),
        (b"/2009-04-04/meta-data/instance-id", "ec2/meta-data"),
        (b"/1.0/user-data", "ec2/user-data"),
        (b"/latest/dynamic/instance-identity/document", "ec2/dynamic"),
        (b"/latest/api/token", "ec2/token"),
        (b"/latest/api", "ec2/api"),
        (b"/openstack", "openstack"),
        (b"/openstack/latest", "openstack"),
        (b"/openstack/2018-08-27/meta_data.json", "openstack/meta_data.json"),
        (b"/openstack/content/0000", "openstack/content"),
        (b"/openstack/latest/password", "openstack/password"),
        (b"/computeMetadata/v1/instance/id", "gce/instance"),
        (b"/computeMetadata/v1/", "gce"),
        (b"/latest/secret-of-mine", "other"),
        (b"/openstack/latest/hunter2", "other"),
        (b"//latest/meta-data", "other"),
        (b"/%6catest/meta-data", "other"),
        (b"/hunter2", "other"),
        (b"*", "other"),
        (b"", "other"),
    ],
)
def test_path_classes(path, kind):
    assert path_class(path) == kind


@given(st.binary(max_size=400))
def test_every_path_has_a_class_of_the_list(path):
    assert path_class(path) in PATH_CLASSES


def test_long_paths_are_not_remembered():
    before = access._known.cache_info().currsize
    for number in range(50):
        assert path_class(b"/latest/meta-data/" + b"%d" % number * 300) == "ec2/meta-data"
    assert access._known.cache_info().currsize == before


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_no_guest_chooses_a_character(method, path, query, header):
    """Whatever it sends, the line is one of a few hundred: methods, classes, hexadecimal digits."""
    book = Book()
    headers = ((b"traceparent", header), (b"x-aws-ec2-metadata-token", header), (b"authorization", header))
    line = book.ask(Request(method, path, query, headers, body=header))
    assert line["method"] in {*(name.decode() for name in access._METHODS), "other"}
    assert line["path"] in PATH_CLASSES
    assert set(line) <= {*Book().ask(), "trace"}
    assert "\n" not in book.lines[0]


@pytest.mark.parametrize(
    "parent",
    [
        b"", b"hunter2", PARENT.upper(), PARENT[:-1], PARENT + b"-x", PARENT.replace(b"00-", b"ff-", 1),
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", f"00-{TRACE}-0000000000000000-01".encode(), PARENT + b"\n",
    ],
)  # fmt: skip
def test_a_trace_that_is_none(parent):
    assert "trace" not in Book().ask(Request(b"GET", b"/", headers=((b"traceparent", parent),)))


def test_a_trace_of_a_later_version():
    later = PARENT.replace(b"00-", b"01-", 1) + b"-more"
    assert Book().ask(Request(b"GET", b"/", headers=((b"traceparent", later),)))["trace"] == TRACE


def test_operators_texts_are_quoted():
    assert Book().ask(project='a"b\n\\')["project"] == 'a"b\n\\'


class TestOwners:
    def test_a_later_owner_of_a_slot(self):
        book = Book()
        book.ask()
        other = Caller(7, 3, UUID(int=9), Family.V4)
        assert book.ask(caller=other)["instance"] == str(other.instance)

    def test_a_project_that_is_another_now(self):
        book = Book()
        book.ask()
        assert book.ask(project="green")["project"] == "green"

    def test_forgotten(self):
        book = Book()
        book.ask()
        book.log.forget(7)
        book.log.forget(8)
        assert book.log._owners == {}


class TestRate:
    @pytest.mark.parametrize("rate", [1, 3, 7, 100, 999])
    def test_a_seconds_worth_at_once_then_so_many_a_second(self, rate):
        book = Book(rate)
        assert book.written(5000) == rate
        written = 0
        for _ in range(40):
            book.now += 0.25
            written += book.written(1000)
        assert written == pytest.approx(10 * rate, abs=1)

    def test_after_a_pause_no_more_than_a_seconds_worth(self):
        book = Book(10)
        book.written(100)
        book.now += 3600
        assert book.written(100) == 10

    def test_a_clock_that_begins_at_0(self):
        book = Book(10)
        book.now = 0.0
        assert book.written(100) == 10

    def test_what_is_left_out_is_told_once(self):
        book = Book(10)
        book.written(25)
        book.log.flush()
        assert json.loads(book.lines[-1]) == {"left_out": 15}
        assert len(book.lines) == 11
        book.log.flush()
        assert len(book.lines) == 11

    def test_none_at_all(self):
        book = Book(0)
        assert book.written(100) == 0
        book.log.flush()
        assert book.lines == []


class TestSink:
    def test_the_journal(self, tmp_path, monkeypatch):
        with (tmp_path / "log").open("w+") as stream:
            stat = os.fstat(stream.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
            access.sink(stream)('{"a":1}')
            assert (tmp_path / "log").read_text() == '<6>{"a":1}\n'

    def test_a_journal_that_is_gone(self, monkeypatch):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            stat = os.fstat(writer)
            monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
            write = access.sink(stream)
            os.close(reader)
            write('{"a":1}')  # raises nothing

    def test_elsewhere_it_is_a_line_of_the_log(self, tmp_path, monkeypatch, caplog):
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        with (tmp_path / "log").open("w") as stream:
            access.sink(stream)('{"a":"100%s"}')
        assert [record.getMessage() for record in caplog.records] == ['{"a":"100%s"}']
