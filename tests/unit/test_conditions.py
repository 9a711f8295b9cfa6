"""Conditions as closures give what a JavaScript engine gives, or say that they cannot."""

import json
import math
from typing import Any

import pytest
import quickjs
from hypothesis import assume, event, example, given
from hypothesis import strategies as st

from cluster.engine.conditions import NotSimple, compile_condition

Thrown = object()


def in_javascript(source: str, value: Any) -> Any:
    """The result of the script as the engine outside would report it, or Thrown."""
    context = quickjs.Context()
    context.set("$", context.parse_json(json.dumps(value)))
    try:
        result = context.eval(source)
    except quickjs.JSException:
        return Thrown
    if isinstance(result, float):
        if not math.isfinite(result):
            return "NaN" if math.isnan(result) else "Infinity" if result > 0 else "-Infinity"
        is_minus_zero = result == 0 and math.copysign(1, result) < 0
        if result.is_integer() and abs(result) < 2**53 and not is_minus_zero:
            return int(result)
    return result


def exact(value: Any) -> str:
    return repr(value)


INPUT = {
    "x": 7,
    "neg": -3,
    "f": 1.5,
    "zero": 0,
    "s": "text",
    "num": "12",
    "pad": " 7 ",
    "empty": "",
    "t": True,
    "n": None,
    "l": [1, "two", None, [3]],
    "o": {"a": {"b": 5}, "k-1": "dash", "length": 9},
    "big": 2**60,
    "emoji": "😀",
    "status": "COMPLETED",
}

SIMPLE = [
    "$.x",
    "$.x > 3",
    "$['x'] >= 7;",
    "$.o.a.b == 5 && $.x < 10",
    "$.o['k-1'] === 'dash'",
    "$.status == 'COMPLETED' ? 'yes' : 'no'",
    "$.l.length",
    "$.l[1]",
    "$.l[9]",
    "$.l[3][0]",
    "$.s.length",
    "$.s[0]",
    "$.nope",
    "$.nope == null",
    "$.nope === undefined",
    "$.n === null",
    "$.n == undefined",
    "$.n === undefined",
    "!$.nope",
    "!!$.s",
    "-$.x",
    "- 5 + +'3'",
    "$.x - -1",
    "$.x + - - 1",
    "$.a?.5:1",
    "$.x + 1",
    "$.x + '1'",
    "1 + 2 + 'a' + 1 + 2",
    "$.num * 2",
    "$.pad == 7",
    "$.empty == 0",
    "$.n + 1",
    "$.nope + 1",
    "$.t + 1",
    "$.x % 4",
    "$.neg % 2",
    "$.x / 0",
    "-1 / 0",
    "0 / 0",
    "-0",
    "$.zero * -1",
    "'b' > 'a'",
    "'10' < '9'",
    "'10' < 9",
    "null >= 0",
    "null > 0",
    "typeof $.t + typeof $.l + typeof $.s",
    "$.l['length']",
    "$.o[0]",
    "$.l[$.l[0]]",
    "$.nope + 'a' + $.n + $.t + !$.t",
    "'0b11' * 1",
    "'Infinity' * -1",
    "NaN + ''",
    "-1 / 0 + ''",
    "0 + ''",
    "NaN % 2",
    "NaN / 0",
    "0 / -5",
    "$.l === 1",
    "$.l == null",
    "$.nope >= 1",
    "$.nope <= 1",
    "$.nope < 1",
    "$.nope > 1",
    "'b' >= NaN",
    "NaN <= 'a'",
    "null == 0",
    "undefined == 0",
    "NaN == NaN",
    "NaN != NaN",
    "true == 1",
    "true === 1",
    "'1' == 1",
    "'0x1f' == 31",
    "'a' == NaN",
    "1 < 2 < 3",
    "3 > 2 > 1",
    "$.x || 'd'",
    "$.nope || 'd'",
    "$.nope && $.x",
    "$.l && 1",
    "$.o ? 1 : 2",
    "$.x > 3 ? $.x > 5 ? 'a' : 'b' : 'c'",
    "($.x)",
    "(1 + 2) * 3",
    "1 + 2 * 3 - 4 / 2",
    "10 - 3 - 2",
    "typeof $.x",
    "typeof $.nope == 'undefined'",
    "typeof $.n",
    "0.1 + 0.2",
    "1e21 + ''",
    "1e-7 + ''",
    "123456789012345680000 + ''",
    "1.5e300 + ''",
    "100 + '' + 1.50",
    ".5 + 1.",
    "'a\\'b' + \"c\\n\\u0041\\x42\"",
    "$.x > 3 // comment",
    "/* a */ $.x /* b\n */ > 3",
    "if ($.x > 3) { true; } else { false; }",
    "if ($.x > 30) { true; } else { false; }",
    "if ($.x > 30) true; else false;",
    "if ($.x > 30) { true; }",
    "if ($.x > 30) { 1 } else if ($.x > 3) { 2 } else { 3 }",
    "if ($.x > 3) { } else { 3 }",
    "1; if (false) { 2 }",
    "1; {}",
    "1; { 2; ; }",
    "1;;",
    "",
    ";",
    "{}",
    "'use strict'; $.x",
    "(function () { return $.x * 2; })()",
    "(function () { if ($.x > 3) { return 'a' } return 'b' })();",
    "(function(){ $.x; }())",
    "(function(){ return; })()",
    "function e() { if ($.x > 3) { return true; } else { return false; } } e();",
    "function e() { 5; } e();",
]


