"""The tree that a face serves, and the grammar of its listings. PURE.

A directory lists its children one a line, those that are directories with a slash; a trailing slash on
the path makes no difference. The one oddity is `public-keys/`, which lists `0=name` for the directory `0`:
hence a directory's label.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shim.core.exchange import Response

TEXT = b"text/plain"
JSON = b"application/json"
BINARY = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file: its bytes and their type."""

    body: bytes
    content_type: bytes = TEXT


@dataclass(slots=True)
class Directory:
    """Children by name. `label` is its line in the parent's listing, where that is not `name/`."""

    children: dict[str, Node] = field(default_factory=dict)
    label: str | None = None

    def plant(self, path: str, node: Node) -> None:
        """Put `node` at a path such as `placement/region`, making the directories on the way."""
        head, slash, rest = path.partition("/")
        if not slash:
            self.children[head] = node
            return
        child = self.children.setdefault(head, Directory())
        if not isinstance(child, Directory):
            raise ValueError(f"{head} is a leaf and cannot hold {rest}")
        child.plant(rest, node)

    def find(self, segments: tuple[str, ...]) -> Node | None:
        """The node at a path; None when there is none."""
        node: Node | None = self
        for segment in segments:
            if not isinstance(node, Directory):
                return None
            node = node.children.get(segment)
        return node

    def listing(self) -> bytes:
        """One child a line, without a line end after the last (as EC2 and Nova do)."""
        names = sorted(self.children, key=_order)
        return "\n".join(_line(name, self.children[name]) for name in names).encode()


Node = Leaf | Directory


def text(value: str) -> Leaf:
    """A leaf of plain text."""
    return Leaf(value.encode())


def answer(node: Node | None) -> Response:
    """What a guest gets for a node: 404 in a few plain words where there is none."""
    if node is None:
        return plain(404, b"not found\n")
    if isinstance(node, Directory):
        return plain(200, node.listing())
    return Response(200, ((b"content-type", node.content_type),), node.body)


def plain(status: int, body: bytes) -> Response:
    """A response of plain text."""
    return Response(status, ((b"content-type", TEXT),), body)


def _line(name: str, node: Node) -> str:
    if isinstance(node, Leaf):
        return name
    return f"{name}/" if node.label is None else node.label


def _order(name: str) -> tuple[int, str]:
    """By name, but numbers by value: the keys 2 and 10 stay in order."""
    return (len(name) if name.isdigit() else 0, name)
