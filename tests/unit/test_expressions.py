"""References in `${...}`: answers of the real server, and what must hold for any text."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.expressions import (
    TEMPLATE_DEPTH_MAX,
    TEXT_CHARS_MAX,
    compile_template,
    mentions_secrets,
    resolve_secrets,
    to_text,
)
from cluster.engine.safe_regex import compile_full_match
from cluster.errors import InvalidRequest

RECORDED = json.loads((Path(__file__).parent / "expression_answers.json").read_text())
CASES = [
    pytest.param(group["input"], expression, answer, id=f"{number}:{expression[:60]!r}")
    for number, group in enumerate(RECORDED["groups"])
    for expression, answer in group["results"]
]


class Document:
    """A root over a plain document that counts how it was asked."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.everything = document
        self.asked: list[str] = []

    def field(self, key: str, name: str) -> Any:
        self.asked.append("field")
        return self.everything.get(key, {}).get(name)

    def view(self, key: str) -> dict[str, Any] | None:
        self.asked.append("view")
        found = self.everything.get(key)
        return found if isinstance(found, dict) else None

    def document(self) -> dict[str, Any]:
        self.asked.append("document")
        return self.everything


def root(workflow_input: Any = None, **others: Any) -> Document:
    return Document(
        {
            "workflow": {
                "input": {} if workflow_input is None else workflow_input,
                "output": {},
                "variables": {},
                "status": "RUNNING",
                "version": 1,
                "schemaVersion": 2,
                "correlationId": "corr",
            },
            "t2": {"output": {"result": {"r": [1, 2, 3], "o": {"x": "y"}}}},
            **others,
        }
    )


def exact(value: Any) -> str:
    """Tells 1 from 1.0 and true from 1, and keeps the order of keys."""
    return json.dumps(value)


def resolve(template: Any, workflow_input: Any = None, **others: Any) -> Any:
    return compile_template(template).resolve(root(workflow_input, **others))


@pytest.mark.parametrize(("workflow_input", "expression", "answer"), CASES)
def test_answers_are_those_of_the_real_server(
    workflow_input: Any, expression: str, answer: Any
) -> None:
    assert exact(resolve(expression, workflow_input)) == exact(answer)


# Here the real server answers null because it trips over nested lists or a missing blank.
@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("${workflow.input.a[?(@ contains 1)]}", [[1, 2]]),
        ("${workflow.input.a[?(@ anyof [1])]}", [[1, 2]]),
        ("${workflow.input.a[?(@ noneof [1])]}", [[3, [4]]]),
        ("${workflow.input.a[?(@ subsetof [1, 2, 5])]}", [[1, 2]]),
        ("${workflow.input.b[?(@.x&&@.y==2)].y}", [2]),
    ],
)
def test_filters_work_where_the_real_server_gives_up(expression: str, answer: Any) -> None:
    assert (
        resolve(expression, {"a": [[1, 2], [3, [4]]], "b": [{"x": 1, "y": 2}, {"y": 2}]}) == answer
    )


def test_maps_and_lists_are_resolved_all_the_way_down_and_keys_never() -> None:
    template = {
        "${workflow.input.n}": ["${workflow.input.n}", {"a": [{"b": "${t2.output.result.o}"}]}]
    }
    assert resolve(template, {"n": 5}) == {"${workflow.input.n}": [5, {"a": [{"b": {"x": "y"}}]}]}


def test_the_order_of_keys_stays() -> None:
    template = {"z": 1, "a": "${workflow.input.n}", "m": {"k": []}, "b": "text", "c": "$${x}"}
    assert exact(resolve(template, {"n": 5})) == exact(
        {"z": 1, "a": 5, "m": {"k": []}, "b": "text", "c": "${x}"}
    )


def test_plain_paths_touch_only_the_field_they_name() -> None:
    asked = root({"a": [{"b": {"c": 1}}]})
    assert compile_template("${workflow.input.a[0].b.c}").resolve(asked) == 1
    assert compile_template("${workflow.input.a[*].b}").resolve(asked) == [{"c": 1}]
    assert asked.asked == ["field", "field"]
    assert compile_template("${t2}").resolve(asked) == {"output": asked.everything["t2"]["output"]}
    assert asked.asked[2:] == ["view"]


def test_the_task_id_is_known_only_while_a_task_is_scheduled() -> None:
    template = compile_template({"a": "${CPEWF_TASK_ID}", "b": "id=${CPEWF_TASK_ID}!"})
    assert template.resolve(root(), task_id="t-1") == {"a": "t-1", "b": "id=t-1!"}
    assert template.resolve(root()) == {"a": "${CPEWF_TASK_ID}", "b": "id=${CPEWF_TASK_ID}!"}


