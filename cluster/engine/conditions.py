"""Simple JavaScript compiled to closures, so that most conditions need no script engine.

Only what is sure to give the same result as JavaScript is compiled. Anything else, and any value at
run time whose treatment could differ, is left to the engine outside.
"""

import operator as op
import re
from collections.abc import Callable
from typing import Any

from cluster.engine import javascript_values as js
from cluster.engine.javascript_values import UNDEFINED, NotSimple

__all__ = ["NotSimple", "compile_condition"]

SOURCE_CHARS_MAX = 4_096
# Frames of Python that parsing and running may take: the caller's own stack is not known.
NESTING_MAX = 25
DEPTH_MAX = 80

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]|//[^\r\n\u2028\u2029]*|/\*(?:[^*]|\*(?!/))*\*/)+)
    |(?P<number>(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![0-9A-Za-z_$.]))
    |(?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
    |(?P<text>'(?:[^'\\\r\n\u2028\u2029]|\\.)*'|"(?:[^"\\\r\n\u2028\u2029]|\\.)*")
    |(?P<symbol>\+\+|--|===|!==|==|!=|<=|>=|&&|\|\||[-+*/%<>!?:(){}\[\];.])""",
    re.VERBOSE,
)
_NEWLINE = re.compile(r"[\r\n\u2028\u2029]")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}

_CONSTANTS: dict[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    "undefined": UNDEFINED,
    "NaN": float("nan"),
    "Infinity": float("inf"),
}
_PRECEDENCE = {
    "==": 1,
    "!=": 1,
    "===": 1,
    "!==": 1,
    "<": 2,
    "<=": 2,
    ">": 2,
    ">=": 2,
    "+": 3,
    "-": 3,
    "*": 4,
    "/": 4,
    "%": 4,
}
_PREFIXES = frozenset({("symbol", "!"), ("symbol", "-"), ("symbol", "+"), ("name", "typeof")})
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "==": js.loosely_equal,
    "!=": lambda left, right: not js.loosely_equal(left, right),
    "===": js.strictly_equal,
    "!==": lambda left, right: not js.strictly_equal(left, right),
    "<": js.less,
    ">": lambda left, right: js.less(right, left),
    "<=": js.less_or_equal,
    ">=": lambda left, right: js.less_or_equal(right, left),
    "+": js.add,
    "-": js.subtract,
    "*": js.multiply,
    "/": js.divide,
    "%": js.remainder,
}

Run = Callable[[Any], Any]


def compile_condition(source: str) -> Callable[[dict[str, Any]], Any] | None:
    """A function from the input (`$`) to the script's result; None when the script is not simple.

    The function returns null, a boolean, a number or a text, as JSON would hold it, and raises
    NotSimple when only the script engine can tell: the script would throw, or a value is one whose
    treatment could differ.
    """
    if len(source) > SOURCE_CHARS_MAX:
        return None
    try:
        run = _Parser(_tokens(source)).program()
    except _Refused:
        return None

    def evaluate(value: dict[str, Any]) -> Any:
        return js.to_result(run(value))

    return evaluate


class _Refused(Exception):
    """The source is outside the subset (or no JavaScript at all)."""


class _Compiled:
    """A closure and how many frames it needs; `value` is set for a literal."""

    __slots__ = ("depth", "is_literal", "keys", "run", "value")

    def __init__(
        self,
        run: Run,
        depth: int,
        *,
        keys: tuple[str, ...] | None = None,
        is_literal: bool = False,
        value: Any = None,
    ) -> None:
        if depth > DEPTH_MAX:
            raise _Refused
        self.run = run
        self.depth = depth
        self.keys = keys
        self.is_literal = is_literal
        self.value = value


# What a statement that has no value completes with; a `return` completes with a _Returned.
_EMPTY = object()


class _Returned:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _tokens(source: str) -> list[tuple[str, str]]:
    if "<!--" in source or "-->" in source:
        # Comments of old web pages, which every script may hold.
        raise _Refused
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise _Refused
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            tokens.append((kind, match.group()))
        elif tokens[-1:] == [("name", "return")] and _NEWLINE.search(match.group()):
            # A line that ends with `return` returns nothing.
            raise _Refused
        at = match.end()
    tokens.append(("end", ""))
    return tokens


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.at = 0
        self.nesting = 0

    def program(self) -> Run:
        wrapped = self.wrapped_function()
        if wrapped is not None:
            return wrapped
        body = self.statements("end", in_function=False)
        run = body.run

        def complete(value: Any) -> Any:
            result = run(value)
            return UNDEFINED if result is _EMPTY else result

        return complete

    def wrapped_function(self) -> Run | None:
        """`(function () { ... })()`: how scripts get their `return`. None if it is not this."""
        start = self.at
        names = [text for _, text in self.tokens[:5]]
        if names[:4] == ["(", "function", "(", ")"]:
            self.at = 4
        elif names[0] == "function" and names[2:4] == ["(", ")"] and names[1] not in _RESERVED:
            # `function e() { ... } e();`
            self.at = 4
        else:
            return None
        self.expect("{")
        body = self.statements("}", in_function=True).run
        self.expect("}")
        if names[0] == "(":
            inside = self.accept("(")
            self.expect(")")
            if not inside:
                self.expect("(")
            self.expect(")")
        else:
            self.accept(";")
            self.expect(names[1])
            self.expect("(")
            self.expect(")")
        while self.accept(";"):
            pass
        if self.peek() != ("end", ""):
            self.at = start
            raise _Refused

        def call(value: Any) -> Any:
            result = body(value)
            return result.value if type(result) is _Returned else UNDEFINED

        return call

    def statements(self, closing: str, *, in_function: bool) -> _Compiled:
        """Statements up to, but not including, the closing token."""
        self.enter()
        parts: list[_Compiled] = []
        while self.peek()[1] != closing or (closing == "end" and self.peek()[0] != "end"):
            if self.peek()[0] == "end":
                if closing == "end":
                    break
                raise _Refused
            statement = self.statement(in_function=in_function)
            if statement is not None:
                parts.append(statement)
        self.nesting -= 1
        if len(parts) == 1:
            return parts[0]
        runs = [part.run for part in parts]

        def run_all(value: Any) -> Any:
            last = _EMPTY
            for run in runs:
                result = run(value)
                if type(result) is _Returned:
                    return result
                if result is not _EMPTY:
                    last = result
            return last

        return _Compiled(run_all, 1 + max((part.depth for part in parts), default=0))

    def statement(self, *, in_function: bool) -> _Compiled | None:
        kind, text = self.peek()
        if self.accept(";"):
            return None
        if text == "{" and kind == "symbol":
            self.at += 1
            block = self.statements("}", in_function=in_function)
            self.expect("}")
            return block
        if text == "if" and kind == "name":
            return self.if_statement(in_function=in_function)
        if text == "return" and kind == "name" and in_function:
            return self.return_statement()
        if text == "function":
            raise _Refused
        expression = self.expression()
        self.end_of_statement()
        return expression

    def end_of_statement(self) -> None:
        # Missing semicolons are put in only where no newline matters.
        if not self.accept(";") and self.peek()[1] not in ("}", ""):
            raise _Refused

    def return_statement(self) -> _Compiled:
        self.at += 1
        if self.accept(";"):
            return _Compiled(lambda value: _Returned(UNDEFINED), 1)
        expression = self.expression()
        self.end_of_statement()
        run = expression.run
        return _Compiled(lambda value: _Returned(run(value)), expression.depth + 1)

    def if_statement(self, *, in_function: bool) -> _Compiled:
        self.at += 1
        self.enter()
        self.expect("(")
        test = self.expression()
        self.expect(")")
        then = self.branch(in_function=in_function)
        otherwise = None
        if self.accept("else"):
            otherwise = self.branch(in_function=in_function)
        self.nesting -= 1
        run_test, run_then = test.run, then.run
        run_otherwise = otherwise.run if otherwise is not None else lambda value: _EMPTY

        def run(value: Any) -> Any:
            chosen = run_then if js.is_true(run_test(value)) else run_otherwise
            result = chosen(value)
            return UNDEFINED if result is _EMPTY else result

        depths = [test.depth, then.depth, otherwise.depth if otherwise is not None else 0]
        return _Compiled(run, 1 + max(depths))

    def branch(self, *, in_function: bool) -> _Compiled:
        statement = self.statement(in_function=in_function)
        return statement if statement is not None else _Compiled(lambda value: _EMPTY, 1)

    def expression(self) -> _Compiled:
        self.enter()
        test = self.either()
        if self.accept("?"):
            yes = self.expression()
            self.expect(":")
            no = self.expression()
            test = _ternary(test, yes, no)
        self.nesting -= 1
        return test

    def either(self) -> _Compiled:
        terms = [self.both()]
        while self.accept("||"):
            terms.append(self.both())
        return terms[0] if len(terms) == 1 else _logical(terms, stop_at=True)

    def both(self) -> _Compiled:
        terms = [self.binary(1)]
        while self.accept("&&"):
            terms.append(self.binary(1))
        return terms[0] if len(terms) == 1 else _logical(terms, stop_at=False)

    def binary(self, weakest: int) -> _Compiled:
        left = self.unary()
        while True:
            kind, operator = self.peek()
            precedence = _PRECEDENCE.get(operator, 0) if kind == "symbol" else 0
            if precedence < weakest:
                return left
            self.at += 1
            right = self.binary(precedence + 1)
            left = _operation(operator, left, right)

    def unary(self) -> _Compiled:
        kind, text = self.peek()
        if (kind, text) in _PREFIXES:
            self.at += 1
            self.enter()
            operand = self.unary()
            self.nesting -= 1
            return _prefixed(text, operand)
        return self.postfix()

    def postfix(self) -> _Compiled:
        target = self.primary()
        while True:
            if self.accept("."):
                kind, name = self.next()
                if kind != "name":
                    raise _Refused
                target = _member(target, name)
            elif self.accept("["):
                key = self.expression()
                self.expect("]")
                if key.is_literal and type(key.value) is str:
                    target = _member(target, key.value)
                else:
                    target = _computed_member(target, key)
            else:
                return target

    def primary(self) -> _Compiled:
        kind, text = self.next()
        if kind == "number":
            return _literal(js.from_json(float(text)))
        if kind == "text":
            return _literal(_unquoted(text))
        if text == "$":
            return _Compiled(lambda value: value, 1, keys=())
        if kind == "name" and text in _CONSTANTS:
            return _literal(_CONSTANTS[text])
        if text == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        raise _Refused

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at]

    def next(self) -> tuple[str, str]:
        token = self.tokens[self.at]
        if token[0] == "end":
            raise _Refused
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        kind, found = self.tokens[self.at]
        if found != text or kind == "text":
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise _Refused

    def enter(self) -> None:
        self.nesting += 1
        if self.nesting > NESTING_MAX:
            raise _Refused


_RESERVED = frozenset(
    "break case catch class const continue debugger default delete do else enum export extends "
    "false finally for function if import in instanceof new null return super switch this throw "
    "true try typeof var void while with let static yield await $ undefined NaN Infinity eval "
    "arguments".split()
)


def _unquoted(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        unicode, byte, char = match.groups()
        if char is not None:
            if char in "ux0123456789\r\n\u2028\u2029":
                raise _Refused
            return _SIMPLE_ESCAPES.get(char, char)
        code = int(unicode or byte, 16)
        if 0xD800 <= code < 0xE000:
            raise _Refused
        return chr(code)

    return _ESCAPE.sub(replace, text[1:-1])


def _literal(value: Any) -> _Compiled:
    return _Compiled(lambda _: value, 1, is_literal=True, value=value)


def _member(target: _Compiled, name: str) -> _Compiled:
    if target.keys is None:
        run = target.run
        return _Compiled(lambda value: js.member(run(value), name), target.depth + 1)
    keys = (*target.keys, name)
    if len(keys) > 50:
        raise _Refused

    def read(value: Any) -> Any:
        for key in keys:
            # An own key of an object needs no more than this; all else is decided in one place.
            if type(value) is dict and key in value:
                value = value[key]
            else:
                value = js.member(value, key)
        return js.from_json(value)

    return _Compiled(read, 1, keys=keys)


def _computed_member(target: _Compiled, key: _Compiled) -> _Compiled:
    run, run_key = target.run, key.run
    return _Compiled(
        lambda value: js.element(run(value), run_key(value)), 1 + max(target.depth, key.depth)
    )


def _operation(operator: str, left: _Compiled, right: _Compiled) -> _Compiled:
    depth = 1 + max(left.depth, right.depth)
    if right.is_literal:
        special = _compared_with(operator, left.run, right.value)
        if special is not None:
            return _Compiled(special, depth)
    compute, run_left, run_right = _BINARY[operator], left.run, right.run
    return _Compiled(lambda value: compute(run_left(value), run_right(value)), depth)


_DIRECT: dict[str, Callable[[Any, Any], Any]] = {
    "==": op.eq,
    "===": op.eq,
    "!=": op.ne,
    "!==": op.ne,
    "<": op.lt,
    "<=": op.le,
    ">": op.gt,
    ">=": op.ge,
}


def _compared_with(operator: str, run: Run, literal: Any) -> Run | None:
    """A comparison with a literal of the type that it meets: most conditions are one of these."""
    direct = _DIRECT.get(operator)
    general = _BINARY[operator]
    kind = type(literal)
    if direct is None or kind not in (str, float) or (kind is str and direct not in (op.eq, op.ne)):
        return None
    kinds = (str, str) if kind is str else (int, float)

    def compare(value: Any) -> Any:
        found = run(value)
        if type(found) in kinds:
            return direct(found, literal)
        return general(found, literal)

    return compare


def _prefixed(operator: str, operand: _Compiled) -> _Compiled:
    run = operand.run
    if operator == "!":
        return _Compiled(lambda value: not js.is_true(run(value)), operand.depth + 1)
    if operator == "typeof":
        return _Compiled(lambda value: js.type_of(run(value)), operand.depth + 1)
    if operator == "-":
        return _Compiled(lambda value: -js.to_number(run(value)), operand.depth + 1)
    return _Compiled(lambda value: js.to_number(run(value)), operand.depth + 1)


def _logical(terms: list[_Compiled], *, stop_at: bool) -> _Compiled:
    runs = [term.run for term in terms]
    is_true = js.is_true

    def run(value: Any) -> Any:
        result: Any = None
        for run_term in runs:
            result = run_term(value)
            if is_true(result) is stop_at:
                return result
        return result

    return _Compiled(run, 1 + max(term.depth for term in terms))


def _ternary(test: _Compiled, yes: _Compiled, no: _Compiled) -> _Compiled:
    run_test, run_yes, run_no = test.run, yes.run, no.run
    return _Compiled(
        lambda value: run_yes(value) if js.is_true(run_test(value)) else run_no(value),
        1 + max(test.depth, yes.depth, no.depth),
    )
