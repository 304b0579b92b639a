"""The leak guard in the kernel: loaded, looked for, removed. What it drops and why: guard_rules.py.

It is static and outlives the process, so there is nothing to keep in step; only what others do to it is mended.
"""

from __future__ import annotations

from collections.abc import Mapping

from shim.datapath.base import Tables
from shim.datapath.guard_rules import MARK_SET, Ruleset


class Guard:
    """`tables`: by each of guard_rules.FAMILIES, the table `guard_rules.table_name`. Raises KernelError."""

    def __init__(self, tables: Mapping[str, Tables], rules: Ruleset) -> None:
        self._tables = tables
        self._rules = rules

    def ensure(self) -> None:
        """Loads it, unless it stands: in one transaction, in place of whatever is there, so that it never lacks."""
        if not self.stands():
            next(iter(self._tables.values())).load(self._rules.text)

    def stands(self) -> bool:
        """Whether these very rules were the last that were loaded, and none of them has gone.

        A rule that somebody put in the place of one of them is not seen.
        """
        return all(self._is_whole(family, table) for family, table in self._tables.items())

    def _is_whole(self, family: str, table: Tables) -> bool:
        marks = [element.key for element in table.elements(MARK_SET) or []]
        return marks == [self._rules.mark] and table.rules() == self._rules.counts[family]

    def is_there(self) -> bool:
        """Whether any of it is, of whatever rules."""
        return any(table.elements(MARK_SET) is not None for table in self._tables.values())

    def teardown(self) -> None:
        """Removes all of it."""
        for table in self._tables.values():
            table.delete()
