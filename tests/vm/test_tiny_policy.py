"""What operators and guests switch, as it is met inside a guest that runs, and by the same instance's next boot."""

from __future__ import annotations

import re

from shim.core.policy import Access
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add
from tests.vm.plug import STATIC, plugged, tiny

A, B = uuid_of(1), uuid_of(2)
MET = {Access.RESET: "refused", Access.DROP: "timeout", Access.FORBID: "403"}
STEP_SECONDS = 150.0
ROLE = "/metashim/v1/kv/host/role"
SECRET, SECRET_PATH = "s3cret-of-one-boot", "/metashim/v1/sources/instance/secret"

SWITCHED = f"""
etag=$(tag $V4 {ROLE})
echo "open $(outcome $V4 {ROLE}) $(outcome $V6)"
for how in reset drop 403; do
    outcome $V4 "{ROLE}?wait=200&etag=$etag" 250 >/tmp/waiter &
    waiter=$!
    sleep 1
    echo "ready $how"; await off
    [ $how = drop ] || wait $waiter
    [ $how = drop ] && limit=2 || limit=30
    echo "met $how $(outcome $V4 $ID $limit) $(outcome $V6 $ID $limit) $(outcome $LL $ID $limit)"
    await on
    echo "again $how $(outcome $V4 $ID) $(outcome $V6) waiter: $(cat /tmp/waiter)"
done
"""


def test_an_operator_switches_a_running_guest_off_in_each_way_and_on_again(shared: Hypervisor) -> None:
    """A request that waits for a change meets it too, at once."""
    shared.api.put_key(A, "host/role", b"web", {})
    with plugged(shared, "tapswitch", A) as tap, tiny(shared, tap).start(STATIC + SWITCHED) as guest:
        for how, met in MET.items():
            guest.await_line(f"^ready {how.value}$", STEP_SECONDS)
            shared.disable(A, how)
            guest.tell("off")
            guest.await_line(f"^met {how.value} {met} {met} {met}$", STEP_SECONDS)
            shared.enable(A)
            guest.tell("on")
        said = guest.output()
    assert f"open web {A}\n" in said.text, said.text
    for how in MET:
        assert f"again {how.value} {A} {A} " in said.text, said.text
    assert re.search(r"^again reset .* waiter: reset$", said.text, re.MULTILINE), said.text
    assert re.search(r"^again 403 .* waiter: 403$", said.text, re.MULTILINE), said.text


LIVED = f"""
etag=$(tag $V4 {ROLE})
echo watching
echo "role $(outcome $V4 "{ROLE}?wait=200&etag=$etag" 250)"
echo "secret $(get $V4 {SECRET_PATH})"
echo "then $(outcome $V4 {SECRET_PATH}) $(outcome $V4 /latest/user-data)"
echo -n up >/tmp/state
echo "wrote $(ask $V4 PUT /metashim/v1/kv/guest/state /tmp/state)"
echo "read $(get $V6 /metashim/v1/kv/guest/state)"
echo "locked $(ask $V4 POST /metashim/v1/lock)"
while [ "$(outcome $V4 $ID 5)" != refused ]; do sleep 0.2; done
echo "after $(outcome $V4) $(outcome $V6) $(outcome $LL)"
"""
NEXT_BOOT = f"""
echo "locked $(outcome $V4) $(outcome $V6) $(outcome $LL)"
echo ready; await unlocked
echo "open $(outcome $V4) $(outcome $V6)"
echo "secret $(outcome $V4 {SECRET_PATH}) $(outcome $LL {SECRET_PATH}) $(outcome $V4 /latest/user-data)"
echo "kept $(get $V4 /metashim/v1/kv/guest/state)"
"""


def test_a_guest_watches_reads_once_writes_and_locks_itself_for_good(shared: Hypervisor) -> None:
    add(shared, B, "secret", SECRET.encode(), reads="once")
    shared.api.put_key(B, "host/role", b"standby", {})
    with plugged(shared, "taplock", B) as tap:
        with tiny(shared, tap).start(STATIC + LIVED) as guest:
            guest.await_line("^watching$", STEP_SECONDS)
            shared.api.put_key(B, "host/role", b"primary", {})
            guest.await_line("^role primary$", STEP_SECONDS)
            said = guest.output()
        assert f"secret {SECRET}\n" in said.text and said.text.count(SECRET) == 1, said.text
        assert "then 404 404\n" in said.text, said.text
        assert "wrote 201\n" in said.text and "read up\n" in said.text, said.text
        assert "locked 204\n" in said.text and "after refused refused refused\n" in said.text, said.text

        with tiny(shared, tap).start(STATIC + NEXT_BOOT) as guest:
            guest.await_line("^locked refused refused refused$", STEP_SECONDS)
            assert shared.verb("enable", str(B), check=False).returncode == 6, "an operator must unlock it"
            shared.verb("unlock", str(B))
            guest.tell("unlocked")
            said = guest.output()
    assert f"open {B} {B}\n" in said.text and "kept up\n" in said.text, said.text
    assert "secret 404 404 404\n" in said.text and SECRET not in said.text, said.text
