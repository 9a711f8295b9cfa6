"""One `${...}` reference: from its path to a function that reads it.

Most references are plain dotted paths with indexes; they become a walk over a tuple of keys.
Everything else JSONPath can say goes through `jsonpath`.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from cluster.engine import jsonpath
from cluster.engine.text import to_json_text, to_text

SECRET_PREFIX = "workflow.secrets."
_TASK_ID = "CPEWF_TASK_ID"
_CACHED_CHARS_MAX = 256


class Root(Protocol):
    """What expressions may look at. All values are plain JSON values and are never changed."""

    def field(self, key: str, name: str) -> Any:
        """field("t1", "output"), field("workflow", "input"); None when either is unknown."""

    def view(self, key: str) -> dict[str, Any] | None:
        """Every field of one root key (slow), None when unknown."""

    def document(self) -> dict[str, Any]:
        """Everything, for paths that start or scan from the top (slowest)."""


Node = Callable[[Root, str | None], Any]


class Expression(Protocol):
    """One `${...}`: as a value where it stands alone, as text inside a longer one."""

    def value_node(self) -> Node: ...

    def text(self, root: Root, task_id: str | None) -> str: ...


def compile_reference(path: str) -> "Reference":
    """The reference that `${path}` is. Never raises: a broken path reads as null."""
    return _cached_reference(path) if len(path) <= _CACHED_CHARS_MAX else _new_reference(path)


def inside_json(text: Any, path: str) -> Any:
    if not isinstance(text, str):
        return None
    try:
        document = msgspec.json.decode(text)
        return jsonpath.compile_path(path).read(document, jsonpath.Scope(lambda: document))
    except (msgspec.DecodeError, jsonpath.PathError, RecursionError):
        return None


class _Literal:
    """An expression that does not look at the root."""

    __slots__ = ("roots", "value")

    def __init__(self, value: str | None) -> None:
        self.value = value
        self.roots: frozenset[str] = frozenset()

    def value_node(self) -> Node:
        value = self.value
        return lambda root, task_id: value

    def text(self, root: Root, task_id: str | None) -> str:
        return to_text(self.value)


NULL = _Literal(None)


class _TaskId:
    """`${CPEWF_TASK_ID}`: stays as it is where no task is being scheduled."""

    __slots__ = ()
    roots: frozenset[str] = frozenset()

    def value_node(self) -> Node:
        return self.text

    def text(self, root: Root, task_id: str | None) -> str:
        return "${" + _TASK_ID + "}" if task_id is None else task_id


class _Path:
    """A reference by path. `read` is all that runs when it is resolved."""

    __slots__ = ("is_definite", "read", "roots")

    def __init__(
        self, read: Callable[[Root], Any], roots: frozenset[str], *, is_definite: bool
    ) -> None:
        self.read = read
        self.roots = roots
        self.is_definite = is_definite

    def value_node(self) -> Node:
        read = self.read
        return lambda root, task_id: read(root)

    def text(self, root: Root, task_id: str | None) -> str:
        value = self.read(root)
        if type(value) is str:
            return value
        # What an indefinite path finds is text as JSON, everything else in Java's notation.
        return to_text(value) if self.is_definite else to_json_text(value)


Reference = _Literal | _TaskId | _Path


@functools.lru_cache(maxsize=4_096)
def _cached_reference(path: str) -> Reference:
    return _new_reference(path)


def _new_reference(path: str) -> Reference:
    if not path or _is_blank(path):
        return _Literal("")
    if path == _TASK_ID:
        return _TaskId()
    if path.startswith(SECRET_PREFIX):
        return _Literal("${" + path + "}")
    try:
        parsed = jsonpath.compile_path(path)
    except (jsonpath.PathError, RecursionError):
        return NULL
    read = _plain_walk(parsed.steps) or _jsonpath_walk(parsed)
    return _Path(read, parsed.roots, is_definite=parsed.is_definite)


def _is_blank(text: str) -> bool:
    # Java does not count the unbreakable blanks as whitespace.
    return all(char.isspace() and char not in "\x85\xa0\u2007\u202f" for char in text)


def _plain_walk(steps: jsonpath.Steps) -> Callable[[Root], Any] | None:
    """The read of a path of single names and indexes below one root key; else None."""
    keys: list[str | int] = []
    for step in steps:
        if isinstance(step, jsonpath.Property) and len(step.names) == 1:
            keys.append(step.names[0])
        elif isinstance(step, jsonpath.Index) and len(step.indexes) == 1:
            keys.append(step.indexes[0])
        else:
            return None
    if not keys or isinstance(keys[0], int):
        return None
    key, rest = keys[0], keys[1:]
    if not rest:
        return lambda root: root.view(key)
    name = rest[0]
    if isinstance(name, int):
        return lambda root: None
    if key == "workflow" and name == "env" and len(rest) == 1:
        # Variables are read by name, never all of them.
        return lambda root: None
    if key == "workflow" and name == "env" and len(rest) > 2:
        return _environment_walk(rest)
    return _field_walk(key, name, tuple(rest[1:]))


def _field_walk(key: str, name: str, keys: tuple[str | int, ...]) -> Callable[[Root], Any]:
    if not keys:
        return lambda root: root.field(key, name)
    if len(keys) == 1 and isinstance(keys[0], str):
        only = keys[0]

        def read_one(root: Root) -> Any:
            value = root.field(key, name)
            return value.get(only) if type(value) is dict else None

        return read_one

    def read(root: Root) -> Any:
        value = root.field(key, name)
        try:
            for step in keys:
                # Only a list has indexes: without the test a text would yield characters.
                if type(step) is int and type(value) is not list:
                    return None
                value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
        return value

    return read


def _environment_walk(rest: list[str | int]) -> Callable[[Root], Any]:
    """`workflow.env.NAME.path`: a path into a variable that holds JSON."""
    name = rest[1]
    path = "$" + "".join(f"[{msgspec.json.encode(step).decode()}]" for step in rest[2:])

    def read(root: Root) -> Any:
        variables = root.field("workflow", "env")
        return inside_json(variables.get(name), path) if isinstance(variables, dict) else None

    return read


def _jsonpath_walk(parsed: jsonpath.Path) -> Callable[[Root], Any]:
    steps = parsed.steps
    names = [
        step.names[0] if isinstance(step, jsonpath.Property) and len(step.names) == 1 else None
        for step in steps[:2]
    ]

    def start(root: Root) -> tuple[Any, int]:
        # Start as deep as the path allows: the whole document is dear to build.
        if names and names[0] is not None:
            if len(names) > 1 and names[1] is not None:
                return root.field(names[0], names[1]), 2
            return root.view(names[0]), 1
        return root.document(), 0

    def read(root: Root) -> Any:
        model, at = start(root)
        if model is None:
            return None if parsed.is_definite else []
        try:
            return parsed.read(model, jsonpath.Scope(root.document), at=at)
        except (jsonpath.PathError, RecursionError):
            return None

    return read
