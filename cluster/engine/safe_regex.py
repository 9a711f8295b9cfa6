"""Patterns from definitions, refused when matching them could take exponential time.

The engine runs inside the loop that serves everybody, so a pattern such as `(a+)+$` must not run.
"""

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

# Python's own pattern parser; its stubs do not list it.
parser: Any = importlib.import_module("re._parser")
opcodes: Any = importlib.import_module("re._constants")

PATTERN_CHARS_MAX = 512
# Ways to match are tried one after the other; the bound holds for one text.
_WAYS_MAX = 5_000_000
_TEXT_CHARS_MAX = 100_000

_REPEATS = (opcodes.MAX_REPEAT, opcodes.MIN_REPEAT, opcodes.POSSESSIVE_REPEAT)
_REFUSED = (opcodes.GROUPREF, opcodes.GROUPREF_EXISTS, opcodes.ASSERT, opcodes.ASSERT_NOT)


@functools.lru_cache(maxsize=256)
def compile_full_match(pattern: str, flags: int) -> Callable[[str], bool] | None:
    """A test whether the pattern matches a whole text; None when it is broken or dangerous.

    Texts longer than the pattern's cost allows do not match.
    """
    if len(pattern) > PATTERN_CHARS_MAX:
        return None
    try:
        cost = _cost(parser.parse(pattern, flags), repeated=False)
        compiled = re.compile(pattern, flags)
    except (re.error, ValueError, OverflowError, RecursionError):
        return None
    if cost is None or cost[1] > _WAYS_MAX:
        return None
    unbounded, ways = cost
    # With n unbounded repeats in a row the work grows with the n-th power of the text's length.
    chars_max = _TEXT_CHARS_MAX if unbounded == 0 else int((_WAYS_MAX / ways) ** (1 / unbounded))
    chars_max = min(chars_max, _TEXT_CHARS_MAX)

    def matches(text: str) -> bool:
        return len(text) <= chars_max and compiled.fullmatch(text) is not None

    return matches


def _cost(node: Any, *, repeated: bool) -> tuple[int, int] | None:
    """Number of unbounded repeats, and the ways that bounded ones and alternatives multiply to.

    None when a choice stands inside a repeat, or for what cannot be judged.
    """
    unbounded = 0
    ways = 1
    for opcode, argument in node:
        if opcode in _REFUSED:
            return None
        bodies = _bodies(opcode, argument)
        if opcode in _REPEATS:
            low, high, _ = argument
            if repeated and low != high:
                return None
            if high - low > 1_000:
                unbounded += 1
            else:
                ways *= high - low + 1
        elif opcode is opcodes.BRANCH:
            if repeated:
                return None
            ways *= len(bodies)
        inside = repeated or (opcode in _REPEATS and argument[1] > 1)
        for body in bodies:
            cost = _cost(body, repeated=inside)
            if cost is None:
                return None
            unbounded += cost[0]
            ways *= cost[1]
    return unbounded, ways


def _bodies(opcode: Any, argument: Any) -> list[Any]:
    if opcode is opcodes.SUBPATTERN or opcode in _REPEATS:
        return [argument[-1]]
    if opcode is opcodes.BRANCH:
        return list(argument[1])
    return [argument] if opcode is opcodes.ATOMIC_GROUP else []
