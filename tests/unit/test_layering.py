"""Who may import whom, read from the sources: design.md, section 6.

Rooms (the packages under shim/) see themselves, core, and the leaves errors, settings, config and log. core sees
itself. The command line sees control, core and the leaves; whatever else it starts it imports inside
the function that does. Every other module at the top is a composition root and may see all but the
command line, which only `python -m shim` starts. A PURE file has no I/O, no clock and no randomness,
and imports only such files.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "shim"
ROOMS = {"core", "identity", "netlink", "datapath", "http", "forward", "metadata", "control"}
LEAVES = {"errors", "config", "settings", "log"}

MUST_BE_PURE = (
    "core/*.py",
    "datapath/*_rules.py",
    "datapath/abi.py",
    "datapath/former.py",
    "datapath/model*.py",
    "datapath/nft_ports.py",
    "forward/identify.py",
    "forward/tag.py",
    "forward/token.py",
    "http/client_request.py",
    "http/parse.py",
    "http/reply.py",
    "http/reply_head.py",
    "http/serialize.py",
    "metadata/*.py",
)
NEED_NOT_BE_PURE = {
    f"metadata/{name}.py"
    for name in (
        "archive", "former", "reader", "reads", "schema", "store", "store_file", "store_kv", "store_marks",
        "store_sources",
    )
}  # fmt: skip
OUTSIDE = {"asyncio", "bcc", "http.client", "http.server", "os", "pyroute2", "select", "selectors", "signal"}
OUTSIDE |= {"socket", "sqlite3", "ssl", "subprocess", "tempfile", "urllib.request", "uvloop"}
IMPURE = OUTSIDE | {"concurrent", "multiprocessing", "random", "secrets", "threading", "time"}
IMPURE_NAMES = {"uuid1", "uuid4", "open", "input", "print"}
CLOCKS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}

TOPS = {path.stem for path in SHIM.glob("*.py")} - {"__init__"} | {"agent", "proxy", "cli"}
SOURCES = sorted(SHIM.rglob("*.py"))


def room(name: str) -> str:
    """`http` of `http/parse.py` and of `shim.http.parse`; `cli` of `cli.py`."""
    return name.removeprefix("shim.").replace("/", ".").removesuffix(".py").split(".")[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every module that is imported, as `from x import y` may name it too, and whether inside a function."""
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield str(node.module), node in lazy
            yield from ((f"{node.module}.{alias.name}", node in lazy) for alias in node.names)


