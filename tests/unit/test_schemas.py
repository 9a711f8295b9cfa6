"""JSON Schemas of definitions: what is refused at registration, and what a run does with them."""

import socket
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.engine.definition_rules import check_task_def, check_workflow_def
from cluster.engine.definitions import SchemaDef, parse_task_def, parse_workflow_def
from cluster.engine.schemas import input_check, output_check, schema_fault
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from tests.support.engine import Runs, output_of, plan_of, step

Json = dict[str, Any]

NUMBER = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}


def schema(data: Any, **fields: Any) -> Json:
    return {"name": "s", "version": 3, "type": "JSON", "data": data, **fields}


def fault_of(data: Json, value: Any) -> str | None:
    check = input_check(SchemaDef(name="s", version=3, type="JSON", data=data), enforced=True)
    assert check is not None
    return check(value)


def faults(data: Any, **fields: Any) -> str | None:
    return schema_fault(schema(data, **fields))


# -- what is a schema


@pytest.mark.parametrize(
    "data",
    [
        {"type": "objekt"},
        {"properties": 3},
        {"type": "string", "pattern": "("},
        {"$ref": "#/definitions/missing"},
        {"$schema": "https://example.invalid/own-meta-schema"},
    ],
)
def test_what_is_no_schema_is_refused(data: Json) -> None:
    assert faults(data) is not None
    assert fault_of(data, {}) is not None, "at run time nothing fits it"


def test_no_reference_is_fetched_from_the_network() -> None:
    visits: list[socket.socket] = []

    def hang_up_on_visitors() -> None:
        while True:
            try:
                visitor, _ = listening.accept()
            except OSError:
                return
            visits.append(visitor)
            visitor.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/schema.json"
        accepting = threading.Thread(target=hang_up_on_visitors)
        accepting.start()
        for data in ({"$ref": url}, {"properties": {"a": {"$ref": url}}}, {"$schema": url}):
            assert faults(data) is not None
            assert fault_of(data, {"a": 1}) is not None
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
    assert visits == []


def test_no_reference_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    for reference in ((tmp_path / "schema.json").as_uri(), "schema.json"):
        assert faults({"$ref": reference}) is not None


def test_a_reference_inside_is_followed() -> None:
    data = {
        "definitions": {"n": {"type": "number"}},
        "properties": {"a": {"$ref": "#/definitions/n"}},
    }
    assert faults(data) is None
    assert fault_of(data, {"a": 1}) is None
    assert fault_of(data, {"a": "x"}) == (
        'input does not fit its schema s (version 3): input.a: "x" is not of type "number"'
    )


@pytest.mark.parametrize("kind", ["AVRO", "PROTOBUF"])
def test_other_kinds_of_schemas_are_only_kept(kind: str) -> None:
    data = {"type": "objekt"}
    assert schema_fault({"name": "s", "type": kind, "data": data}) is None
    other = SchemaDef(name="s", type=kind, data=data)  # type: ignore[arg-type]
    assert input_check(other, enforced=True) is None
    assert output_check(SchemaDef(name="s", type="JSON", external_ref="x"), enforced=True) is None


def test_a_schema_that_unfolds_without_end_is_refused() -> None:
    chain: Json = {f"d{i}": {"allOf": [{"$ref": f"#/definitions/d{i + 1}"}] * 2} for i in range(60)}
    chain["d60"] = {"type": "object"}
    assert faults({"definitions": chain, "$ref": "#/definitions/d0"}) is not None
    tree = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert faults(tree) is None


# -- what is said of a value


@pytest.mark.parametrize("draft", ["", "http://json-schema.org/draft-07/schema#"])
@pytest.mark.parametrize(
    ("value", "where", "expected"),
    [
        ({"n": "one"}, "input.n", 'not of type "number"'),
        ({}, "input", '"n" is a required property'),
        ({"n": 1, "l": [{"x": 1}, {}]}, "input.l[1]", '"x" is a required property'),
        ({"n": 1, "e": 3}, "input.e", "not one of 1 or 2"),
        ({"n": 1, "z": 1}, "input", "'z' was unexpected"),
        ({"n": 1, "a b/c%~é": 5}, "input.a b/c%~é", 'not of type "string"'),
        ({"n": 1, "any": 5}, "input.any", "anyOf"),
        ({"n": 1, "map": {"k": "v", "l": 1}}, "input.map.l", 'not of type "string"'),
        ({"n": "x" * 100_000}, "input.n", 'not of type "number"'),
    ],
)
def test_a_fault_names_the_path_and_what_was_expected(
    value: Json, where: str, expected: str, draft: str
) -> None:
    data = {
        **({"$schema": draft} if draft else {}),
        "type": "object",
        "properties": {
            "n": {"type": "number"},
            "l": {"items": {"required": ["x"]}},
            "e": {"enum": [1, 2]},
            "a b/c%~é": {"type": "string"},
            "any": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
            "map": {"additionalProperties": {"type": "string"}},
        },
        "required": ["n"],
        "additionalProperties": False,
    }
    assert fault_of(data, {"n": 1, "l": [], "e": 1, "any": True, "map": {"k": "v"}}) is None
    found = fault_of(data, value)
    assert found is not None
    assert f" {where}: " in found
    assert expected in found
    assert len(found) < 700


