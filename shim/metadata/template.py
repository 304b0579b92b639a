"""Templates: a source that is rendered for each instance, and what it may say of it. PURE.

Jinja2 is imported when the first template is met: it takes 4 MB, which processes that meet none do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shim.core.source import Reads
from shim.metadata.facts import addresses, meta_data
from shim.metadata.view import View


class TemplateFault(Exception):
    """A template does not compile, or does not render. `line` counts from 1; 0: it is about no line."""

    def __init__(self, line: int, words: str) -> None:
        super().__init__(f"line {line}: {words}" if line else words)
        self.line = line
        self.words = words


def check(body: bytes) -> None:
    """Compile it. Raises TemplateFault."""
    _sandbox().compiled(body)


def render(body: bytes, variables: Mapping[str, Any]) -> bytes:
    """What it makes of the variables. Raises TemplateFault: also if it takes too long, or makes too much."""
    rendered: bytes = _sandbox().render(body, variables)
    return rendered


def _sandbox() -> Any:
    try:
        from shim.metadata import sandbox
    except (ImportError, OSError) as error:  # a worker's user may not be able to read the installation
        raise TemplateFault(0, f"Jinja2 cannot be loaded: {type(error).__name__}") from None
    return sandbox


def variables(view: View, body: bytes | None = None) -> dict[str, Any]:
    """What a template is told of an instance. Keys are looked at only where its `body` speaks of `kv`."""
    found = {
        "instance_id": str(view.instance),
        "project_id": view.project,
        "meta_data": meta_data(view),
        "tags": dict(view.document.tags),
        "addresses": addresses(view),
    }
    if body is None or b"kv" in body:
        found["kv"] = dict(_texts(view))
    return found


def _texts(view: View) -> Iterator[tuple[str, str]]:
    """The keys that are text and can be read any number of times: rendering uses nothing up."""
    for key, value in view.values.items():
        if value.reads is Reads.MANY:
            try:
                yield key, value.body.decode()
            except UnicodeDecodeError:
                pass
