"""Section 8: polls, updates, signals, sync execute, limits and domains (rules 96-122)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.conformance.harness import (
    Answer,
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

NO_TASK = "00000000-0000-4000-8000-000000000000"


def batch(server: Server, task_type: str, **query: Json) -> list[Json]:
    found: list[Json] = ok(server.get(f"/tasks/poll/batch/{task_type}", **query)).body
    return found


def queued(server: Server, task_type: str, count: int, **query: Json) -> None:
    """Wait until that many tasks are in the queue."""
    server.until(lambda: server.get("/tasks/queue/size", taskType=task_type, **query).body == count)


# --- polls ---


@rule(96, 97)
def a_poll_sees_its_own_type_and_domain_only(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    plain = server.start()
    domained = server.start(taskToDomain={"~a": "~d"})
    queued(server, "~a", 1)
    queued(server, "~a", 1, domain="~d")
    wrong = [server.poll("~b"), server.poll("~a", domain="~e"), server.poll("a")]
    in_domain = [server.poll("~a", domain="~d"), server.poll("~a", domain="~d")]
    without = [server.poll("~a"), server.poll("~a")]
    assert wrong == [None, None, None]
    assert in_domain[0]["workflowInstanceId"] == domained
    assert without[0]["workflowInstanceId"] == plain
    assert in_domain[1] is without[1] is None
    return [pick(task, "domain", "workerId", "status") for task in (in_domain[0], without[0])]


@rule(98)
def batch_polls(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    for _ in range(4):
        server.start()
    queued(server, "~a", 4)
    counts = [len(batch(server, "~a", workerid="~w"))]
    counts.append(len(batch(server, "~a", count=2)))
    counts.append(len(batch(server, "~a", count=5)))
    counts.append(len(batch(server, "~a", count=5)))
    assert counts == [1, 2, 1, 0]
    refused = server.get("/tasks/poll/batch/~a", timeout=5001)
    assert refused.status == 400
    return [counts, server.get("/tasks/poll/batch/~a"), server.get("/tasks/poll/~a"), refused]


@rule(98)
def a_batch_poll_waits_for_its_timeout(server: Server) -> Json:
    began = time.monotonic()
    found = batch(server, "~a", timeout=800)
    waited = time.monotonic() - began
    assert found == []
    assert 0.7 < waited < 5
    return found


@rule(98)
def a_batch_poll_that_waits_gets_what_comes(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(batch, server, "~a", timeout=5000)
        time.sleep(0.2)
        run_id = server.start()
        found = waiting.result()
    assert [task["workflowInstanceId"] for task in found] == [run_id]
    return [pick(task, "status", "pollCount", "referenceTaskName") for task in found]


@rule(96)
def a_wrong_type_of_poll_parameter_is_refused(server: Server) -> Json:
    answer = server.get("/tasks/poll/batch/~a", count="many")
    assert answer.status >= 400
    return server.get("/tasks/poll/batch/~a", count=1).status


@rule(100)
def a_polled_task(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a", {"x": 1})], request={"correlationId": "~c", "priority": 7})
    task = server.take("~a", workerid="~me")
    stored = server.task(run_id, "a")
    gone = server.poll("~a")
    assert (task["status"], task["pollCount"], task["workerId"]) == ("IN_PROGRESS", 1, "~me")
    assert task["startTime"] >= task["scheduledTime"] > 0
    assert gone is None
    assert pick(stored, "status", "pollCount", "workerId", "startTime") == pick(
        task, "status", "pollCount", "workerId", "startTime"
    )
    return task


@rule(100, 104)
def start_time_is_that_of_the_first_poll(server: Server) -> Json:
    server.launch([simple("a")])
    first = server.take("~a", workerid="~one")
    server.update(first, "IN_PROGRESS", {"n": 1}, workerId="~one")
    second = server.take("~a", workerid="~two")
    assert second["taskId"] == first["taskId"]
    assert second["startTime"] == first["startTime"]
    assert (second["pollCount"], second["workerId"]) == (2, "~two")
    return pick(second, "status", "outputData", "pollCount", "workerId", "callbackAfterSeconds")


@rule(100)
def a_poll_without_worker_id(server: Server) -> Json:
    server.launch([simple("a")])
    task = server.until(lambda: ok(server.get("/tasks/poll/~a")).body or None)
    return pick(task, "status", "workerId", "pollCount")


@rule(101)
def every_poll_leaves_poll_data(server: Server) -> Json:
    server.poll("~a", workerid="~w1")
    server.poll("~a", workerid="~w2", domain="~d")
    batch(server, "~a", workerid="~w3", domain="~e")
    batch(server, "~a", workerid="~w4")
    found = ok(server.get("/tasks/queue/polldata", taskType="~a")).body
    everything = ok(server.get("/tasks/queue/polldata/all")).body
    mine = [data for data in everything if data["queueName"].startswith("~a")]

    def ordered(data: list[Json]) -> list[Json]:
        return sorted(data, key=lambda one: str(one.get("domain")))

    assert {one.get("domain"): one["workerId"] for one in found} == {
        None: "~w4",
        "~d": "~w2",
        "~e": "~w3",
    }
    return [ordered(found), ordered(mine), server.get("/tasks/queue/polldata", taskType="~none")]


# --- updates ---


@rule(103)
def updates_of_unknown_and_ended_tasks(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    done = server.work("~a", {"n": 1})
    late = server.update(done, "FAILED", {"n": 2})
    result = {"taskId": NO_TASK, "workflowInstanceId": run_id, "status": "COMPLETED"}
    unknown = server.post("/tasks", result)
    kept = server.task(run_id, "a")
    assert (kept["status"], kept["outputData"]) == ("COMPLETED", {"n": 1})
    assert unknown.status == 404
    return [late, unknown, server.get(f"/tasks/{NO_TASK}"), pick(kept, "status", "outputData")]


@rule(103)
def updates_of_tasks_of_ended_workflows_are_ignored(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    ok(server.delete(f"/workflow/{run_id}", reason="enough"))
    late = server.update(task, "COMPLETED", {"n": 2})
    run = server.run(run_id)
    assert (run["status"], last_task(run, "a")["status"]) == ("TERMINATED", "CANCELED")
    return [late, summary(run), last_task(run, "a")["outputData"]]


@rule(103)
def a_task_that_nobody_polled_can_be_updated(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    server.update(server.task(run_id, "a"), "COMPLETED", {"n": 1})
    assert server.poll("~a") is None
    run = server.run(run_id)
    assert statuses(run) == {"a": "COMPLETED", "b": "SCHEDULED"}
    return pick(run["tasks"][0], "status", "outputData", "pollCount", "startTime", "endTime")


@rule(104)
def in_progress_puts_a_worker_task_back(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    answer = server.update(task, "IN_PROGRESS", {"n": 1}, callbackAfterSeconds=1, workerId="~w")
    updated = time.monotonic()
    stored = server.task(run_id, "a")
    at_once = server.poll("~a")
    again = server.take("~a")
    assert at_once is None
    assert time.monotonic() - updated > 0.8
    assert (stored["status"], stored["startTime"]) == ("SCHEDULED", task["startTime"])
    fields = ("status", "outputData", "callbackAfterSeconds", "workerId", "pollCount")
    return [answer.content_type, pick(stored, *fields), pick(again, *fields)]


@rule(105)
def in_progress_on_a_system_task_stays_in_progress(server: Server) -> Json:
    seen = {}
    for kind in ("WAIT", "HUMAN"):
        run_id = server.launch([step(kind, "s", {"x": 1})])
        task = server.task_when(run_id, "s", "IN_PROGRESS")
        server.update(task, "IN_PROGRESS", {"n": 1})
        stored = server.task(run_id, "s")
        assert stored["status"] == "IN_PROGRESS"
        server.update(stored, "COMPLETED", {"n": 2})
        seen[kind] = [pick(stored, "status", "outputData"), summary(server.ended(run_id))]
    return seen


@rule(106)
def an_update_by_id_replaces_and_one_by_name_merges(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    server.update(task, "IN_PROGRESS", {"x": 1, "y": {"p": 1}})
    server.update(server.take("~a"), "IN_PROGRESS", {"y": {"q": 2}, "z": 3})
    replaced = server.task(run_id, "a")["outputData"]
    answer = server.post(f"/tasks/{run_id}/a/IN_PROGRESS", {"y": {"r": 4}, "new": 5})
    merged = server.task(run_id, "a")["outputData"]
    assert replaced == {"y": {"q": 2}, "z": 3}
    assert merged == {"y": {"r": 4}, "z": 3, "new": 5}
    return [replaced, answer, merged]


@rule(107, 115)
def fields_taken_from_a_result(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a", workerid="~polled")
    logs = [{"log": f"line {number}", "createdTime": 1} for number in range(3)]
    fields = ("status", "reasonForIncompletion", "workerId", "callbackAfterSeconds", "outputData")
    server.update(
        task,
        "IN_PROGRESS",
        reasonForIncompletion="half way",
        workerId="~reported",
        callbackAfterSeconds=100,
        logs=logs,
    )
    first = pick(server.task(run_id, "a"), *fields, "subWorkflowId")
    assert (first["reasonForIncompletion"], first["workerId"]) == ("half way", "~reported")
    server.update(task, "COMPLETED", {"n": 1})
    second = pick(server.task(run_id, "a"), *fields)
    return [first, second]


@rule(108)
def the_next_task_is_there_when_an_update_returns(server: Server) -> Json:
    run_id = server.launch([simple("a"), step("SET_VARIABLE", "v", {"x": 1}), simple("b")])
    task = server.take("~a")
    server.update(task)
    run = server.run(run_id)
    assert statuses(run) == {"a": "COMPLETED", "v": "COMPLETED", "b": "SCHEDULED"}
    ended = last_task(run, "a")
    assert ended["endTime"] >= ended["startTime"] > 0
    assert server.get("/tasks/queue/size", taskType="~a").body == 0
    return [summary(run), ended["endTime"]]


@rule(109, difference="a result without status is the client's error: 400, not 500")
def a_result_without_status_is_refused(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    result = {"taskId": task["taskId"], "workflowInstanceId": run_id, "outputData": {"n": 1}}
    answer = server.post("/tasks", result)
    assert answer.status == (400 if server.is_ours else 500)
    kept = server.task(run_id, "a")
    return [answer.status, pick(kept, "status")]


@rule(109)
def a_result_needs_its_ids(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    without_task = {"workflowInstanceId": run_id, "status": "COMPLETED"}
    without_run = {"taskId": task["taskId"], "status": "COMPLETED"}
    answers = [server.post("/tasks", body) for body in (without_task, without_run)]
    assert [answer.status for answer in answers] == [400, 400]
    return [*answers, server.task(run_id, "a")["status"]]


@rule(110)
def update_v2_hands_out_the_next_task(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    runs = [server.start() for _ in range(2)]
    queued(server, "~a", 2)
    task = server.take("~a", workerid="~w")

    def update(task: Json, status: str) -> Answer:
        body = {
            **pick(task, "taskId", "workflowInstanceId"),
            "status": status,
            "workerId": "~w",
            "outputData": {"n": 1},
        }
        return server.post("/tasks/update-v2", body)

    running = update(task, "IN_PROGRESS")
    assert running.status == 204
    again = server.take("~a", workerid="~w")
    following = update(again, "COMPLETED")
    assert following.status == 200
    assert {again["workflowInstanceId"], following.body["workflowInstanceId"]} == set(runs)
    last = update(following.body, "COMPLETED")
    assert [server.run(run_id)["status"] for run_id in runs] == ["COMPLETED"] * 2
    fields = ("status", "workerId", "pollCount", "referenceTaskName", "taskType")
    return [running, following.content_type, pick(following.body, *fields), last]


@rule(110)
def update_v2_keeps_to_the_domain(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    first = server.start(taskToDomain={"~a": "~d"})
    plain = server.start()
    second = server.start(taskToDomain={"~a": "~d"})
    queued(server, "~a", 2, domain="~d")
    task = server.take("~a", domain="~d")
    body = {**pick(task, "taskId", "workflowInstanceId"), "status": "COMPLETED", "workerId": "~w"}
    answer = server.post("/tasks/update-v2", body)
    assert {task["workflowInstanceId"], answer.body["workflowInstanceId"]} == {first, second}
    assert server.run(plain)["status"] == "RUNNING"
    return [answer.status, answer.body["domain"]]


@rule(111)
def updates_by_reference_name(server: Server) -> Json:
    loop = step("DO_WHILE", "l", loopCondition="$.l['iteration'] < 2", loopOver=[simple("a")])
    run_id = server.launch([loop, simple("b")])
    path = f"/tasks/{run_id}/a/COMPLETED"
    seen = [server.post(path, {"n": number}, workerid="~w") for number in (1, 2)]
    server.task_when(run_id, "b")
    nobody = server.post(f"/tasks/{run_id}/none/COMPLETED", {})
    nobody_sync = server.post(f"/tasks/{run_id}/none/COMPLETED/sync", {})
    assert (nobody.status, nobody.body, nobody_sync.status) == (200, "", 404)
    done = server.post(f"/tasks/{run_id}/b/COMPLETED/sync", {"n": 2})
    assert (done.status, done.body["status"]) == (200, "COMPLETED")
    late = server.post(f"/tasks/{run_id}/b/COMPLETED", {"n": 3})
    return [seen, nobody, nobody_sync, summary(done.body), late]


@rule(111)
def updates_by_name_in_an_unknown_workflow(server: Server) -> Json:
    plain = server.post(f"/tasks/{NO_TASK}/a/COMPLETED", {})
    sync = server.post(f"/tasks/{NO_TASK}/a/COMPLETED/sync", {})
    assert (plain.status, sync.status) == (200, 404)
    return [plain, sync]


# --- signals and sync execute ---


@rule(112)
def a_signal_completes_the_first_waiting_task(server: Server) -> Json:
    run_id = server.launch([simple("a"), step("WAIT", "w1", {"x": 1}), step("WAIT", "w2")])
    none_yet = server.post(f"/tasks/{run_id}/COMPLETED/signal", {"n": 0})
    server.work("~a")
    server.task_when(run_id, "w1", "IN_PROGRESS")
    first = server.post(f"/tasks/{run_id}/COMPLETED/signal", {"n": 1})
    server.task_when(run_id, "w2", "IN_PROGRESS")
    unknown = server.post(f"/tasks/{NO_TASK}/COMPLETED/signal", {})
    second = server.post(f"/tasks/{run_id}/COMPLETED/signal", {"n": 2})
    run = server.ended(run_id)
    assert [task["outputData"].get("n") for task in run["tasks"][1:]] == [1, 2]
    late = server.post(f"/tasks/{run_id}/COMPLETED/signal", {"n": 3})
    assert unknown.status == 404
    return [none_yet, first, unknown, second, late, summary(run)]


@rule(112)
def a_signal_reaches_into_sub_workflows(server: Server) -> Json:
    server.register(workflow([step("WAIT", "w")], "~child"))
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~child"})
    run_id = server.launch([sub])
    child_id = server.task_when(run_id, "s", "IN_PROGRESS")["subWorkflowId"]
    server.task_when(child_id, "w", "IN_PROGRESS")
    ok(server.post(f"/tasks/{run_id}/COMPLETED/signal", {"n": 1}))
    child = server.ended(child_id)
    run = server.ended(run_id)
    assert (child["output"], run["status"]) == ({"n": 1}, "COMPLETED")
    return [summary(child), summary(run)]


@rule(112, 114)
def a_sync_signal_answers_when_the_run_blocks_again(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w1"), step("NOOP", "n"), step("WAIT", "w2")])
    server.task_when(run_id, "w1", "IN_PROGRESS")
    blocked = server.post(
        f"/tasks/{run_id}/COMPLETED/signal/sync", {"n": 1}, returnStrategy="BLOCKING_TASK"
    )
    ended = server.post(f"/tasks/{run_id}/COMPLETED/signal/sync", {"n": 2})
    none = server.post(f"/tasks/{run_id}/COMPLETED/signal/sync", {"n": 3})
    assert blocked.body["referenceTaskName"] == "w2"
    assert ended.body["targetWorkflowStatus"] == "COMPLETED"
    assert none.status == 404
    fields = ("responseType", "targetWorkflowStatus", "status", "referenceTaskName", "output")
    return [pick(blocked.body, *fields), pick(ended.body, *fields), none]


@rule(112)
def a_sync_signal_gives_up_after_its_wait(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w"), simple("a")])
    server.task_when(run_id, "w", "IN_PROGRESS")
    path = f"/tasks/{run_id}/COMPLETED/signal/sync"
    answer = server.post(path, {"n": 1}, timeoutMillis=300)
    assert (answer.status, answer.body["signalTimeout"]) == (200, True)
    seen = statuses(answer.body)
    assert seen["w"] == "COMPLETED"
    return pick(answer.body, "responseType", "targetWorkflowStatus", "status", "input", "output")


@rule(112)
def a_signal_can_fail_a_waiting_task(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w")])
    server.task_when(run_id, "w", "IN_PROGRESS")
    ok(server.post(f"/tasks/{run_id}/FAILED/signal", {"n": 1}))
    run = server.ended(run_id)
    assert run["status"] == "FAILED"
    return [summary(run), last_task(run, "w")["outputData"]]


@rule(113)
def sync_execute_answers_at_a_waiting_task_of_a_sub_workflow(server: Server) -> Json:
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~child", "version": 1})
    server.register(workflow([step("WAIT", "w")], "~child"), workflow([sub]))
    answer = server.post("/workflow/execute/~w/1", {"name": "~w", "version": 1, "input": {}})
    server.started.append(answer.body["targetWorkflowId"])
    assert (answer.body["signalTimeout"], statuses(answer.body)) == (False, {"s": "IN_PROGRESS"})
    return [answer.status, answer.body["status"], statuses(answer.body)]


@rule(113)
def sync_execute_of_what_does_not_exist(server: Server) -> Json:
    request = {"name": "~none", "version": 1, "input": {}}
    answer = server.post("/workflow/execute/~none/1", request)
    assert answer.status == 404
    return answer


@rule(113)
def sync_execute_answers_at_the_end(server: Server) -> Json:
    server.register(
        workflow(
            [step("SET_VARIABLE", "v", {"x": 1}), step("NOOP", "n")], outputParameters={"o": 2}
        )
    )
    request = {"name": "~w", "version": 1, "input": {"i": 1}, "correlationId": "~c"}
    answer = server.post("/workflow/execute/~w/1", request, requestId="~r")
    assert answer.status == 200
    assert (answer.body["status"], answer.body["signalTimeout"]) == ("COMPLETED", False)
    body = dict(answer.body)
    body["tasks"] = [task["referenceTaskName"] for task in body["tasks"]]
    return [answer.status, answer.content_type, body]


@rule(113)
def sync_execute_answers_at_a_waiting_task(server: Server) -> Json:
    server.register(workflow([step("NOOP", "n"), step("WAIT", "w"), simple("a")]))
    answer = server.post("/workflow/execute/~w/1", {"name": "~w", "version": 1, "input": {}})
    assert statuses(answer.body) == {"n": "COMPLETED", "w": "IN_PROGRESS"}
    return [answer.body["status"], answer.body["signalTimeout"], statuses(answer.body)]


@rule(113)
def sync_execute_waits_for_a_named_task(server: Server) -> Json:
    server.register(workflow([step("NOOP", "n"), simple("a"), simple("b")]))

    def execute() -> Answer:
        request = {"name": "~w", "version": 1, "input": {}}
        return server.post("/workflow/execute/~w/1", request, waitUntilTaskRef="x,a")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(execute)
        server.work("~a", {"n": 1})
        answer = waiting.result()
    seen = statuses(answer.body)
    assert (seen["a"], answer.body["signalTimeout"]) == ("COMPLETED", False)
    # Whether b is there yet depends on the moment.
    return [answer.body["status"], answer.body["signalTimeout"], pick(seen, "n", "a")]


@rule(113)
def sync_execute_gives_up_after_its_wait(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    request = {"name": "~w", "version": 1, "input": {}}
    began = time.monotonic()
    answer = server.post("/workflow/execute/~w/1", request, waitForSeconds=1)
    assert 0.9 < time.monotonic() - began < 9
    assert (answer.status, answer.body["signalTimeout"]) == (200, True)
    return [answer.status, answer.body["status"], statuses(answer.body)]


def execute(server: Server, name: str, strategy: str) -> Answer:
    return server.post(
        f"/workflow/execute/{name}/1",
        {"name": name, "version": 1, "input": {"i": 7}, "correlationId": "~c"},
        returnStrategy=strategy,
        requestId="~r",
    )


@rule(114, difference="a task shape of a run that blocks nowhere is empty, not an error 500")
def task_shapes_of_a_run_that_does_not_block(server: Server) -> Json:
    server.register(workflow([step("NOOP", "n")]))
    answers = [execute(server, "~w", shape) for shape in ("BLOCKING_TASK", "BLOCKING_TASK_INPUT")]
    expected = (200, True) if server.is_ours else (500, False)
    assert [(answer.status, answer.body == "") for answer in answers] == [expected] * 2
    return [answer.status for answer in answers]


@rule(114)
def workflow_shapes_of_a_run_that_does_not_block(server: Server) -> Json:
    server.register(workflow([step("NOOP", "n")]))
    answers = [execute(server, "~w", shape) for shape in ("TARGET_WORKFLOW", "BLOCKING_WORKFLOW")]
    assert [answer.status for answer in answers] == [200, 200]
    fields = ("responseType", "status", "targetWorkflowStatus", "input", "output", "requestId")
    return [pick(answer.body, *fields) for answer in answers]


@rule(114)
def return_strategies(server: Server) -> Json:
    server.register(
        workflow([step("WAIT", "w", {"x": "${workflow.input.i}"})], "~child"),
        workflow(
            [
                step(
                    "SUB_WORKFLOW",
                    "s",
                    {"i": "${workflow.input.i}"},
                    subWorkflowParam={"name": "~child", "version": 1},
                )
            ]
        ),
    )
    seen: dict[str, Json] = {}
    for strategy in (
        "TARGET_WORKFLOW",
        "BLOCKING_WORKFLOW",
        "BLOCKING_TASK",
        "BLOCKING_TASK_INPUT",
    ):
        blocked = execute(server, "~w", strategy)
        assert blocked.body["responseType"] == strategy
        body = dict(blocked.body)
        # 0 until the real server has saved the run a second time: chance.
        assert body.pop("updateTime") >= 0
        if "tasks" in body:
            body["tasks"] = [task["referenceTaskName"] for task in body["tasks"]]
        seen[strategy] = body
        server.started.append(body["targetWorkflowId"])
    return seen


@rule(114)
def an_unknown_return_strategy_is_refused(server: Server) -> Json:
    server.register(workflow([step("NOOP", "n")]))
    request = {"name": "~w", "version": 1, "input": {}}
    answer = server.post("/workflow/execute/~w/1", request, returnStrategy="ANYTHING")
    assert answer.status >= 400
    return server.post("/workflow/execute/~w/1", request).status


# --- logs, requeue ---


@rule(115)
def task_logs(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    path = f"/tasks/{task['taskId']}/log"
    none = server.get(path)
    logs = [{"log": f"line {number}", "createdTime": 1000 + number} for number in range(12)]
    server.update(task, "IN_PROGRESS", logs=logs)
    first = server.until(lambda: server.get(path).body or None)
    added = server.request("POST", path, raw="one more", content_type="text/plain")
    second = server.until(lambda: found if len(found := server.get(path).body) > 10 else None)
    assert len(first) == 10
    assert run_id != ""
    return [none, [log["log"] for log in first], added.status, sorted(log["log"] for log in second)]


@rule(116)
def requeue_makes_tasks_in_hand_pollable_again(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    for _ in range(2):
        server.start()
    queued(server, "~a", 2)
    held = server.take("~a")
    answer = server.post("/tasks/queue/requeue/~a")
    assert str(answer.body) == "2"
    found = [server.take("~a"), server.take("~a")]
    assert held["taskId"] in {task["taskId"] for task in found}
    return [answer, sorted(task["pollCount"] for task in found)]


# --- limits ---


@rule(117)
def concurrency_is_limited_over_all_workflows(server: Server) -> Json:
    server.register(task_def("~a", concurrentExecLimit=2), workflow([simple("a")]))
    for _ in range(4):
        server.start()
    queued(server, "~a", 4)
    held = batch(server, "~a", count=4)
    more = batch(server, "~a", count=4)
    assert [len(held), len(more)] == [2, 0]
    server.update(held[0])
    if server.is_ours:
        # The real server wakes the wrong task now and then and lets the next one wait for 60 s.
        freed = batch(server, "~a", count=4, timeout=1000)
        assert len(freed) == 1
        assert freed[0]["taskId"] not in {task["taskId"] for task in held}
    return [len(held), len(more)]


@rule(118, difference="rate limits hold on every store; Conductor's SQLite store ignores them")
def the_rate_of_polls_is_limited(server: Server) -> Json:
    server.register(
        task_def("~a", rateLimitPerFrequency=2, rateLimitFrequencyInSeconds=300),
        workflow([simple("a")]),
    )
    for _ in range(4):
        server.start()
    queued(server, "~a", 4)
    found = [len(batch(server, "~a", count=4)) for _ in range(2)]
    assert found == ([2, 0] if server.is_ours else [4, 0])
    return found


@rule(118)
def the_rate_limit_is_copied_onto_the_task(server: Server) -> Json:
    server.register(task_def("~a", rateLimitPerFrequency=2, rateLimitFrequencyInSeconds=300))
    task = server.task(server.launch([simple("a")]), "a")
    assert task["rateLimitPerFrequency"] == 2
    return pick(task, "rateLimitPerFrequency", "rateLimitFrequencyInSeconds")


@rule(118, difference="a task held back by a rate comes when the rate allows it")
def a_task_held_back_comes_with_the_next_window(server: Server) -> Json:
    server.register(
        task_def("~a", rateLimitPerFrequency=1, rateLimitFrequencyInSeconds=1),
        workflow([simple("a")]),
    )
    for _ in range(2):
        server.start()
    queued(server, "~a", 2)
    first = len(batch(server, "~a", count=2))
    began = time.monotonic()
    later = len(batch(server, "~a", count=2, timeout=3000)) if server.is_ours else 0
    assert [first, later] == ([1, 1] if server.is_ours else [2, 0])
    assert not server.is_ours or time.monotonic() - began > 0.5
    return [first, later]


# --- domains ---


@rule(119)
def a_domain_is_for_the_task_type_not_for_the_reference(server: Server) -> Json:
    server.register(workflow([simple("a", name="~type")]))
    seen = [
        server.task(server.start(taskToDomain={key: "~d"}), "a").get("domain")
        for key in ("~type", "a")
    ]
    assert seen == ["~d", None]
    return seen


@rule(119)
def domains_by_type_and_for_all(server: Server) -> Json:
    branches = [[simple("a")], [simple("b")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    server.register(workflow([fork, step("JOIN", "j", joinOn=["a", "b"])]))
    seen: dict[str, Json] = {}
    for label, domains in {
        "one type": {"~a": "~d"},
        "all": {"*": "~d"},
        "specific wins": {"~a": "~d", "*": "~e"},
    }.items():
        run = server.run(server.start(taskToDomain=domains))
        seen[label] = [
            run["taskToDomain"],
            {task["referenceTaskName"]: task.get("domain") for task in run["tasks"]},
        ]
    assert seen["specific wins"][1]["a"] == "~d"
    assert seen["specific wins"][1]["b"] == "~e"
    assert seen["specific wins"][1]["j"] is None
    return seen


@rule(120)
def the_first_active_domain_of_a_list_is_chosen(server: Server) -> Json:
    server.register(workflow([simple("a")]))

    def domain(domains: str) -> str | None:
        task = server.task(server.start(taskToDomain={"~a": domains}), "a")
        found: str | None = task.get("domain")
        return found

    seen: dict[str, Json] = {
        "none active": domain("~x,~y"),
        "none active, no domain last": domain("~x,NO_DOMAIN"),
        "no domain alone": domain("NO_DOMAIN"),
        "spaces": domain("~x , ~y"),
    }
    server.poll("~a", domain="~y")
    seen["second active"] = domain("~x,~y,~z")
    server.poll("~a", domain="~x")
    seen["both active"] = domain("~x,~y,~z")
    # A domain is active for 10 s, which a busy server may have needed by now.
    server.poll("~a", domain="~y")
    seen["active before no domain"] = domain("~y,NO_DOMAIN")
    assert (seen["none active"], seen["second active"], seen["both active"]) == ("~y", "~y", "~x")
    return seen


@rule(120)
def no_poll_data_no_active_domain(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    server.poll("~other", domain="~x")
    server.poll("~a")
    task = server.task(server.start(taskToDomain={"~a": "~x,~y"}), "a")
    assert task["domain"] == "~y"
    return pick(task, "domain", "status")


@rule(121)
def a_retry_chooses_its_domain_again_and_system_tasks_have_none(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch(
        [
            step("NOOP", "n"),
            step("INLINE", "i", {"expression": "1", "evaluatorType": "javascript"}),
            simple("a"),
            step("WAIT", "w"),
        ],
        request={"taskToDomain": {"*": "~x,~y"}},
    )
    task = server.take("~a", domain="~y")
    # From now on ~x is active too and comes first.
    server.poll("~a", domain="~x")
    server.update(task, "FAILED")
    retry = server.task(run_id, "a")
    assert (retry["retryCount"], retry["domain"]) == (1, "~x")
    server.update(server.take("~a", domain="~x"))
    server.task_when(run_id, "w")
    return [[one["referenceTaskName"], one.get("domain")] for one in server.run(run_id)["tasks"]]


@rule(122)
def domains_are_inherited(server: Server) -> Json:
    server.register(workflow([simple("c")], "~child"), task_def("~end", retryCount=0))
    domains = {"~c": "~d"}
    other = {"~c": "~e"}
    run_id = server.launch(
        [
            step("START_WORKFLOW", "st", {"startWorkflow": {"name": "~child", "input": {}}}),
            step(
                "START_WORKFLOW",
                "so",
                {"startWorkflow": {"name": "~child", "input": {}, "taskToDomain": other}},
            ),
            step(
                "FORK_JOIN",
                "f",
                forkTasks=[
                    [step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~child"})],
                    [
                        step(
                            "SUB_WORKFLOW",
                            "o",
                            {},
                            subWorkflowParam={"name": "~child", "taskToDomain": other},
                        )
                    ],
                ],
            ),
            step("JOIN", "j", joinOn=["s", "o"]),
            simple("end"),
        ],
        request={"taskToDomain": domains},
        failureWorkflow="~child",
    )
    children = {
        ref: server.task_when(run_id, ref, "IN_PROGRESS")["subWorkflowId"] for ref in ("s", "o")
    }
    for ref in ("st", "so"):
        children[ref] = server.task(run_id, ref)["outputData"]["workflowId"]
    for child in children.values():
        server.update(server.task_when(child, "c"), "COMPLETED")
    server.task_when(run_id, "end")
    server.update(server.task(run_id, "end"), "FAILED")
    children["failure"] = server.ended(run_id)["output"]["conductor.failure_workflow"]
    seen = {}
    for ref, child in children.items():
        run = server.run(child)
        seen[ref] = [run["taskToDomain"], server.task_when(child, "c").get("domain")]
    assert [seen[ref][1] for ref in ("s", "o", "st", "so")] == ["~d", "~e", "~d", "~e"]
    return seen
