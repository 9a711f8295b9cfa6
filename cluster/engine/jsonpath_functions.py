"""The functions of JSONPath: length, min, max, avg, sum, stddev, keys, concat, append, ..."""

import math
from collections.abc import Callable
from typing import Any

import msgspec

Compute = Callable[[Any, list[Any]], Any]


def _length(model: Any, arguments: list[Any]) -> Any:
    if arguments and isinstance(arguments[0], list):
        return len(arguments[0])
    return len(model) if isinstance(model, (list, dict)) else None


def _keys(model: Any, arguments: list[Any]) -> Any:
    return list(model) if isinstance(model, dict) else None


def _numbers(model: Any, arguments: list[Any]) -> list[float]:
    """Numbers of the list and of the arguments; ValueError when there is none."""
    found: list[float] = []
    for value in [model, *arguments]:
        items = value if isinstance(value, list) else [value]
        if value is model and not isinstance(model, list):
            continue
        found.extend(
            float(item)
            for item in items
            if isinstance(item, (int, float)) and not isinstance(item, bool)
        )
    if not found:
        raise ValueError("no numbers")
    return found


def _average(model: Any, arguments: list[Any]) -> Any:
    numbers = _numbers(model, arguments)
    return sum(numbers) / len(numbers)


def _deviation(model: Any, arguments: list[Any]) -> Any:
    numbers = _numbers(model, arguments)
    mean = sum(numbers) / len(numbers)
    return math.sqrt(sum(number * number for number in numbers) / len(numbers) - mean * mean)


def _concat(model: Any, arguments: list[Any]) -> Any:
    texts = [item for item in model if isinstance(item, str)] if isinstance(model, list) else []
    for argument in arguments:
        if isinstance(argument, list):
            texts.extend(item for item in argument if isinstance(item, str))
        elif argument is not None:
            texts.append(argument if isinstance(argument, str) else _json_text(argument))
    return "".join(texts)


def _append(model: Any, arguments: list[Any]) -> Any:
    return [*model, *arguments] if isinstance(model, list) else model


def _at(index: int) -> Compute:
    def item(model: Any, arguments: list[Any]) -> Any:
        if not isinstance(model, list):
            raise ValueError("not a list")
        return model[index]

    return item


def _index(model: Any, arguments: list[Any]) -> Any:
    if not isinstance(model, list):
        raise ValueError("not a list")
    return model[int(_numbers(None, arguments)[0])]


FUNCTIONS: dict[str, Compute] = {
    "length": _length,
    "size": _length,
    "keys": _keys,
    "min": lambda model, arguments: min(_numbers(model, arguments)),
    "max": lambda model, arguments: max(_numbers(model, arguments)),
    "sum": lambda model, arguments: sum(_numbers(model, arguments)),
    "avg": _average,
    "stddev": _deviation,
    "concat": _concat,
    "append": _append,
    "first": _at(0),
    "last": _at(-1),
    "index": _index,
}


def split_arguments(text: str, opening: int) -> list[str] | None:
    """The texts between the bracket at `opening` and its partner; None when it has none."""
    depth = 0
    quoted = False
    parts: list[str] = []
    start = opening + 1
    for at in range(opening, len(text)):
        char = text[at]
        if char == '"' and text[at - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                parts.append(text[start:at].strip())
                return [part for part in parts if part]
        elif char == "," and depth == 1:
            parts.append(text[start:at].strip())
            start = at + 1
    return None


def constant(text: str) -> Any:
    """A JSON literal; text that is none stands for itself."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
