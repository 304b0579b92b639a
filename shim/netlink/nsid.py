"""By which number one network namespace knows another: rtnetlink's RTM_GETNSID. A veth whose other end is elsewhere
tells of it by that number alone (IFLA_LINK_NETNSID). Numbers are of linux/net_namespace.h and linux/rtnetlink.h.
"""

from __future__ import annotations

import struct

from shim.netlink import rtnl

_GETNSID = 90
_NSID, _FD = 1, 3
_GENERIC = struct.pack("=Bxxx", 0)
_NOT_ASSIGNED = -1


def nsid_of(asked: rtnl.Rtnl, fd: int) -> int | None:
    """The number by which the namespace that is asked knows the one behind a descriptor; None while it has none for it.
    Raises OSError."""
    body = asked.ask(_GETNSID, _GENERIC + rtnl.attribute(_FD, struct.pack("=I", fd)))
    raw = rtnl.attributes(body[len(_GENERIC) :]).get(_NSID)
    number = struct.unpack("=i", raw)[0] if raw else _NOT_ASSIGNED
    return None if number == _NOT_ASSIGNED else int(number)
