"""Section 3: starting a workflow (rules 34-49)."""

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
    summary,
    task_def,
    workflow,
)


@rule(34)
def no_version_means_the_highest(server: Server) -> Json:
    for version in (1, 10, 9):
        server.register({**workflow([simple("a")]), "version": version})
    latest = server.run(server.start())
    assert latest["workflowVersion"] == 10
    chosen = server.run(server.start(version=9))
    return {
        "null": latest["workflowVersion"],
        "9": chosen["workflowVersion"],
        "0": server.post("/workflow", {"name": "~w", "version": 0}),
        "2": server.post("/workflow", {"name": "~w", "version": 2}).status,
        "by path": server.run(str(ok(server.post("/workflow/~w", {})).body))["workflowVersion"],
        "by path, 9": server.run(str(ok(server.post("/workflow/~w", {}, version=9)).body))[
            "workflowVersion"
        ],
    }


@rule(34)
def version_0_is_the_latest_for_sync_execute_and_sub_workflows(server: Server) -> Json:
    for version in (1, 2):
        server.register(
            {**workflow([step("NOOP", "n")], "~c"), "version": version},
        )
    answer = ok(server.post("/workflow/execute/~c/0", {"name": "~c", "input": {}}))
    executed = server.run(answer.body["workflowId"])
    child = {"subWorkflowParam": {"name": "~c", "version": 0}}
    run = server.ended(server.launch([step("SUB_WORKFLOW", "s", {}, **child)]))
    found = server.run(last_task(run, "s")["subWorkflowId"])
    assert executed["workflowVersion"] == found["workflowVersion"] == 2
    return [executed["workflowVersion"], found["workflowVersion"]]


@rule(35)
def an_unknown_workflow_is_404(server: Server) -> Json:
    return {
        "body": server.post("/workflow", {"name": "~unknown"}),
        "body, version": server.post("/workflow", {"name": "~unknown", "version": 3}),
        "path": server.post("/workflow/~unknown", {}),
        "path, version": server.post("/workflow/~unknown", {}, version=3),
    }