@pytest.mark.parametrize("source", SIMPLE)
def test_simple_scripts_give_what_javascript_gives(source: str) -> None:
    compiled = compile_condition(source)
    assert compiled is not None
    assert exact(compiled(INPUT)) == exact(in_javascript(source, INPUT))


@pytest.mark.parametrize(
    "source",
    [
        "$.a.b.c",
        "$.n.x",
        "$.nope[0]",
        "$.s.toUpperCase",
        "$.toString",
        "$.l.map",
        "$.l[-1]",
        "$.l[1.5]",
        "$.l[$.t]",
        "$.l[$.nope]",
        "$.x[0]",
        "'0xfffffffffffffffff' * 1",
        "$.x.y",
        "$.big",
        "$.big > 5",
        "$.emoji.length",
        "$.emoji < 'a'",
        "$.l == $.l",
        "$.o === $.o",
        "$.l == '1'",
        "$.l + ''",
        "$.l > 1",
        "-$.o",
        "$.o",
        "$.l",
        "$",
        "$['constructor']",
    ],
)
def test_what_could_differ_is_left_to_the_engine(source: str) -> None:
    compiled = compile_condition(source)
    assert compiled is not None
    with pytest.raises(NotSimple):
        compiled(INPUT)


@pytest.mark.parametrize(
    "source",
    [
        "x",
        "$x",
        "$.x = 1",
        "$.x++",
        "--$.x",
        "$.x--$.x",
        "$.x++$.x",
        "$.f()",
        "$.l.includes(1)",
        "Math.max(1)",
        "var a = 1; a",
        "[1]",
        "({a: 1})",
        "{a: 1}",
        "return 5",
        "while (true) {}",
        "$.x ?? 1",
        "$?.x",
        "$.x ** 2",
        "$.x & 1",
        "$.x, 1",
        "new Date()",
        "/a/",
        "`a`",
        "010",
        "08",
        "0x10",
        "1_000",
        "10n",
        "5.a",
        "'a",
        "'\\u{41}'",
        "'\\ud83d'",
        "'\\07'",
        "'a\\\nb'",
        "$.a $.b",
        "$.a\n$.b",
        "(",
        "$.",
        "$.x <!-- 1",
        "1\n--> x",
        "(function () { return\n5 })()",
        "(function (a) { return 5 })()",
        "(function () { return 5 })().x",
        "(function () { return e })()",
        "function undefined() {} undefined();",
        "if ($.x) function f() {}",
        "throw 1",
        "x: 1",
        "$.x =\u0000= 1",
    ],
)
def test_other_scripts_are_refused(source: str) -> None:
    assert compile_condition(source) is None


def test_a_property_may_be_named_like_a_keyword() -> None:
    compiled = compile_condition("$.if.return === $.function")
    assert compiled is not None
    assert compiled({"if": {"return": 1}, "function": 1}) is True


