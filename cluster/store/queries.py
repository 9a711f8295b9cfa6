"""What a search asks for: a tree of conditions on fields, how they are judged, and in what order
results come. Pure; node/query_language.py makes it out of text.

Judgement has two values only. What is absent (None, "" or no names) equals "" alone, is neither
above nor below anything, and is what IS NULL asks for; the negations are the exact opposites.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import msgspec

Value: TypeAlias = "str | int | tuple[str, ...] | None"
"""What a document holds under a field; a tuple holds several names."""

ValueOf: TypeAlias = Callable[[str], Value]
"""A document: its value by field. ALL_TEXTS stands for every text in it."""

ALL_TEXTS = "*"
INPUT_PREFIX = "input."

HITS_MAX = 10_000
"""`total` is exact below this; at it, there are as many or more."""

ROWS_MAX = 20_000
"""Documents that one search judges by itself, where no index does."""

_ALTERNATIVES_MAX = 32
_NUMBER_CHARS_MAX = 40
_EXACT_MAX = 1e15
"""Fractions end here: larger numbers are written as they are."""


class Kind(Enum):
    """How the values of a field are compared."""

    TEXT = "text"
    NUMBER = "whole number"
    TIME = "time"
    NAMES = "names"
    """Several texts; a comparison holds if it holds for one of them."""
    INPUT = "input value"
    """A text, which is compared as a number where both sides look like one."""


class Comparison(msgspec.Struct, frozen=True):
    """`field operator values`. Operators: =, <, <=, >, >=, IN, BETWEEN, STARTS_WITH, LIKE (a text
    with `*` in it), IS NULL; `is_negated` turns each into its opposite.

    Values are texts, or numbers where the field has numbers; times are Unix ms.
    """

    field: str
    operator: str
    values: tuple[str | int, ...] = ()
    is_negated: bool = False


class Words(msgspec.Struct, frozen=True):
    """Every one of these occurs in a text of the document as a whole word, however written. One
    with `*` at its end is the beginning of a word."""

    words: tuple[str, ...]


class AllOf(msgspec.Struct, frozen=True):
    parts: "tuple[Condition, ...]" = ()


class AnyOf(msgspec.Struct, frozen=True):
    parts: "tuple[Condition, ...]"


Leaf: TypeAlias = Comparison | Words
Condition: TypeAlias = Comparison | Words | AllOf | AnyOf
EVERYTHING = AllOf()


class Sort(msgspec.Struct, frozen=True):
    field: str
    is_descending: bool = True


NEWEST_FIRST = (Sort("startTime"),)


class Query(msgspec.Struct, frozen=True):
    """Conditions and order. What is equal in that order comes by start and id, newest first."""

    condition: Condition = EVERYTHING
    sort: tuple[Sort, ...] = NEWEST_FIRST


def sorts_of(query: Query) -> list[Sort]:
    """The whole order of a query, in which no two documents are equal."""
    sorts: dict[str, Sort] = {}
    for sort in (*query.sort, Sort("startTime"), Sort("workflowId")):
        sorts.setdefault(sort.field, sort)
    return list(sorts.values())


# -- judgement


def matches(condition: Condition, value_of: ValueOf) -> bool:
    """Whether a document fulfils a condition."""
    match condition:
        case Comparison():
            holds = _compares(condition, value_of(condition.field))
            return holds is not condition.is_negated
        case AllOf():
            return all(matches(part, value_of) for part in condition.parts)
        case AnyOf():
            return any(matches(part, value_of) for part in condition.parts)
        case Words():
            texts = value_of(ALL_TEXTS)
            assert isinstance(texts, tuple)
            return all(
                any(_pattern(word).search(text) for text in texts) for word in condition.words
            )


def is_absent(value: Value) -> bool:
    return value is None or value == "" or value == ()


def _compares(comparison: Comparison, value: Value) -> bool:
    if comparison.operator == "IS NULL":
        return is_absent(value)
    if isinstance(value, tuple):
        return any(_compares(comparison, name) for name in value or ("",))
    if value is None:
        value = ""
    operator, values = comparison.operator, comparison.values
    is_input = comparison.field.startswith(INPUT_PREFIX)
    if operator in ("=", "IN"):
        if is_input:
            return any(value in spellings(str(one)) for one in values)
        return value in values
    if value == "":
        return False
    order = _loose_order if is_input else _order
    match operator:
        case "STARTS_WITH":
            return str(value).startswith(str(values[0]))
        case "LIKE":
            return _wildcards(str(values[0])).fullmatch(str(value)) is not None
        case "BETWEEN":
            return order(values[0], value) <= 0 and order(value, values[1]) <= 0
        case "<":
            return order(value, values[0]) < 0
        case "<=":
            return order(value, values[0]) <= 0
        case ">":
            return order(value, values[0]) > 0
        case ">=":
            return order(value, values[0]) >= 0
    raise ValueError(f"no such operator: {operator}")


def _order(one: Any, other: Any) -> int:
    """Below, at or above 0."""
    return int(one > other) - int(one < other)


def _loose_order(one: str | int, other: str | int) -> int:
    """The same for input values: as numbers, if both look like one."""
    first, second = _number(str(one)), _number(str(other))
    if first is None or second is None:
        return _order(str(one), str(other))
    return _order(first, second)


def spellings(text: str) -> tuple[str, ...]:
    """The texts of an input value that a literal stands for: 5.0 is 5 too."""
    number = _number(text)
    return (text,) if number is None else tuple(dict.fromkeys((text, number_text(number))))


def number_text(number: float) -> str:
    """How a number in an input is written: 5.0 as 5."""
    whole = abs(number) < _EXACT_MAX and number == int(number)
    return str(int(number)) if whole else str(number)


@lru_cache(maxsize=1024)
def _number(text: str) -> int | float | None:
    if len(text) > _NUMBER_CHARS_MAX or not _NUMBER.fullmatch(text):
        return None
    return int(text) if _INTEGER.fullmatch(text) else float(text)


# With zeros in front it is no number but a code.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


@lru_cache(maxsize=1024)
def _pattern(word: str) -> re.Pattern[str]:
    text = re.escape(word[:-1]) if word.endswith("*") else re.escape(word) + r"(?!\w)"
    return re.compile(rf"(?<!\w){text}", re.IGNORECASE)


@lru_cache(maxsize=1024)
def _wildcards(text: str) -> re.Pattern[str]:
    parts = [re.escape(part) for part in re.split(r"\*+", text)]
    return re.compile(".*".join(parts), re.DOTALL)


# -- what an index can use


def alternatives(condition: Condition) -> list[tuple[Leaf, ...]] | None:
    """The disjunctive normal form: it is fulfilled if all of one alternative are. None: there
    would be too many of them."""
    match condition:
        case Comparison() | Words():
            return [(condition,)]
        case AnyOf():
            found: list[tuple[Leaf, ...]] = []
            for part in condition.parts:
                inner = alternatives(part)
                if inner is None or len(found) + len(inner) > _ALTERNATIVES_MAX:
                    return None
                found += inner
            return found
        case AllOf():
            parts = []
            count = 1
            for part in condition.parts:
                inner = alternatives(part)
                if inner is None:
                    return None
                parts.append(inner)
                count *= len(inner)
                if count > _ALTERNATIVES_MAX:
                    return None
            return [
                tuple(dict.fromkeys(leaf for leaves in choice for leaf in leaves))
                for choice in product(*parts)
            ]


def wanted(leaves: Sequence[Leaf], field: str) -> frozenset[str | int] | None:
    """The only values of a field with which all of `leaves` can hold; None: no such bound."""
    found: frozenset[str | int] | None = None
    for leaf in leaves:
        if isinstance(leaf, Comparison) and leaf.field == field and is_equality(leaf):
            values = frozenset(leaf.values)
            found = values if found is None else found & values
    return found


def is_equality(leaf: Leaf) -> bool:
    """Whether it names the values that a field has to have."""
    return isinstance(leaf, Comparison) and leaf.operator in ("=", "IN") and not leaf.is_negated


def bounds(leaves: Sequence[Leaf], field: str) -> tuple[int | None, int | None]:
    """(least, greatest) value of a number field with which all of `leaves` can hold."""
    low: int | None = None
    high: int | None = None
    for leaf in leaves:
        if isinstance(leaf, Comparison) and leaf.field == field and not leaf.is_negated:
            least, most = _bounds(leaf)
            if least is not None:
                low = least if low is None else max(low, least)
            if most is not None:
                high = most if high is None else min(high, most)
    return low, high


def _bounds(leaf: Comparison) -> tuple[int | None, int | None]:
    values = [value for value in leaf.values if isinstance(value, int)]
    match leaf.operator:
        case "=" | "IN":
            return min(values), max(values)
        case "BETWEEN":
            return values[0], values[1]
        case ">":
            return values[0] + 1, None
        case ">=":
            return values[0], None
        case "<":
            return None, values[0] - 1
        case "<=":
            return None, values[0]
    return None, None
