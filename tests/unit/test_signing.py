"""The keys of session tokens on the agent's side: made at the start, told when they change, and what is ill is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.errors import StoreError
from shim.keys import DAY_SECONDS, LEAD_SECONDS, Ring
from shim.signing import Signing

NOON = 1_800_000_000.0


class Agent:
    """A clock to turn, and what workers were told."""

    def __init__(self, path: Path) -> None:
        self.now = NOON
        self.told: list[Ring] = []
        self.signing = Signing(path, lambda: self.now, self._tell)

    def _tell(self, ring: Ring) -> int:
        self.told.append(ring)
        return len(self.told)

    def turn(self, later: float = 0.0) -> None:
        self.now += later
        self.signing.turn()


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path / "token.keys")


def test_keys_are_made_at_the_first_start_and_kept(agent: Agent, tmp_path: Path) -> None:
    agent.turn()
    (ring,) = agent.told
    assert len(ring) == 1 and agent.signing.trouble is None
    agent.turn(3600)
    assert len(agent.told) == 1, "nothing changed"
    again = Agent(tmp_path / "token.keys")
    again.turn()
    assert again.told == [ring]


def test_a_new_key_is_known_before_it_signs(agent: Agent) -> None:
    agent.turn()
    old = agent.told[0][0]
    agent.turn(DAY_SECONDS)
    assert agent.told[1][0] == old and len(agent.told[1]) == 2
    new = agent.told[1][1]
    agent.turn(LEAD_SECONDS - 1)
    assert len(agent.told) == 2
    agent.turn(1)
    assert agent.told[2:] == [(new, old)]
    agent.turn(DAY_SECONDS / 2)
    assert agent.told[-1] == (new,), "a token that the old one signed is over by now"


def test_an_operator_rotates(agent: Agent) -> None:
    agent.turn()
    old = agent.told[0][0]
    assert agent.signing.rotate(drop=False) == (2, 2)
    assert agent.told[1][0] == old
    assert agent.signing.rotate(drop=True) == (3, 1)
    assert old not in agent.told[2] and agent.told[2][0] not in agent.told[1]


def test_a_damaged_file_gives_no_keys_until_it_is_mended(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "token.keys"
    path.write_text("nonsense")
    path.chmod(0o600)
    agent.turn()
    assert agent.told == []
    assert agent.signing.trouble and "damaged" in str(agent.signing.trouble) and agent.signing.trouble.hint
    with pytest.raises(StoreError, match="damaged"):
        agent.signing.rotate(drop=True)
    assert path.read_text() == "nonsense"
    path.unlink()
    agent.turn()
    assert len(agent.told) == 1 and agent.signing.trouble is None


def test_a_file_that_cannot_be_written_leaves_the_keys_as_they_are(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent.turn()
    (tmp_path / "token.keys.new").mkdir()  # in the way of the new file, whoever writes it
    agent.turn(DAY_SECONDS)
    agent.turn(10)
    assert agent.signing.trouble and "cannot be written" in str(agent.signing.trouble)
    assert len(agent.told) == 1 and len(caplog.records) == 1, "said once"
    with pytest.raises(StoreError, match="cannot be written"):
        agent.signing.rotate(drop=True)
    assert len(agent.told) == 1
    (tmp_path / "token.keys.new").rmdir()
    agent.turn(10)
    assert agent.signing.trouble is None and len(agent.told) == 2
