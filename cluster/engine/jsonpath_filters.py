"""Filter expressions of JSONPath: `@.price > 10 && (@.kind in ['a', 'b'] || !@.sold)`."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.engine import safe_regex

if TYPE_CHECKING:
    from cluster.engine.jsonpath import Path, Scope

DEPTH_MAX = 20

Predicate = Callable[[Any, "Scope"], bool]
Operand = Callable[[Any, "Scope"], Any]

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z]+")
_SYMBOL = re.compile(r"[<>=!~]+")
_REGEX_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE, "u": 0}


class _Regex:
    """A pattern literal: only `=~` can use it."""

    def __init__(self, matches: Callable[[str], bool]) -> None:
        self.matches = matches


def parse_filter(
    text: str, position: int, *, depth: int, compile_path: Callable[[str, int], "Path"]
) -> tuple[Predicate, int, frozenset[str]]:
    """Parse up to the `)` that ends the filter; returns it, the position after, and its roots."""
    parser = _FilterParser(text, position, depth, compile_path)
    predicate = parser.either(depth)
    parser.expect(")")
    return predicate, parser.position, frozenset(parser.roots)


def read_quoted(text: str, position: int) -> tuple[str, int]:
    """A quoted text with backslash escapes that starts at `position`, and where it ends."""
    quote = text[position]
    out: list[str] = []
    at = position + 1
    while at < len(text):
        char = text[at]
        if char == quote:
            return "".join(out), at + 1
        if char == "\\":
            at += 1
            char = text[at : at + 1]
            if char == "u" and re.fullmatch(r"[0-9a-fA-F]{4}", text[at + 1 : at + 5]):
                out.append(chr(int(text[at + 1 : at + 5], 16)))
                at += 5
                continue
            char = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(char, char)
        out.append(char)
        at += 1
    raise _error("a quote is not closed")


def _error(message: str) -> Exception:
    # Imported here because the path parser imports this module.
    from cluster.engine.jsonpath import PathError

    return PathError(message)


class _FilterParser:
    def __init__(
        self, text: str, position: int, depth: int, compile_path: Callable[[str, int], "Path"]
    ) -> None:
        self.text = text
        self.position = position
        self.depth = depth
        self.compile_path = compile_path
        self.roots: set[str] = set()

    def either(self, depth: int) -> Predicate:
        terms = [self.both(depth)]
        while self.accept("||"):
            terms.append(self.both(depth))
        if len(terms) == 1:
            return terms[0]
        return lambda item, scope: any(term(item, scope) for term in terms)

    def both(self, depth: int) -> Predicate:
        terms = [self.term(depth)]
        while self.accept("&&"):
            terms.append(self.term(depth))
        if len(terms) == 1:
            return terms[0]
        return lambda item, scope: all(term(item, scope) for term in terms)

    def term(self, depth: int) -> Predicate:
        if depth > DEPTH_MAX:
            raise _error("the filter is nested too deep")
        self.skip_blanks()
        if self.accept("!"):
            negated = self.term(depth + 1)
            return lambda item, scope: not negated(item, scope)
        if self.accept("("):
            inner = self.either(depth + 1)
            self.expect(")")
            return inner
        return self.comparison()

    def comparison(self) -> Predicate:
        left, path = self.operand()
        saved = self.position
        operator = self.operator()
        if operator is None:
            self.position = saved
            if path is None:
                raise _error("a comparison is expected")
            return _exists(path[0], from_item=path[1])
        right, _ = self.operand()
        compare = OPERATORS[operator]

        def compared(item: Any, scope: "Scope") -> bool:
            return compare(left(item, scope), right(item, scope))

        return compared

    def operator(self) -> str | None:
        self.skip_blanks()
        match = _SYMBOL.match(self.text, self.position) or _WORD.match(self.text, self.position)
        if match is None:
            return None
        if match.group() not in OPERATORS:
            raise _error(f"no operator {match.group()}")
        self.position = match.end()
        return match.group()

    def operand(self) -> tuple[Operand, tuple["Path", bool] | None]:
        self.skip_blanks()
        char = self.text[self.position : self.position + 1]
        if char in ("$", "@") and char:
            return self.path_operand(from_item=char == "@")
        value = self.literal(char)
        return (lambda item, scope: value), None

    def path_operand(self, *, from_item: bool) -> tuple[Operand, tuple["Path", bool]]:
        begin = self.position
        self.position = _path_end(self.text, begin)
        path = self.compile_path(self.text[begin : self.position], self.depth + 1)
        self.roots |= path.roots
        if from_item:
            return path.read, (path, True)
        return (lambda item, scope: path.read(scope.document(), scope)), (path, False)

    def literal(self, char: str) -> Any:
        if char in ("'", '"') and char:
            quoted, self.position = read_quoted(self.text, self.position)
            return quoted
        if char == "/":
            return self.regex()
        if char in ("[", "{") and char:
            end = _closing(self.text, self.position)
            raw = self.text[self.position : end]
            self.position = end
            return _lenient_json(raw)
        number = _NUMBER.match(self.text, self.position)
        if number is not None:
            self.position = number.end()
            return _number(number.group())
        for word, value in (("true", True), ("false", False), ("null", None)):
            if self.accept(word):
                return value
        raise _error("a value is expected")

    def regex(self) -> _Regex:
        at = self.position + 1
        while at < len(self.text) and self.text[at] != "/":
            at += 2 if self.text[at] == "\\" else 1
        if at >= len(self.text):
            raise _error("a pattern is not closed")
        pattern = self.text[self.position + 1 : at]
        flags = 0
        at += 1
        while self.text[at : at + 1] in _REGEX_FLAGS and self.text[at : at + 1]:
            flags |= _REGEX_FLAGS[self.text[at]]
            at += 1
        self.position = at
        matches = safe_regex.compile_full_match(pattern, flags)
        if matches is None:
            raise _error("the pattern is broken or could take too long")
        return _Regex(matches)

    def accept(self, token: str) -> bool:
        self.skip_blanks()
        if self.text.startswith(token, self.position):
            self.position += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise _error(f"{token} is expected")

    def skip_blanks(self) -> None:
        while self.text.startswith(" ", self.position):
            self.position += 1


def _path_end(text: str, begin: int) -> int:
    at = begin + 1
    while at < len(text):
        char = text[at]
        if char in "[(":
            at = _closing(text, at)
        elif char in " <>=~!)&|,":
            break
        else:
            at += 1
    return at


def _closing(text: str, opening: int) -> int:
    """Position after the partner of the bracket at `opening`; brackets in quotes do not count."""
    depth = 0
    at = opening
    while at < len(text):
        char = text[at]
        if char in "'\"":
            _, at = read_quoted(text, at)
            continue
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise _error("a bracket is not closed")


def _lenient_json(raw: str) -> Any:
    """JSON in which texts may stand in single quotes."""
    out: list[str] = []
    at = 0
    while at < len(raw):
        if raw[at] in "'\"":
            value, at = read_quoted(raw, at)
            out.append(msgspec.json.encode(value).decode())
        else:
            out.append(raw[at])
            at += 1
    try:
        return msgspec.json.decode("".join(out))
    except (msgspec.DecodeError, RecursionError) as error:
        raise _error("a broken JSON value") from error


def _number(text: str) -> int | float:
    return float(text) if any(char in text for char in ".eE") else int(text[:400])


def _exists(path: "Path", *, from_item: bool) -> Predicate:
    if from_item:
        return path.exists
    return lambda item, scope: path.exists(scope.document(), scope)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _equal(left: Any, right: Any) -> bool:
    """Numbers and texts compare across types: 2 equals '2'."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if _is_number(left) and isinstance(right, str):
        return bool(_as_number(right) == left)
    if isinstance(left, str) and _is_number(right):
        return bool(_as_number(left) == right)
    if _is_number(left) != _is_number(right) or isinstance(left, _Regex):
        return False
    return bool(left == right)


