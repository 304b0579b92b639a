"""What rendering a template may cost, and what the values in it weigh. PURE.

A template can ask for more than any machine has in one line (`"a" * 10**9`), in twenty (`{% set a = a ~ a %}`), and by
lists that hold one another. So each step is paid for out of a budget, each text and list when it is made, by its size
written out; what multiplies is reckoned before it is done.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import Undefined
from jinja2.utils import Namespace

STEPS = 200_000
"""A template of a few hundred lines takes some thousand. All of them take a third of a second."""
OUTPUT_MAX = 1 << 20
"""Bytes."""
TEXT_MAX = 1 << 18
"""Characters of one text that is made at once."""
INTEGER_BITS = 4096
_CHARACTERS_A_STEP = 64

_VIEWS = (KeysView, ValuesView, ItemsView)
_CONTAINERS = (list, tuple, *_VIEWS)
_PLAIN = (str, int, float, type(None), list, tuple, dict)


class Refused(TemplateRuntimeError):
    """It takes too much, or is not to be had in a template."""


class Budget:
    """Of one rendering."""

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Raises Refused if it is too much."""
        self.left -= max(steps, 1)
        if self.left < 0:
            raise Refused("it takes too many steps: it loops too often, or makes too much text")

    def weigh(self, value: Any, *, written: bool = False) -> None:
        """Pays for a value, all that it holds with it. `written`: it will be text, so nothing may be in it that has
        none of its own. A namespace is paid for by what is put into it; within a value it could not be."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            cost = 1
            if isinstance(one, str):
                cost += len(one) // _CHARACTERS_A_STEP
            elif isinstance(one, dict):
                waiting += one.values()
                waiting += one
            elif isinstance(one, _CONTAINERS):
                waiting += one
            elif isinstance(one, Namespace) and one is not value:
                raise Refused("a namespace is no value: write one of its attributes")
            elif written:
                _must_be_plain(one)
            self.spend(cost)
            if len(waiting) > self.left:
                self.spend(len(waiting))


def _must_be_plain(value: Any) -> None:
    if isinstance(value, Undefined):
        str(value)  # says which
    if not isinstance(value, _PLAIN):
        raise Refused(f"a {type(value).__name__} is not text: `|list` makes a list of what can be looped over")


def text_of(budget: Budget, value: Any) -> str:
    """A value as text."""
    if isinstance(value, str):
        budget.spend(1 + len(value) // _CHARACTERS_A_STEP)
        return value
    budget.weigh(value, written=True)
    if isinstance(value, _VIEWS):
        value = list(value)
    return str(value)


def fits(size: int) -> None:
    """Raises Refused if a text of that many characters is too large."""
    if size > TEXT_MAX:
        raise Refused(f"it makes a text of more than {TEXT_MAX} characters")


def fits_integer(*values: Any) -> None:
    """Raises Refused if one is too large to reckon with."""
    for value in values:
        if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
            raise Refused("it reckons with a number that is too large")
