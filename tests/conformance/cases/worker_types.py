"""Section 9: async system tasks (rules 125-131), and worker steps and DYNAMIC (rules 132-135)."""

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
from tests.conformance.steps import (
    LIVE,
    fork,
    inline,
    loop,
    outcome,
    rounds,
    settled,
    shown,
    sub_workflow,
    switch,
)

COPIED = (
    "referenceTaskName",
    "taskType",
    "taskDefName",
    "status",
    "responseTimeoutSeconds",
    "callbackAfterSeconds",
    "startDelayInSeconds",
    "rateLimitPerFrequency",
    "rateLimitFrequencyInSeconds",
)


@rule(125)
def sync_tasks_have_ended_when_the_start_is_answered(server: Server) -> Json:
    decision = step(
        "DECISION", "d", {"v": "k"}, caseValueParam="v", decisionCases={"k": [step("NOOP", "dk")]}
    )
    run_id = server.launch(
        [
            inline("i", "1 + 1"),
            step("LAMBDA", "la", {"scriptExpression": "return 2"}),
            step("JSON_JQ_TRANSFORM", "q", {"queryExpression": ".a", "a": 3}),
            step("SET_VARIABLE", "v", {"x": 4}),
            switch({"k": [step("NOOP", "sk")]}, input={"v": "k"}),
            decision,
            step("EXCLUSIVE_JOIN", "e", joinOn=["sk"]),
            loop([step("NOOP", "n")], rounds(2)),
            *fork([[inline("a", "1")], [simple("w")]], ["a", "w"]),
        ]
    )
    run = server.run(run_id)
    seen = statuses(run)
    live = {name: status for name, status in seen.items() if status in LIVE}
    assert live == {"w": "SCHEDULED", "j": "IN_PROGRESS"}
    return [run["status"], seen]


@rule(125, 194)
def human_and_wait_are_in_progress_when_the_start_is_answered(server: Server) -> Json:
    seen = {}
    for kind in ("HUMAN", "WAIT"):
        run = server.run(server.launch([step(kind, "x"), simple("z")]))
        seen[kind] = [run["status"], statuses(run)]
        assert run["tasks"][0]["status"] == "IN_PROGRESS"
    return seen


