"""Whether instances could be given what they would have after a write: who could not is named, thousands are quick."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from pathlib import Path
from uuid import UUID

import pytest

from shim.control.operations import PolicyChange
from shim.core.ask import ITEMS_MAX
from shim.core.policy import Access, Composition
from shim.core.source import HOST, Kind, Reads, Scope, parse_scope
from shim.errors import InputError
from shim.fitting import Load, load_of, size_of
from shim.metadata.compose import COMPOSED_BYTES, compose_user, source_part
from shim.metadata.document import Document
from shim.metadata.view import View
from tests.unit.agent_site import ONE, WHO, Host, tell
from tests.unit.test_source_operations import CONFIG, OWN, bodies, noise, put, source


def test_who_would_get_too_much_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, source("base", noise(30_000)))
        with pytest.raises(InputError, match=f"{ONE}: the user-data does not fit") as caught:
            await put(host, source("more", noise(40_000, 1)))
        assert "shorten" in caught.value.hint
        with pytest.raises(InputError, match="does not fit"):
            await put(host, source("own", noise(40_000, 2), scope=OWN))
        assert list(bodies(host)) == ["host/base"] and len(host.audited) == 1
        await put(host, source("elsewhere", noise(40_000, 3), scope=parse_scope("project:other")))
        await put(host, source("base", noise(100)), source("more", noise(40_000, 1)))

    tell(tmp_path, story)


def test_a_document_counts_and_is_refused_as_well(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        large = json.dumps({"user_data": noise(40_000).decode()}).encode()
        await host.operations.put_document(ONE, large, who=WHO)
        with pytest.raises(InputError, match=f"{ONE}: the user-data does not fit"):
            await put(host, source("base", noise(30_000, 1)))
        await put(host, source("base", noise(20_000, 1)))
        with pytest.raises(InputError, match="does not fit"):
            larger = json.dumps({"user_data": noise(48_000).decode()}).encode()
            await host.operations.put_document(ONE, larger, who=WHO)
        assert host.store.body(ONE)[1] == large
        # What a document says of its instance's scopes counts as of its last writing.
        await put(host, source("web", noise(30_000, 2), scope=parse_scope("tag:role=web")))
        with pytest.raises(InputError, match="does not fit"):
            tagged = json.dumps({"user_data": noise(40_000).decode(), "tags": {"role": "web"}}).encode()
            await host.operations.put_document(ONE, tagged, who=WHO)
        small = json.dumps({"tags": {"role": "web"}}).encode()
        await host.operations.put_document(ONE, small, who=WHO)
        with pytest.raises(InputError, match="does not fit"):
            await put(host, source("web2", noise(30_000, 3), scope=parse_scope("tag:role=web")))

    tell(tmp_path, story)


def test_what_is_packed_is_reckoned_as_it_will_be(tmp_path: Path) -> None:
    """A kilobyte of gzip may be a megabyte in an archive, and more cannot be unpacked there at all."""

    async def story(host: Host) -> None:
        bomb = gzip.compress(CONFIG + b"#" * (2 << 20), mtime=0)
        await put(host, source("bomb", bomb))  # alone it goes as it is
        with pytest.raises(InputError, match="its gzip unpacks to more than"):
            await put(host, source("base"))
        await host.operations.delete_source(HOST, "bomb", who=WHO)
        packed = gzip.compress(CONFIG + b"#" * 900_000, mtime=0)
        await put(host, *(source(f"s{number}", packed) for number in range(COMPOSED_BYTES // 900_100)))
        with pytest.raises(InputError, match=f"the parts have more than {COMPOSED_BYTES} bytes"):
            await put(host, source("more", packed))

    tell(tmp_path, story)


def test_what_compresses_fits(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, *(source(f"s{number}", CONFIG + b"# the same again\n" * 2_000) for number in range(8)))

    tell(tmp_path, story)


def test_what_is_used_up_or_written_anew_or_over_does_not_count(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, source("once", noise(40_000), reads=Reads.ONCE, scope=OWN))
        with pytest.raises(InputError, match="does not fit"):
            await put(host, source("more", noise(40_000, 1)))
        host.store.spend(ONE, [one.item for one in host.store.sources()], 7)
        await put(host, source("more", noise(40_000, 1)))
        with pytest.raises(InputError, match="does not fit"):
            await put(host, source("once", noise(40_000), reads=Reads.ONCE, scope=OWN))
        await host.operations.delete_source(HOST, "more", who=WHO)
        await put(host, source("over", noise(40_000, 2), until=time.time() + 0.05))
        await asyncio.sleep(0.06)
        await put(host, source("more", noise(40_000, 1)))

    tell(tmp_path, story)


def test_vendor_data_has_room_of_its_own(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, source("user", noise(40_000)), source("vendor", noise(200_000, 1), kind=Kind.VENDOR))
        await host.operations.set_policy(ONE, PolicyChange(composition=Composition.VENDOR), who=WHO)
        await put(host, source("more", noise(100_000, 2), scope=OWN))
        with pytest.raises(InputError, match="the vendor data does not fit"):
            await put(host, *(source(f"s{number}", noise(250_000, number), scope=OWN) for number in range(3, 8)))

    tell(tmp_path, story)


@pytest.mark.parametrize("own", ["document", "source"])
def test_one_among_many_who_gets_too_much_is_found(tmp_path: Path, own: str) -> None:
    """All are near the limit; what the others have is made small by gzip."""
    odd = UUID(int=107)

    async def story(host: Host) -> None:
        await put(host, source("base", noise(20_000)))
        for number in range(100, 110):
            instance = UUID(int=number)
            text = noise(40_000, 1) if instance == odd else CONFIG + b"# %d\n" % number * 5_000
            if own == "document":
                await host.operations.put_document(instance, json.dumps({"user_data": text.decode()}).encode(), who=WHO)
            else:
                await put(host, source("own", text, scope=Scope("instance", str(instance))))
        with pytest.raises(InputError, match=f"^{odd}: the user-data does not fit"):
            await put(host, source("more", noise(10_000, 2)))
        await put(host, source("less", noise(1_000, 2)))

    tell(tmp_path, story)


def test_so_many_are_read_once_and_no_more(tmp_path: Path) -> None:
    """What one answer uses up is asked for at once."""

    async def story(host: Host) -> None:
        many = [source(f"s{number}", b"#!x\n", reads=Reads.ONCE) for number in range(ITEMS_MAX)]
        await put(host, *many)
        with pytest.raises(InputError, match="read once, 64 are the most"):
            await put(host, source("more", b"#!x\n", reads=Reads.ONCE))
        await put(host, source("more", b"#!x\n"))

    tell(tmp_path, story, b"[sources]\nlimit_bytes = 1048576\n")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", CONFIG, noise(5_000), "ä".encode() * 5_000, bytes(range(256)) * 20, b"#!x\r\n" * 500,
        gzip.compress(noise(5_000), mtime=0), gzip.compress(b"x" * 100_000, mtime=0), b"\x1f\x8bno gzip",
        b"Content-Type: text/x-shellscript\nMIME-Version: 1.0\nX-More: " + b"h" * 300 + b"\n\n#!x\n",
        b"".join(
            [b'Content-Type: multipart/mixed; boundary="b"\nMIME-Version: 1.0\n\n']
            + [b"--b\nContent-Type: text/cloud-config\nX-H: %d\n\n#cloud-config\na: 1\n" % n for n in range(99)]
            + [b"--b--\n"]
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [b"#!y\n", "#cloud-config\n# ö\n".encode(), noise(100)])
def test_no_part_takes_more_than_is_reckoned(body: bytes, beside: bytes) -> None:
    view = View(ONE, Document(), now=0.0)
    every = [source_part(view, source(name, text)) for name, text in (("a", body), ("b" * 64, beside))]
    for used in (every, every[:1], every * 3):
        made = compose_user(tuple(used), 1 << 22)
        assert made is not None and len(made.body) <= sum(size_of(part) for part in used)


def test_a_template_s_own_text_is_not_reckoned() -> None:
    assert load_of([source("t", b"x" * 1000, template=True, reads=Reads.ONCE)]) == Load(0.0, 1)


def test_two_thousand_instances_are_looked_at_quickly_and_hold_up_nobody(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        with host.store.transaction():
            for number in range(2_000):
                facts = {"project_id": f"p{number % 50}", "user_data": f"#!{number}\n" + "x" * 4_000}
                host.store.put_document(UUID(int=100 + number), json.dumps(facts).encode())
        await put(host, source("first", noise(20_000)))
        longest, loop = 0.0, asyncio.get_running_loop()
        began = loop.time()
        doing = asyncio.ensure_future(put(host, source("base", noise(10_000))))
        while not doing.done():
            before = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - before)
        took = loop.time() - began
        assert took < 3, f"{took:.2f} s"
        assert longest < 0.5, f"{longest:.3f} s without a turn of others"
        with pytest.raises(InputError, match="does not fit"):
            await put(host, source("large", noise(70_000, 1)))

    tell(tmp_path, story)


def test_others_write_while_it_is_looked_at(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        text = noise(20_000).decode()
        with host.store.transaction():
            for number in range(200):
                facts = {"user_data": f"{text}# {number}\n"}
                host.store.put_document(UUID(int=100 + number), json.dumps(facts).encode())
        doing = asyncio.ensure_future(put(host, source("base", CONFIG + b"# much of the same\n" * 2_000)))
        await asyncio.sleep(0.01)
        view = await host.operations.set_policy(ONE, PolicyChange(Access.RESET), who=WHO)
        assert view.v4 == "reset" and not doing.done()
        await doing

    tell(tmp_path, story)
