"""SUB_WORKFLOW and START_WORKFLOW (rules 177-189)."""

from __future__ import annotations

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
    task_def,
    workflow,
)
from tests.conformance.steps import (
    fork,
    inline,
    names,
    outcome,
    settled,
    shown,
    sub_workflow,
    task_named,
)

LAST = inline("z", "9")
ECHO = inline("k", "1", all="${workflow.input}")


def child_of(server: Server, run: Json, reference: str = "s") -> Json:
    """The child run of a SUB_WORKFLOW task."""
    return server.run(last_task(run, reference)["subWorkflowId"])


def started(server: Server, run_id: str, reference: str = "s") -> Json:
    """The child's id once there is one."""
    return server.task_when(run_id, reference, "IN_PROGRESS")["subWorkflowId"]


@rule(177, 178, 183, 184)
def a_child_runs_and_its_output_becomes_the_tasks(server: Server) -> Json:
    server.register(
        workflow(
            [simple("k", {"n": "${workflow.input.n}"})],
            "~c",
            outputParameters={"r": "${k.output.o}"},
        )
    )
    step_ = sub_workflow("s", {"n": "${workflow.input.q}", "m": 2}, name="~c")
    run_id = server.launch([step_, simple("z", {"o": "${s.output}"})], {"q": 1})
    child_id = started(server, run_id)
    seen = [shown(server.run(run_id))]
    assert task_named(seen[0], "s")["outputData"] == {"subWorkflowId": child_id}
    assert server.work("~k", {"o": 5})["inputData"] == {"n": 1}
    server.work("~z")
    seen += [shown(server.ended(run_id)), shown(server.run(child_id))]
    assert task_named(seen[1], "s")["outputData"] == {"r": 5, "subWorkflowId": child_id}
    assert len(task_named(seen[1], "s")["inputData"]) == 8
    return seen


@rule(177)
def versions_of_a_sub_workflow(server: Server) -> Json:
    server.register(*[workflow([inline("k", str(n))], "~c", version=n) for n in (1, 2, 3)])
    given: dict[str, Json] = {
        "1": {"version": 1},
        "0": {"version": 0},
        "null": {"version": None},
        "absent": {},
        "text": {"version": "2"},
        "9": {"version": 9},
    }
    seen = {}
    for label, params in given.items():
        seen[label] = outcome(server, [sub_workflow("s", name="~c", **params)])
    results = [run["output"].get("result") for run in seen.values()]
    assert results == [1, 3, 3, 3, 2, None]
    assert "version=9" in seen["9"]["reasonForIncompletion"]
    return seen


@rule(177)
def the_name_of_a_sub_workflow_may_be_an_expression(server: Server) -> Json:
    server.register(*[workflow([inline("k", str(n))], "~c", version=n) for n in (1, 2)])
    named = {"name": "${workflow.input.n}"}
    seen = [
        outcome(server, [sub_workflow("s", **named, version=version)], {"n": "~c"})
        for version in (1, 0)
    ]
    assert [run["output"]["result"] for run in seen] == [1, 2]
    return seen


@rule(177, 187)
def an_unknown_sub_workflow_fails_its_task(server: Server) -> Json:
    seen = [
        outcome(server, [sub_workflow("s", name="~nosuch", version=version), LAST])
        for version in (1, 0)
    ]
    seen.append(outcome(server, [sub_workflow("s", name="", version=1), LAST]))
    for run in seen:
        assert run["status"] == "FAILED"
        assert run["failed"] == [["s"], ["s"]]
    return seen


@rule(177)
def a_literal_text_is_no_definition(server: Server) -> Json:
    answer = server.put(
        "/metadata/workflow", [workflow([sub_workflow("s", name="x", workflowDefinition="abc")])]
    )
    assert answer.status in (400, 500)
    assert server.get("/metadata/workflow/~w").status == 404
    return "refused"