@pytest.mark.parametrize(
    "source",
    [
        "(" * 3_000 + "1" + ")" * 900,
        "!" * 4_000 + "1",
        "[" * 4_000,
        "{" * 4_000,
        "$" + ".a" * 2_000,
        "$" + "[0]" * 1_300,
        "1" + "+1" * 2_000,
        "1" + "<1" * 2_000,
        "1?" * 1_000 + "1" + ":1" * 1_000,
        "if(1)" * 800 + "1",
        "$.a" + "[$.a" * 1_000,
        "x" * 10_000,
    ],
)
def test_long_scripts_are_refused_and_never_overflow(source: str) -> None:
    assert compile_condition(source) is None


def test_long_chains_of_and_and_or_stay_flat() -> None:
    compiled = compile_condition(" || ".join(["$.x == 'n'"] * 250))
    assert compiled is not None
    assert compiled({"x": 1}) is False


def test_whatever_compiles_runs_far_below_the_recursion_limit() -> None:
    # The deepest script that is accepted still runs when most of the stack is in use.
    compiled = None
    for depth in range(200):
        candidate = compile_condition("1" + "+1" * depth)
        compiled = candidate or compiled
    assert compiled is not None

    def deep(frames: int) -> Any:
        return compiled({}) if frames == 0 else deep(frames - 1)

    assert deep(500) > 50


NAMES = st.sampled_from(["a", "b", "c", "length", "toString", "0"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([2**31, 2**53 - 1, 2**53, -(2**53), 1e21, 1e-7, 0.1, -0.0, 1.0])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", " ", "0", "1", "-1", "a", "b", "ab", "é", "😀", "\uffff", "1e3", " 12\n"]
    )
    | st.sampled_from(
        ["0x1f", "Infinity", "NaN", "null", "true", "1_0", "1.", ".5", "+5", "\u00a05"]
    )
)
DATA = st.dictionaries(
    NAMES,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=4,
    ),
    max_size=4,
)
ATOMS = st.sampled_from(
    """$.a $.b $.c $.a.b $.a.length $['a'] $.a[0] $.a[1] $.b['c'] $.a[$.b] $.length 0 1 -1 2.5 1e21
    .1 '' '0' '1' 'a' "b" 'ab' true false null undefined NaN Infinity -0""".split()
)


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = "== != === !== < <= > >= && || + - * / %".split()
    return (
        st.tuples(inner, st.sampled_from(operators), inner).map(" ".join)
        | st.tuples(st.sampled_from(["!", "-", "+", "typeof "]), inner).map(
            lambda pair: f"{pair[0]}({pair[1]})"
        )
        | inner.map(lambda text: f"({text})")
        | st.tuples(inner, inner, inner).map(lambda three: "({} ? {} : {})".format(*three))
    )


EXPRESSIONS = st.recursive(ATOMS, _combined, max_leaves=6)
SCRIPTS = EXPRESSIONS | st.builds(
    lambda shape, test, yes, no: shape.format(test, yes, no),
    st.sampled_from(
        [
            "if ({0}) {{ {1}; }} else {{ {2}; }}",
            "if ({0}) {{ {1} }}",
            "{1}; if ({0}) {{}} else {2};",
            "{0}; {1};",
            "(function () {{ if ({0}) return {1}; return {2}; }})()",
            "(function () {{ if ({0}) {{ {1} }} else {{ return {2} }} }})()",
        ]
    ),
    EXPRESSIONS,
    EXPRESSIONS,
    EXPRESSIONS,
)


@given(SCRIPTS, DATA)
@example("$.a + ''", {"a": 1.7976931348623157e308})
@example("$.a < $.b", {"a": "\uffff", "b": "😀"})
@example("$.a == $.b", {"a": "\u00a05", "b": 5})
def test_any_simple_script_agrees_with_javascript(source: str, value: dict[str, Any]) -> None:
    compiled = compile_condition(source)
    assume(compiled is not None)
    assert compiled is not None
    expected = in_javascript(source, value)
    try:
        result = compiled(value)
    except NotSimple:
        event("left to the engine")
        return
    event("evaluated")
    assert expected is not Thrown
    assert exact(result) == exact(expected)


@given(
    st.text(max_size=30)
    | st.lists(ATOMS | st.sampled_from("(){}[];?:!=<>&|+-*/%.,'\"\\")).map("".join)
)
def test_any_text_compiles_or_is_refused(source: str) -> None:
    compiled = compile_condition(source)
    if compiled is None:
        return
    expected = in_javascript(source, INPUT)
    try:
        result = compiled(INPUT)
    except NotSimple:
        return
    assert exact(result) == exact(expected)
