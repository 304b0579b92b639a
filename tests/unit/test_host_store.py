"""The host's verbs for the store: what stands in the way of a restore is told with what ends that."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim import host_store
from shim.config import Config, parse
from shim.errors import ConflictError
from shim.host import alone
from shim.metadata.store import Store
from tests.unit.store_hall import A, B

pytestmark = pytest.mark.root


@pytest.fixture
def config(tmp_path: Path) -> Config:
    text = f'[host]\nrun_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n[proxy]\nuser = "nobody"\n'
    return parse(text.encode(), "m.toml")


def filled(config: Config, *instances: object) -> None:
    store = Store(config.store)
    for instance in instances:
        store.put_document(instance, b"{}")  # type: ignore[arg-type]
    store.close()


def test_a_copy_made_and_put_back(config: Config, tmp_path: Path) -> None:
    filled(config, A)
    host_store.backup(config, tmp_path / "copy", False)
    filled(config, B)
    host_store.restore(config, tmp_path / "copy")
    store = Store(config.store)
    assert store.documents().keys() == {A}
    assert [row.what for row in store.audits()] == ["restore"]
    store.close()


def test_beside_an_agent_none_is_put_back(config: Config, tmp_path: Path) -> None:
    filled(config, A)
    host_store.backup(config, tmp_path / "copy", False)
    with alone(config), pytest.raises(ConflictError, match="an agent runs already") as caught:
        host_store.restore(config, tmp_path / "copy")
    assert "systemctl stop" in caught.value.hint


def test_whatever_else_is_in_the_way_is_no_matter_of_the_agent_s(config: Config, tmp_path: Path) -> None:
    filled(config, A)
    with pytest.raises(ConflictError, match="is the store itself") as caught:
        host_store.restore(config, config.store)
    assert "systemctl" not in caught.value.hint
    host_store.backup(config, tmp_path / "copy", False)
    with pytest.raises(ConflictError) as caught:
        host_store.backup(config, tmp_path / "copy", False)
    assert "there already" in str(caught.value)
    host_store.backup(config, tmp_path / "copy", True)
