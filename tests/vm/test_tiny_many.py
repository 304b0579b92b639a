"""Ten real guests at once, all with one IP and one MAC, each of which gets what is its own and nothing else."""

from __future__ import annotations

import random
from contextlib import ExitStack
from hashlib import md5

from tests.lab import service_frames
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.vm.plug import STATIC, documented, plugged, tiny

COUNT, ROUNDS = 10, 3
FETCHES = f"""
echo ready
await go
for round in $(seq {ROUNDS}); do
    for address in $V4 $V6 $LL; do
        echo "id $(get $address $ID 60)"
        echo "data $(get $address /latest/user-data 60 | md5sum | cut -c1-32)"
    done
done >/tmp/met
sort /tmp/met | uniq -c | sed 's/^ *//'
"""


def test_ten_guests_with_one_address_and_one_mac(shared: Hypervisor) -> None:
    instances = [uuid_of(100 + number) for number in range(COUNT)]
    data = [random.Random(number).randbytes(15000).hex() for number in range(COUNT)]
    with ExitStack() as all_of_them:
        lab = shared.lab
        wires = [lab.capture("uplink"), lab.capture("uplink", lab.wire), lab.capture("br0")]
        guests = []
        for number, instance in enumerate(instances):
            documented(shared, instance, user_data=data[number])
            tap = all_of_them.enter_context(plugged(shared, f"tapmany{number}", instance))
            guests.append(all_of_them.enter_context(tiny(shared, tap).start(STATIC + FETCHES)))
        for guest in guests:
            guest.await_line("^ready$", 300)
        for guest in guests:
            guest.tell("go")
        for guest, instance, own in zip(guests, instances, data, strict=True):
            said = guest.output(300)
            met = f"ready\n{3 * ROUNDS} data {md5(own.encode()).hexdigest()}\n{3 * ROUNDS} id {instance}\n"
            assert said.text == met, f"{instance}'s guest"
        assert not [frame for wire in wires for frame in service_frames(wire.frames())]
