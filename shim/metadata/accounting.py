"""A template's tree, changed so that all it does is paid for. PURE.

The sandbox is asked before a call, a look-up, an operator; not before a loop's turn, a text that is put together with
`~`, a list, a slice, a comparison, nor when a template's own text is put out. So these become filters, whose names
no template can write.
"""

from __future__ import annotations

from typing import Any, TypeVar

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.visitor import NodeTransformer

WEIGHED = "metashim weighed"
COUNTED = "metashim counted"
JOINED = "metashim joined"
_N = TypeVar("_N", bound=nodes.Node)
NODES_MAX = 20_000
_NODES_A_STEP = 8

_ELSEWHERE = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block)


def accounted(tree: nodes.Template, environment: Environment) -> nodes.Template:
    """The tree, changed in place. Raises TemplateSyntaxError: what there is none of here."""
    if _size(tree) > NODES_MAX:
        raise TemplateSyntaxError("it is too long", 1)
    _Accounting().visit(tree)
    tree.set_environment(environment)
    return tree


def _size(*trees: nodes.Node) -> int:
    """Nodes in them, themselves too."""
    waiting, count = list(trees), 0
    while waiting:
        waiting += waiting.pop().iter_child_nodes()
        count += 1
    return count


def _filter(name: str, node: Any, *args: int) -> nodes.Filter:
    consts = [nodes.Const(one, lineno=node.lineno) for one in args]
    return nodes.Filter(node, name, consts, [], None, None, lineno=node.lineno)


class _Accounting(NodeTransformer):
    """A node's children first, then itself."""

    def visit(self, node: nodes.Node) -> nodes.Node:
        if isinstance(node, _ELSEWHERE):
            what = type(node).__name__.lower()
            raise TemplateSyntaxError(f"there is no {what} here: a template is one source by itself", node.lineno)
        made: nodes.Node = super().visit(node)
        return made

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        """What is put out is paid for where it is a value, and only there."""
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filter(WEIGHED, self._inner(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _filter(WEIGHED, self._inner(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        inner = self._inner(node)
        return _filter(WEIGHED, inner) if node.ctx == "load" else inner

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        pieces = nodes.List(self._inner(node).nodes, lineno=node.lineno)
        return _filter(JOINED, pieces)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        inner = self._inner(node)
        return _filter(WEIGHED, inner) if isinstance(inner.arg, nodes.Slice) else inner

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self._inner(node)
        node.expr = _filter(WEIGHED, node.expr)
        for operand in node.ops:
            operand.expr = _filter(WEIGHED, operand.expr)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateSyntaxError("there are no recursive loops here", node.lineno)
        cost = _size(*node.body, *([node.test] if node.test else [])) // _NODES_A_STEP
        self._inner(node)
        node.iter = _filter(COUNTED, node.iter, cost)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_a_price(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_a_price(node)

    def _with_a_price(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        """Its body is paid for when it is begun."""
        price = nodes.Const(0, lineno=node.lineno)
        cost = _size(*node.body) // _NODES_A_STEP
        self._inner(node)
        node.body.insert(0, nodes.ExprStmt(_filter(WEIGHED, price, cost), lineno=node.lineno))
        return node

    def _inner(self, node: _N) -> _N:
        self.generic_visit(node)
        return node