def ours(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """The rooms and top modules of ours that are imported."""
    for name, lazy in imports(tree):
        if name.startswith("shim.") and room(name) in ROOMS | TOPS:
            yield room(name), lazy


def may_import(importer: str, imported: str, lazy: bool) -> bool:
    if importer == "core":
        return imported == "core"
    if importer in LEAVES:
        return imported in LEAVES | {"core"}
    if importer in ROOMS:
        return imported in LEAVES | {"core", importer}
    if importer == "cli":
        return imported in LEAVES | {"core", "control"} or (lazy and imported in TOPS)
    return imported != "cli" or importer == "__main__"


def misdirected(name: str, source: str) -> list[str]:
    """What the file `name` (relative to shim/) imports and must not."""
    found = ours(ast.parse(source))
    return sorted({imported for imported, lazy in found if not may_import(room(name), imported, lazy)})


def claims_purity(source: str) -> bool:
    return "PURE" in (ast.get_docstring(ast.parse(source)) or "")


def is_pure_module(name: str) -> bool:
    """Whether `shim.http.head`, or what it holds, is a file that says it is PURE, or the errors."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return name == "shim.errors" or (path.exists() and claims_purity(path.read_text()))


def impurities(source: str) -> list[str]:
    """What a PURE file does that it must not."""
    tree = ast.parse(source)
    names = {name for name, _ in imports(tree)}
    found = {name for name in names if any(f"{name}.".startswith(f"{bad}.") for bad in IMPURE)}
    found |= {name for name in names if _is_our_file(name) and not is_pure_module(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in IMPURE_NAMES:
            found.add(node.id)
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).split(".")[-1]
            if (owner, node.attr) in CLOCKS or node.attr in {"uuid1", "uuid4"}:
                found.add(f"{owner}.{node.attr}")
    return sorted(found)


def _is_our_file(name: str) -> bool:
    return name.startswith("shim.") and (ROOT / (name.replace(".", "/") + ".py")).exists()


def relative(path: Path) -> str:
    return str(path.relative_to(SHIM))


def must_be_pure(path: Path) -> bool:
    listed = {found for pattern in MUST_BE_PURE for found in SHIM.glob(pattern)}
    return path in listed and relative(path) not in NEED_NOT_BE_PURE and path.name != "__init__.py"


def test_the_sources_are_found():
    assert {room(relative(path)) for path in SOURCES} >= ROOMS | LEAVES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_the_right_way(path):
    assert misdirected(relative(path), path.read_text()) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if must_be_pure(path)], ids=relative)
def test_pure_rooms_say_so(path):
    assert claims_purity(path.read_text())


@pytest.mark.parametrize("path", [p for p in SOURCES if claims_purity(p.read_text())], ids=relative)
def test_what_says_it_is_pure_is(path):
    assert impurities(path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("http/server.py", "from shim.metadata.tree import Leaf", ["metadata"]),
        ("http/server.py", "from shim import control", ["control"]),
        ("http/server.py", "def f():\n    import shim.forward.tag", ["forward"]),
        ("http/server.py", "import shim.agent", ["agent"]),
        ("http/server.py", "from shim.core.policy import Policy\nfrom shim.http import head", []),
        ("core/policy.py", "from shim.errors import InputError", ["errors"]),
        ("http/server.py", "import shim.log\nfrom shim.errors import InputError", []),
        ("config.py", "from shim.http.limits import Limits", ["http"]),
        ("config.py", "from shim.core.policy import Policy\nfrom shim.errors import ConfigError", []),
        ("cli.py", "from shim.control.client import Client\nfrom shim import config", []),
        ("cli.py", "from shim.datapath.ebpf import Ebpf", ["datapath"]),
        ("cli.py", "def f():\n    from shim.datapath.ebpf import Ebpf", ["datapath"]),
        ("agent.py", "from shim.cli import main", ["cli"]),
        ("__main__.py", "from shim.cli import main", []),
        ("agent.py", "from shim.datapath.ebpf import Ebpf\nimport shim.netlink.tc", []),
    ],
)
def test_misdirected_imports_are_seen(name, source, wrong):
    assert misdirected(name, source) == wrong


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import socket", ["socket"]),
        ("import os.path", ["os.path"]),
        ("from time import monotonic", ["time", "time.monotonic"]),
        ("def f():\n    from asyncio import sleep", ["asyncio", "asyncio.sleep"]),
        ("from shim.log import setup", ["shim.log"]),
        ("import datetime\nx = datetime.datetime.now()", ["datetime.now"]),
        ("from uuid import uuid4\nx = uuid4()", ["uuid4"]),
        ("import uuid\nx = uuid.uuid4()", ["uuid.uuid4"]),
        ("x = open('/etc/passwd')", ["open"]),
        ("from http import HTTPStatus", []),
        ("import http.client", ["http.client"]),
        ("import hmac, struct\nfrom datetime import UTC, datetime\nfrom shim.errors import InputError", []),
        ("from shim.core.policy import Policy", []),
    ],
)
def test_impurities_are_seen(source, wrong):
    assert impurities(source) == wrong


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("shim.cli", {"bcc", "pyroute2", "rich", "uvloop", "scapy"}),  # waited for at every verb
        # bcc is 60 MB resident: only the child that compiles has it; what serves metrics is 2 MB. Templates and YAML
        # are read without privileges alone, and what asks libvirt and Open vSwitch is a child of its own
        ("shim.agent", {"bcc", "scapy", "prometheus_client", "jinja2", "yaml", "libvirt", "ovs"}),
        # guests can reach it, and few of them have a template
        ("shim.proxy", {"bcc", "pyroute2", "scapy", "rich", "prometheus_client", "jinja2", "yaml"}),
    ],
)
def test_what_importing_a_process_brings(module, heavy):
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    argv = [sys.executable, "-c", script]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert heavy & set(run.stdout.split()) == set()