DEFINITION = workflow([ECHO], "~inner", version=3)


@rule(177, 178, 180)
def an_inline_definition_names_the_child(server: Server) -> Json:
    params = {"name": "ignored", "version": 9, "workflowDefinition": DEFINITION}
    run = server.ended(server.launch([sub_workflow("s", {"n": 1}, **params)]))
    child = child_of(server, run)
    task = last_task(run, "s")
    assert run["status"] == "COMPLETED"
    assert child["input"] == {"n": 1, "_systemMetadata": {"dynamic": True}}
    assert [child["workflowName"], child["workflowVersion"]] == ["~inner", 3]
    # The definition stays with the run.
    assert server.get("/metadata/workflow/~inner").status == 404
    return [task["inputData"], child["input"], run["workflowDefinition"]["tasks"][0]]


@rule(180)
def metadata_given_by_the_user_are_kept(server: Server) -> Json:
    params = {"name": "ignored", "version": 9, "workflowDefinition": DEFINITION}
    seen = []
    for given in ({"x": 1}, {"dynamic": False}, "text"):
        tasks = [sub_workflow("s", {"n": 1, "_systemMetadata": given}, **params)]
        run = server.ended(server.launch(tasks))
        seen.append([run["status"], statuses(run)])
        if run["status"] == "COMPLETED":
            seen[-1].append(child_of(server, run)["input"])
    assert seen[0][2]["_systemMetadata"]["dynamic"] is True
    return seen


@rule(177, 180)
def a_definition_may_be_an_expression(server: Server) -> Json:
    params = {"name": "~any", "workflowDefinition": "${workflow.input.d}"}
    seen = []
    for version in (1, 0):
        tasks = [sub_workflow("s", {"n": 1}, version=version, **params)]
        run = server.ended(server.launch(tasks, {"d": DEFINITION}))
        child = child_of(server, run)
        assert child["workflowName"] == "~inner"
        assert child["input"] == {"n": 1, "_systemMetadata": {"dynamic": True}}
        seen.append([shown(run), child["workflowVersion"], child["input"]])
    return seen


@rule(177)
def a_definition_that_resolves_to_null_falls_back_to_the_name(server: Server) -> Json:
    server.register(workflow([inline("k", "7")], "~c"))
    params = {"name": "~c", "version": 1, "workflowDefinition": "${workflow.input.d}"}
    seen = outcome(server, [sub_workflow("s", **params)])
    assert seen["output"]["result"] == 7
    return seen


@rule(
    177,
    187,
    difference="a definition that resolves to no definition fails the task at once; the real "
    "server tries the start again without end",
)
def a_definition_that_resolves_to_text_fails_the_task(server: Server) -> Json:
    params = {"name": "~c", "version": 1, "workflowDefinition": "${workflow.input.d}"}
    run_id = server.launch([sub_workflow("s", **params)], {"d": "abc"})
    ok(server.put(f"/workflow/decide/{run_id}"))
    seen = shown(server.ended(run_id) if server.is_ours else server.run(run_id))
    assert task_named(seen, "s")["status"] == ("FAILED" if server.is_ours else "SCHEDULED")
    return seen


@rule(180)
def a_child_without_input_gets_the_tasks_input(server: Server) -> Json:
    server.register(workflow([ECHO], "~c"))
    run = server.ended(server.launch([sub_workflow("s", name="~c")]))
    child = child_of(server, run)
    assert child["input"].keys() == last_task(run, "s")["inputData"].keys()
    return child["input"]


