"""From one datapath to the other, on a host that serves guests.

The former one may be in the kernel from an earlier run. The hand-over must let no disabled guest in and let
nothing leak, whichever of the two sees a packet first and however old the policies are that the former one holds:

    1. The new one is opened. If that fails, the former one goes on as before.
    2. The gateway's namespace is made anew, and replies from it are the new one's, who knows no connection of the
       former one's. From here on that serves nobody: what it takes off the taps gets no answer. Connections that were
       open end here.
    3. Every tap is ensured in the new one, in the slot that it had.
    4. The former one is removed, which lets the new one see the packets. Where a tap could not be ensured the
       former one stays, and goes on taking all that is for the service off that tap, until an audit gets it done.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from shim.core.link import Place
from shim.datapath.base import Datapath, Enrolled
from shim.enrolment import nobodys
from shim.errors import KernelError

log = logging.getLogger(__name__)


class Handover:
    """Ends `former`, which is not open here."""

    def __init__(self, former: Datapath) -> None:
        self.former = former
        self._taps: set[Place] = set()

    async def observe(self) -> list[Enrolled]:
        """What the former one holds; nothing when that cannot be read any more: its taps get slots as new ones do."""
        try:
            found = await self.former.observe()
        except KernelError as error:
            log.warning("what %s held cannot be read: %s", self.former.name, error)
            return []
        self._taps = {each.place for each in found if each.ifindex}
        return found

    async def go_on(self, failed: Collection[Place]) -> None:
        """Removes the former one, but where taps of it `failed` in the new one. Raises KernelError while something is
        left: then this is to be called again."""
        behind = self._taps.intersection(failed)
        if not behind:
            await self.former.teardown()
            self.former.close()
            return
        for place in self._taps - behind:
            await self.former.remove(nobodys(place))
        what = f"{len(behind)} taps fail in the new datapath; {self.former.name} refuses all there until they do not"
        raise KernelError(what, "their own errors say why; the agent tries again every half minute")