def test_environment_variables_of_the_process_are_not_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NETFLIX_ENV", "prod")
    assert resolve(["${NETFLIX_ENV}", "${PATH}", "${NETFLIX_STACK}"]) == [None, None, None]


def test_the_environment_store_is_a_field_and_its_json_can_be_looked_into() -> None:
    document = root()
    document.everything["workflow"]["env"] = {"ZONE": "eu", "DB": '{"host": {"a-b": "h"}}'}

    def read(text: str) -> Any:
        return compile_template(text).resolve(document)

    assert read("${workflow.env.ZONE}") == "eu"
    assert read("in ${workflow.env.ZONE}") == "in eu"
    assert read("${workflow.env.DB.host.a-b}") == "h"
    assert read("${workflow.env.ZONE.x}") is None
    assert read("${workflow.env.NONE.x}") is None


def test_an_instance_of_a_loop_is_named_with_its_suffix() -> None:
    assert resolve("${t1__2.output.x}", t1__2={"output": {"x": 7}}) == 7


def test_references_name_the_root_keys() -> None:
    template = compile_template(
        {
            "a": "${t1.output.x} and ${workflow.input.${t2.output.k}}",
            "b": ["${t3.output.l[?(@.id == $.t4.output.id)]}", "$${t9.output}", "${}"],
            "c": "${workflow.secrets.A}${CPEWF_TASK_ID}",
        }
    )
    assert template.references == {"t1", "workflow", "t2", "t3", "t4"}
    assert not template.is_constant


@pytest.mark.parametrize(
    "value", [None, True, 0, 1.5, "", "x", [], {}, [[1], {"a": [2]}], "$", "{}"]
)
def test_values_without_references_are_constant(value: Any) -> None:
    template = compile_template(value)
    assert template.is_constant
    assert exact(template.resolve(root())) == exact(value)


def test_a_template_does_not_change() -> None:
    template = compile_template("x")
    with pytest.raises(AttributeError):
        template.is_constant = False


def test_a_template_that_is_nested_too_deep_is_refused() -> None:
    value: Any = "${workflow.input.n}"
    for _ in range(TEMPLATE_DEPTH_MAX):
        value = [value]
    assert exact(resolve(value, {"n": 5})) == "[" * 100 + "5" + "]" * 100
    with pytest.raises(InvalidRequest, match="nested deeper than 100"):
        compile_template([value])


def test_expressions_nested_too_deep_are_null() -> None:
    assert resolve("${" * 5_000 + "}" * 5_000) is None


def test_a_text_that_would_fill_the_memory_is_null() -> None:
    big = "x" * (TEXT_CHARS_MAX // 4)
    assert resolve("${workflow.input.s}" * 5 + "!", {"s": big}) is None
    assert len(resolve("${workflow.input.s}" * 3, {"s": big})) == 3 * len(big)


def test_a_scan_over_too_many_values_is_null() -> None:
    wide = {"a": [[0] * 1_000] * 10}
    assert len(resolve("${workflow.input..*}", wide)) == 10_011
    assert resolve("${workflow.input..*..*..*..*}", {"a": [[[[0] * 100] * 20] * 20] * 20}) is None


def test_values_below_any_depth_can_be_scanned_and_written() -> None:
    deep: Any = {"id": 1}
    for _ in range(20_000):
        deep = {"k": [deep]}
    assert resolve("${workflow.input..id}", deep) == [1]
    assert to_text(deep).startswith("{k=[{k=[")


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(a*)*b", r"(a)\1", "a?" * 30, "(?=a)a", "("]
)
def test_patterns_that_could_take_for_ever_are_refused(pattern: str) -> None:
    assert compile_full_match(pattern, 0) is None
    assert resolve(f"${{workflow.input.l[?(@ =~ /{pattern}/)]}}", {"l": ["a" * 30]}) is None


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (".*", "abc", True),
        ("[a-z]+@[a-z.]+", "a@b.c", True),
        ("(foo|bar)-[0-9]{3}", "bar-123", True),
        ("(foo|bar)-[0-9]{3}", "bar-12", False),
        ("b", "abc", False),
        (".*x.*", "y" * 100_000, False),
    ],
)
def test_harmless_patterns_match_whole_texts(pattern: str, text: str, expected: bool) -> None:
    matches = compile_full_match(pattern, 0)
    assert matches is not None
    assert matches(text) is expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ({"a": [1, None, {"b": "x y"}], "c": {}}, "{a=[1, null, {b=x y}], c={}}"),
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (100.0, "100.0"),
        (0.001, "0.001"),
        (0.00099, "9.9E-4"),
        (9999999.0, "9999999.0"),
        (1e7, "1.0E7"),
        (-1.25e30, "-1.25E30"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (math.nan, "NaN"),
        (10**30, "1" + "0" * 30),
    ],
)
def test_values_inside_text_are_written_as_java_does(value: Any, text: str) -> None:
    assert to_text(value) == text