def test_alternatives_that_refer_to_each_other_are_explained_in_time() -> None:
    """Listing all faults of these would double with every level."""
    either = {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    value: Json = {}
    for _ in range(100):
        value = {"a": value}
    assert fault_of({"anyOf": [either, either]}, value) is not None


def test_a_value_nested_beyond_what_can_be_checked_does_not_fit() -> None:
    value: Any = []
    for _ in range(400):
        value = [value]
    found = fault_of({"properties": {"a": {"enum": [1]}}}, {"a": value})
    assert found is not None


# -- registration


def test_registration_names_the_schema_that_is_none() -> None:
    _, wire = parse_workflow_def(
        {"name": "w", "tasks": [step("a")], "outputSchema": schema({"type": "objekt"})}
    )
    found = check_workflow_def(wire, path="p", check_javascript=lambda _: None)
    assert [violation.path for violation in found] == ["p.outputSchema.data"]
    assert "outputSchema is not a valid JSON Schema" in found[0].message
    _, task = parse_task_def({"name": "t", "inputSchema": schema({"type": 5})})
    assert [v.path for v in check_task_def(task, path="q")] == ["q.inputSchema.data"]
    own = {"name": "a", "inputSchema": schema({"type": 5})}
    _, wire = parse_workflow_def({"name": "w", "tasks": [step("a", taskDefinition=own)]})
    found = check_workflow_def(wire, path="p", check_javascript=lambda _: None)
    assert "taskDefinition.inputSchema.data of a" in found[0].message


# -- runs


def enforcing(**fields: Any) -> Json:
    return {"name": "a", "retryCount": 3, "enforceSchema": True, **fields}


def test_a_task_whose_input_does_not_fit_fails_for_good_and_reaches_no_worker() -> None:
    runs = Runs()
    plan = plan_of(
        [step("a", inputParameters={"n": "${workflow.input.n}"})],
        task_defs=[enforcing(inputSchema=schema(NUMBER))],
    )
    good = runs.start(plan, {"n": 1})
    runs.work(good, "a")
    assert good.header.status is WorkflowStatus.COMPLETED
    bad = runs.start(plan, {"n": "one"})
    assert bad.by_ref["a"].status is TaskStatus.FAILED_WITH_TERMINAL_ERROR
    assert "Task input does not fit" in bad.by_ref["a"].reason
    assert "input.n" in bad.by_ref["a"].reason
    assert bad.header.status is WorkflowStatus.FAILED
    assert not runs.queue.get(bad.id)


def test_a_result_that_does_not_fit_fails_for_good_and_is_kept() -> None:
    runs = Runs()
    plan = plan_of([step("a")], task_defs=[enforcing(outputSchema=schema(NUMBER))])
    run = runs.start(plan)
    runs.work(run, "a", output={"n": "one"})
    task = run.by_ref["a"]
    assert (task.status, task.retry_count) == (TaskStatus.FAILED_WITH_TERMINAL_ERROR, 0)
    assert "Task output does not fit" in task.reason
    assert output_of(run, "a") == {"n": "one"}
    assert run.header.status is WorkflowStatus.FAILED
    good = runs.start(plan)
    runs.work(good, "a", output={"n": 1})
    assert good.header.status is WorkflowStatus.COMPLETED


def test_only_what_completes_is_held_against_the_output_schema() -> None:
    runs = Runs()
    plan = plan_of(
        [step("a")], task_defs=[enforcing(outputSchema=schema(NUMBER), retryDelaySeconds=0)]
    )
    run = runs.start(plan)
    runs.work(run, "a", "FAILED", {"half": True}, reason="no luck")
    assert run.tasks[1].status is TaskStatus.FAILED
    assert run.by_ref["a"].retry_count == 1


def test_task_schemas_are_not_enforced_unless_asked_for() -> None:
    runs = Runs()
    plan = plan_of(
        [step("a")],
        task_defs=[{"name": "a", "inputSchema": schema(NUMBER), "outputSchema": schema(NUMBER)}],
    )
    run = runs.start(plan)
    runs.work(run, "a", output={})
    assert run.header.status is WorkflowStatus.COMPLETED


@pytest.mark.parametrize("by_terminate", [False, True])
def test_a_run_whose_output_does_not_fit_fails_and_is_compensated(by_terminate: bool) -> None:
    ending = {"terminationStatus": "COMPLETED", "workflowOutput": {"n": "${workflow.input.n}"}}
    steps = [step("t", "TERMINATE", inputParameters=ending)] if by_terminate else [step("a")]
    runs = Runs(definitions={"undo": plan_of([step("u")], name="undo")})
    plan = plan_of(
        steps,
        outputParameters={"n": "${workflow.input.n}"},
        outputSchema=schema(NUMBER),
        failureWorkflow="undo",
    )
    for value, status in ((1, WorkflowStatus.COMPLETED), ("one", WorkflowStatus.FAILED)):
        run = runs.start(plan, {"n": value})
        if not by_terminate:
            runs.work(run, "a")
        assert run.header.status is status
        assert orjson.loads(run.output)["n"] == value
    assert "Workflow output does not fit" in run.header.reason
    assert "output.n" in run.header.reason
    assert run.header.failure_workflow in runs.executions


def test_a_run_that_ends_badly_is_not_held_against_its_output_schema() -> None:
    runs = Runs()
    plan = plan_of([step("a", retryCount=0)], outputSchema=schema(NUMBER))
    run = runs.start(plan)
    runs.work(run, "a", "FAILED", reason="no luck")
    assert "no luck" in run.header.reason
