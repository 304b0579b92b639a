"""What the agent does for operators, over the shipped fake datapath and a real store: order, refusals, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shim import feed
from shim.control.operations import PolicyChange
from shim.core.link import Place
from shim.core.policy import Access, Policy, Tokens
from shim.errors import InputError, KernelError
from shim.held import feed_entry
from tests.unit import agent_site
from tests.unit.agent_site import NOVA, ONE, TWO, WHO, Host


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., None]:
    """Tells a story of a host, with Nova unless another configuration is given."""

    def told(story: agent_site.Story, config: bytes = NOVA) -> None:
        agent_site.tell(tmp_path, story, config)

    return told


Tell = Callable[..., None]
URLS = ("http://10.0.0.1:8775", "http://10.0.0.2:8775")
REQUIRED = PolicyChange(tokens=Tokens.REQUIRED)


def test_workers_are_told_all_of_a_port(tell: Tell) -> None:
    async def story(host: Host) -> None:
        await host.operations.set_policy(ONE, PolicyChange(tokens=Tokens.OFF, routes=(("/", "nova"),)), who=WHO)
        entry = feed_entry(host.enrolment.ports[Place("", 1)])
        assert entry == feed.Entry(1, 1, ONE, "open", "open", "off", (("/", "nova"),), "p", "")
        assert feed.read_from_agent(feed.encode(feed.Put(3, entry))) == feed.Put(3, entry)

    tell(story)


def test_required_before_it_is_kept_and_let_go_after(tell: Tell, tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        kept: list[tuple[str, object]] = []
        put = host.store.put_policy
        host.store.put_policy = lambda i, p: (kept.append(("kept", p.tokens)), put(i, p))[1]  # type: ignore[method-assign]
        host.workers.told = kept
        view = await host.operations.set_policy(ONE, REQUIRED, who=WHO)
        assert (view.tokens, view.own_tokens, view.own_routes) == ("required", True, False)
        # The commit follows the first "settled": nothing is kept that is not in force.
        assert [told for told in kept if told[0] != "settled"] == [
            ("kept", Tokens.REQUIRED), ("put", "required"), ("put", "required")
        ]  # fmt: skip
        kept.clear()
        await host.operations.set_policy(ONE, PolicyChange(tokens=None), who=WHO)
        assert [told for told in kept if told[0] != "settled"] == [("kept", None), ("put", "required"), ("put", None)]
        assert kept[-1][0] == "settled", "a verb returns when every worker does as told"

    tell(story)


def test_what_the_kernel_refuses_is_taken_back(tell: Tell) -> None:
    async def story(host: Host) -> None:
        await host.operations.set_policy(ONE, REQUIRED, who=WHO)
        host.datapath.refuses = lambda policy: policy.v4 is Access.DROP
        with pytest.raises(KernelError):
            await host.operations.set_policy(ONE, PolicyChange(Access.DROP, tokens=None), who=WHO)
        assert host.policies[ONE] == Policy(tokens=Tokens.REQUIRED) == host.store.policies()[ONE]
        assert host.workers.told[-2] == ("put", "required")

    tell(story)


def test_a_policy_is_kept_whole_over_a_restart(tell: Tell) -> None:
    change = PolicyChange(tokens=Tokens.OPTIONAL, routes=(("/", "nova"), ("/latest", "embedded")))

    async def story(host: Host) -> None:
        await host.operations.set_policy(ONE, change, who=WHO)
        await host.operations.set_policy(ONE, PolicyChange(Access.FORBID, hop_limit=3), who=WHO)
        (event,) = (await host.journal.after(1, 0)).events
        assert event.text == (
            "IPv4 403, IPv6 403, hop limit 3, tokens optional, routes / nova, /latest embedded"
        )

    async def again(host: Host) -> None:
        view = await host.operations.policy(ONE)
        assert (view.v4, view.hop_limit, view.tokens) == ("403", 3, "optional")
        assert view.routes == {"/": "nova", "/latest": "embedded"}

    tell(story)
    tell(again)


def test_a_backend_that_is_not_set_up_is_not_routed_to(tell: Tell) -> None:
    async def story(host: Host) -> None:
        with pytest.raises(InputError, match="the backend http is not set up") as caught:
            change = PolicyChange(Access.DROP, routes=(("/", "embedded"), ("/a", "http")))
            await host.operations.set_policy(ONE, change, who=WHO)
        assert "http.addresses" in caught.value.hint
        assert host.policies == {} == host.store.policies()
        assert host.operations.misrouted() == []

    tell(story)


def test_routes_to_a_backend_that_was_taken_away_are_an_ailment(tell: Tell) -> None:
    async def story(host: Host) -> None:
        await host.operations.set_policy(ONE, PolicyChange(routes=(("/", "nova"),)), who=WHO)

    async def without(host: Host) -> None:
        (ailment,) = host.operations.misrouted()
        assert str(ONE) in ailment.what and "nova" in ailment.what and "--default" in ailment.hint
        await host.operations.set_policy(ONE, PolicyChange(Access.RESET), who=WHO)
        await host.operations.set_policy(ONE, PolicyChange(routes=None), who=WHO)
        assert host.operations.misrouted() == []

    tell(story)
    tell(without, b"")


def test_addresses_that_are_down_are_ailments(tell: Tell) -> None:
    async def story(host: Host) -> None:
        def hear(*well: bool) -> None:
            pairs = zip(URLS, well, strict=True)
            states = [feed.AddressHealth("nova", url, up, "" if up else "refused") for url, up in pairs]
            host.workers.ledger.hear(0, feed.Backends(states))

        assert host.operations.down() == []
        hear(False, True)
        (ailment,) = host.operations.down()
        assert (ailment.part, ailment.what) == ("backend nova", f"{URLS[0]} is down: refused")
        shown = (await host.operations.status()).backends
        assert [(one.name, one.address, one.healthy, one.why) for one in shown] == [
            ("nova", URLS[0], False, "refused"), ("nova", URLS[1], True, ""),
        ]  # fmt: skip
        hear(False, False)
        assert len(host.operations.down()) == 3
        assert "guests get 503" in host.operations.down()[-1].what

    tell(story, f'[nova]\naddresses = ["{URLS[0]}", "{URLS[1]}"]\nsecret_file = "/x"\n'.encode())


def test_the_host_s_own_are_shown_where_an_instance_has_none(tell: Tell) -> None:
    async def story(host: Host) -> None:
        view = await host.operations.policy(ONE)
        assert (view.own, view.tokens, view.own_tokens) == (False, "required", False)
        assert (view.routes, view.own_routes) == ({"/": "nova"}, False)
        status = await host.operations.status()
        assert (status.tokens, status.routes) == ("required", {"/": "nova"})

    tell(story, NOVA + b'[tokens]\nmode = "required"\n[forward]\nroutes = {"/" = "nova"}\n')


def test_who_asks_without_tokens(tell: Tell) -> None:
    async def story(host: Host) -> None:
        await host.operations.set_policy(TWO, PolicyChange(tokens=Tokens.OFF), who=WHO)
        counts = dict.fromkeys(feed.COUNTS, 0) | dict(zip(feed.TOKENS, (3, 2, 1), strict=True))
        host.workers.ledger.hear(0, feed.Usage([(1, 1, tuple(counts.values()))]))
        view = await host.operations.tokens()
        assert view.mode == "optional"
        assert [(i.instance, i.mode, i.own) for i in view.instances] == [(ONE, "optional", False), (TWO, "off", True)]
        one, two = view.instances
        assert (one.with_token, one.without_token, one.token_refused) == (3, 2, 1)
        assert (two.with_token, two.without_token, two.token_refused) == (0, 0, 0)

    tell(story)


def test_keys_are_changed_when_every_worker_knows(tell: Tell) -> None:
    async def story(host: Host) -> None:
        view = await host.operations.rotate_keys(drop=False, who=WHO)
        assert (view.keys, view.begins_seconds) == (2, 60.0)
        view = await host.operations.rotate_keys(drop=True, who=WHO)
        assert (view.keys, view.begins_seconds) == (1, 0.0)
        assert [what for what, _ in host.workers.told] == ["keys", "settled"] * 2
        (_, rings), (_, number) = host.workers.told[2:]
        assert isinstance(rings, tuple) and len(rings) == 1 and number == 3
        texts = [event.text for event in (await host.journal.after(0, 0)).events]
        assert texts == ["session tokens: a new key", "session tokens: a new key, and no other holds any more"]

    tell(story)
