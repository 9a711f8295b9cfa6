"""Conductor's query language: what is read, what is refused and where, and how it is judged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.node.query_language import (
    QUERY_CHARS_MAX,
    TASK,
    WORKFLOW,
    parse,
    parse_sort,
    parse_words,
)
from cluster.store.queries import (
    EVERYTHING,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Sort,
    Value,
    Words,
    alternatives,
    matches,
)


def equal(field: str, *values: str | int) -> Comparison:
    return Comparison(field, "=" if len(values) == 1 else "IN", values)


A, B, C = equal("workflowType", "a"), equal("status", "FAILED"), equal("version", 3)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("", EVERYTHING),
        ("  ", EVERYTHING),
        ("workflowType=a", A),
        ("workflowType = 'a'", A),
        ('workflowType == "a"', A),
        ("name = a", A),
        ("WORKFLOWTYPE = a", A),
        ("workflowType = 'it''s'", equal("workflowType", "it's")),
        ('workflowType = "it\'s"', equal("workflowType", "it's")),
        ("workflowType = a AND status = FAILED", AllOf((A, B))),
        ("workflowType = a and status = failed", AllOf((A, B))),
        ("workflowType=a OR status=FAILED AND version=3", AnyOf((A, AllOf((B, C))))),
        ("(workflowType=a OR status=FAILED) AND version=3", AllOf((AnyOf((A, B)), C))),
        ("((workflowType=a))", A),
        ("status IN (FAILED, 'RUNNING')", equal("status", "FAILED", "RUNNING")),
        ("status NOT IN (FAILED,RUNNING)", Comparison("status", "IN", ("FAILED", "RUNNING"), True)),
        ("version != 3", Comparison("version", "=", (3,), True)),
        ("version <> 3", Comparison("version", "=", (3,), True)),
        ("version BETWEEN 1 AND 3 AND status = FAILED", None),
        ("startTime >= 1700000000000", Comparison("startTime", ">=", (1_700_000_000_000,))),
        ("startTime < '2023-11-14T22:13:20Z'", Comparison("startTime", "<", (1_700_000_000_000,))),
        ("startTime < '2023-11-15T00:13:20.5+02:00'", None),
        ("endTime IS NULL", Comparison("endTime", "IS NULL")),
        ("endTime IS NOT NULL", Comparison("endTime", "IS NULL", (), True)),
        ("workflowType STARTS_WITH 'or'", Comparison("workflowType", "STARTS_WITH", ("or",))),
        ("workflowType = 'or*'", Comparison("workflowType", "STARTS_WITH", ("or",))),
        ("workflowType = 'o*r*'", Comparison("workflowType", "LIKE", ("o*r*",))),
        ("input.customerId = c7", equal("input.customerId", "c7")),
        ("input.a.b-c = 7", equal("input.a.b-c", "7")),
        ("correlationId = ''", equal("correlationId", "")),
        ("workflowId = 01A1-X", equal("workflowId", "01a1-x")),
    ],
)
def test_what_is_read(text: str, condition: Condition | None) -> None:
    found = parse(text, WORKFLOW)
    if condition is not None:
        assert found == condition


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("colour = red", 1, "no field 'colour'"),
        ("workflowType red", 14, "expected an operator"),
        ("workflowType = ", 16, "expected a value"),
        ("workflowType = 'a", 16, "not closed"),
        ("workflowType = a b = c", 18, "expected AND, OR or the end"),
        ("workflowType = a AND", 21, "expected the name of a field"),
        ("(workflowType = a", 18, "expected )"),
        ("status = DONE", 10, "RUNNING"),
        ("version = x", 11, "whole number"),
        ("startTime > yesterday", 13, "ISO 8601"),
        ("status IN FAILED", 11, "expected ("),
        ("status IN (FAILED", 18, "expected , or )"),
        ("status IS FAILED", 11, "NULL"),
        ("version BETWEEN 1 OR 2", 19, "expected AND"),
        ("version STARTS_WITH 1", 21, "text field"),
        ("NOT status = FAILED", 1, "no field"),
        ("status = FAILED ! x", 17, "not understood"),
        ("(" * 60 + "status=FAILED" + ")" * 60, 52, "deep"),
        ("a.b = c", 1, "input.<name>"),
    ],
)
def test_what_is_refused_says_where(text: str, at: int, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text, WORKFLOW)
    assert f"at character {at}," in caught.value.message
    assert said in caught.value.message


def test_bounds() -> None:
    with pytest.raises(InvalidRequest, match="characters"):
        parse("x" * (QUERY_CHARS_MAX + 1), WORKFLOW)
    many = ",".join(str(number) for number in range(1001))
    with pytest.raises(InvalidRequest, match="at most 1000"):
        parse(f"version IN ({many})", WORKFLOW)
    with pytest.raises(InvalidRequest, match="no field"):
        parse("input.a = 1", TASK)


def test_free_texts() -> None:
    assert parse_words("*") == parse_words("") == EVERYTHING
    assert parse_words('card "not left" or*') == Words(("card", "not left", "or*"))
    with pytest.raises(InvalidRequest):
        parse_words(" ".join(map(str, range(30))))


@pytest.mark.parametrize(
    ("text", "sorts"),
    [
        ("", (Sort("startTime"),)),
        ("startTime:ASC", (Sort("startTime", False),)),
        ("status:desc|workflowName", (Sort("status"), Sort("workflowType", False))),
        ("endTime:DESC,startTime:ASC", (Sort("endTime"), Sort("startTime", False))),
    ],
)
def test_sorts(text: str, sorts: tuple[Sort, ...]) -> None:
    assert parse_sort(text, WORKFLOW) == sorts


@pytest.mark.parametrize("text", ["input.a:ASC", "reasonForIncompletion", "startTime:UP", "x"])
def test_sorts_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_sort(text, WORKFLOW)


# -- random queries: written as text, read again, and judged as plainly as can be

TEXT_FIELDS = ("workflowType", "correlationId", "createdBy", "input.a")
NUMBER_FIELDS = ("version", "priority")
TEXTS = st.sampled_from(["", "a", "b", "it's", 'say "so"', "a b", "AND", "(x)", "5"])
NUMBERS = st.integers(-3, 3)
OPERATORS = st.sampled_from(["=", "<", "<=", ">", ">=", "IN", "BETWEEN", "IS NULL"])


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    is_text = draw(st.booleans())
    field = draw(st.sampled_from(TEXT_FIELDS if is_text else NUMBER_FIELDS))
    operator = draw(OPERATORS)
    count = {"IN": 3, "BETWEEN": 2, "IS NULL": 0}.get(operator, 1)
    some: st.SearchStrategy[str | int] = TEXTS if is_text else NUMBERS
    values = tuple(draw(some) for _ in range(count))
    if operator == "IN":
        values = tuple(dict.fromkeys(values))
    can_be_negated = operator in ("=", "IN", "IS NULL")
    return Comparison(field, operator, values, can_be_negated and draw(st.booleans()))


def _parts(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return several.map(AllOf) | several.map(AnyOf)


CONDITIONS: st.SearchStrategy[Condition] = st.recursive(comparisons(), _parts, max_leaves=6)
DOCUMENTS = st.fixed_dictionaries(
    {
        **dict.fromkeys(TEXT_FIELDS, st.none() | TEXTS),
        **dict.fromkeys(NUMBER_FIELDS, NUMBERS),
    }
)


def written(condition: Condition) -> str:
    match condition:
        case AllOf(parts):
            return " AND ".join(f"({written(part)})" for part in parts)
        case AnyOf(parts):
            return " OR ".join(f"({written(part)})" for part in parts)
        case Comparison(field, operator, values, is_negated):
            literals = [
                str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
                for value in values
            ]
            if operator == "IS NULL":
                return f"{field} IS {'NOT ' if is_negated else ''}NULL"
            if operator == "BETWEEN":
                return f"{field} BETWEEN {literals[0]} AND {literals[1]}"
            if operator == "IN":
                return f"{field} {'NOT ' if is_negated else ''}IN ({', '.join(literals)})"
            return f"{field} {'!=' if is_negated else operator} {literals[0]}"
    raise AssertionError(condition)


def holds(condition: Condition, document: dict[str, Value]) -> bool:
    match condition:
        case AllOf(parts):
            return all(holds(part, document) for part in parts)
        case AnyOf(parts):
            return any(holds(part, document) for part in parts)
        case Comparison(field, operator, values, is_negated):
            value = document[field]
            if value is None:
                value = ""
            if operator == "IS NULL":
                result = value == ""
            elif operator in ("=", "IN"):
                result = value in values
            elif value == "":
                result = False
            else:
                first, last = values[0], values[-1]
                result = {
                    "<": value < first,  # type: ignore[operator]
                    "<=": value <= first,  # type: ignore[operator]
                    ">": value > first,  # type: ignore[operator]
                    ">=": value >= first,  # type: ignore[operator]
                    "BETWEEN": first <= value <= last,  # type: ignore[operator]
                }[operator]
            return result is not is_negated
    raise AssertionError(condition)


@given(CONDITIONS, DOCUMENTS)
def test_a_query_is_judged_as_it_is_written(
    condition: Condition, document: dict[str, Value]
) -> None:
    read = parse(written(condition), WORKFLOW)
    assert matches(read, document.__getitem__) == holds(condition, document)


@given(CONDITIONS, DOCUMENTS)
def test_alternatives_say_the_same(condition: Condition, document: dict[str, Value]) -> None:
    found = alternatives(condition)
    if found is not None:
        either = any(
            all(matches(leaf, document.__getitem__) for leaf in leaves) for leaves in found
        )
        assert either == matches(condition, document.__getitem__)


@given(st.text(alphabet="ab '\"()=<>!,*ANDORIN.5\n", max_size=40))
def test_no_text_is_a_defect(text: str) -> None:
    try:
        parse(text, WORKFLOW)
        parse_words(text)
    except InvalidRequest:
        pass


@pytest.mark.parametrize(
    ("query", "value", "is_found"),
    [
        ("input.a = 5", "5", True),
        ("input.a = 5.0", "5", True),
        ("input.a = '05'", "5", False),
        ("input.a > 9", "10", True),
        ("input.a > 9", "x", True),
        ("input.a != 5", None, True),
        ("input.a < 5", None, False),
        ("input.a = true", "true", True),
        ("input.a = '*b*'", "abc", True),
        ("input.a = 'a*'", "ba", False),
    ],
)
def test_values_of_inputs(query: str, value: str | None, is_found: bool) -> None:
    assert matches(parse(query, WORKFLOW), lambda _: value) is is_found


@pytest.mark.parametrize(
    ("word", "is_found"),
    [
        ("card", True),
        ("CARD", True),
        ("car", False),
        ("car*", True),
        ("no card", True),
        ("17", True),
    ],
)
def test_words(word: str, is_found: bool) -> None:
    assert matches(Words((word,)), lambda _: ("No card left", "order-17")) is is_found
