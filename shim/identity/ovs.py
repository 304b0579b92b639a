"""Open vSwitch as the origin of identity: a child of the agent's, `python -m shim.identity.ovs REMOTE [TLS]`.

It follows the interfaces in the database (`ovsdb`), reads what they say (`external_ids`) and says on standard output
what is new of it (`said`).
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shim.identity.said import TROUBLE_MAX, Said, plain
from shim.identity.speaker import CAP_DAC_OVERRIDE, Speaker

if TYPE_CHECKING:
    from shim.identity.ovsdb import Follower

UNIX = "unix:"
PACE = 0.02
"""Seconds of rest after each message: one change is told at once, a storm of them in few messages."""

LIBRARY_SECONDS = 5.0
NO_LIBRARY = "the ovs library is not here: apt install python3-openvswitch"


class Telling:
    """What was said so far, and what is to be said next."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._begun = False
        self._trouble = ""

    def next(self) -> Said | None:
        """The next message; None when there is nothing to be said. First comes the whole table, then what changed."""
        follower = self._follower
        claims, gone = follower.interfaces.news() if follower.read else ((), ())
        trouble = plain(follower.trouble, TROUBLE_MAX)
        whole = follower.read and not self._begun
        if not (whole or claims or gone) and trouble == self._trouble:
            return None
        self._begun, self._trouble = self._begun or whole, trouble
        return Said(whole=whole, claims=claims, gone=gone, trouble=trouble)


def capabilities(remote: str) -> tuple[int, ...]:
    """What the child must keep: Open vSwitch may run as a user of its own, and its socket be that user's alone."""
    if not remote.startswith(UNIX):
        return ()
    try:
        return () if Path(remote.removeprefix(UNIX)).stat().st_uid == 0 else (CAP_DAC_OVERRIDE,)
    except OSError:  # not there yet, so who knows whose it will be
        return (CAP_DAC_OVERRIDE,)


def _await_library(speaker: Speaker) -> None:
    """Returns once it can be imported: it may be installed meanwhile."""
    told = False
    while True:
        try:
            importlib.import_module("ovs.jsonrpc")
            return
        except ImportError:
            if not told:
                speaker.say(Said(trouble=NO_LIBRARY))
            told = True
            time.sleep(LIBRARY_SECONDS)
            importlib.invalidate_caches()


def main(remote: str, tls: str = "") -> None:
    """Follows `remote`, with what is in the folder `tls` if it is one of ssl:. Never returns: the speaker ends the
    process with the agent's."""
    speaker = Speaker(capabilities(remote))
    _await_library(speaker)
    from ovs.poller import Poller

    from shim.identity.ovsdb import Follower

    follower, poller = Follower(remote, tls), Poller()
    telling = Telling(follower)
    while True:
        more = follower.run()
        said = telling.next()
        if said is not None:
            speaker.say(said)
            del said  # ten thousand claims, before a long wait
            time.sleep(PACE)
        elif not more:
            follower.wait(poller)
            poller.block()


if __name__ == "__main__":
    main(*sys.argv[1:])
