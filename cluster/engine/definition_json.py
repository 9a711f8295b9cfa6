"""Reads definitions out of users' JSON: Conductor's leniency, its defaults, unknown fields kept."""

import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from cluster.errors import InvalidRequest

NESTING_MAX = 64
"""Objects inside objects. Everything that walks a definition recurses, so the depth is bounded."""

Long = Annotated[int, "64 bits"]
"""A plain `int` field has 32 bits, as in Conductor."""

Boxed = Annotated[int, "null is the default"]
"""Null in a plain `int` field is 0, as in Conductor."""

S = TypeVar("S", bound=msgspec.Struct)

# What a reader makes of a JSON value, at a depth: the typed value, and the JSON form in which it
# is stored and served. A None in the second place means that the field counts as absent.
Read = tuple[Any, Any]
Reader = Callable[[Any, int], Read]

_ABSENT: Read = (None, None)
_TRUE_TEXTS = frozenset({"true", "True", "TRUE"})
_FALSE_TEXTS = frozenset({"false", "False", "FALSE"})
_NO_VALUE_TEXTS = frozenset({"", "null"})


class Unreadable(Exception):
    """A value does not fit its field; each level it passes on its way up adds to its path."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.parts: list[str] = []

    def worded(self, path: str) -> str:
        """`tasks[0].retryCount: expected integer`"""
        where = (path + "".join(reversed(self.parts))).removeprefix(".")
        return f"{where or 'body'}: expected {self.expected}"


class Model:
    """How one struct is read: a reader per JSON field, in the order in which Conductor writes them.

    `nested`: readers of the structs that fields may hold. `special`: readers by JSON field name.
    `finish` may correct the struct's arguments and the JSON form (None = absent) of what was read.
    """

    def __init__(
        self,
        struct: type[msgspec.Struct],
        nested: Mapping[Any, Reader],
        *,
        special: Mapping[str, Reader] | None = None,
        finish: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    ) -> None:
        self.struct = struct
        self.finish = finish
        self.readers: dict[str, tuple[str, Reader]] = {}
        # Fields without default stand here as None for their place in the order.
        self.defaults: dict[str, Any] = {}
        self.containers: list[tuple[str, Callable[[], Any]]] = []
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            key, hint = field.encode_name, hints[field.name]
            reader = (special or {}).get(key) or reader_of(hint, nested)
            self.readers[key] = (field.name, reader)
            default = field.default
            if field.default_factory is dict:
                self.containers.append((key, dict))
            elif default == ():
                self.containers.append((key, list))
            # The typed form says "" where a name is absent; the JSON form leaves it out.
            self.defaults[key] = (
                default if isinstance(default, int | str) and default != "" else None
            )

    def read(self, value: Any, depth: int) -> Read:
        """Unreadable: not an object, or one of its fields has the wrong type."""
        if not isinstance(value, dict):
            raise Unreadable("object")
        if depth > NESTING_MAX:
            raise Unreadable(f"at most {NESTING_MAX} levels of objects in objects")
        arguments: dict[str, Any] = {}
        wire = self.defaults.copy()
        for key, container in self.containers:
            wire[key] = container()
        unknown: dict[str, Any] = {}
        for key, item in value.items():
            known = self.readers.get(key)
            if known is None:
                unknown[key] = item
                continue
            try:
                typed, kept = known[1](item, depth + 1)
            except Unreadable as error:
                error.parts.append(f".{key}")
                raise
            if kept is not None:
                arguments[known[0]] = typed
                wire[key] = kept
        if self.finish is not None:
            self.finish(arguments, wire)
        wire = {key: item for key, item in wire.items() if item is not None}
        if unknown:
            wire.update(unknown)
        return self.struct(**arguments), wire


def read_body(model: Model, struct: type[S], body: Any, path: str) -> tuple[S, dict[str, Any]]:
    """Read a body that stands at `path` of a request. InvalidRequest names the field at fault."""
    try:
        typed, wire = model.read(body, 0)
    except Unreadable as error:
        raise InvalidRequest(error.worded(path)) from None
    assert isinstance(typed, struct)
    return typed, wire


def reader_of(hint: Any, nested: Mapping[Any, Reader]) -> Reader:
    """The reader for the type of a field."""
    if hint in nested:
        return nested[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        if inner in _BITS:
            return _integer(_BITS[inner], missing=None)
        return _flag(missing=None) if inner is bool else reader_of(inner, nested)
    if hint in _BITS:
        return _integer(_BITS[hint], missing=0)
    if hint == Boxed:
        return _integer(31, missing=None)
    if hint is bool:
        return _flag(missing=False)
    if hint is str:
        return read_text
    if hint is Any:
        return read_any
    if origin is Literal:
        return _choice(arguments)
    if origin is tuple:
        return _list_of(reader_of(arguments[0], nested))
    if origin is dict:
        return read_object if arguments[1] is Any else _map_of(reader_of(arguments[1], nested))
    raise TypeError(f"no reader for {hint}")


_BITS = {int: 31, Long: 63}


def read_any(value: Any, depth: int) -> Read:
    return value, value


def read_text(value: Any, depth: int) -> Read:
    if isinstance(value, str):
        return value, value
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int | float):
        text = str(value)
    else:
        raise Unreadable("string")
    return text, text


def read_object(value: Any, depth: int) -> Read:
    """An object of the user's own, which is kept as it is."""
    if value is not None and not isinstance(value, dict):
        raise Unreadable("object")
    return value, value