@rule(130)
def an_async_task_of_a_terminated_run_is_canceled(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    run_id = server.launch([sub_workflow("s", name="~c")])
    ok(server.delete(f"/workflow/{run_id}", reason="enough"))
    run = settled(server, run_id)
    assert statuses(run) == {"s": "CANCELED"}
    child = run["tasks"][0].get("subWorkflowId")
    if child:
        assert server.ended(child)["status"] == "TERMINATED"
    assert server.poll("~k") is None
    return [run["status"], run["reasonForIncompletion"], statuses(run)]


@rule(131)
def async_complete_does_nothing_to_tasks_that_do_not_know_it(server: Server) -> Json:
    tasks = [
        inline("i", "1"),
        step("NOOP", "n"),
        step("SET_VARIABLE", "v", {"x": 1}),
        step("JSON_JQ_TRANSFORM", "q", {"queryExpression": "1"}),
    ]
    seen = outcome(server, [{**task, "asyncComplete": True} for task in tasks])
    assert seen["status"] == "COMPLETED"
    return seen


@rule(131, 183)
def a_sub_workflow_task_can_be_completed_by_an_update(server: Server) -> Json:
    server.register(workflow([simple("k")], "~c"))
    run_id = server.launch([sub_workflow("s", name="~c")])
    task = server.task_when(run_id, "s", "IN_PROGRESS")
    server.update(task, "COMPLETED", {"mine": 1})
    run = server.ended(run_id)
    child = server.run(task["subWorkflowId"])
    assert [run["status"], child["status"]] == ["COMPLETED", "RUNNING"]
    return [shown(run), child["status"]]


@rule(132)
def a_simple_step_is_queued_under_its_name(server: Server) -> Json:
    run_id = server.launch([simple("a", name="~mail"), simple("b", startDelay=3)])
    task = server.take("~mail")
    seen = [pick(task, *COPIED)]
    assert task["taskType"] == task["taskDefName"] == "~mail"
    server.update(task)
    seen.append(pick(server.task(run_id, "b"), *COPIED))
    assert seen[1]["callbackAfterSeconds"] == 3
    assert server.poll("~b") is None
    return seen


@rule(132, recorded=True)
def a_start_delay_holds_the_task_back(server: Server) -> Json:
    run_id = server.launch([simple("a", startDelay=2)])
    early = server.poll("~a")
    assert early is None
    task = server.take("~a")
    waited = task["startTime"] - task["scheduledTime"]
    assert 1500 <= waited < 8000, waited
    server.update(task)
    return [early, statuses(server.ended(run_id))]


@rule(133)
def an_unknown_type_is_a_worker_task(server: Server) -> Json:
    server.register(task_def("~n", responseTimeoutSeconds=77, retryCount=0))
    tasks = [
        step("~TYPE", "a", {"x": 1}, name="~n"),
        step("~OTHER", "b", name="~undefined"),
        step("USER_DEFINED", "c", name="~n"),
    ]
    run_id = server.launch(tasks)
    seen = [pick(server.work("~TYPE", {"y": 2}), *COPIED)]
    assert [seen[0]["taskType"], seen[0]["taskDefName"]] == ["~TYPE", "~n"]
    seen.append(pick(server.work("~OTHER"), *COPIED))
    seen.append(pick(server.task(run_id, "c"), *COPIED))
    assert seen[2]["taskType"] == "USER_DEFINED"
    return seen


@rule(134)
def timeouts_and_limits_are_copied_to_the_task(server: Server) -> Json:
    limits = {"rateLimitPerFrequency": 5, "rateLimitFrequencyInSeconds": 9}
    server.register(task_def("~a", responseTimeoutSeconds=77, **limits))
    run_id = server.launch([simple("a"), simple("b")])
    seen = [pick(server.task(run_id, "a"), *COPIED)]
    server.work("~a")
    seen.append(pick(server.task(run_id, "b"), *COPIED))
    assert [task["responseTimeoutSeconds"] for task in seen] == [77, 3600]
    assert [task["rateLimitPerFrequency"] for task in seen] == [5, 0]
    return seen


def dynamic(**fields: Json) -> Json:
    given = {"n": "${workflow.input.n}", "expression": "3", "terminationStatus": "COMPLETED"}
    return step("DYNAMIC", "d", given, dynamicTaskNameParam="n", **fields)


@rule(135)
def a_dynamic_step_takes_its_name_from_the_input(server: Server) -> Json:
    run_id = server.launch([dynamic(), simple("z")], {"n": "~chosen"})
    seen = pick(server.work("~chosen", {"r": 1}), *COPIED, "inputData")
    assert seen["taskType"] == seen["taskDefName"] == "~chosen"
    server.work("~z")
    return [seen, shown(server.ended(run_id))]


@rule(135)
def a_dynamic_step_may_become_a_system_task(server: Server) -> Json:
    seen = {
        kind: outcome(server, [dynamic(), inline("z", "9")], {"n": kind})
        for kind in ("INLINE", "NOOP", "TERMINATE")
    }
    assert seen["INLINE"]["tasks"][0]["outputData"] == {"result": 3}
    assert len(seen["TERMINATE"]["tasks"]) == 1
    return seen


@rule(135)
def a_dynamic_step_without_a_name_fails_the_run(server: Server) -> Json:
    seen = outcome(server, [step("DYNAMIC", "d", {"q": 1}, dynamicTaskNameParam="n")])
    assert seen["status"] == "FAILED"
    assert seen["tasks"] == []
    null = outcome(
        server, [step("DYNAMIC", "d", {"n": "${workflow.input.no}"}, dynamicTaskNameParam="n")]
    )
    assert null["status"] == "FAILED"
    return [seen, null]
