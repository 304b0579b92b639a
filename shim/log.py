"""Logging to standard error, in the journal's form when that is where standard error goes.

One record is one line: control characters in it are escaped, so that no name or error text can forge
another. Secrets stay out by rule, not by filter: loggers are given names, sizes and numbers, never
the content of a request, a document or a token.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TextIO

PLAIN = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
JOURNAL = "%(name)s: %(message)s"  # the journal notes time and priority itself

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SYSLOG = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class LineFormatter(logging.Formatter):
    """Escapes control characters in the message; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's one line."""
        return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", super().formatMessage(record))


class JournalFormatter(LineFormatter):
    """Begins each line with its priority, `<6>` for info: sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, every line of it with the priority."""
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def setup(level: str, stream: TextIO | None = None) -> None:
    """Send all logging at or above `level` (one of log.level's) to `stream`; None: standard error."""
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    journal = to_journal(target, os.environ.get("JOURNAL_STREAM", ""))
    handler.setFormatter(JournalFormatter(JOURNAL) if journal else LineFormatter(PLAIN, "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def to_journal(stream: TextIO, journal_stream: str) -> bool:
    """Whether `stream` is the connection to the journal that $JOURNAL_STREAM names: systemd.exec(5)."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{stat.st_dev}:{stat.st_ino}"


def _priority(level: int) -> int:
    return next((priority for least, priority in _SYSLOG if level >= least), 7)