def _integer(bits: int, *, missing: int | None) -> Reader:
    low, high = -(1 << bits), (1 << bits) - 1

    def read(value: Any, depth: int) -> Read:
        if isinstance(value, str):
            value = _integer_in(value.strip())
        elif isinstance(value, float) and abs(value) <= high:
            value = int(value)
        if value is None:
            return missing, missing
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unreadable("integer")
        if not low <= value <= high:
            raise Unreadable(f"integer from {low} to {high}")
        return value, value

    return read


def _integer_in(text: str) -> int | None:
    if text in _NO_VALUE_TEXTS:
        return None
    digits = text[1:] if text[0] in "+-" else text
    # The length is looked at first: to convert a megabyte of digits takes seconds.
    if len(digits) > 20 or not (digits.isascii() and digits.isdigit()):
        raise Unreadable("integer")
    return int(text)


def _flag(*, missing: bool | None) -> Reader:
    def read(value: Any, depth: int) -> Read:
        if isinstance(value, bool):
            return value, value
        if isinstance(value, int):
            return value != 0, value != 0
        if value is None:
            return missing, missing
        text = value.strip() if isinstance(value, str) else "?"
        if text in _NO_VALUE_TEXTS:
            return missing, missing
        if text in _TRUE_TEXTS or text in _FALSE_TEXTS:
            return text in _TRUE_TEXTS, text in _TRUE_TEXTS
        raise Unreadable("true or false")

    return read


def _choice(values: tuple[str, ...]) -> Reader:
    def read(value: Any, depth: int) -> Read:
        if value is None:
            return _ABSENT
        # Conductor takes the position of a value for the value.
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(values):
            value = values[value]
        if not isinstance(value, str) or value not in values:
            raise Unreadable(f"one of {', '.join(values)}")
        return value, value

    return read


def _list_of(reader: Reader) -> Reader:
    def read(value: Any, depth: int) -> Read:
        if value is None:
            return _ABSENT
        if not isinstance(value, list):
            raise Unreadable("array")
        pairs = [_read_inner(reader, f"[{i}]", item, depth) for i, item in enumerate(value)]
        return (
            tuple(typed for typed, kept in pairs if kept is not None),
            [kept for _, kept in pairs],
        )

    return read


def _map_of(reader: Reader) -> Reader:
    def read(value: Any, depth: int) -> Read:
        if value is None:
            return _ABSENT
        if not isinstance(value, dict):
            raise Unreadable("object")
        pairs = {key: _read_inner(reader, f"[{key}]", value[key], depth) for key in value}
        return (
            {key: typed for key, (typed, kept) in pairs.items() if kept is not None},
            {key: kept for key, (_, kept) in pairs.items()},
        )

    return read


def _read_inner(reader: Reader, part: str, value: Any, depth: int) -> Read:
    """An element. Texts may be null, and stay so in the JSON form; steps and lists may not."""
    try:
        if value is None and reader is not read_text:
            raise Unreadable("a value, not null")
        return reader(value, depth)
    except Unreadable as error:
        error.parts.append(part)
        raise
