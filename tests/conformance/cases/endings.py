"""SET_VARIABLE, TERMINATE, NOOP, output and failure workflows (rules 208-211, 213, 216-221)."""

from __future__ import annotations

from tests.conformance.harness import (
    Json,
    Server,
    ok,
    pick,
    rule,
    simple,
    statuses,
    step,
    task_def,
    workflow,
)
from tests.conformance.steps import inline, names, outcome, settled, shown, task_named

LAST = inline("z", "9")


@rule(208)
def variables_are_set_key_by_key(server: Server) -> Json:
    tasks = [
        step("SET_VARIABLE", "a", {"x": "${workflow.input.q}", "m": {"x": 1}, "kept": 5}),
        step("SET_VARIABLE", "b", {"m": {"y": 2}, "n": None}),
        inline("i", "1", v="${workflow.variables}", m="${workflow.variables.m.y}"),
        step("SET_VARIABLE", "e", {}),
    ]
    run_id = server.launch(tasks, {"q": 1}, variables={"first": 3, "kept": 1})
    run = server.ended(run_id)
    assert run["variables"] == {"first": 3, "kept": 5, "x": 1, "m": {"y": 2}, "n": None}
    return [run["variables"], shown(run)]


@rule(208)
def variables_that_are_too_big_are_rolled_back(server: Server) -> Json:
    tasks = [
        step("SET_VARIABLE", "a", {"x": 1}),
        step("SET_VARIABLE", "b", {"x": 2, "big": "${workflow.input.big}"}),
        LAST,
    ]
    run = server.ended(server.launch(tasks, {"big": "x" * (257 * 1024)}))
    task = run["tasks"][1]
    assert task["status"] == "FAILED_WITH_TERMINAL_ERROR"
    assert run["variables"] == {"x": 1}
    assert "is greater than the permissible limit: 256 kilobytes" in task["reasonForIncompletion"]
    return [run["status"], run["variables"], statuses(run), run["output"]]


@rule(208)
def expressions_in_the_first_variables_stay_text(server: Server) -> Json:
    tasks = [step("SET_VARIABLE", "a", {"b": "${workflow.variables.a}"})]
    run_id = server.launch(tasks, {"q": 1}, variables={"a": "${workflow.input.q}"})
    run = server.ended(run_id)
    return [run["variables"], shown(run)]


@rule(208)
def branches_share_the_variables(server: Server) -> Json:
    branches = [
        [simple("a"), step("SET_VARIABLE", "u", {"x": "${a.output.n}"})],
        [simple("b"), step("SET_VARIABLE", "v", {"y": "${workflow.variables.x}"})],
    ]
    tasks = [step("FORK_JOIN", "f", forkTasks=branches), step("JOIN", "j", joinOn=["u", "v"])]
    run_id = server.launch(tasks)
    server.work("~a", {"n": 1})
    server.task_when(run_id, "u", "COMPLETED")
    server.work("~b")
    run = server.ended(run_id)
    assert run["variables"] == {"x": 1, "y": 1}
    return [run["variables"], statuses(run)]


def terminate(status: str, **given: Json) -> list[Json]:
    end = step("TERMINATE", "t", {"terminationStatus": status, **given})
    return [inline("i", "1"), end, LAST]


@rule(209, 210)
def terminate_ends_the_run_with_its_status(server: Server) -> Json:
    seen = {}
    for status in ("COMPLETED", "FAILED", "TERMINATED"):
        output = {"x": "${i.output.result}", "deep": {"q": "${workflow.input.q}"}}
        first = outcome(
            server, terminate(status, workflowOutput=output), {"q": 7}, outputParameters={"op": 1}
        )
        reason = terminate(status, terminationReason="because ${workflow.input.q}")
        second = outcome(server, reason, {"q": 7})
        assert [first["status"], second["status"]] == [status, status]
        assert first["output"] == {"x": 1, "deep": {"q": 7}}
        assert "by TERMINATE task: " in first["reasonForIncompletion"]
        assert second["reasonForIncompletion"] == "because 7"
        assert names(first) == ["i", "t"]
        seen[status] = [first, second]
    return seen


@rule(209, 216)
def the_output_of_terminate_is_made_a_map(server: Server) -> Json:
    given: list[Json] = ["abc", [1], None, "${workflow.input}"]
    parameters = {"op": 1}
    seen = []
    for value in given:
        tasks = terminate("COMPLETED", workflowOutput=value)
        seen.append(outcome(server, tasks, {"q": 1}, outputParameters=parameters))
    outputs = [run["output"] for run in seen]
    assert outputs == [{"output": "abc"}, {"output": [1]}, {}, {"q": 1}]
    return [*seen, outcome(server, terminate("COMPLETED"), outputParameters=parameters)]


