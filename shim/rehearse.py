"""The child that tries out what guests would be given: `python -m shim.rehearse UID:GID`, or `-` to stay who it is.

Everything is loaded first, as in a worker; then privileges are given up, and then the first byte of what is to be
tried out is read. From then on it can open no file, start no process, and take only so much time and memory.
"""

from __future__ import annotations

import codecs
import contextlib
import resource
import sys
import unicodedata  # noqa: F401 (for "\\N{BULLET}")
from email import message_from_bytes

import msgspec

from shim import privilege
from shim.errors import InputError
from shim.metadata import sandbox, template
from shim.metadata.cloud_config import dump, load
from shim.metadata.document import Document, restore
from shim.metadata.preview import check, preview
from shim.metadata.view import View
from shim.rehearsal import SECONDS, TOO_MUCH, Played, Rehearsal, Rehearsed, Stage

MEMORY_BYTES = 512 << 20


def play(work: Rehearsal) -> Rehearsed:
    """All of a rehearsal."""
    if work.template is not None:
        try:
            template.check(work.template)
        except template.TemplateFault as fault:
            return Rehearsed(fault=str(fault))
    return Rehearsed([_played(stage, work.only == "check") for stage in work.instances])


def _played(stage: Stage, checked: bool) -> Played:
    try:
        document = restore(stage.document) if stage.document is not None else Document()
        view = View(
            stage.instance,
            document,
            now=stage.now,
            project=stage.project,
            load_sources=lambda: stage.sources,
            load_values=lambda: {value.key: value for value in stage.values},
            composition=stage.composition,
            limit=stage.limit,
        )
        if checked:
            return Played(stage.instance, check(view, stage.backend))
        return Played(stage.instance, preview=preview(view, stage.backend))
    except InputError as error:
        return Played(stage.instance, fault=str(error))


def _warm() -> None:
    """Has all loaded that is loaded late, by us or by what we use."""
    for codec in ("unicode_escape", "raw_unicode_escape", "ascii", "latin-1"):
        codecs.lookup(codec)
    message_from_bytes(b"Subject: \xe9\nContent-Transfer-Encoding: x-uuencode\n\n\xe9").get_payload(decode=True)
    load(dump({"a": [1, 1.5, None, True, "\xe9"]}).encode())
    with contextlib.suppress(template.TemplateFault):
        template.check(b"{{")
    sandbox.render(b"{{ '\\n'|tojson }}{% for one in range(2) %}{{ loop.index }}{% endfor %}", {})


def _confine() -> None:
    """No file but those that are open, no process, so much memory and time."""
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: int(SECONDS),
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))


def main(who: str) -> None:
    """Reads a rehearsal, writes what came of it."""
    _warm()
    if who != "-":
        uid, _, gid = who.partition(":")
        privilege.drop(int(uid), int(gid))
    _confine()
    try:
        work = msgspec.json.decode(sys.stdin.buffer.read(), type=Rehearsal)
        sys.stdout.buffer.write(msgspec.json.encode(play(work)))
    except MemoryError:
        sys.exit(TOO_MUCH)


if __name__ == "__main__":
    main(sys.argv[1])
