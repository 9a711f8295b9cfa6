"""`${...}` references: parsed once per definition, resolved at every step of a workflow.

A template is any JSON value; this module cuts its texts into literal parts and references, and
`references` reads those.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cluster.engine.references import (
    NULL,
    SECRET_PREFIX,
    Expression,
    Node,
    Root,
    compile_reference,
    inside_json,
)
from cluster.engine.text import to_text
from cluster.errors import InvalidRequest

__all__ = [
    "Root",
    "Template",
    "compile_template",
    "mentions_secrets",
    "resolve_secrets",
    "to_text",
]

TEMPLATE_DEPTH_MAX = 100
NESTED_EXPRESSIONS_MAX = 20
# A text that repeats a large value many times becomes null instead of filling the memory.
TEXT_CHARS_MAX = 16 * 1024 * 1024

_SECRET_START = "${" + SECRET_PREFIX


class Template:
    """A JSON value with references in its texts. Immutable and cheap to keep.

    `references` are the root keys that it looks at ("workflow", task reference names); a key that
    is itself computed (`${${...}.output}`) is not among them.
    """

    __slots__ = ("_node", "is_constant", "references")

    _node: Node
    is_constant: bool
    references: frozenset[str]

    def __init__(self, node: Node, references: frozenset[str], *, is_constant: bool) -> None:
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "references", references)
        object.__setattr__(self, "is_constant", is_constant)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a template does not change")

    def resolve(self, root: Root, *, task_id: str | None = None) -> Any:
        """The value with every reference replaced. Never raises.

        Lists and maps of the template come out as fresh ones. Values taken from `root` are handed
        on as they are, not copied: who wants to change the result copies it first.
        """
        return self._node(root, task_id)


def compile_template(value: Any) -> Template:
    """Parse all texts in a JSON value; keys of maps are left alone.

    Raises InvalidRequest when the value is nested deeper than TEMPLATE_DEPTH_MAX.
    """
    references: set[str] = set()
    node = _compile(value, references, 0)
    is_constant = node is None
    if node is None:
        node = _constant(value)
    return Template(node, frozenset(references), is_constant=is_constant)


def mentions_secrets(value_json: bytes) -> bool:
    """Whether an encoded value may hold a reference that `resolve_secrets` replaces."""
    return b"${workflow.secrets." in value_json


def resolve_secrets(value: Any, secrets: Mapping[str, str]) -> Any:
    """Replace `${workflow.secrets.NAME}`: only in what is handed over, never in what is stored.

    An unknown name is null when it is the whole text, else the empty text. Returns `value` itself
    when it holds no such reference; what it changes is copied.
    """
    if isinstance(value, str):
        return _text_with_secrets(value, secrets) if _SECRET_START in value else value
    if isinstance(value, dict):
        changed = {
            key: new
            for key, old in value.items()
            if (new := resolve_secrets(old, secrets)) is not old
        }
        return {**value, **changed} if changed else value
    if isinstance(value, list):
        items = [resolve_secrets(old, secrets) for old in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    return value


def _text_with_secrets(text: str, secrets: Mapping[str, str]) -> Any:
    out: list[str] = []
    end = 0
    while (start := text.find(_SECRET_START, end)) >= 0:
        close = text.find("}", start)
        if close < 0:
            break
        secret = _secret(text[start + len(_SECRET_START) : close], secrets)
        if start == 0 and close == len(text) - 1:
            return secret
        out.append(text[end:start])
        out.append("" if secret is None else to_text(secret))
        end = close + 1
    out.append(text[end:])
    return "".join(out)


def _secret(name: str, secrets: Mapping[str, str]) -> Any:
    """`NAME`, or `NAME.path` into a secret that is JSON."""
    if name in secrets:
        return secrets[name]
    first, _, path = name.partition(".")
    return inside_json(secrets.get(first), path) if path else None


def _constant(value: Any) -> Node:
    """A node that yields the value; containers are built anew each time."""
    if isinstance(value, dict):
        plain = {key: None if _is_container(item) else item for key, item in value.items()}
        parts = [(key, _constant(item)) for key, item in value.items() if _is_container(item)]
        return _map_node(plain, parts)
    if isinstance(value, list):
        if any(_is_container(item) for item in value):
            nodes = [_constant(item) for item in value]
            return lambda root, task_id: [node(root, task_id) for node in nodes]
        items = tuple(value)
        return lambda root, task_id: list(items)
    if isinstance(value, str):
        value = _unescape(value)
    return lambda root, task_id: value


def _is_container(value: Any) -> bool:
    # A text with an escape differs from what it stands for, so it is not copied as it is.
    return isinstance(value, (dict, list)) or (isinstance(value, str) and "$${" in value)


def _map_node(plain: dict[str, Any], parts: list[tuple[str, Node]]) -> Node:
    if not parts:
        return lambda root, task_id: plain.copy()

    def resolve_map(root: Root, task_id: str | None) -> Any:
        # The copy holds a place for every key, so the order of keys stays.
        out = plain.copy()
        for key, node in parts:
            out[key] = node(root, task_id)
        return out

    return resolve_map


def _compile(value: Any, references: set[str], depth: int) -> Node | None:
    """The node of a value with references in it, None for a constant."""
    if depth > TEMPLATE_DEPTH_MAX:
        raise InvalidRequest(f"A value is nested deeper than {TEMPLATE_DEPTH_MAX} levels.")
    if isinstance(value, str):
        return _compile_text(value, references) if "${" in value else None
    if isinstance(value, dict):
        parts = [(key, _compile(item, references, depth + 1)) for key, item in value.items()]
        if all(node is None for _, node in parts):
            return None
        plain = {
            key: None if node is not None or _is_container(value[key]) else value[key]
            for key, node in parts
        }
        return _map_node(
            plain,
            [
                (key, node if node is not None else _constant(value[key]))
                for key, node in parts
                if node is not None or _is_container(value[key])
            ],
        )
    if isinstance(value, list):
        compiled = [_compile(item, references, depth + 1) for item in value]
        if all(node is None for node in compiled):
            return None
        nodes = [
            node if node is not None else _constant(item)
            for node, item in zip(compiled, value, strict=True)
        ]
        return lambda root, task_id: [node(root, task_id) for node in nodes]
    return None


def _compile_text(text: str, references: set[str]) -> Node | None:
    parts = _split(text)
    if all(isinstance(part, str) for part in parts):
        return None
    compiled = [
        part if isinstance(part, str) else _compile_expression(part.text, references, 1)
        for part in parts
    ]
    if len(compiled) == 1:
        whole = compiled[0]
        assert not isinstance(whole, str)
        return whole.value_node()
    return _join_node(compiled)


class _Source:
    """The text between `${` and `}` of one expression."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _split(text: str) -> list[str | _Source]:
    """Cut a text into literal parts and expressions.

    Every brace counts, those in quotes too. From a `${` without its `}` on all is literal.
    """
    parts: list[str | _Source] = []
    literal_start = 0
    at = 0
    while (start := text.find("${", at)) >= 0:
        if start > 0 and text[start - 1] == "$":
            at = start + 2
            continue
        end = _closing_brace(text, start + 1)
        if end < 0:
            break
        if start > literal_start:
            parts.append(text[literal_start:start])
        parts.append(_Source(text[start + 2 : end]))
        literal_start = at = end + 1
    if literal_start < len(text) or not parts:
        parts.append(text[literal_start:])
    return parts


