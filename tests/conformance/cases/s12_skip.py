"""Section 12: skip (rule 239)."""

from __future__ import annotations

from tests.conformance.cases.families import finish, report, seen
from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    ok,
    pick,
    rule,
    simple,
    statuses,
    step,
    summary,
)

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


def skip(server: Server, run_id: str, reference: str) -> Json:
    return ok(server.put(f"/workflow/{run_id}/skiptask/{reference}"))


@rule(239)
def skipped_steps_ahead_are_jumped_over(server: Server) -> Json:
    inputs = {"x": "${b.output.x}", "status": "${b.status}"}
    run_id = server.launch(
        [simple("a"), simple("b", {"n": 1}), simple("c"), simple("d", inputs)],
        request={"correlationId": "~c", "priority": 3},
    )
    answers = [skip(server, run_id, "b"), skip(server, run_id, "c")]
    skipped = server.run(run_id)
    fields = ("taskType", "seq", "status", "inputData", "outputData", "startTime", "endTime")
    tasks = [pick(last_task(skipped, name), *fields, "taskDefName") for name in ("b", "c")]
    assert [task["seq"] for task in tasks] == [0, 0]
    report(server, run_id, "a")
    running = server.run(run_id)
    assert statuses(running)["d"] == "SCHEDULED"
    polled = last_task(running, "d")["inputData"]
    report(server, run_id, "d")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    shown = summary(run)
    # Both skipped ones have seq 0: which stands first is chance.
    assert [task["referenceTaskName"] for task in shown["tasks"][2:]] == ["a", "d"]
    shown["tasks"][:2] = sorted(shown["tasks"][:2], key=str)
    return [answers, tasks, polled, shown]


@rule(239)
def skipping_the_last_step_ends_the_run(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    skip(server, run_id, "b")
    report(server, run_id, "a", output={"x": 1})
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return summary(run)


def in_switch(server: Server, reference: str) -> Json:
    """A run of a, SWITCH "s" with the steps x1, x2, and z, of which one is skipped; a is done."""
    switch = step(
        "SWITCH",
        "s",
        {"v": "x"},
        evaluatorType="value-param",
        expression="v",
        decisionCases={"x": [simple("x1"), simple("x2")]},
    )
    run_id = server.launch([simple("a"), switch, simple("z")])
    skip(server, run_id, reference)
    report(server, run_id, "a")
    return server.run(run_id)


@rule(239)
def a_switch_and_the_last_step_of_a_case_are_skipped(server: Server) -> Json:
    ended = []
    for reference in ("s", "x2"):
        run = in_switch(server, reference)
        finish(server, run["workflowId"])
        run = server.ended(run["workflowId"])
        assert run["status"] == "COMPLETED"
        ended.append(statuses(run))
    return ended


@rule(239, difference="the first step of a case can be skipped; the real run hangs after that")
def the_first_step_of_a_case_is_skipped(server: Server) -> Json:
    run = in_switch(server, "x1")
    if server.is_ours:
        finish(server, run["workflowId"])
        run = server.ended(run["workflowId"])
        assert run["status"] == "COMPLETED"
        assert "x2" in statuses(run)
    else:
        ok(server.put(f"/workflow/decide/{run['workflowId']}"))
        run = server.run(run["workflowId"])
        assert statuses(run) == {"x1": "SKIPPED", "a": "COMPLETED", "s": "COMPLETED"}
    return statuses(run)


@rule(239)
def a_step_in_the_middle_of_a_branch_is_skipped(server: Server) -> Json:
    branches = [[simple("a1"), simple("a2"), simple("a3")], [simple("b")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    run_id = server.launch([simple("first"), fork, step("JOIN", "j", joinOn=["a3", "b"])])
    skip(server, run_id, "a2")
    for reference in ("first", "a1", "a3", "b"):
        report(server, run_id, reference)
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return statuses(run)


@rule(239, difference="a JOIN takes a skipped step as done; on the real server it waits for ever")
def the_last_step_of_a_branch_is_skipped(server: Server) -> Json:
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a1"), simple("a2")], [simple("b")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["a2", "b"]), simple("z")])
    skip(server, run_id, "a2")
    report(server, run_id, "a1")
    report(server, run_id, "b")
    if server.is_ours:
        finish(server, run_id)
        assert server.ended(run_id)["status"] == "COMPLETED"
    else:
        # A JOIN without a skipped step is done long before this.
        other = step("FORK_JOIN", "f", forkTasks=[[simple("a2")], [simple("b")]])
        tasks = [other, step("JOIN", "j", joinOn=["a2", "b"])]
        assert finish(server, server.launch(tasks, name="~v"))["status"] == "COMPLETED"
        ok(server.put(f"/workflow/decide/{run_id}"))
    run = server.run(run_id)
    assert statuses(run)["j"] == ("COMPLETED" if server.is_ours else "IN_PROGRESS")
    return statuses(run)


@rule(239, difference="a step that cannot be skipped is the client's error: a 4xx, not 500")
def steps_that_cannot_be_skipped(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b"), simple("c")])
    skip(server, run_id, "c")
    report(server, run_id, "a")
    answers = {
        name: server.put(f"/workflow/{run_id}/skiptask/{name}") for name in ("a", "b", "c", "none")
    }
    ok(server.put(f"/workflow/{run_id}/pause"))
    answers["paused"] = server.put(f"/workflow/{run_id}/skiptask/c")
    ok(server.delete(f"/workflow/{run_id}"))
    answers["ended"] = server.put(f"/workflow/{run_id}/skiptask/c")
    for name in ("a", "b", "c"):
        assert answers[name].message == (
            f"The task referenced {name} has already been processed, cannot be skipped"
        )
    assert answers["none"].message == (
        "The task referenced by none does not exist in the WorkflowDefinition ~w"
    )
    for name in ("paused", "ended"):
        assert answers[name].message == (
            f"The workflow {run_id} is not running so the task referenced by c cannot be skipped"
        )
    found = [answer.status for answer in answers.values()]
    assert all(400 <= status < 500 if server.is_ours else status == 500 for status in found)
    return found


@rule(239)
def skip_of_an_unknown_run(server: Server) -> Json:
    answer = server.put(f"/workflow/{UNKNOWN}/skiptask/a")
    assert answer.status == 404
    return answer


@rule(239, difference="the input and output of a skip request are kept; the real server ignores it")
def skip_takes_an_output_along(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b"), simple("c", {"x": "${b.output.x}"})])
    body = {"taskInput": {"n": 1}, "taskOutput": {"x": 2}}
    ok(server.put(f"/workflow/{run_id}/skiptask/b", body))
    report(server, run_id, "a")
    task = server.task_when(run_id, "c", "SCHEDULED")
    skipped = server.task(run_id, "b")
    if server.is_ours:
        assert task["inputData"] == {"x": 2}
        assert [skipped["inputData"], skipped["outputData"]] == [{"n": 1}, {"x": 2}]
    else:
        assert task["inputData"] == {"x": None}
    return [task["inputData"], seen(server.run(run_id))["status"]]
