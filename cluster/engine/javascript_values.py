"""JavaScript's operators over JSON values, for the part where both agree beyond doubt.

Numbers are doubles: Python's ints stand for them only where they are exact. What would throw in
JavaScript, call a method or depend on UTF-16 raises NotSimple.
"""

import math
import re
from decimal import Decimal
from typing import Any, Final


class NotSimple(Exception):
    """The script engine has to evaluate this one."""


class _Undefined:
    __slots__ = ()

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED: Final = _Undefined()

_SAFE = 2**53 - 1
_BLANKS = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_RADIX = re.compile(r"0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+")
_INHERITED = frozenset(
    "constructor hasOwnProperty isPrototypeOf propertyIsEnumerable toLocaleString toString valueOf "
    "__proto__ __defineGetter__ __defineSetter__ __lookupGetter__ __lookupSetter__".split()
)


def from_json(value: Any) -> Any:
    """A value of the input as JavaScript holds it."""
    if type(value) is int and not -_SAFE <= value <= _SAFE:
        raise NotSimple
    return value


def to_result(value: Any) -> Any:
    """A result as JSON holds it; an object is a copy in JavaScript, so it is not simple."""
    kind = type(value)
    if kind is bool or kind is str or kind is int or value is None:
        return value
    if kind is float:
        return number_result(value)
    if value is UNDEFINED:
        return None
    raise NotSimple


def number_result(value: float) -> int | float | str:
    """Whole numbers come out as such; what JSON has no number for comes out as text."""
    if math.isfinite(value):
        if (
            value.is_integer()
            and abs(value) <= _SAFE
            and (value != 0 or math.copysign(1, value) > 0)
        ):
            return int(value)
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def is_true(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    if value is None or value is UNDEFINED:
        return False
    if isinstance(value, (dict, list)):
        return True
    return bool(value) and not _is_nan(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def type_of(value: Any) -> str:
    if value is UNDEFINED:
        return "undefined"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "object"


def member(value: Any, name: str) -> Any:
    """`value.name`"""
    if isinstance(value, dict):
        if name in value:
            return from_json(value[name])
        if name in _INHERITED:
            raise NotSimple
        return UNDEFINED
    if name == "length" and isinstance(value, (list, str)):
        return len(value) if isinstance(value, list) else len(_units(value))
    # null and undefined throw; every other member is a method or an index written as text.
    raise NotSimple


def element(value: Any, key: Any) -> Any:
    """`value[key]`"""
    if isinstance(key, str):
        return member(value, key)
    if isinstance(key, bool) or not isinstance(key, (int, float)):
        raise NotSimple
    if not 0 <= key <= _SAFE or key != int(key):
        raise NotSimple
    index = int(key)
    if isinstance(value, dict):
        return member(value, str(index))
    if isinstance(value, (list, str)):
        items = value if isinstance(value, list) else _units(value)
        return from_json(items[index]) if index < len(items) else UNDEFINED
    raise NotSimple


def to_number(value: Any) -> float:
    if value is None:
        return 0.0
    if value is UNDEFINED:
        return math.nan
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, str):
        return _parse(value.strip(_BLANKS))
    raise NotSimple


def _parse(text: str) -> float:
    if not text:
        return 0.0
    if _DECIMAL.fullmatch(text) is not None:
        return float(text)
    if _RADIX.fullmatch(text) is not None:
        if len(text) > 14:
            raise NotSimple
        return float(int(text, 0))
    infinities = {"Infinity": math.inf, "+Infinity": math.inf, "-Infinity": -math.inf}
    return infinities.get(text, math.nan)


def to_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _number_text(float(value))
    if value is UNDEFINED:
        return "undefined"
    raise NotSimple


def _number_text(value: float) -> str:
    if not math.isfinite(value):
        return str(number_result(value))
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        # The shortest digits that name the double, filled up with zeros where they end early.
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    power = exponent + len(digits) - 1
    fraction = "." + rest if rest else ""
    return f"{'-' if sign else ''}{first}{fraction}e{'+' if power > 0 else '-'}{abs(power)}"


def strictly_equal(left: Any, right: Any) -> bool:
    if isinstance(left, (dict, list)) and isinstance(right, (dict, list)):
        # Objects are equal when they are the same one, which copies do not show.
        raise NotSimple
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    return left is right and left in (None, UNDEFINED)


def loosely_equal(left: Any, right: Any) -> bool:
    missing_left = left is None or left is UNDEFINED
    missing_right = right is None or right is UNDEFINED
    if missing_left or missing_right:
        return missing_left and missing_right
    if isinstance(left, (dict, list)) or isinstance(right, (dict, list)):
        raise NotSimple
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    return to_number(left) == to_number(right)


def less(left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return _units(left) < _units(right)
    return to_number(left) < to_number(right)


def less_or_equal(left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return _units(left) <= _units(right)
    return to_number(left) <= to_number(right)


def _units(text: str) -> str:
    """The text, if each of its characters is one unit of UTF-16."""
    if not text.isascii() and max(text) > "\uffff":
        raise NotSimple
    return text


def add(left: Any, right: Any) -> Any:
    if isinstance(left, str) or isinstance(right, str):
        return to_string(left) + to_string(right)
    return to_number(left) + to_number(right)


def subtract(left: Any, right: Any) -> float:
    return to_number(left) - to_number(right)


def multiply(left: Any, right: Any) -> float:
    return to_number(left) * to_number(right)


def divide(left: Any, right: Any) -> float:
    dividend, divisor = to_number(left), to_number(right)
    if divisor == 0:
        if dividend == 0 or math.isnan(dividend):
            return math.nan
        return math.copysign(math.inf, dividend) * math.copysign(1, divisor)
    return dividend / divisor


def remainder(left: Any, right: Any) -> float:
    dividend, divisor = to_number(left), to_number(right)
    if divisor == 0 or math.isinf(dividend) or math.isnan(dividend) or math.isnan(divisor):
        return math.nan
    return math.fmod(dividend, divisor)
