"""A real guest's kernel, without DHCP and without a default route, gets what is its own, over each address."""

from __future__ import annotations

import re
from hashlib import md5

from tests.lab import service_frames
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.vm.plug import STATIC, documented, plugged, tiny

A = uuid_of(1)
USER_DATA = "#!/bin/sh\necho hello\n"


def test_a_static_address_and_nothing_else_before_and_after_a_reboot(shared: Hypervisor) -> None:
    """The boot that knows nothing of the former one's open connection may use its port."""
    documented(shared, A, user_data=USER_DATA)
    wires = [shared.lab.capture("uplink"), shared.lab.capture("uplink", shared.lab.wire), shared.lab.capture("br0")]
    with plugged(shared, "tapstatic", A) as tap:
        said = tiny(shared, tap, reboots=True).run(
            STATIC
            + r"""
            ip route | grep -q default && echo default=there
            for address in $V4 $V6 $LL; do
                echo "id $(get $address $ID)"
                echo "user-data $(get $address /latest/user-data | md5sum)"
                ping -c 1 -W 5 $address >/dev/null && echo "ping answered"
            done
            if [ "$(get $V4 /metashim/v1/kv/guest/booted)" = yes ]; then
                echo "same port $(PORT=40000 ask $V4 GET $ID | tr '\n' ' ')"
                exit 7
            fi
            echo -n yes >/tmp/yes
            echo "wrote $(ask $V4 PUT /metashim/v1/kv/guest/booted /tmp/yes)"
            tag=$(tag $V4 /metashim/v1/kv/guest/booted)
            PORT=40000 ask $V4 GET "/metashim/v1/kv/guest/booted?wait=200&etag=$tag" &
            sleep 1
            reboot -f
            """,
            300,
        )
    assert said.status == 7, said.text
    assert "default=" not in said.text
    boots = said.text.split("=== begin\n")
    assert len(boots) == 2 and re.search("^wrote 20[0-9]$", boots[0], re.MULTILINE), said.text
    assert f"same port 200 {A}\n" in boots[1], said.text
    for boot in boots:
        assert boot.count(f"id {A}\n") == boot.count("ping answered") == 3, boot
        assert boot.count(f"user-data {md5(USER_DATA.encode()).hexdigest()} ") == 3, boot
    assert not [frame for wire in wires for frame in service_frames(wire.frames())]


def test_link_local_addresses_alone(shared: Hypervisor) -> None:
    """At first there is no IPv4 at all. The kernel looks for duplicates of its address, as kernels do."""
    documented(shared, A, user_data=USER_DATA)
    with plugged(shared, "taplocal", A) as tap:
        said = tiny(shared, tap, append="tiny.dad").run(
            """
            up eth0
            settled eth0
            echo "local $(get $LL $ID)"
            echo "user-data $(get $LL /latest/user-data | md5sum)"
            echo "neither $(outcome $V4) $(outcome $V6)"
            ip addr add 169.254.7.5/16 dev eth0
            echo "both $(get $V4 $ID)"
            ping -c 1 -W 5 $LL >/dev/null && ping -c 1 -W 5 $V4 >/dev/null && echo pinged
            ip -o addr show dev eth0
            """
        )
    assert f"local {A}\n" in said.text, said.text
    assert f"both {A}\n" in said.text, said.text
    assert f"user-data {md5(USER_DATA.encode()).hexdigest()} " in said.text, said.text
    assert "pinged" in said.text, said.text
    assert "neither wget: can't connect to remote host" in said.text, said.text
    assert said.text.count(" inet ") == said.text.count(" inet6 ") == 1, said.text