@rule(179)
def each_attempt_has_its_own_child(server: Server) -> Json:
    server.register(
        task_def("~k", retryCount=0),
        task_def("~s", retryCount=1, retryDelaySeconds=0),
        workflow([simple("k")], "~c"),
    )
    run_id = server.launch([{**sub_workflow("s", {"n": 1}, name="~c"), "name": "~s"}, LAST])
    server.work("~k", {"o": 1}, "FAILED", reasonForIncompletion="bad")
    server.work("~k", {"o": 2})
    run = server.ended(run_id)
    attempts = [task for task in run["tasks"] if task["referenceTaskName"] == "s"]
    children = [task["subWorkflowId"] for task in attempts]
    assert len(set(children)) == 2
    assert [server.run(child)["status"] for child in children] == ["FAILED", "COMPLETED"]
    return shown(run)


INHERITED = {"priority": 7, "correlationId": "~corr", "taskToDomain": {"~k": "~dom", "~q": "x"}}


@rule(181)
def what_a_child_inherits(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    seen = []
    for params in (
        {},
        {"taskToDomain": {"~k": "~own"}},
        {"priority": 9},
        {"priority": "${workflow.input.p}"},
        {"idempotencyKey": "${workflow.input.p}", "idempotencyStrategy": "FAIL"},
    ):
        tasks = [sub_workflow("s", {"n": 1}, name="~c", **params)]
        run_id = server.launch(tasks, {"p": 5}, request=INHERITED)
        child_id = started(server, run_id)
        child = server.run_when(child_id, lambda run: run["tasks"])
        seen.append(
            [
                last_task(server.run(run_id), "s")["inputData"],
                pick(child, "priority", "correlationId", "taskToDomain"),
                pick(child["tasks"][0], "domain", "workflowPriority", "correlationId"),
            ]
        )
    assert [child["priority"] for _, child, _ in seen] == [0, 0, 9, 5, 0]
    assert [task["domain"] for *_, task in seen] == ["~dom", "~own", "~dom", "~dom", "~dom"]
    return seen


@rule(181, 187)
def a_child_with_an_impossible_priority_is_not_started(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    seen = outcome(server, [sub_workflow("s", name="~c", priority=200)])
    assert seen["status"] == "FAILED"
    assert "between 0 and 99" in seen["reasonForIncompletion"]
    return seen


@rule(181)
def a_child_knows_its_parent(server: Server) -> Json:
    server.register(workflow([ECHO], "~c"))
    run = server.ended(server.launch([sub_workflow("s", name="~c")]))
    child = child_of(server, run)
    task = last_task(run, "s")
    assert child["parentWorkflowId"] == run["workflowId"]
    assert child["parentWorkflowTaskId"] == task["taskId"]
    return [task["taskId"], pick(child, "workflowId", "parentWorkflowId", "parentWorkflowTaskId")]


@rule(183, 184)
def a_failed_child_fails_its_task(server: Server) -> Json:
    server.register(task_def("~k", retryCount=0), workflow([simple("k")], "~c"))
    server.register(workflow([sub_workflow("s", name="~c"), LAST]))
    seen = {}
    for status in ("FAILED", "FAILED_WITH_TERMINAL_ERROR", "CANCELED"):
        run_id = server.start()
        server.work("~k", {"o": 5}, status, reasonForIncompletion="bad")
        run = settled(server, run_id)
        child = child_of(server, run)
        assert last_task(run, "s")["outputData"] == {"o": 5, "subWorkflowId": child["workflowId"]}
        seen[status] = [shown(run), shown(child)]
    ends = [run["status"] for run, _ in seen.values()]
    assert ends == ["FAILED", "FAILED", "TERMINATED"]
    return seen


@rule(183, 184)
def a_terminated_child_cancels_its_task(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    run_id = server.launch([sub_workflow("s", name="~c"), LAST])
    child_id = started(server, run_id)
    ok(server.delete(f"/workflow/{child_id}", reason="why not"))
    run = shown(settled(server, run_id))
    assert run["status"] == "TERMINATED"
    assert task_named(run, "s")["status"] == "CANCELED"
    return run


@rule(183, 184, recorded=True)
def a_timed_out_child_times_its_parent_out(server: Server) -> Json:
    child = workflow([simple("k")], "~c", timeoutSeconds=1, timeoutPolicy="TIME_OUT_WF")
    server.register(child)
    run_id = server.launch([sub_workflow("s", name="~c"), LAST])
    child_id = started(server, run_id)

    def timed_out() -> bool:
        ok(server.put(f"/workflow/decide/{child_id}"))
        return bool(server.run(child_id)["status"] == "TIMED_OUT")

    server.until(timed_out)
    run = settled(server, run_id)
    assert run["status"] == "TIMED_OUT"
    # After how many seconds it was noticed is in the reason.
    return [run["status"], statuses(run), last_task(run, "s")["outputData"]]


@rule(184, recorded=True)
def failures_are_told_through_all_levels(server: Server) -> Json:
    server.register(
        task_def("~k", retryCount=0),
        workflow([simple("k")], "~c", outputParameters={"x": "${k.output.o}"}),
        workflow([sub_workflow("t", {"q": 1}, name="~c")], "~m"),
    )
    run_id = server.launch([sub_workflow("s", {"n": 1}, name="~m")])
    server.work("~k", {"o": 1}, "FAILED", reasonForIncompletion="bad")
    run = settled(server, run_id)
    middle = child_of(server, run)
    assert run["reasonForIncompletion"].count("failure reason") == 2
    return [shown(run), shown(middle), shown(child_of(server, middle, "t"))]


@rule(183, 209)
def terminate_in_a_child(server: Server) -> Json:
    seen = {}
    for status in ("COMPLETED", "FAILED", "TERMINATED"):
        end = {"terminationStatus": status, "terminationReason": "tr", "workflowOutput": {"o": 1}}
        server.register(workflow([step("TERMINATE", "t", end)], "~c"))
        seen[status] = outcome(server, [sub_workflow("s", name="~c"), LAST])
        assert seen[status]["status"] == status
    return seen


@rule(186)
def the_end_of_a_parent_ends_its_children(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    run_id = server.launch([sub_workflow("s", name="~c")])
    child_id = started(server, run_id)
    server.take("~k")
    ok(server.delete(f"/workflow/{run_id}", reason="parent gone"))
    run = shown(settled(server, run_id))
    child = shown(settled(server, child_id))
    assert child["reasonForIncompletion"] == (
        "Parent workflow has been terminated with reason: parent gone"
    )
    return [run, child]


@rule(186, recorded=True)
def a_failure_in_a_branch_ends_the_children_of_the_others(server: Server) -> Json:
    server.register(
        task_def("~k", retryCount=0),
        workflow([simple("k")], "~c"),
        workflow([simple("l")], "~d"),
    )
    branches = [[sub_workflow("s", {"n": 1}, name="~c")], [sub_workflow("t", {"n": 2}, name="~d")]]
    run_id = server.launch(fork([*branches, [simple("b")]], ["s", "t", "b"]))
    started(server, run_id, "s")
    other = started(server, run_id, "t")
    server.work("~k", {"o": 1}, "FAILED", reasonForIncompletion="bad")
    run = settled(server, run_id)
    ended = settled(server, other)
    states = statuses(run)
    # The real server may find the failed branch by its JOIN or by the branch itself.
    assert states.pop("j") in ("FAILED", "CANCELED")
    assert [run["status"], ended["status"]] == ["FAILED", "TERMINATED"]
    start = "Parent workflow has been terminated with reason: Task "
    assert ended["reasonForIncompletion"].startswith(start)
    return [run["status"], states, ended["status"], statuses(ended), start]


@rule(187)
def a_failed_child_may_be_optional_or_permissive(server: Server) -> Json:
    server.register(task_def("~k", retryCount=0), workflow([simple("k")], "~c"))
    seen = {}
    for kind in ("optional", "permissive"):
        run_id = server.launch([{**sub_workflow("s", name="~c"), kind: True}, simple("z")])
        server.work("~k", {"o": 1}, "FAILED", reasonForIncompletion="bad")
        server.work("~z")
        seen[kind] = shown(server.ended(run_id))
        assert names(seen[kind]) == ["s", "z"]
    assert [run["status"] for run in seen.values()] == ["COMPLETED", "FAILED"]
    return seen


@rule(188)
def a_paused_parent_does_not_pause_its_children(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    run_id = server.launch([sub_workflow("s", name="~c"), simple("z")])
    child_id = started(server, run_id)
    ok(server.put(f"/workflow/{run_id}/pause"))
    assert server.run(child_id)["status"] == "RUNNING"
    server.work("~k")
    server.ended(child_id)
    server.task_when(run_id, "s", "COMPLETED")
    seen = [server.run(run_id)["status"], statuses(server.run(run_id))]
    assert seen == ["PAUSED", {"s": "COMPLETED"}]
    ok(server.put(f"/workflow/{run_id}/resume"))
    server.work("~z")
    return [seen, shown(server.ended(run_id))]


# --- START_WORKFLOW ---


def start_step(request: Json) -> list[Json]:
    return [step("START_WORKFLOW", "s", {"startWorkflow": request, "extra": 1}), LAST]


@rule(189)
def start_workflow_starts_a_run_of_its_own(server: Server) -> Json:
    server.register(workflow([simple("k", {"all": "${workflow.input}"})], "~c"))
    own = {"correlationId": "~own", "priority": 3, "taskToDomain": {"~k": "~o"}}
    seen = []
    for fields in ({}, own, {"version": "1"}):
        request = {"name": "~c", "input": {"n": 1}, **fields}
        run_id = server.launch(start_step(request), request=INHERITED)
        run = server.ended(run_id)
        other = server.run(last_task(run, "s")["outputData"]["workflowId"])
        assert "parentWorkflowId" not in other
        seen.append(
            [
                shown(run),
                pick(other, "status", "priority", "correlationId", "taskToDomain", "input"),
                pick(other["tasks"][0], "status", "domain", "inputData"),
            ]
        )
    assert [child["correlationId"] for _, child, _ in seen] == ["~corr", "~own", "~corr"]
    assert [child["priority"] for _, child, _ in seen] == [0, 3, 0]
    return seen


@rule(189)
def start_workflow_may_bring_a_definition(server: Server) -> Json:
    request = {"name": "~inner", "workflowDef": workflow([ECHO], "~inner"), "input": {"a": 2}}
    run = server.ended(server.launch(start_step(request)))
    other = server.ended(last_task(run, "s")["outputData"]["workflowId"])
    assert [run["status"], other["status"]] == ["COMPLETED", "COMPLETED"]
    return [shown(run), shown(other)]


@rule(189)
def start_workflow_that_cannot_start_fails(server: Server) -> Json:
    server.register(workflow([ECHO], "~c"))
    given: dict[str, Json] = {
        "no name": {"input": {}},
        "null": None,
        "priority": {"name": "~c", "priority": 200},
        "null input": {"name": "~c", "input": None},
        "unknown": {"name": "~nosuch"},
        "version": {"name": "~c", "version": 9},
        "version 0": {"name": "~c", "version": 0},
    }
    seen = {}
    for label, request in given.items():
        seen[label] = outcome(server, start_step(request))
        assert task_named(seen[label], "s")["status"] == "FAILED", label
    return seen


@rule(189)
def start_workflow_that_is_no_request_fails(server: Server) -> Json:
    seen = []
    requests: list[Json] = ["abc", [1], 5]
    for request in requests:
        run = outcome(server, start_step(request))
        task = task_named(run, "s")
        assert task["status"] == "FAILED"
        # What follows is the text of a Java parser.
        start = "Error reading StartWorkflowRequest. "
        assert task["reasonForIncompletion"].startswith(start)
        seen.append([run["status"], task["status"], start])
    return seen