def test_secrets_are_put_in_only_at_hand_over() -> None:
    secrets = {"KEY": "s3cret", "DB": '{"user": "u"}', "ODD.NAME": "dotted"}
    stored = resolve(
        {"a": "${workflow.secrets.KEY}", "b": ["Bearer ${workflow.secrets.KEY}!"], "c": {"d": 1}}
    )
    assert stored["a"] == "${workflow.secrets.KEY}"
    before = copy.deepcopy(stored)
    handed = resolve_secrets(stored, secrets)
    assert handed == {"a": "s3cret", "b": ["Bearer s3cret!"], "c": {"d": 1}}
    assert stored == before
    assert resolve_secrets("${workflow.secrets.NONE}", secrets) is None
    assert resolve_secrets("a${workflow.secrets.NONE}b", secrets) == "ab"
    assert resolve_secrets("${workflow.secrets.DB.user}", secrets) == "u"
    assert resolve_secrets("${workflow.secrets.ODD.NAME}", secrets) == "dotted"
    assert resolve_secrets("${workflow.secrets.KEY", secrets) == "${workflow.secrets.KEY"
    twice = "${workflow.secrets.KEY}${workflow.secrets.KEY}"
    assert resolve_secrets(twice, secrets) == "s3crets3cret"


def test_a_secret_is_not_searched_for_secrets() -> None:
    secrets = {"A": "${workflow.secrets.B}", "B": "b"}
    assert resolve_secrets("x${workflow.secrets.A}", secrets) == "x${workflow.secrets.B}"


def test_values_without_secrets_are_handed_over_as_they_are() -> None:
    value = {"a": ["${workflow.input.x}", {"b": None}]}
    assert resolve_secrets(value, {"A": "a"}) is value
    assert mentions_secrets(b'{"a":"x ${workflow.secrets.A}"}')
    assert not mentions_secrets(b'{"a":"${workflow.input.secrets}"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)
FRAGMENTS = st.sampled_from(
    [
        *"${ } $${ $ { [ ] ( ) . .. * ? @ ' \" / \\ , : ! == =~ && || 0 -1 a workflow".split(),
        *"input output length() sum( [*] [?(@.a ${workflow.input.a} ${t1.output} t1 ..a".split(),
        *(" ", "\n", "é"),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=14).map("".join)


def values(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    )


@given(values(TEXTS | st.integers()), JSON, JSON)
def test_any_template_resolves(template: Any, workflow_input: Any, output: Any) -> None:
    before = copy.deepcopy((workflow_input, output))
    compiled = compile_template(template)
    first = compiled.resolve(root(workflow_input, t1={"output": output}), task_id="id")
    second = compiled.resolve(root(workflow_input, t1={"output": output}), task_id="id")
    assert exact(first) == exact(second)
    assert exact((workflow_input, output)) == exact(before), "the data was changed"


def containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(one for item in value.values() for one in containers(item))]
    if isinstance(value, list):
        return [value, *(one for item in value for one in containers(item))]
    return []


@given(values(st.sampled_from(["a", "${workflow.input.n}", "$${x}", "x${t1.status}"]) | JSON))
def test_no_container_of_a_result_is_one_of_the_template(template: Any) -> None:
    compiled = compile_template(template)
    first, second = (compiled.resolve(root({"n": 5}, t1={"status": "s"})) for _ in range(2))
    ids = {id(one) for one in containers(template)} | {id(one) for one in containers(first)}
    assert all(id(one) not in ids for one in containers(second))
    for one in containers(first):
        one.clear()
    assert exact(compiled.resolve(root({"n": 5}, t1={"status": "s"}))) == exact(second)


@given(
    values(
        st.text().filter(lambda text: "${" not in text) | JSON.filter(lambda v: "${" not in repr(v))
    )
)
def test_a_constant_template_yields_its_value(value: Any) -> None:
    compiled = compile_template(value)
    keys_only = "${" in repr(value)
    assert compiled.is_constant
    assert keys_only or exact(compiled.resolve(root())) == exact(value)


@given(JSON, st.text(alphabet=st.characters(exclude_characters="$"), max_size=5))
def test_embedding_a_value_writes_it_as_text(value: Any, prefix: str) -> None:
    if "$${" not in to_text(value):
        assert resolve(prefix + "!${workflow.input.v}", {"v": value}) == prefix + "!" + to_text(
            value
        )
