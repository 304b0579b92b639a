"""Jinja2's sandbox with bounds of its own: what is rendered ends soon, and is small. PURE.

Beside what the sandbox forbids, only what is listed here can be called or looked up: Jinja2 has more that multiplies
(`batch`, `center`, `format`, …). How it is kept within its budget: shim.metadata.budget; what of a template is
compiled otherwise for it: shim.metadata.accounting.

Rendering is one call that runs to its end, so the one environment holds the budget of the one that runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from shim.metadata import accounting, sandbox_filters
from shim.metadata.budget import INTEGER_BITS, OUTPUT_MAX, Budget, Refused, fits, fits_integer, text_of
from shim.metadata.template import TemplateFault

RANGE_MAX = 10_000
_WIDTH_MAX = 1000
_COMPILED_MAX = 32
_DIRECTIVE = re.compile(r"%(?:\([A-Za-z0-9_]*\))?[-#0 +]{0,5}\d{0,3}(?:\.\d{0,3})?[diouxXeEfFgGcrs%]")

_TEXT_METHODS = {
    "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
    "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
}  # fmt: skip
_LOOP = {
    "index", "index0", "revindex", "revindex0", "first", "last", "length", "cycle", "depth", "depth0", "previtem",
    "nextitem", "changed",
}  # fmt: skip
_ATTRIBUTES: tuple[tuple[type, set[str]], ...] = (
    (str, _TEXT_METHODS),
    (dict, {"get", "items", "keys", "values"}),
    (tuple, {"count", "index", "grouper", "list"}),
    (list, {"count", "index"}),
    (LoopContext, _LOOP),
)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that all templates are compiled and rendered in."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, cache_size=0,
            finalize=_written, optimized=False,
        )  # fmt: skip
        self.budget = Budget()
        self.globals = {"range": _range, "dict": dict, "namespace": Namespace}
        self.filters = sandbox_filters.filters(self)
        self.tests = sandbox_filters.tests(self)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What is listed, of what templates can have."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(isinstance(obj, kind) and attr in names for kind, names in _ATTRIBUTES)

    def wrap_str_format(self, value: Any) -> None:
        """str.format is no more to be had than other attributes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """One step."""
        self.budget.spend(1)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """One step."""
        self.budget.spend(1)
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Paid for by what goes in and what comes out."""
        for value in (*args, *(value for name, value in kwargs.items() if not name.startswith("_"))):
            self.budget.weigh(value)
        text = getattr(obj, "__self__", None)
        if isinstance(text, str):
            self.budget.weigh(text)
            args = _fitting(self.budget, text, obj.__name__, args)
        made = super().call(context, obj, *args, **kwargs)
        self.budget.weigh(made)
        return made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Reckoned before it is done, where it can make much of little."""
        fits_integer(left, right)
        _OPERANDS.get(operator, _any)(self.budget, left, right)
        made = self.binop_table[operator](left, right)
        self.budget.weigh(made)
        return made


@pass_context
def _written(context: Context, value: Any) -> str:
    """What is put out: text that is in the template too (see shim.metadata.accounting)."""
    budget: Budget = context.environment.budget  # type: ignore[attr-defined]
    return text_of(budget, value)


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > RANGE_MAX:
        raise Refused(f"a range has at most {RANGE_MAX} numbers")
    return made


def _fitting(budget: Budget, text: str, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a text's method. Raises Refused if it would make too much."""
    if method == "join" and args:
        pieces = list(args[0])
        budget.spend(len(pieces))
        fits(sum(len(piece) for piece in pieces if isinstance(piece, str)) + len(text) * len(pieces))
        return (pieces,)
    if method == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        fits(len(text) + text.count(args[0]) * len(args[1]))
    if method in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int) and args[0] > _WIDTH_MAX:
        raise Refused(f"a text is filled up to {_WIDTH_MAX} characters at most")
    return args


def _any(_budget: Budget, _left: Any, _right: Any) -> None:
    """Grows by no more than it is given."""


def _added(_budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        fits(len(left) + len(right))


def _times(budget: Budget, left: Any, right: Any) -> None:
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(times, int):
            fits(len(one) * times)
            budget.spend(len(one) * times if not isinstance(one, str) else 1)


def _power(_budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > INTEGER_BITS:
        raise Refused("it reckons with a number that is too large")


def _modulo(budget: Budget, left: Any, right: Any) -> None:
    """printf's, of a text."""
    if not isinstance(left, str):
        return
    if "%" in _DIRECTIVE.sub("", left):
        raise Refused("in a text before %, each % begins a directive as in %s, %03d or %(name)s")
    directives = left.count("%")
    size = len(text_of(budget, right))
    fits(len(left) + directives * _WIDTH_MAX + (size if isinstance(right, tuple) else size * directives))


_OPERANDS = {"+": _added, "*": _times, "**": _power, "%": _modulo}
_SANDBOX = Sandbox()


@lru_cache(maxsize=_COMPILED_MAX)
def compiled(body: bytes) -> Template:
    """A template ready to be rendered. Raises TemplateFault."""
    try:
        tree = _SANDBOX.parse(body.decode())
        code = _SANDBOX.compile(accounting.accounted(tree, _SANDBOX))
        return Template.from_code(_SANDBOX, code, _SANDBOX.globals)
    except UnicodeDecodeError:
        raise TemplateFault(0, "a template is UTF-8, and this is not") from None
    except TemplateSyntaxError as error:
        raise TemplateFault(error.lineno, error.message or "it is no template") from None
    except Exception as error:  # noqa: BLE001 (as of rendering)
        raise TemplateFault(0, _words(error)) from None


def render(body: bytes, variables: Mapping[str, Any]) -> bytes:
    """What it makes of the variables. Raises TemplateFault."""
    template = compiled(body)
    _SANDBOX.budget = Budget()
    pieces, size = [], 0
    try:
        for piece in template.root_render_func(template.new_context(dict(variables))):
            raw = piece.encode()
            size += len(raw)
            if size > OUTPUT_MAX:
                raise Refused(f"it makes more than {OUTPUT_MAX} bytes")
            pieces.append(raw)
    except Exception as error:  # noqa: BLE001 (a template can have Jinja2's own code fail in any way)
        raise TemplateFault(_line(template, error.__traceback__), _words(error)) from None
    return b"".join(pieces)


def _line(template: Template, trace: TracebackType | None) -> int:
    """The template's line that was last gone through."""
    line = 0
    while trace is not None:
        if trace.tb_frame.f_globals.get("__jinja_template__") is template:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _words(error: BaseException) -> str:
    if isinstance(error, RecursionError | SyntaxError | MemoryError):
        return "it is nested too deeply"
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"
