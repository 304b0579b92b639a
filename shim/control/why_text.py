"""What a request would get, and why, as text for people: see text.py."""

from __future__ import annotations

from collections.abc import Iterable

from shim.control.text import clean, coloured
from shim.control.why_shapes import WhyView
from shim.core.prospect import Prospect, Rule


def why(view: WhyView) -> None:
    """A line a rule, `>` before the one that decides, then what comes of it."""
    by = f"by {f'{view.netns}/' if view.netns else ''}{view.tap}" if view.tap else "by no tap"
    print(clean(f"{view.method} {view.target} of {view.instance}, {by}, over IPv{view.family}"))
    widths = _widths((*view.rules, *(view.supposed.rules if view.supposed else ())))
    _rules(view.rules, widths)
    _outcome(view.prospect, "")
    if view.supposed is not None:
        print("\nIf it had a tap here:")
        _rules(view.supposed.rules, widths)
        _outcome(view.supposed.prospect, "it would get ")


def _widths(rules: Iterable[Rule]) -> tuple[int, int]:
    names = [(len(rule.part), len(rule.name)) for rule in rules] or [(0, 0)]
    return max(part for part, _ in names), max(name for _, name in names)


def _rules(rules: Iterable[Rule], widths: tuple[int, int]) -> None:
    for rule in rules:
        mark, where = ">" if rule.decides else " ", f"  [{rule.where}]" if rule.where else ""
        line = clean(f"{mark} {rule.part:<{widths[0]}}  {rule.name:<{widths[1]}}  {rule.says}{where}")
        print(coloured(line, "bright_white") if rule.decides else line)


def _outcome(prospect: Prospect, before: str) -> None:
    about = (
        prospect.words,
        f"from {prospect.backend}" if prospect.kind in ("answered", "streamed") and prospect.backend else "",
        f"{prospect.bytes} bytes" if prospect.bytes else "",
        prospect.content_type if prospect.bytes else "",
        f"etag {prospect.etag}" if prospect.etag else "",
    )
    print(coloured(clean(f"= {before}{', '.join(filter(None, about))}"), _colour(prospect)))
    if prospect.uses_up:
        print(coloured(clean(f"  a guest that reads it uses up {', '.join(prospect.uses_up)}"), "yellow"))


def _colour(prospect: Prospect) -> str:
    if prospect.kind in ("reset", "dropped", "unknown"):
        return "red"
    return "yellow" if (prospect.status or 200) >= 400 or prospect.kind == "waits" else "green"