@rule(209)
def terminate_with_another_status_is_refused(server: Server) -> Json:
    seen = [
        outcome(server, terminate(status))
        for status in ("PAUSED", "TIMED_OUT", "completed", "", "${workflow.input.s}")
    ]
    seen.append(outcome(server, [step("TERMINATE", "t", {"a": 1})]))
    optional = step("TERMINATE", "t", {"terminationStatus": "COMPLETED"}, optional=True)
    seen.append(outcome(server, [optional]))
    assert {answer["refused"] for answer in seen} == {400}
    return seen


@rule(213)
def a_noop_is_completed_at_once(server: Server) -> Json:
    seen = outcome(server, [step("NOOP", "n", {"a": "${workflow.input.q}"}), LAST], {"q": 1})
    assert task_named(seen, "n")["status"] == "COMPLETED"
    return seen


# --- output ---

OUTPUT = {
    "i": "${i.output.result}",
    "in": "${workflow.input.q}",
    "none": "${i.output.nosuch}",
    "text": "v=${i.output.result.a}",
    "status": "${workflow.status}",
    "reason": "${workflow.reasonForIncompletion}",
    "fixed": 5,
}


@rule(216, 217)
def output_parameters_make_the_output(server: Server) -> Json:
    seen = outcome(server, [inline("i", "({a: 1})"), LAST], {"q": 1}, outputParameters=OUTPUT)
    assert seen["output"]["i"] == {"a": 1}
    assert seen["output"]["text"] == "v=1"
    return seen


@rule(216)
def without_parameters_the_last_task_gives_the_output(server: Server) -> Json:
    seen = [
        outcome(server, [inline("i", "({a: 1})")]),
        outcome(server, [inline("i", "({a: 1})"), step("NOOP", "n")]),
    ]
    assert [run["output"] for run in seen] == [{"result": {"a": 1}}, {}]
    return seen


@rule(217, 216)
def the_output_of_a_failed_run(server: Server) -> Json:
    tasks = [inline("i", "({a: 1})"), inline("z", "nosuch")]
    seen = [outcome(server, tasks, {"q": 1}, outputParameters=OUTPUT), outcome(server, tasks)]
    assert seen[0]["output"]["status"] == "FAILED"
    assert list(seen[1]["output"]) == ["error"]
    return seen


@rule(217)
def the_output_of_a_terminated_run(server: Server) -> Json:
    seen = []
    for parameters in (OUTPUT, {}):
        tasks = [inline("i", "({a: 1})"), simple("w")]
        run_id = server.launch(tasks, {"q": 1}, outputParameters=parameters)
        seen.append(server.run(run_id)["output"])
        ok(server.delete(f"/workflow/{run_id}", reason="enough"))
        seen.append(shown(settled(server, run_id)))
    assert [seen[0], seen[2]] == [{}, {}]
    assert seen[1]["output"]["status"] == "TERMINATED"
    return seen


# --- failure workflows ---

COMPENSATION = [simple("c", {"reason": "${workflow.input.reason}"})]
FAILING = [inline("i", "nosuch"), LAST]


def compensated(server: Server, run: Json) -> Json:
    """The failure workflow of a run, as far as it can be compared."""
    other = server.run(run["output"]["conductor.failure_workflow"])
    failed = other["input"].pop("failedWorkflow")
    fields = ("workflowName", "workflowVersion", "input", "correlationId", "priority")
    assert "parentWorkflowId" not in other
    return [
        pick(other, *fields, "taskToDomain"),
        pick(failed, "workflowId", "status", "reasonForIncompletion", "output", "input"),
        [task["referenceTaskName"] for task in failed["tasks"]],
    ]


@rule(218, 219, 221)
def a_failed_run_starts_its_failure_workflow(server: Server) -> Json:
    server.register(workflow(COMPENSATION, "~f"), workflow([ECHO], "~f", version=2))
    request = {"correlationId": "~corr", "priority": 7, "taskToDomain": {"~c": "~d"}}
    seen = []
    variants: list[Json] = [
        {},
        {"failureWorkflowVersion": 1},
        {"outputParameters": {"op": 1}},
    ]
    for fields in variants:
        given = {"a": 1, "reason": "mine"}
        run_id = server.launch(FAILING, given, request=request, failureWorkflow="~f", **fields)
        run = settled(server, run_id)
        other = compensated(server, run)
        seen.append([shown(run), other])
        assert other[0]["input"]["workflowId"] == run_id
        assert other[0]["input"]["reason"] == run["reasonForIncompletion"]
        assert other[0]["input"]["failureTaskId"] == run["tasks"][0]["taskId"]
    assert [other[0]["workflowVersion"] for _, other in seen] == [2, 1, 2]
    return seen


ECHO = inline("e", "1", all="${workflow.input.failureStatus}")