def _closing_brace(text: str, opening: int) -> int:
    depth = 0
    at = opening
    while True:
        close = text.find("}", at)
        if close < 0:
            return -1
        depth += text.count("{", at, close) - 1
        if depth == 0:
            return close
        at = close + 1


def _unescape(text: str) -> str:
    return text.replace("$${", "${")


_Part = str | Expression


def _join_node(parts: list[_Part]) -> Callable[[Root, str | None], str | None]:
    # Each literal with the reference after it, so that the loop has nothing to tell apart.
    pairs: list[tuple[str, Callable[[Root, str | None], str]]] = []
    literal = ""
    for part in parts:
        if isinstance(part, str):
            literal = part
        else:
            pairs.append((literal, part.text))
            literal = ""
    tail = literal

    def join(root: Root, task_id: str | None) -> str | None:
        out = ""
        for before, text in pairs:
            out += before + text(root, task_id)
            if len(out) > TEXT_CHARS_MAX:
                return None
        out += tail
        # Conductor unescapes the finished text, values that were put in included.
        return _unescape(out) if "$${" in out else out

    return join


def _compile_expression(source: str, references: set[str], depth: int) -> Expression:
    if depth > NESTED_EXPRESSIONS_MAX:
        return NULL
    parts = _split(source)
    if all(isinstance(part, str) for part in parts):
        reference = compile_reference(_unescape(source))
        references |= reference.roots
        return reference
    compiled: list[_Part] = [
        part if isinstance(part, str) else _compile_expression(part.text, references, depth + 1)
        for part in parts
    ]
    if isinstance(compiled[0], str):
        key, dot, _ = compiled[0].partition(".")
        if dot and key.isidentifier():
            references.add(key)
    return _Computed(_join_node(compiled))


class _Computed:
    """A reference whose path holds other references."""

    __slots__ = ("join",)

    def __init__(self, join: Callable[[Root, str | None], str | None]) -> None:
        self.join = join

    def value_node(self) -> Node:
        def resolve(root: Root, task_id: str | None) -> Any:
            path = self.join(root, task_id)
            return None if path is None else compile_reference(path).value_node()(root, task_id)

        return resolve

    def text(self, root: Root, task_id: str | None) -> str:
        path = self.join(root, task_id)
        return "null" if path is None else compile_reference(path).text(root, task_id)
