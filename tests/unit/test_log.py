"""The log's form: one line a record, priorities for the journal."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import log


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_plain_lines_have_a_time_and_escape_control_characters() -> None:
    out = io.StringIO()
    log.setup("info", out)
    logging.getLogger("shim.x").info("tap %s", "a\nb\x1b[31m")
    logging.getLogger("shim.x").debug("not shown")
    line = out.getvalue()
    assert line.count("\n") == 1
    assert line.endswith(" INFO    shim.x: tap a\\x0ab\\x1b[31m\n")
    assert line[:2] == "20"


def test_journal_lines_begin_with_their_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stderr").open("w+") as stream:
        stat = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        log.setup("debug", stream)
        logger = logging.getLogger("shim.y")
        logger.debug("d")
        logger.info("i")
        logger.warning("w")
        try:
            raise RuntimeError("boom")
        except RuntimeError:
            logger.exception("e")
        stream.flush()
        lines = (tmp_path / "stderr").read_text().splitlines()
    assert lines[:3] == ["<7>shim.y: d", "<6>shim.y: i", "<4>shim.y: w"]
    assert lines[3] == "<3>shim.y: e" and all(line.startswith("<3>") for line in lines[3:])
    assert lines[-1].endswith("RuntimeError: boom")


def test_a_stream_that_is_not_the_journals_is_plain(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as stream:
        stat = os.fstat(stream.fileno())
        assert log.to_journal(stream, f"{stat.st_dev}:{stat.st_ino}")
        assert not log.to_journal(stream, f"{stat.st_dev}:{stat.st_ino + 1}")
        assert not log.to_journal(stream, "")
    assert not log.to_journal(io.StringIO(), "1:2")


def test_setup_twice_writes_once() -> None:
    out = io.StringIO()
    log.setup("info", out)
    log.setup("info", out)
    logging.getLogger("z").warning("once")
    assert out.getvalue().count("once") == 1
