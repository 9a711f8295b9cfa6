"""JSON values as text, the way Conductor's Java writes them into a longer text."""

import math
import re
from decimal import Decimal
from typing import Any

# What JSON text escapes here: more than JSON asks for, and "/" too.
_ESCAPED = re.compile(r'["\\/\x00-\x1f\x7f-\x9f\u2000-\u20ff]')
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
_BITS_MAX_FOR_STR = 14_000


def to_text(value: Any) -> str:
    """A value inside a longer text: `{a=1, b=[x, null]}` for maps and lists, numbers as Java's."""
    if type(value) is str:
        return value
    if isinstance(value, (dict, list)):
        return _container_text(value, is_json=False)
    return _scalar_text(value)


def to_json_text(value: Any) -> str:
    """A value as compact JSON, texts in quotes and escaped."""
    return _container_text(value, is_json=True)


def _container_text(value: Any, *, is_json: bool) -> str:
    # An explicit stack, because data may be nested deeper than Python's own. A tuple on it is
    # finished text: JSON values are never tuples.
    comma, colon = (",", ":") if is_json else (", ", "=")
    out: list[str] = []
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if type(item) is tuple:
            out.append(item[0])
        elif isinstance(item, dict):
            out.append("{")
            pending.append(("}",))
            entries = list(item.items())
            for at in range(len(entries) - 1, -1, -1):
                key, entry = entries[at]
                name = _quoted(key) if is_json else key
                pending.append(entry)
                pending.append(((comma if at else "") + name + colon,))
        elif isinstance(item, list):
            out.append("[")
            pending.append(("]",))
            for at in range(len(item) - 1, -1, -1):
                pending.append(item[at])
                if at:
                    pending.append((comma,))
        elif isinstance(item, str):
            out.append(_quoted(item) if is_json else item)
        else:
            out.append(_scalar_text(item))
    return "".join(out)


def _scalar_text(value: Any) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float):
        return _double_text(value)
    if isinstance(value, int) and value.bit_length() > _BITS_MAX_FOR_STR:
        return str(Decimal(value))
    return str(value)


def _double_text(value: float) -> str:
    """As Double.toString: 1.0, 1.0E7, 1.0E-5."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value) if "e" not in repr(value) else format(Decimal(repr(value)), "f")
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    power = exponent + len(text) - 1
    fraction = text[1:].rstrip("0") or "0"
    return f"{'-' if sign else ''}{text[0]}.{fraction}E{power}"


def _quoted(text: str) -> str:
    return '"' + _ESCAPED.sub(_escape, text) + '"'


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if char in '"\\/':
        return "\\" + char
    return _SHORT.get(char) or f"\\u{ord(char):04X}"
