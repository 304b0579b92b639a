"""Filters and tests that templates have: Jinja2's, where they make no more than they are given, and some anew. PURE."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, pass_context
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.tests import TESTS
from jinja2.utils import Namespace, pass_environment

from shim.metadata.accounting import COUNTED, JOINED, WEIGHED
from shim.metadata.budget import Budget, Refused, fits, text_of

if TYPE_CHECKING:
    from shim.metadata.sandbox import Sandbox

FILTER_NAMES = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort",
    "trim", "truncate", "unique", "upper", "urlencode",
)  # fmt: skip
TEST_NAMES = (
    "!=", "<", "<=", "==", ">", ">=", "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float",
    "ge", "gt", "greaterthan", "in", "integer", "iterable", "le", "lessthan", "lower", "lt", "mapping", "ne", "none",
    "number", "odd", "sameas", "sequence", "string", "true", "undefined", "upper",
)  # fmt: skip
_ENGINE = (Environment, Context, EvalContext)
_INDENT_MAX = 1000
_DIGITS_MAX = 15


def filters(sandbox: Sandbox) -> dict[str, Any]:
    """By name, those that only a changed tree names among them."""
    listed = {name: FILTERS[name] for name in FILTER_NAMES}
    made = {"indent": _indent, "join": _join, "replace": _replace, "round": _round, "sum": _sum}
    found = {name: _charged(sandbox, function) for name, function in (listed | made).items()}
    # These pay by themselves, or what they make is text that is paid for by what is put out.
    return found | {"string": _string, "tojson": _tojson, WEIGHED: _weighed, COUNTED: _counted, JOINED: _joined}


def tests(sandbox: Sandbox) -> dict[str, Any]:
    """By name."""
    return {name: _charged(sandbox, TESTS[name]) for name in TEST_NAMES}


def _charged(sandbox: Sandbox, function: Any) -> Any:
    """A filter or test that pays for what goes in and for what comes out."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = sandbox.budget
        for value in (*args, *kwargs.values()):
            if isinstance(value, Namespace):
                raise Refused("a namespace is no value: write one of its attributes")
            if not isinstance(value, _ENGINE):
                budget.weigh(value)
        made = function(*args, **kwargs)
        budget.weigh(made)
        return made

    return charged


def _budget(context: Context) -> Budget:
    found: Budget = context.environment.budget  # type: ignore[attr-defined]
    return found


@pass_context
def _weighed(context: Context, value: Any, cost: int = 0) -> Any:
    budget = _budget(context)
    budget.spend(cost)
    budget.weigh(value)
    return value


@pass_context
def _counted(context: Context, values: Iterable[Any], cost: int = 0) -> Iterator[Any]:
    budget = _budget(context)
    for value in values:
        budget.spend(1 + max(cost, 0))
        yield value


@pass_context
def _joined(context: Context, values: list[Any]) -> str:
    return _bounded_join(_budget(context), "", values)


def _bounded_join(budget: Budget, between: str, values: Iterable[Any]) -> str:
    pieces, size = [], 0
    for value in values:
        piece = text_of(budget, value)
        size += len(piece) + len(between)
        fits(size)
        pieces.append(piece)
    budget.weigh(pieces)
    return between.join(pieces)


@pass_environment
def _join(environment: Sandbox, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    found = map(make_attrgetter(environment, attribute), value) if attribute is not None else value
    return _bounded_join(environment.budget, text_of(environment.budget, d), found)


@pass_context
def _string(context: Context, value: Any) -> str:
    return text_of(_budget(context), value)


@pass_context
def _tojson(context: Context, value: Any) -> str:
    """JSON, which YAML is a superset of, with nothing escaped for HTML; keys in their order."""
    budget = _budget(context)
    budget.weigh(value, written=True)
    made = json.dumps(value, ensure_ascii=False)
    budget.weigh(made)
    return made


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = width if isinstance(width, int) else len(width)
    if size > _INDENT_MAX:
        raise Refused(f"a text is indented by {_INDENT_MAX} characters at most")
    fits(len(s) + (s.count("\n") + 1) * size)
    made: str = FILTERS["indent"](s, width, first, blank)
    return made


@pass_environment
def _replace(environment: Sandbox, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, before, after = (text_of(environment.budget, one) for one in (s, old, new))
    fits(len(text) + text.count(before) * len(after))
    return text.replace(before, after, -1 if count is None else count)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > _DIGITS_MAX:
        raise Refused(f"a number is rounded to {_DIGITS_MAX} digits at most")
    made: float = FILTERS["round"](value, precision, method)
    return made


@pass_environment
def _sum(environment: Sandbox, value: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> float:
    found = map(make_attrgetter(environment, attribute), value) if attribute is not None else value
    return _total(found, start)


def _total(values: Iterable[Any], start: float) -> float:
    total = start
    for value in values:
        if not isinstance(value, int | float):
            raise Refused("a sum is of numbers")
        total += value
    return total
