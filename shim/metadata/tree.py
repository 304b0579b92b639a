"""The tree that EC2's and OpenStack's faces serve, and the grammar of its listings. PURE.

A directory lists its children one a line, those that are directories with a slash; a trailing slash on
the path makes no difference. The one oddity is `public-keys/`, which lists `0=name` for the directory `0`:
hence a directory's label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from shim.core.exchange import Headers, Response
from shim.core.kv import etag
from shim.metadata.view import Rendered, View

TEXT = b"text/plain"
JSON = b"application/json"
BINARY = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file: its bytes, their type, and the items that reading it uses up.

    `tag` is its entity tag, where that is not the one of its bytes: of what is read once, the tag tells nothing.
    """

    body: bytes
    content_type: bytes = TEXT
    claims: tuple[str, ...] = ()
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Late:
    """A file that is made when it is read, for what costs much or may fail. None: it is not there after all."""

    make: Callable[[], Leaf | None]


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

    def hide(self, base: str, is_closed: Callable[[str], bool]) -> None:
        """Take out what is closed. `base` is the folded path of this directory, without a slash at its end."""
        for name, node in list(self.children.items()):
            path = f"{base}/{name}"
            if is_closed(path):
                del self.children[name]
            elif isinstance(node, Directory):
                node.hide(path, is_closed)

    def listing(self) -> bytes:
        """One child a line, without a line end after the last (as EC2 and Nova do)."""
        names = sorted(self.children, key=by_value)
        return "\n".join(_line(name, self.children[name]) for name in names).encode()


Node = Leaf | Late | Directory


def text(value: str) -> Leaf:
    """A leaf of plain text."""
    return Leaf(value.encode())


def answer(view: View, node: Node | None) -> Rendered:
    """What a guest gets for a node: 404 in a few plain words where there is none. Raises what a Late one raises."""
    if isinstance(node, Late):
        node = node.make()
    if node is None:
        return NOT_FOUND
    if isinstance(node, Directory):
        return found(view, node.listing(), TEXT)
    return found(view, node.body, node.content_type, node.claims, node.tag)


def found(
    view: View, body: bytes, content_type: bytes, claims: tuple[str, ...] = (), tag: str = "", more: Headers = ()
) -> Rendered:
    """An answer of 200 with its entity tag (that of its bytes if none is given)."""
    return answered(body, content_type, tag or etag(body), more, claims, view.until)


def answered(
    body: bytes, content_type: bytes, tag: str, more: Headers = (), claims: tuple[str, ...] = (), until: float = inf
) -> Rendered:
    """The same, of what depends on no view."""
    headers = ((b"content-type", content_type), (b"etag", f'"{tag}"'.encode()), *more)
    return Rendered(Response(200, headers, body), tag, claims, until)


def plain(status: int, body: bytes, *more: tuple[bytes, bytes]) -> Response:
    """A response of plain text."""
    return Response(status, ((b"content-type", TEXT), *more), body)


NOT_FOUND = Rendered(plain(404, b"not found\n"))


def by_value(name: str) -> tuple[int, str]:
    """The order of a listing: by name, but numbers by value, so that the keys 2 and 10 stay in order."""
    return (len(name) if name.isdigit() else 0, name)


def _line(name: str, node: Node) -> str:
    if isinstance(node, Directory):
        return f"{name}/" if node.label is None else node.label
    return name
