"""What operators and the watched folder do with sources: what is refused and whom it names, templates, previews."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from uuid import UUID

import pytest

from shim.control.operations import PolicyChange
from shim.core.kv import Value
from shim.core.policy import Access
from shim.core.source import HOST, Reads, Scope, Source, parse_scope
from shim.errors import ConflictError, InputError, NotFoundError, StoreError
from shim.metadata.store_sources import DIRECTORY
from shim.source_operations import SOURCE_BYTES
from tests.unit.agent_site import NOVA, ONE, TWO, WHO, Host, tell

OWN = Scope("instance", str(ONE))
WATCHED = b'[sources]\ndirectory = "/etc/metashim/sources"\n'
CONFIG = b"#cloud-config\n"


def source(name: str, body: bytes = b"#!x\n", scope: Scope = HOST, **more: object) -> Source:
    return Source(scope, name, body, **more)  # type: ignore[arg-type]


def noise(size: int, seed: int = 0) -> bytes:
    """What gzip makes no smaller than base64 would have it."""
    return CONFIG + b"# " + bytes(random.Random(seed).choices(range(48, 122), k=size)).replace(b"\n", b"x") + b"\n"


async def put(host: Host, *sources: Source) -> None:
    for one in sources:
        await host.operations.put_source(one, who=WHO)


def bodies(host: Host) -> dict[str, bytes]:
    return {f"{one.scope.text}/{one.name}": one.body for one in host.store.sources()}


class TestWriting:
    def test_one_is_kept_told_and_taken_back(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            freed = []
            host.operations.freed = lambda: freed.append(1)  # type: ignore[method-assign]
            view = await host.operations.put_source(source("base", owner="net"), who=WHO)
            assert (view.created, view.problems, view.source.scope, view.source.revision) == (True, [], "host", 1)
            assert [what for what, _ in host.workers.told] == ["changed", "settled"]
            again = await host.operations.put_source(source("base", b"#!y\n"), who=WHO)
            assert not again.created and again.source.revision == 2
            assert (await host.operations.source(HOST, "base")).body == b"#!y\n"
            await host.operations.delete_source(HOST, "base", who=WHO)
            assert freed == [1]
            with pytest.raises(NotFoundError):
                await host.operations.source(HOST, "base")
            with pytest.raises(NotFoundError):
                await host.operations.delete_source(HOST, "base", who=WHO)
            assert host.audited == [
                (WHO, "source put", "host/base, user data, 4 bytes"),
                (WHO, "source put", "host/base, user data, 4 bytes"),
                (WHO, "source remove", "host/base, user data, 4 bytes"),
            ]

        tell(tmp_path, story)

    def test_the_trail_says_whose_an_instance_s_is(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await put(host, source("own", scope=OWN), source("base"))
            assert [(row.instance, row.detail.partition(",")[0]) for row in host.store.audits()] == [
                (ONE, f"instance:{ONE}/own"), (None, "host/base"),
            ]  # fmt: skip

        tell(tmp_path, story)

    def test_origin_and_revision_are_not_the_caller_s(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            view = await host.operations.put_source(source("a", origin=DIRECTORY, revision=99, changed=1.0), who=WHO)
            assert (view.source.origin, view.source.revision) == ("operator", 1) and view.source.changed > 1e9

        tell(tmp_path, story)

    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            (source("a", b"x" * (SOURCE_BYTES + 1)), "the source has 262145 bytes"),
            (source("a", b"", reads=Reads.ONCE), "to be read once is empty"),
            (source("document", scope=OWN), "name of the instance's own document"), (source("a", order=1000), "order"),
            (source("a", until=float("nan")), "deadline"), (source("a/b"), "no name of a source"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_and_changes_nothing(self, tmp_path: Path, wrong: Source, why: str) -> None:
        async def story(host: Host) -> None:
            with pytest.raises(InputError, match=why):
                await put(host, wrong)
            assert host.store.sources() == [] and host.audited == [] and host.workers.told == []

        tell(tmp_path, story)

    def test_a_store_that_fails_changes_nothing(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.store._db.execute("PRAGMA query_only = 1")
            with pytest.raises(StoreError):
                await put(host, source("base"))
            host.store._db.execute("PRAGMA query_only = 0")
            await put(host, source("base"))

        tell(tmp_path, story)

    def test_a_watched_file_s_is_the_file_s_matter(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            assert await host.operations.apply_directory([source("base", b"#!file\n")], []) == []
            for doing in (put(host, source("base")), host.operations.delete_source(HOST, "base", who=WHO)):
                with pytest.raises(ConflictError, match=r"host/base is a file of sources\.directory") as caught:
                    await doing
                assert "the file" in caught.value.hint
            assert bodies(host) == {"host/base": b"#!file\n"}

        async def unwatched(host: Host) -> None:
            await put(host, source("base"))
            assert host.store.sources()[0].origin == "operator"

        tell(tmp_path, story, WATCHED)
        tell(tmp_path, unwatched)

    def test_who_goes_before_the_end_leaves_no_half(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            for turns in range(1, 8):
                host.workers.told.clear()
                doing = asyncio.ensure_future(put(host, source(f"s{turns}")))
                for _ in range(turns):
                    await asyncio.sleep(0)
                doing.cancel()
                await asyncio.gather(doing, *host.operations.under_way, return_exceptions=True)
                assert f"host/s{turns}" in bodies(host)
                assert [what for what, _ in host.workers.told] == ["changed", "settled"]

        tell(tmp_path, story)


class TestListing:
    def test_of_a_scope_of_an_instance_and_of_all(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.store.put_document(ONE, json.dumps({"image_id": "img", "tags": {"role": "web"}}).encode())
            shared = ["host", "project:p", "project:other", "image:img", "tag:role=web", "tag:role=db"]
            for number, text in enumerate((*shared, str(ONE), str(TWO))):
                await put(host, source(f"s{number}", scope=parse_scope(text)))
            await put(host, source("first", order=1, scope=OWN))

            async def listed(scope: Scope | None = None, instance: UUID | None = None) -> list[str]:
                return [one.name for one in await host.operations.sources(scope, instance)]

            assert await listed(instance=ONE) == ["first", "s0", "s1", "s3", "s4", "s6"], "its project is its tap's"
            assert await listed(instance=TWO) == ["s0", "s7"]
            assert await listed(OWN) == ["first", "s6"]
            assert await listed() == ["first", "s0", "s2", "s1", "s3", "s5", "s4", "s6", "s7"]

        tell(tmp_path, story)

    def test_what_is_used_up_or_over_is_not_listed_and_is_there_to_be_taken_back(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            over = time.time() + 0.05
            await put(
                host, source("once", reads=Reads.ONCE, scope=OWN), source("over", until=over),
                source("all", reads=Reads.ONCE), source("waits", reads=Reads.CONFIRM, scope=OWN),
            )  # fmt: skip
            items = [one.item for one in host.store.sources() if one.reads is not Reads.MANY and one.name != "waits"]
            host.store.spend(ONE, items, 7)
            await asyncio.sleep(0.06)
            assert [one.name for one in await host.operations.sources(None)] == ["all", "waits"]
            assert [one.name for one in await host.operations.sources(None, ONE)] == ["waits"]
            assert [one.name for one in await host.operations.sources(None, TWO)] == ["all"]
            for scope, name in ((OWN, "once"), (HOST, "over")):
                assert (await host.operations.source(scope, name)).name == name
                await host.operations.delete_source(scope, name, who=WHO)

        tell(tmp_path, story)


class TestTemplates:
    def test_wrong_syntax_is_refused(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            with pytest.raises(InputError, match=r"host/t: .*line 2") as caught:
                await put(host, source("t", b"#!x\n{{ oops\n", template=True))
            assert "correct the template" in caught.value.hint
            assert host.store.sources() == []

        tell(tmp_path, story)

    def test_for_whom_it_does_not_render_is_told(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            host.store.put_document(TWO, b'{"name": "two", "project_id": "q"}')
            host.store.put_value(ONE, Value("host/role", b"web"))
            view = await host.operations.put_source(source("t", b"#!{{ kv['host/role'] }}\n", template=True), who=WHO)
            (problem,) = view.problems
            assert problem.startswith(f"{TWO}: host/t") and view.created
            only = source("p", b"#!{{ kv['host/role'] }}\n", parse_scope("project:p"), template=True)
            assert (await host.operations.put_source(only, who=WHO)).problems == view.problems[1:] == []

        tell(tmp_path, story)

    def test_nobody_waits_for_one_that_takes_its_time(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            doing = asyncio.ensure_future(put(host, source("t", b"#!{{ instance_id }}\n", template=True)))
            await asyncio.sleep(0.01)
            began = asyncio.get_running_loop().time()
            await host.operations.set_policy(ONE, PolicyChange(Access.RESET), who=WHO)
            await put(host, source("plain"))
            assert not doing.done() and asyncio.get_running_loop().time() - began < 0.5
            await doing

        tell(tmp_path, story)


class TestDirectory:
    def test_what_it_says_is_what_is_there(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            apply = host.operations.apply_directory
            assert await apply([source("a"), source("b", scope=OWN)], []) == []
            assert all(one.origin == DIRECTORY for one in host.store.sources())
            revisions = [one.revision for one in host.store.sources()]
            assert await apply([source("a"), source("b", scope=OWN)], []) == []
            assert [one.revision for one in host.store.sources()] == revisions, "what is as it was is not written"
            assert await apply([source("a", b"#!new\n")], []) == []
            assert bodies(host) == {"host/a": b"#!new\n"}
            assert [detail for _, _, detail in host.audited] == [
                "2 added, 0 changed, 0 removed", "0 added, 1 changed, 1 removed"
            ]  # fmt: skip
            assert host.workers.told[-1][0] == "settled"

        tell(tmp_path, story, WATCHED)

    def test_an_operator_s_holds_until_it_is_gone(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await put(host, source("base", b"#!operator\n"))
            file = source("base", noise(70_000))  # which would not fit either: that is no matter while it is held
            (fault,) = await host.operations.apply_directory([file, source("more")], [])
            assert fault[0].startswith("host/base, user data") and "an operator has a source of that name" in fault[0]
            assert bodies(host) == {"host/base": b"#!operator\n", "host/more": b"#!x\n"}
            await host.operations.delete_source(HOST, "base", who=WHO)
            (fault,) = await host.operations.apply_directory([file, source("more")], [])
            assert "does not fit" in fault[0]
            assert await host.operations.apply_directory([source("base"), source("more")], []) == []

        tell(tmp_path, story, WATCHED)

    def test_a_fault_in_one_concerns_no_other_and_its_former_stays(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            apply = host.operations.apply_directory
            assert await apply([source("a"), source("t", b"#!{{ instance_id }}\n", template=True)], []) == []
            kept = bodies(host)
            faults = await apply(
                [
                    source("a", noise(70_000)), source("b", b"#!b\n"), source("c", noise(70_000, 1)),
                    source("d", b"#!d\n", OWN), source("n", b"{{", template=True),
                    source("t", b"#!{{\n", template=True),
                ],
                [],
            )  # fmt: skip
            assert [what.partition(",")[0].partition(":")[0] for what, _ in faults] == [
                "host/n", "host/t", "host/a", "host/c"
            ]  # fmt: skip
            assert all(hint for _, hint in faults)
            assert bodies(host) == {**kept, "host/b": b"#!b\n", f"instance:{ONE}/d": b"#!d\n"}

        tell(tmp_path, story, WATCHED)

    def test_the_first_that_fit_are_taken(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            three = [source(name, noise(25_000, number)) for number, name in enumerate("abc")]
            (fault,) = await host.operations.apply_directory(three, [])
            assert fault[0].startswith("host/c") and list(bodies(host)) == ["host/a", "host/b"]
            # Once there is room it comes by itself, as it is tried at every look.
            assert await host.operations.apply_directory([source("a"), *three[1:]], []) == []

        tell(tmp_path, story, WATCHED)

    def test_what_goes_makes_room_for_what_comes(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            for name in "abc":
                assert await host.operations.apply_directory([source(name, noise(50_000, ord(name)))], []) == []
                assert list(bodies(host)) == [f"host/{name}"]

        tell(tmp_path, story, WATCHED)

    def test_one_who_has_too_much_already_keeps_nothing_from_others(self, tmp_path: Path) -> None:
        """The limit was lowered since: what concerns that one alone cannot be, all else can."""

        async def story(host: Host) -> None:
            assert await host.operations.apply_directory([source("own", noise(30_000), OWN)], []) == []

        async def lowered(host: Host) -> None:
            host.store.put_document(TWO, b"{}")
            own, other = source("own", noise(30_001), OWN), source("other", b"#!x\n", Scope("instance", str(TWO)))
            (fault,) = await host.operations.apply_directory([own, other], [])
            assert str(ONE) in fault[0] and f"instance:{TWO}/other" in bodies(host)
            assert await host.operations.apply_directory([other], []) == []

        tell(tmp_path, story, WATCHED)
        tell(tmp_path, lowered, WATCHED + b"limit_bytes = 20000\n")

    def test_a_store_that_fails_changes_nothing(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            assert await host.operations.apply_directory([source("a")], []) == []
            host.store._db.execute("PRAGMA query_only = 1")
            with pytest.raises(StoreError):
                await host.operations.apply_directory([source("b")], [])
            assert list(bodies(host)) == ["host/a"]

        tell(tmp_path, story, WATCHED)


class TestPreview:
    def test_of_all_that_an_instance_has(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            await put(host, source("base", CONFIG + b"packages: [a]\n"))
            await put(host, source("own", b"#!once\n", OWN, reads=Reads.ONCE))
            view = await host.operations.preview(ONE)
            assert [part.id for part in view.user.parts] == ["host/base", "instance/own"]
            assert view.user.problems == [] and (view.composition, view.limit) == ("merged", 49_149)
            assert [part.id for part in (await host.operations.preview(ONE)).user.parts] == [
                "host/base", "instance/own"
            ], "nothing is used up by it"  # fmt: skip
            host.store.spend(ONE, [one.item for one in host.store.sources()], 7)
            assert [part.id for part in (await host.operations.preview(ONE)).user.parts] == ["host/base"]

        tell(tmp_path, story)

    @pytest.mark.parametrize(
        ("routes", "names"),
        [
            ((("/", "nova"),), ["nova"]), ((("/", "embedded"),), []), ((("/computeMetadata", "nova"),), []),
            ((("/", "nova"), ("/latest", "embedded")), ["nova"]),
            ((("/", "embedded"), ("/openstack", "nova")), ["nova"]),
        ],
    )  # fmt: skip
    def test_says_what_it_lacks_of_one_whose_answers_are_made_elsewhere(
        self, tmp_path: Path, routes: tuple[tuple[str, str], ...], names: list[str]
    ) -> None:
        async def story(host: Host) -> None:
            await host.operations.set_policy(ONE, PolicyChange(routes=routes), who=WHO)
            found = host.operations._unseen(ONE)
            assert [one.what.partition(" ")[0] for one in found] == names
            assert all(one.id == "backend/user-data" and "not in this preview" in one.what for one in found)

        tell(tmp_path, story, NOVA)

    def test_whole(self, tmp_path: Path) -> None:
        async def story(host: Host) -> None:
            view = await host.operations.preview(ONE)
            assert [one.what.partition(" ")[0] for one in view.user.problems] == ["nova"]

        tell(tmp_path, story, NOVA + b'[forward]\nroutes = {"/" = "nova"}\n')
