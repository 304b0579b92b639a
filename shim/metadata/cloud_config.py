"""Cloud-config's text: YAML, as cloud-init reads and writes it. PURE.

PyYAML is imported with this: only who previews needs it, and never a process with privileges.
"""

from __future__ import annotations

from typing import Any

import yaml


class ConfigFault(ValueError):
    """cloud-init leaves it out. Says why."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """What cloud-init takes beside the safe types: text that Python 2 wrote."""


_Loader.add_constructor("tag:yaml.org,2002:python/unicode", yaml.SafeLoader.construct_yaml_str)


def load(body: bytes, root: type = dict) -> Any:
    """A text's value, which is a `root`. Raises ConfigFault."""
    try:
        value = yaml.load(body.decode("utf-8", "surrogateescape"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigFault(f"it is no YAML: {_words(error)}") from None
    except RecursionError:
        raise ConfigFault("it is nested too deeply") from None
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:  # of a date's 13th month, say
        raise ConfigFault(f"it holds a value that cannot be read: {error}") from None
    if value is None:
        raise ConfigFault("there is nothing in it")
    if not isinstance(value, root):
        raise ConfigFault(f"it is a {type(value).__name__}, where a {root.__name__} is expected")
    return value


def dump(value: Any) -> str:
    """As YAML, keys in their order."""
    try:
        text: str = yaml.dump(value, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError):
        return ""
    return text


def _words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or "").split())
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return ": ".join(filter(None, (where, problem))) or "it cannot be read"