def _as_number(text: str) -> int | float | None:
    return _number(text) if _NUMBER.fullmatch(text) else None


def _kind(value: Any) -> type[Any]:
    return float if _is_number(value) else type(value)


def _strictly_equal(left: Any, right: Any) -> bool:
    return _kind(left) is _kind(right) and _equal(left, right)


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(left: Any, right: Any) -> bool:
        if isinstance(left, str) != isinstance(right, str):
            return False
        if isinstance(left, str) or (_is_number(left) and _is_number(right)):
            return test(left, right)
        return False

    return compare


def _among(value: Any, values: Any) -> bool:
    return isinstance(values, list) and any(_equal(value, one) for one in values)


def _contains(left: Any, right: Any) -> bool:
    if isinstance(left, str):
        return isinstance(right, str) and right in left
    return _among(right, left)


def _has_size(left: Any, right: Any) -> bool:
    return isinstance(left, (str, list)) and _is_number(right) and len(left) == right


def _is_empty(left: Any, right: Any) -> bool:
    return isinstance(left, (str, list, dict)) and (not left) is right


def _matches(left: Any, right: Any) -> bool:
    if isinstance(left, _Regex):
        left, right = right, left
    if not isinstance(right, _Regex):
        return False
    if isinstance(left, list):
        return any(_matches(item, right) for item in left if not isinstance(item, list))
    return right.matches(_pattern_text(left))


def _pattern_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if _is_number(value):
        return repr(value) if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else ""


def _all_among(left: Any, right: Any) -> bool:
    return isinstance(left, list) and all(_among(value, right) for value in left)


def _any_among(left: Any, right: Any) -> bool:
    return isinstance(left, list) and any(_among(value, right) for value in left)


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "===": _strictly_equal,
    "!==": lambda left, right: not _strictly_equal(left, right),
    "<": _ordered(lambda left, right: bool(left < right)),
    "<=": _ordered(lambda left, right: bool(left <= right)),
    ">": _ordered(lambda left, right: bool(left > right)),
    ">=": _ordered(lambda left, right: bool(left >= right)),
    "=~": _matches,
    "in": _among,
    "nin": lambda left, right: not _among(left, right),
    "contains": _contains,
    "size": _has_size,
    "empty": _is_empty,
    "all": lambda left, right: isinstance(right, list) and _all_among(right, left),
    "anyof": _any_among,
    "noneof": lambda left, right: not _any_among(left, right),
    "subsetof": _all_among,
    "type": lambda left, right: False,
}
