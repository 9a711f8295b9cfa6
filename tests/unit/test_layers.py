"""Imports point one way (docs/house-style.md), the engine is pure, the clock has one door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "cluster").rglob("*.py"))

# High to low; a layer imports itself and what is below it.
LAYERS = ("cluster.cli", "cluster.node", "cluster.sharding", "cluster.store", "cluster.engine")
FOR_ALL = ("cluster.ids", "cluster.errors")
FOR_ALL_BUT_ENGINE = (
    "cluster.clock",
    "cluster.logs",
    "cluster.metrics",
    "cluster.settings",
    "cluster.system_tasks",
    "cluster.urls",
)
# The only module that names an implementation of a port.
ASSEMBLY = "cluster.node.ground"

NOT_IN_ENGINE = {
    "aiohttp", "asyncio", "cassandra", "concurrent", "http", "io", "jq", "logging",
    "multiprocessing", "os", "pathlib", "prometheus_client", "quickjs", "redis", "select",
    "selectors", "signal", "socket", "sqlite3", "ssl", "structlog", "subprocess", "sys",
    "tempfile", "threading", "urllib", "uvloop",
}  # fmt: skip
ONLY_IN_CLOCK = {"random", "secrets", "time", "uuid"}
CLOCK_READINGS = {"now", "today", "utcnow"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names of all that is imported, also inside functions; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = node.level - 1 if is_package else node.level
            origin = parts[: len(parts) - up] if node.level else []
            origin += node.module.split(".") if node.module else []
            yield from (".".join([*origin, alias.name]) for alias in node.names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(name: str) -> str | None:
    return next((layer for layer in LAYERS if is_in(name, layer)), None)


def implementation_of(name: str) -> str | None:
    """`cluster.store.sql` for whatever is inside that folder, None for ports and codec."""
    parts = name.split(".")
    if parts[:2] != ["cluster", "store"] or len(parts) < 3:
        return None
    package = ".".join(parts[:3])
    return package if (ROOT / "cluster" / "store" / parts[2]).is_dir() else None


def may_import(importer: str, imported: str) -> bool:
    if not is_in(imported, "cluster"):
        return True
    if any(is_in(imported, name) for name in FOR_ALL):
        return True
    if is_in(importer, "cluster.client") or is_in(imported, "cluster.client"):
        return is_in(importer, "cluster.client") and is_in(imported, "cluster.client")
    if any(is_in(imported, name) for name in FOR_ALL_BUT_ENGINE):
        return not is_in(importer, "cluster.engine")
    implementation = implementation_of(imported)
    if implementation is not None:
        return importer == ASSEMBLY or is_in(importer, implementation)
    lower, upper = layer_of(imported), layer_of(importer)
    if lower is None:
        return imported == "cluster.__version__"
    if upper is None:
        return importer == "cluster.__main__" and lower == "cluster.cli"
    return LAYERS.index(upper) <= LAYERS.index(lower)


def faults(module: str, tree: ast.Module, *, is_package: bool = False) -> list[str]:
    found = []
    for name in imports_of(tree, module, is_package=is_package):
        top = name.split(".")[0]
        if not may_import(module, name):
            found.append(f"{module} must not import {name}")
        if top in ONLY_IN_CLOCK and module != "cluster.clock":
            found.append(f"{module} imports {name}; only cluster/clock.py may")
        if is_in(module, "cluster.engine") and top in NOT_IN_ENGINE:
            found.append(f"{module} imports {name}; the engine does no I/O")
        if name == "os.environ" and module != "cluster.settings":
            found.append(f"{module} reads the environment")
    for node in ast.walk(tree):
        if reads_environment(node) and module != "cluster.settings":
            found.append(f"{module} reads the environment")
        if is_in(module, "cluster.engine") and (fault := impurity(node)):
            found.append(f"{module}:{getattr(node, 'lineno', '?')} {fault}")
    return found


def reads_environment(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")


def impurity(node: ast.AST) -> str | None:
    match node:
        case ast.Await() | ast.AsyncFunctionDef() | ast.AsyncFor() | ast.AsyncWith():
            return "waits; the engine never does"
        case ast.Attribute(attr=name) if name in CLOCK_READINGS:
            return "reads a clock; time comes with the event"
        case ast.Call(func=ast.Name(id="open" | "print" | "input")):
            return "does I/O"
        case _:
            return None


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_keeps_the_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert faults(module_of(path), tree, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cluster.engine.decider", "from cluster.clock import Clock"),
        ("cluster.engine.decider", "from cluster import clock"),
        ("cluster.engine.decider", "from cluster.store import ports"),
        ("cluster.engine.tasks.wait", "from ...store import ports"),
        ("cluster.engine.decider", "import time"),
        ("cluster.engine.decider", "import asyncio"),
        ("cluster.engine.decider", "import logging.handlers"),
        ("cluster.engine.decider", "async def f(): ..."),
        ("cluster.engine.tasks.wait", "import datetime\ndatetime.datetime.now()"),
        ("cluster.engine.decider", "print(1)"),
        ("cluster.store.ports", "from cluster.sharding.ring import owner"),
        ("cluster.store.sql.log", "from cluster.store.memory import log"),
        ("cluster.sharding.shard", "def f():\n    from cluster.store.sql.log import SqlLog"),
        ("cluster.sharding.shard", "from cluster.node import wire"),
        ("cluster.node.router", "from cluster.store import memory"),
        ("cluster.node.app", "from cluster.store.sql import open_sqlite"),
        ("cluster.node.router", "import cluster.cli"),
        ("cluster.node.router", "from time import monotonic"),
        ("cluster.node.router", "import os\nos.environ['X']"),
        ("cluster.node.router", "from os import environ"),
        ("cluster.client.worker", "from cluster.engine.model import Task"),
        ("cluster.node.router", "from cluster.client import worker"),
        ("cluster.ids", "from cluster.engine.model import Task"),
    ],
)
def test_the_rules_bite(module: str, source: str) -> None:
    assert faults(module, ast.parse(source)) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cluster.engine.decider", "from cluster.ids import WorkflowId\nfrom . import model"),
        ("cluster.store.sql.log", "from cluster.store.ports import LogStore\nimport sqlite3"),
        ("cluster.store.sql.log", "from .connection import Connection"),
        ("cluster.sharding.shard", "from cluster.engine.decider import decide\nimport asyncio"),
        ("cluster.node.ground", "from cluster.store.sql.log import SqlLog"),
        ("cluster.cli", "from cluster import __version__\nfrom cluster.node.app import serve"),
        ("cluster.__main__", "from cluster.cli import main"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert faults(module, ast.parse(source)) == []


def test_there_is_something_to_test() -> None:
    assert {"cluster.cli", "cluster.engine.model"} <= {module_of(path) for path in FILES}
