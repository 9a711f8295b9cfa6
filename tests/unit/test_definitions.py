"""Definitions against what Conductor 3.32.3 answered to the same bodies, and our own additions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.engine.definition_json import NESTING_MAX
from cluster.engine.definition_rules import check_task_def, check_workflow_def, is_path
from cluster.engine.definitions import (
    StepReader,
    ad_hoc_task_def,
    make_snapshot,
    parse_task_def,
    parse_workflow_def,
    parse_workflow_task,
    task_names_of,
    unpinned_sub_workflows_of,
)
from cluster.engine.wait_times import duration_seconds, until_ms
from cluster.errors import InvalidRequest, NotFound

ANSWERS = json.loads((Path(__file__).parent / "definition_answers.json").read_text())
STEP = {"name": "t", "taskReferenceName": "a"}

# What our scripts' parser says is its own; Conductor quotes the one that it uses.
SYNTAX_ERROR = "SyntaxError: ..."
BROKEN_SCRIPTS = frozenset({"(((", "$.a ==", "return 1", "$.x.y z", "${workflow.input.x}"})


def check_javascript(script: str) -> str | None:
    return SYNTAX_ERROR if script in BROKEN_SCRIPTS else None


def case_id(case: list[Any]) -> str:
    return json.dumps(case[0], ensure_ascii=True)[-70:]


@pytest.mark.parametrize("case", ANSWERS["workflows"], ids=case_id)
def test_rules_of_workflows_are_worded_as_by_conductor(case: list[Any]) -> None:
    body, expected = case
    _, definition = parse_workflow_def(body)
    found = check_workflow_def(
        definition, path="validateWorkflowDef.arg0", check_javascript=check_javascript
    )
    ours = [[violation.path, violation.message, violation.invalid_value] for violation in found]
    theirs = [[path, with_our_syntax_error(message), value] for path, message, value in expected]
    assert sorted(ours, key=str) == sorted(theirs, key=str)


def with_our_syntax_error(message: str) -> str:
    start, middle, rest = message.partition("SyntaxError: ")
    return f"{start}{SYNTAX_ERROR}, taskType{rest.rpartition(', taskType')[2]}" if middle else start


@pytest.mark.parametrize("case", ANSWERS["task_defs"], ids=case_id)
def test_rules_of_task_definitions_are_worded_as_by_conductor(case: list[Any]) -> None:
    body, expected = case
    _, definition = parse_task_def({"name": "nobody's"} | body)
    found = check_task_def(definition, path="updateTaskDef.arg0")
    ours = [[violation.path, violation.message, violation.invalid_value] for violation in found]
    assert sorted(ours, key=str) == expected


@pytest.mark.parametrize("case", ANSWERS["read_back"], ids=case_id)
def test_workflows_read_back_as_from_conductor(case: list[Any]) -> None:
    body, expected = case
    _, served = parse_workflow_def(body | {"name": "~"})
    assert {**served, "createTime": 0} == expected
    # Read once more, as a snapshot is: nothing changes.
    assert parse_workflow_def(served)[1] == served
    assert list(served) == [key for key in expected if key in served], "the order of the fields"


@pytest.mark.parametrize("case", ANSWERS["read_back_task_defs"], ids=case_id)
def test_task_definitions_read_back_as_from_conductor(case: list[Any]) -> None:
    body, expected = case
    _, served = parse_task_def(body | {"name": "~", "createdBy": ""})
    assert {**served, "createTime": 0} == expected


@pytest.mark.parametrize("case", ANSWERS["unreadable"], ids=case_id)
def test_what_conductor_cannot_read_is_refused(case: list[Any]) -> None:
    body, status = case
    assert status == 500
    with pytest.raises(InvalidRequest, match=": expected ") as refused:
        parse_workflow_def(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("parse", "body", "message"),
    [
        (parse_workflow_def, [], "body: expected object"),
        (
            parse_workflow_def,
            {"tasks": [{"decisionCases": []}]},
            "tasks[0].decisionCases: expected object",
        ),
        (
            parse_workflow_def,
            {"tasks": [{"decisionCases": {"x y": [STEP, {"startDelay": "soon"}]}}]},
            "tasks[0].decisionCases[x y][1].startDelay: expected integer",
        ),
        (
            parse_workflow_def,
            {"tasks": [{"forkTasks": [[], [{"optional": []}]]}]},
            "tasks[0].forkTasks[1][0].optional: expected true or false",
        ),
        (
            parse_workflow_def,
            {"timeoutPolicy": "RETRY"},
            "timeoutPolicy: expected one of TIME_OUT_WF, ALERT_ONLY",
        ),
        (
            parse_workflow_def,
            {"version": 2**31},
            "version: expected integer from -2147483648 to 2147483647",
        ),
        (
            parse_workflow_def,
            {"version": "9" * 5_000_000},
            "version: expected integer",
        ),
        (parse_workflow_def, {"version": float("inf")}, "version: expected integer"),
        (parse_workflow_def, {"tasks": [None]}, "tasks[0]: expected a value, not null"),
        (parse_workflow_task, {"type": None}, "type: expected string, or leave it out for SIMPLE"),
        (
            parse_task_def,
            {"retryLogic": "x"},
            "retryLogic: expected one of FIXED, EXPONENTIAL_BACKOFF, LINEAR_BACKOFF",
        ),
        (
            parse_task_def,
            {"inputSchema": {"type": 7}},
            "inputSchema.type: expected one of JSON, AVRO, PROTOBUF",
        ),
    ],
)
def test_an_unreadable_field_is_named(parse: Callable[[Any], Any], body: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(body)
    assert refused.value.message == message


def test_the_path_of_a_list_body_comes_first() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_workflow_def({"tasks": "x"}, path="[3]")
    assert refused.value.message == "[3].tasks: expected array"


def test_unknown_fields_are_kept_at_every_level() -> None:
    body = {
        "name": "w",
        "new": {"a": None},
        "rateLimitConfig": {"new": 1},
        "tasks": [
            {
                **STEP,
                "new": None,
                "taskDefinition": {"new": 2, "inputSchema": {"new": 3}},
                "onStateChange": {"start": [{"new": 4}]},
                "subWorkflowParam": {
                    "new": 5,
                    "workflowDefinition": {"tasks": [{"new": 6}], "new": 7},
                },
                "decisionCases": {"x": [{"new": 8}]},
                "forkTasks": [[{"new": 9}]],
                "loopOver": [{"new": 10}],
            }
        ],
    }
    _, served = parse_workflow_def(body)
    task = served["tasks"][0]
    inline = task["subWorkflowParam"]["workflowDefinition"]
    assert served["new"] == {"a": None}
    assert served["rateLimitConfig"]["new"] == 1
    assert "new" in task
    assert task["new"] is None
    assert task["taskDefinition"]["new"] == 2
    assert task["taskDefinition"]["inputSchema"]["new"] == 3
    assert task["onStateChange"]["start"] == [{"new": 4}]
    assert task["subWorkflowParam"]["new"] == 5
    assert inline["tasks"][0]["new"] == 6
    assert inline["new"] == 7
    assert task["decisionCases"]["x"][0]["new"] == 8
    assert task["forkTasks"][0][0]["new"] == 9
    assert task["loopOver"][0]["new"] == 10


def test_defaults_are_not_shared_between_definitions() -> None:
    _, first = parse_workflow_task(STEP)
    first["inputParameters"]["x"] = 1
    first["joinOn"].append("x")
    assert parse_workflow_task(STEP)[1]["inputParameters"] == {}
    assert parse_workflow_task(STEP)[1]["joinOn"] == []


def test_the_typed_form_says_what_the_json_form_says() -> None:
    typed, _ = parse_workflow_def(
        {
            "name": "w",
            "version": "7",
            "timeoutPolicy": "TIME_OUT_WF",
            "tasks": [
                {
                    **STEP,
                    "type": "FORK_JOIN",
                    "forkTasks": [[{**STEP, "retryCount": 2}]],
                    "joinOn": ["a", None],
                    "subWorkflowParam": {"name": "c", "taskToDomain": {"a": 3, "b": None}},
                    "taskDefinition": {"name": "own", "pollTimeoutSeconds": 4},
                },
                {"decisionCases": {"x": [STEP]}},
            ],
        }
    )
    fork, switch = typed.tasks
    assert (typed.name, typed.version, typed.timeout_policy) == ("w", 7, "TIME_OUT_WF")
    assert fork.fork_tasks[0][0].retry_count == 2
    assert fork.join_on == ("a",)
    assert fork.sub_workflow_param is not None
    assert fork.sub_workflow_param.task_to_domain == {"a": "3"}
    assert fork.task_definition is not None
    assert fork.task_definition.poll_timeout_seconds == 4
    assert (switch.name, switch.task_reference_name, switch.type) == ("", "", "SIMPLE")
    assert switch.decision_cases["x"][0].name == "t"


def test_an_inline_sub_workflow_gives_its_step_name_and_version() -> None:
    params = {"name": "c", "version": 9, "workflowDefinition": {"name": "inner", "version": 4}}
    typed, served = parse_workflow_task({**STEP, "subWorkflowParam": params})
    assert served["subWorkflowParam"]["name"] == "inner"
    assert typed.sub_workflow_param is not None
    assert (typed.sub_workflow_param.name, typed.sub_workflow_param.version) == ("inner", 4)
    assert (
        typed.sub_workflow_param.workflow_definition
        == served["subWorkflowParam"]["workflowDefinition"]
    )


def test_no_inline_sub_workflow_is_not_one() -> None:
    _, served = parse_workflow_task(
        {**STEP, "subWorkflowParam": {"name": "c", "workflowDefinition": None}}
    )
    assert served["subWorkflowParam"] == {"name": "c"}


def nested(levels: int) -> dict[str, Any]:
    task: dict[str, Any] = dict(STEP)
    for _ in range(levels):
        task = {**STEP, "type": "DO_WHILE", "loopCondition": "0", "loopOver": [task]}
    return {"name": "w", "tasks": [task]}


def test_steps_may_be_nested_to_a_bound() -> None:
    parse_workflow_def(nested(NESTING_MAX - 1))
    with pytest.raises(InvalidRequest, match="levels of objects in objects"):
        parse_workflow_def(nested(NESTING_MAX))


def test_data_nested_without_bound_is_checked_for_references() -> None:
    value: Any = "${nobody.output}"
    for _ in range(5_000):
        value = {"deeper": value}
    _, definition = parse_workflow_def(
        {"name": "w", "tasks": [{**STEP, "inputParameters": {"x": value}}]}
    )
    (violation,) = check_workflow_def(definition, path="p", check_javascript=check_javascript)
    assert violation.message.startswith(
        "taskReferenceName: nobody for given task: t input value: deeper"
    )


@pytest.mark.parametrize("has_loop", [True, False])
def test_a_reference_name_like_that_of_a_round_is_refused_beside_loops(has_loop: bool) -> None:
    step = {"name": "t", "taskReferenceName": "pay__2"}
    outer = {"name": "o", "taskReferenceName": "o", "type": "DO_WHILE", "loopCondition": "0"}
    other = {"name": "t", "taskReferenceName": "pay__late"}
    loops = [{**outer, "loopOver": [other]}] if has_loop else []
    _, definition = parse_workflow_def({"name": "w", "tasks": [step, *loops]})
    found = check_workflow_def(definition, path="p", check_javascript=check_javascript)
    message = (
        "taskReferenceName: pay__2 must not end in '__' and a number,"
        " which marks the rounds of a loop"
    )
    expected = [("p", message)] if has_loop else []
    assert [(violation.path, violation.message) for violation in found] == expected


def test_an_owner_is_asked_for_only_where_it_is_required() -> None:
    _, workflow = parse_workflow_def({"name": "w", "tasks": [STEP]})
    _, task_def = parse_task_def({"name": "t", "ownerEmail": ""})
    found = check_workflow_def(
        workflow, path="p", check_javascript=check_javascript, owner_email_required=True
    ) + check_task_def(task_def, path="q", owner_email_required=True)
    assert [(violation.path, violation.message) for violation in found] == [
        ("p.ownerEmail", "ownerEmail cannot be empty"),
        ("q.ownerEmail", "ownerEmail cannot be empty"),
    ]
    assert check_task_def(task_def, path="q") == []


@pytest.mark.parametrize("text", ["a[(@.length-1)]", "a['x\\']", "a[?(@.x==')')].y[", "a.x(')')"])
def test_odd_paths_end(text: str) -> None:
    assert is_path(text) == (text in {"a[?(@.x==')')].y[", "a.x(')')"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 days 3 hours 5m 10s", 2 * 86_400 + 3 * 3_600 + 310),
        ("1D2H", 93_600),
        ("5 min", 300),
        ("", 0),
        ("  7s ", 7),
        ("2147483647s", 2**31 - 1),
        ("2147483648s", None),
        ("1h 1d", None),
        ("1s 1s", None),
        ("5", None),
        (" " * 100_000 + "x", None),
        ("1s" + " " * 100_000 + "x", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "due_ms"),
    [
        ("1970-01-02", 86_400_000),
        ("2030-01-01 10:00", 1_893_492_000_000),
        ("2030-01-01 10:00 GMT", 1_893_492_000_000),
        ("2030-01-01 10:00 PST", 1_893_520_800_000),
        ("2030-01-01 10:00 GMT+2:00", 1_893_484_800_000),
        ("2030-01-01 10:00 -0130", 1_893_497_400_000),
        ("2030-13-01", 1_924_992_000_000),
        ("1970-02-31", 61 * 86_400_000),
        ("0-1-1", None),
        ("9999-99-99", None),
        ("2030-01-01 10:00 XYZ", None),
        ("tomorrow", None),
    ],
)
def test_instants(text: str, due_ms: int | None) -> None:
    assert until_ms(text) == due_ms


# -- snapshots

SNAPSHOT_TASKS: list[dict[str, Any]] = [
    {"name": "known", "taskReferenceName": "known"},
    {"name": "adhoc", "taskReferenceName": "adhoc"},
    {"name": "known", "taskReferenceName": "own", "taskDefinition": {"name": "o", "retryCount": 5}},
    {"name": "web", "taskReferenceName": "web", "type": "HTTP"},
    {"name": "mine", "taskReferenceName": "mine", "type": "MY_TYPE"},
    {
        "name": "sw",
        "taskReferenceName": "sw",
        "type": "SWITCH",
        "decisionCases": {"k": [{"name": "known", "taskReferenceName": "k"}]},
        "defaultCase": [
            {
                "name": "c",
                "taskReferenceName": "c",
                "type": "SUB_WORKFLOW",
                "subWorkflowParam": {"name": "child"},
            }
        ],
    },
    {
        "name": "f",
        "taskReferenceName": "f",
        "type": "FORK_JOIN",
        "forkTasks": [[{"name": "deep", "taskReferenceName": "d"}]],
    },
    {
        "name": "l",
        "taskReferenceName": "l",
        "type": "DO_WHILE",
        "loopOver": [{"name": "round", "taskReferenceName": "r"}],
    },
    {
        "name": "s",
        "taskReferenceName": "s",
        "loopOver": [{"name": "unused", "taskReferenceName": "u"}],
    },
    {
        "name": "inl",
        "taskReferenceName": "inl",
        "type": "SUB_WORKFLOW",
        "subWorkflowParam": {
            "workflowDefinition": {
                "name": "i",
                "tasks": [{"name": "inner", "taskReferenceName": "n"}],
            }
        },
    },
]


def snapshot_of(tasks: list[dict[str, Any]], **task_defs: int) -> dict[str, Any]:
    _, definition = parse_workflow_def({"name": "w", "tasks": tasks, "new": 1})
    known = {
        name: parse_task_def({"name": name, "retryCount": n})[1] for name, n in task_defs.items()
    }
    snapshot = make_snapshot(definition, known, {"child": 3})
    body: dict[str, Any] = json.loads(snapshot.body)
    return body


def test_every_step_of_a_snapshot_carries_the_definition_it_follows() -> None:
    body = snapshot_of(SNAPSHOT_TASKS, known=7, web=6)
    tasks = {task["taskReferenceName"]: task for task in body["tasks"]}
    attempts = {
        reference: (
            task["taskDefinition"]["name"],
            task["taskDefinition"]["retryCount"],
            task["taskDefinition"]["responseTimeoutSeconds"],
        )
        for reference, task in {
            **tasks,
            "k": tasks["sw"]["decisionCases"]["k"][0],
            "c": tasks["sw"]["defaultCase"][0],
            "d": tasks["f"]["forkTasks"][0][0],
            "r": tasks["l"]["loopOver"][0],
        }.items()
    }
    assert attempts == {
        "known": ("known", 7, 3600),
        "adhoc": ("adhoc", 3, 3600),
        "own": ("o", 5, 3600),
        "web": ("web", 6, 3600),
        "mine": ("mine", 0, 0),
        "sw": ("sw", 0, 0),
        "k": ("known", 7, 3600),
        "c": ("c", 0, 0),
        "f": ("f", 0, 0),
        "d": ("deep", 3, 3600),
        "l": ("l", 0, 0),
        "r": ("round", 3, 3600),
        "s": ("s", 3, 3600),
        "inl": ("inl", 0, 0),
    }
    assert "taskDefinition" not in tasks["s"]["loopOver"][0]
    inline = tasks["inl"]["subWorkflowParam"]["workflowDefinition"]
    assert "taskDefinition" not in inline["tasks"][0]
    assert tasks["sw"]["defaultCase"][0]["subWorkflowParam"] == {"name": "child", "version": 3}
    assert body["new"] == 1


def test_names_that_a_snapshot_looks_up() -> None:
    _, definition = parse_workflow_def({"name": "w", "tasks": SNAPSHOT_TASKS})
    assert task_names_of(definition) == {
        *("known", "adhoc", "web", "mine", "sw", "c", "f", "deep", "l", "round", "s", "inl")
    }
    assert unpinned_sub_workflows_of(definition) == {"child"}


@pytest.mark.parametrize(
    ("params", "pinned"),
    [
        ({"name": "child"}, 3),
        ({"name": "child", "version": 0}, 0),
        ({"name": "nobody", "version": 2}, 2),
        ({"name": "child", "workflowDefinition": "${workflow.input.d}"}, 3),
    ],
)
def test_sub_workflows_are_pinned_to_their_latest_version(
    params: dict[str, Any], pinned: int
) -> None:
    task = {**STEP, "type": "SUB_WORKFLOW", "subWorkflowParam": params}
    assert snapshot_of([task])["tasks"][0]["subWorkflowParam"]["version"] == pinned


@pytest.mark.parametrize("params", [{"name": "nobody"}, {}, {"workflowDefinition": "${a}"}])
def test_a_sub_workflow_that_nobody_registered_cannot_be_frozen(params: dict[str, Any]) -> None:
    with pytest.raises(NotFound) as refused:
        snapshot_of([{**STEP, "type": "SUB_WORKFLOW", "subWorkflowParam": params}])
    assert refused.value.message == (
        f"The Task {params.get('name', 'null')} defined as a sub-workflow"
        " has no workflow definition available "
    )


def test_equal_snapshots_have_equal_hashes_and_others_do_not() -> None:
    _, definition = parse_workflow_def({"name": "w", "tasks": [STEP]})
    known = {"t": parse_task_def({"name": "t", "retryCount": 1})[1]}
    first = make_snapshot(definition, known, {})
    assert first == make_snapshot(parse_workflow_def(definition)[1], dict(known), {})
    assert first.hash != make_snapshot(definition, {}, {}).hash
    assert "taskDefinition" not in definition["tasks"][0], "the definition itself stays as it was"


def test_an_ad_hoc_definition_depends_on_the_type() -> None:
    simple, other = ad_hoc_task_def("SIMPLE", "x"), ad_hoc_task_def("HTTP", "x")
    assert (simple["name"], simple["retryCount"], simple["responseTimeoutSeconds"]) == (
        "x",
        3,
        3600,
    )
    assert (other["name"], other["retryCount"], other["responseTimeoutSeconds"]) == ("x", 0, 0)


ALIKE = [
    {"name": "a", "taskReferenceName": "r1", "type": "SIMPLE", "inputParameters": {"n": 1}},
    {"name": "a", "taskReferenceName": "r2", "type": "SIMPLE", "inputParameters": {"n": None}},
    {"inputParameters": {}, "taskReferenceName": "r3", "type": "SIMPLE", "name": "a", "own": [1]},
    {"name": "b", "taskReferenceName": "r4", "inputParameters": {"x": "${r1.output}"}},
    {"name": "b", "taskReferenceName": "r5", "inputParameters": {"x": {"y": [None]}}, "type": None},
    {"name": "b", "taskReferenceName": "", "inputParameters": {}},
    {"name": "b", "taskReferenceName": None, "inputParameters": {}},
    {"name": "b", "taskReferenceName": "r6", "inputParameters": None},
    {"name": "b", "taskReferenceName": "r7", "inputParameters": "text"},
    {"name": "b", "taskReferenceName": 8, "inputParameters": {}},
    {"name": "b", "taskReferenceName": "r9"},
    {
        "name": "s",
        "taskReferenceName": "r10",
        "type": "SUB_WORKFLOW",
        "inputParameters": {"n": 1},
        "subWorkflowParam": {"name": "c", "version": 1},
        "retryCount": "3",
    },
]


def test_steps_that_are_alike_are_read_as_each_alone() -> None:
    def outcome(read: Callable[[Any], Any], body: Any) -> Any:
        try:
            step, wire = read(body)
        except InvalidRequest as error:
            return str(error)
        return step, wire, list(wire)

    reader = StepReader()
    for body in [*ALIKE, *reversed(ALIKE)]:
        assert outcome(reader.read, body) == outcome(parse_workflow_task, body)