@rule(36)
def a_null_input_is_refused_and_an_absent_one_is_empty(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    refused = server.post("/workflow", {"name": "~w", "input": None})
    assert refused.status == 400
    absent = ok(server.post("/workflow", {"name": "~w"}))
    return [refused, server.run(str(absent.body))["input"]]


@rule(37)
def a_definition_in_the_start_request_is_used(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    answer = server.post("/workflow", {"name": "~w", "workflowDef": workflow([simple("a")])})
    server.work("~a", {"n": 1})
    run = server.ended(str(answer.body))
    assert run["status"] == "COMPLETED"
    return [run["workflowName"], summary(run), server.get("/metadata/workflow/~w").status]


@rule(38)
def the_input_template_fills_absent_keys(server: Server) -> Json:
    template = {"x": 1, "y": {"z": [2]}, "n": "given", "m": None}
    server.register(workflow([simple("a")], inputTemplate=template))
    inputs: list[Json] = [{"x": 5, "n": None}, {"other": [None]}, {}]
    seen = [server.run(server.start(input=given))["input"] for given in inputs]
    # A null counts as absent.
    assert seen[0] == {"x": 5, "y": {"z": [2]}, "n": "given", "m": None}
    return seen


@rule(39)
def a_run_keeps_the_definitions_it_started_with(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a", {"x": "old"}), simple("b", {"x": "old"})])
    server.register(
        task_def("~a", retryCount=0),
        workflow([simple("a", {"x": "new"}), simple("c", {"x": "new"})]),
    )
    server.work("~a", status="FAILED")
    server.work("~a")
    assert server.take("~b")["inputData"] == {"x": "old"}
    runs = [server.run(run_id), server.run(server.start())]
    steps = [run["workflowDefinition"]["tasks"] for run in runs]
    retries = [[part["taskDefinition"]["retryCount"] for part in parts] for parts in steps]
    # A run that starts after the edit follows what is new.
    assert retries == [[1, 3], [0, 3]]
    assert last_task(runs[1], "a")["inputData"] == {"x": "new"}
    return [*map(summary, runs), retries]


@rule(40)
def tasks_without_definition_get_an_ad_hoc_one(server: Server) -> Json:
    server.register(task_def("~known", description="mine", retryCount=7))
    steps = [
        simple("known"),
        simple("unknown"),
        step("~custom", "custom"),
        step("SET_VARIABLE", "set", {"x": 1}),
        step("INLINE", "script", {"evaluatorType": "javascript", "expression": "1"}),
        step("HUMAN", "human"),
    ]
    run = server.run(server.launch(steps))
    definitions = [made.get("taskDefinition") for made in run["workflowDefinition"]["tasks"]]
    assert definitions[0]["retryCount"] == 7
    assert definitions[1]["retryCount"] == 3
    return definitions


@rule(41)
def a_sub_workflow_is_pinned_to_the_latest_version(server: Server) -> Json:
    for version in (1, 2):
        server.register({**workflow([simple("c")], "~c"), "version": version})
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c"})
    run_id = server.launch([simple("a"), sub])
    server.register({**workflow([simple("d")], "~c"), "version": 3})
    server.work("~a")
    task = server.task_when(run_id, "s", "IN_PROGRESS")
    child = server.run(task["subWorkflowId"])
    assert child["workflowVersion"] == 2
    pinned = server.run(run_id)["workflowDefinition"]["tasks"][1]["subWorkflowParam"]
    return [child["workflowVersion"], pinned]


@rule(41, 43)
def a_missing_sub_workflow_definition_fails_the_start(server: Server) -> Json:
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~unknown"})
    server.register(workflow([simple("a"), sub]))
    refused = server.post("/workflow", {"name": "~w", "correlationId": "~c"})
    left = ok(server.get("/workflow/~w/correlated/~c", includeClosed=True)).body
    assert left == []
    assert refused.status >= 400
    if server.is_ours:
        assert refused.status < 500
    return [refused.message.replace(" ", ""), left, server.poll("~a")]


@rule(42)
def variables_of_the_definition_are_the_first_ones(server: Server) -> Json:
    steps = [simple("a", {"x": "${workflow.variables.x}"}), simple("b")]
    run = server.run(server.launch(steps, variables={"x": [1], "y": None}))
    assert run["variables"]["x"] == [1]
    return [run["variables"], run["tasks"][0]["inputData"]]


@rule(44)
def leading_system_tasks_have_ended_when_start_returns(server: Server) -> Json:
    run_id = server.launch([step("SET_VARIABLE", "v", {"x": 1}), simple("a")])
    run = server.run(run_id)
    assert statuses(run) == {"v": "COMPLETED", "a": "SCHEDULED"}
    return [summary(run), run["variables"]]


@rule(44)
def a_run_of_system_tasks_only_has_ended_when_start_returns(server: Server) -> Json:
    script = {"evaluatorType": "javascript", "expression": "1 + 1"}
    steps = [step("NOOP", "n"), step("INLINE", "i", script), step("SET_VARIABLE", "v", {"x": 1})]
    run = server.run(server.launch(steps))
    assert run["status"] == "COMPLETED"
    return summary(run)


@rule(45)
def higher_priority_is_polled_first(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    runs = {server.start(priority=number): number for number in (0, 50, 99, 10)}
    # All four are in the queue when the first is polled.
    server.until(lambda: server.get("/tasks/queue/size", taskType="~a").body == 4)
    order = [runs[server.take("~a")["workflowInstanceId"]] for _ in runs]
    assert order == [99, 50, 10, 0]
    run = server.run(next(iter(runs)))
    refused = [server.post("/workflow", {"name": "~w", "priority": n}) for n in (-1, 100)]
    return [order, [run["priority"], run["tasks"][0]["workflowPriority"]], refused]


@rule(46)
def created_by_is_ignored_and_owner_app_is_empty(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    run = server.run(server.start(createdBy="me", ownerApp="mine"))
    assert run["ownerApp"] == ""
    return [pick(run, "ownerApp", "createdBy", "updatedBy"), len(run["workflowId"])]


@rule(46)
def a_whole_fresh_run(server: Server) -> Json:
    run_id = server.launch([simple("a", {"x": 1})], {"y": 2}, request={"correlationId": "~c"})
    return server.run(run_id)


@rule(21)
def a_whole_ended_run(server: Server) -> Json:
    run_id = server.launch([simple("a", {"x": 1})], {"y": 2})
    server.work("~a", {"z": 3}, workerId="~me")
    run = server.ended(run_id)
    assert run["output"] == {"z": 3}
    return run


@rule(47, difference="idempotency keys are enforced: the SDKs offer them")
def an_idempotency_key_starts_one_run(server: Server) -> Json:
    server.register(workflow([simple("a")]))

    def start(strategy: str | None) -> Json:
        request = {"name": "~w", "input": {}, "idempotencyKey": "~key"}
        if strategy is not None:
            request["idempotencyStrategy"] = strategy
        return server.post("/workflow", request)

    first = start("RETURN_EXISTING")
    ok(first)
    again = start("RETURN_EXISTING")
    failed = start("FAIL")
    running = start("FAIL_ON_RUNNING")
    ok(server.delete(f"/workflow/{first.body}"))
    after = start("FAIL_ON_RUNNING")
    if server.is_ours:
        assert again.body == first.body
        assert (failed.status, running.status, after.status) == (409, 409, 200)
        assert after.body != first.body
    else:
        assert len({answer.body for answer in (first, again, failed, running, after)}) == 5
    return [answer.status for answer in (first, again, failed, running, after)]


@rule(48)
def fields_without_meaning_are_kept_and_ignored(server: Server) -> Json:
    first = simple(
        "a",
        {"x": 1},
        cacheConfig={"key": "k", "ttlInSecond": 60},
        onStateChange={"onStart": [{"type": "event", "payload": {}}]},
        rateLimited=True,
        joinStatus="x",
    )
    fields: dict[str, Json] = {
        "rateLimitConfig": {"rateLimitKey": "k", "concurrentExecLimit": 1},
        "cacheConfig": {"key": "k", "ttlInSecond": 60},
        "maskedFields": ["x"],
        "workflowStatusListenerSink": "nowhere",
    }
    server.register(
        task_def("~a", inputKeys=["p"], outputKeys=["q"]),
        workflow([first], **fields),
    )
    runs = [server.start(input={"x": 1}) for _ in range(2)]
    for _ in runs:
        server.work("~a", {"y": 2})
    ended = [server.ended(run_id) for run_id in runs]
    kept = ok(server.get("/metadata/workflow/~w")).body
    assert [run["input"] for run in ended] == [{"x": 1}, {"x": 1}]
    return [
        [summary(run) for run in ended],
        {name: kept.get(name) for name in fields},
        pick(kept["tasks"][0], "cacheConfig", "onStateChange", "rateLimited", "joinStatus"),
        pick(ok(server.get("/metadata/taskdefs/~a")).body, "inputKeys", "outputKeys"),
    ]


@rule(48, difference="JSON Schemas are enforced: an input that breaks the schema is refused")
def an_input_schema_is_enforced(server: Server) -> Json:
    data = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    schema = {"name": "~s", "version": 1, "type": "JSON", "data": data}
    server.register(workflow([simple("a")], inputSchema=schema, enforceSchema=True))
    good = server.post("/workflow", {"name": "~w", "input": {"n": 1}})
    bad = server.post("/workflow", {"name": "~w", "input": {"n": "one"}})
    assert good.status == 200
    assert bad.status == (400 if server.is_ours else 200)
    return bad.status


@rule(49)
def only_sub_workflows_know_their_parent(server: Server) -> Json:
    server.register(
        workflow([simple("c")], "~child"),
        task_def("~a", retryCount=0),
    )
    start = {"startWorkflow": {"name": "~child", "input": {"who": "started"}}}
    run_id = server.launch(
        [
            step("SUB_WORKFLOW", "s", {"who": "sub"}, subWorkflowParam={"name": "~child"}),
            step("START_WORKFLOW", "t", start),
            simple("a"),
        ],
        failureWorkflow="~child",
    )
    server.work("~c")
    server.work("~a", status="FAILED")
    run = server.ended(run_id)
    made = {
        "sub": last_task(run, "s")["subWorkflowId"],
        "started": last_task(run, "t")["outputData"]["workflowId"],
        "failure": run["output"]["conductor.failure_workflow"],
    }
    parents = {
        kind: pick(server.run(found), "parentWorkflowId", "parentWorkflowTaskId")
        for kind, found in made.items()
    }
    assert parents["sub"]["parentWorkflowId"] == run_id
    assert parents["sub"]["parentWorkflowTaskId"] == last_task(run, "s")["taskId"]
    assert parents["started"] == parents["failure"] == {}
    return parents