@rule(
    219,
    difference="expressions reach into the failed run; on the real server its first tasks get null",
)
def the_failure_workflow_can_read_the_failed_run(server: Server) -> Json:
    parts = {
        "status": "${workflow.input.failedWorkflow.status}",
        "name": "${workflow.input.failedWorkflow.workflowName}",
        "task": "${workflow.input.failedWorkflow.tasks[0].referenceTaskName}",
        "error": "${workflow.input.failedWorkflow.tasks[0].outputData.error}",
        "failed": "${workflow.input.failedWorkflow.failedReferenceTaskNames[0]}",
        "mine": "${workflow.input.a}",
    }
    server.register(workflow([inline("e", "1", **parts)], "~f"))
    run = settled(server, server.launch(FAILING, {"a": 1}, failureWorkflow="~f"))
    other = server.ended(run["output"]["conductor.failure_workflow"])
    seen = other["tasks"][0]["inputData"]
    values = ["FAILED", "i", 1] if server.is_ours else [None, None, 1]
    assert [seen["status"], seen["task"], seen["mine"]] == values
    return seen


@rule(211, 218, 219)
def terminate_starts_the_failure_workflow_unless_completed(server: Server) -> Json:
    server.register(workflow([ECHO], "~f"))
    seen = {}
    for status in ("FAILED", "TERMINATED", "COMPLETED"):
        tasks = terminate(status, terminationReason="tr", workflowOutput={"o": 1})
        run = settled(server, server.launch(tasks, {"a": 1}, failureWorkflow="~f"))
        started = "conductor.failure_workflow" in run["output"]
        assert started == (status != "COMPLETED")
        seen[status] = [shown(run), compensated(server, run) if started else None]
    assert seen["TERMINATED"][1][0]["input"]["failureStatus"] == "TERMINATED"
    return seen


@rule(218)
def a_canceled_task_starts_the_failure_workflow_a_terminated_run_does_not(server: Server) -> Json:
    server.register(workflow([ECHO], "~f"), workflow([simple("w")], failureWorkflow="~f"))
    run_id = server.start()
    server.work("~w", {}, "CANCELED", reasonForIncompletion="c")
    canceled = settled(server, run_id)
    run_id = server.start()
    ok(server.delete(f"/workflow/{run_id}", reason="enough"))
    terminated = shown(settled(server, run_id))
    assert canceled["status"] == terminated["status"] == "TERMINATED"
    assert terminated["output"] == {}
    return [shown(canceled), compensated(server, canceled), terminated]


@rule(218)
def a_timed_out_run_starts_the_failure_workflow(server: Server) -> Json:
    server.register(workflow([ECHO], "~f"))
    limit: Json = {"timeoutSeconds": 1, "timeoutPolicy": "TIME_OUT_WF"}
    run_id = server.launch([simple("w")], failureWorkflow="~f", **limit)

    def timed_out() -> bool:
        ok(server.put(f"/workflow/decide/{run_id}"))
        return bool(server.run(run_id)["status"] == "TIMED_OUT")

    server.until(timed_out)
    run = settled(server, run_id)
    other = server.run(run["output"]["conductor.failure_workflow"])
    seen = other["input"]["failureStatus"]
    assert seen == "TIMED_OUT"
    return [seen, statuses(run), other["workflowName"]]


@rule(218)
def permissive_failures_start_the_failure_workflow_at_the_end(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0), workflow([ECHO], "~f"))
    tasks = [simple("a", permissive=True), simple("b")]
    run_id = server.launch(tasks, failureWorkflow="~f")
    server.work("~a", {}, "FAILED", reasonForIncompletion="one")
    assert server.run(run_id)["output"] == {}
    server.work("~b", {"n": 1})
    run = settled(server, run_id)
    assert run["status"] == "FAILED"
    return [shown(run), compensated(server, run)]


@rule(221)
def an_unknown_failure_workflow_leaves_a_text(server: Server) -> Json:
    seen = [
        outcome(server, FAILING, failureWorkflow="~nosuch"),
        outcome(server, FAILING, failureWorkflow="~nosuch", failureWorkflowVersion=9),
    ]
    for run in seen:
        assert "failed to start" in run["output"]["conductor.failure_workflow"]
    return seen


@rule(
    220,
    difference="the name may be an expression over the input; the real server cuts the key wrong "
    "and starts nothing",
)
def the_name_of_the_failure_workflow_may_be_an_expression(server: Server) -> Json:
    server.register(workflow([ECHO], "~f"))
    given = {"failureWorkflow": "${workflow.input.x}"}
    run = settled(server, server.launch(FAILING, {"x": "~f"}, **given))
    started = "conductor.failure_workflow" in run["output"]
    assert started == server.is_ours
    return [started, compensated(server, run)[0] if started else None]


@rule(220)
def an_expression_without_a_name_starts_no_failure_workflow(server: Server) -> Json:
    seen = outcome(server, FAILING, {}, failureWorkflow="${workflow.input.x}")
    assert "conductor.failure_workflow" not in seen["output"]
    return seen


@rule(217, 221)
def the_failed_runs_output_keeps_its_values(server: Server) -> Json:
    server.register(workflow([ECHO], "~f"))
    run = settled(
        server,
        server.launch(
            FAILING, {"q": 1}, failureWorkflow="~f", outputParameters={"q": "${workflow.input.q}"}
        ),
    )
    assert run["output"]["q"] == 1
    assert run["output"].keys() == {"q", "conductor.failure_workflow"}
    return shown(run)
