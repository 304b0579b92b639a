"""How cloud-init makes one configuration of many: merge types, and what meets what by them. PURE.

A merge type names up to three mergers with their options, `list(append)+dict(recurse_array)+str()`. The value that is
there decides by its type which of them is asked; where none is named for it, it stays as it is.

    dict   new keys are added; of the same key the old value stays (no_replace, the default) or the new one is taken
           (replace). Unless it replaces, dicts meet one another within, with recurse_array lists too, with recurse_str
           texts. allow_delete: a new value of null removes the key
    list   append, prepend; or replace (the default) and no_replace, item by item as far as the old list reaches:
           with recurse_dict, recurse_array and recurse_str the items meet one another
    str    the new one is taken, or put behind the old (append)

These are its ways as they are, odd ones too: tests compare them with cloud-init's own.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

DEFAULT = "dict(replace)+list()+str()"
"""What a part has that names none: it replaces what it names."""
TYPE_BYTES = 256

_MERGER = re.compile(r"([a-z_][a-z0-9_]*)\((.*?)\)")
_SUM = "a merge type is written as in list(append)+dict(recurse_array)+str()"
_DICT_WAYS = ("replace", "no_replace")
_LIST_WAYS = ("append", "prepend", "replace", "no_replace")

Named = list[tuple[Any, Any]]
"""Mergers by name, with what holds their options: a list, mostly."""


class MergeFault(ValueError):
    """cloud-init would not merge this. Says why."""


def check(text: str) -> None:
    """Raises ValueError if this is no merge type that a source may have: cloud-init would leave all of it out."""
    if len(text) > TYPE_BYTES or not text.isascii() or not text.isprintable():
        raise ValueError(_SUM)
    if not text:
        return
    if Mergers(named(text)).dicts is None:
        raise ValueError(f"without dict() nothing is merged: {_SUM}")


def named(text: str) -> Named:
    """The mergers of a merge type as a header has it. Raises MergeFault."""
    found: Named = []
    for one in text.split("+"):
        folded = one.lower().strip().replace("-", "_")
        if not folded:
            continue
        match = _MERGER.fullmatch(folded)
        if match is None:
            raise MergeFault(_SUM)
        options = [option.strip() for option in match[2].split(",")]
        found.append((match[1], [option for option in options if option]))
    return found


def take_named(config: dict[Any, Any]) -> Named:
    """Takes the merge type that a cloud-config itself has, in `merge_how` or else `merge_type`, out of it. Raises
    MergeFault."""
    raw = config.pop("merge_how", None)
    if raw is None:
        raw = config.pop("merge_type", None)
    if raw is None:
        return []
    if isinstance(raw, str):
        return named(raw)
    try:
        return [one for one in map(_one_named, raw) if one[0]]
    except (TypeError, LookupError, AttributeError):
        raise MergeFault(f"its merge_how or merge_type cannot be read: {_SUM}") from None


def _one_named(raw: Any) -> tuple[Any, Any]:
    if isinstance(raw, dict):
        return raw["name"].replace("-", "_").strip(), raw["settings"]
    return raw[0], raw[1:] if len(raw) >= 2 else []


@dataclass(frozen=True, slots=True)
class _Way:
    """One merger: what it does with what is there, and which of the new values meet the old ones within."""

    way: str
    texts: bool = False
    lists: bool = False
    dicts: bool = True
    delete: bool = False

    def meets(self, new: Any) -> bool:
        if isinstance(new, list | tuple):
            return self.lists
        if isinstance(new, str):
            return self.texts
        return isinstance(new, dict) and self.dicts


class Mergers:
    """A merge type, ready to merge. Of two mergers of one name the first counts. Raises MergeFault."""

    def __init__(self, types: Named) -> None:
        self.dicts: _Way | None = None
        self._lists: _Way | None = None
        self._texts: _Way | None = None
        for name, options in types:
            self._add(name, options)

    def _add(self, name: Any, options: Any) -> None:
        kind = name.removeprefix("m_") if isinstance(name, str) else ""
        if kind not in ("dict", "list", "str"):
            raise MergeFault("a merge type names dict(), list() and str(), and no other")
        try:
            if kind == "dict":
                way = _dict_way(options)
                self.dicts = self.dicts or way
            elif kind == "list":
                way = _list_way(options)
                self._lists = self._lists or way
            else:
                way = _Way("append" if "append" in options else "replace")
                self._texts = self._texts or way
        except TypeError:
            raise MergeFault(f"the options of {kind} cannot be read: {_SUM}") from None

    def merge(self, old: Any, new: Any) -> Any:
        """What becomes of two values; neither is changed. Raises MergeFault."""
        try:
            return self._merge(old, new)
        except RecursionError:
            raise MergeFault("it is nested too deeply") from None
        except (TypeError, LookupError):
            raise MergeFault("a list cannot meet what is none") from None

    def _merge(self, old: Any, new: Any) -> Any:
        if isinstance(old, dict) and self.dicts is not None:
            return self._into_dict(self.dicts, old, new)
        if isinstance(old, list) and self._lists is not None:
            return self._into_list(self._lists, old, new)
        if isinstance(old, tuple) and self._lists is not None:
            return tuple(self._into_list(self._lists, list(old), new))
        if isinstance(old, str) and self._texts is not None:
            return old + new if self._texts.way == "append" else new
        return old

    def _into_dict(self, way: _Way, old: dict[Any, Any], new: Any) -> Any:
        if not isinstance(new, dict):
            return old
        merged = dict(old)
        for key, value in new.items():
            if key not in merged:
                merged[key] = value
            elif value is None and way.delete:
                del merged[key]
            elif way.way == "replace":
                merged[key] = value
            elif way.meets(value):
                merged[key] = self._merge(merged[key], value)
        return merged

    def _into_list(self, way: _Way, old: list[Any], new: Any) -> Any:
        if way.way == "replace" and not isinstance(new, list | tuple):
            return new
        if way.way == "append":
            return [*old, *new]
        if way.way == "prepend":
            return [*new, *old]
        merged = list(old)
        for index in range(min(len(old), len(new))):
            value = new[index]
            if way.way == "replace":
                merged[index] = self._merge(old[index], value) if way.meets(value) else value
        return merged


def _dict_way(options: Container[str]) -> _Way:
    return _Way(
        way=next((way for way in _DICT_WAYS if way in options), "no_replace"),
        texts="recurse_str" in options,
        lists="recurse_array" in options or "recurse_list" in options,
        delete="allow_delete" in options,
    )


def _list_way(options: Container[str]) -> _Way:
    return _Way(
        way=next((way for way in _LIST_WAYS if way in options), "replace"),
        texts="recurse_str" in options,
        lists="recurse_array" in options or "recurse_list" in options,
        dicts="recurse_dict" in options,
    )
