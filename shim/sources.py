"""The identity sources that a configuration names, and what keeps an eye on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from shim.config import Config
from shim.identity.alias import Alias
from shim.identity.child import Child
from shim.identity.file import StaticFile
from shim.identity.operator import Operator
from shim.identity.resolve import Source
from shim.metadata.store import Store

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0


def sources_of(config: Config, store: Store) -> list[Source]:
    """In the configured order."""
    return [_source(name, config, store) for name in config.identity.sources]


def _source(name: str, config: Config, store: Store) -> Source:
    """Each brings what only it needs."""
    if name == "operator":
        return Operator(store.attachments)
    if name == "file":
        return StaticFile(Path(config.identity.file))
    if name == "netns":
        return _netns(config)
    if name == "libvirt":
        return Child("libvirt", "shim.identity.libvirt", config.identity.libvirt_uri, config.identity.libvirt_state)
    if name == "ovs":
        return Child("ovs", "shim.identity.ovs", config.identity.ovs, config.identity.ovs_tls)
    return Alias()


def _netns(config: Config) -> Source:
    from shim.identity.netns import NetnsName
    from shim.netlink import named

    return NetnsName(config.identity.netns_prefix, config.datapath.taps, named.Peers().name_of, named.changes)


async def watched(source: Source, changed: Callable[[], None]) -> None:
    """Watches a source until cancelled."""
    while True:
        try:
            await source.watch(changed)
            return
        except Exception:  # the boundary of one source
            log.exception("the identity source %s cannot be watched; it is tried again", source.name)
        await asyncio.sleep(AGAIN_SECONDS)
