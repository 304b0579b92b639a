"""What becomes of writes when the disk is full, and of reads meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.store_hall import PREAMBLE

FULL = PREAMBLE + """
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", sys.argv[1]], check=True)
path, ballast = Path(sys.argv[1], "metashim.db"), Path(sys.argv[1], "ballast")
ballast.write_bytes(bytes(200_000))
store, kept, failure = Store(path), {}, None
for number in range(100):
    instance = UUID(int=number)
    try:
        kept[store.put_document(instance, json.dumps({"vendor_data": "x" * 40_000}).encode())] = instance
    except StoreError as error:
        failure = error
        break
whole = {store.body(one)[0]: one for one in kept.values()} == kept and store.instances() == set(kept.values())
ballast.unlink()
small = store.put_document(UUID(int=1000), b"{}")
store.close()
again = Store(path)
print(json.dumps({
    "failure": str(failure), "hint": failure and failure.hint, "whole": whole, "kept": len(kept),
    "lasts": len(again.instances()), "small": small == max(kept) + 1,
}))
"""


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    command = ["unshare", "-m", sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "full" in found["failure"]
    assert "nothing was changed" in found["hint"]
    assert found["kept"] > 2
    assert found["whole"]
    assert found["small"]
    assert found["lasts"] == found["kept"] + 1
