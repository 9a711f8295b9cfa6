"""The paths of docs/conductor/rest-api.md, sections Tasks and Health."""

from __future__ import annotations

import json

from tests.conformance.harness import (
    Json,
    Server,
    pick,
    rule,
    simple,
    step,
    task_def,
    workflow,
)

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


@rule()
def polling_one_and_many(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    empty = [
        server.get("/tasks/poll/~none"),
        server.get("/tasks/poll/batch/~none", timeout=1),
    ]
    for _ in range(3):
        server.start()
    server.until(lambda: server.get("/tasks/queue/size", taskType="~a").body == 3)
    one = server.get("/tasks/poll/~a", workerid="~me")
    many = server.get("/tasks/poll/batch/~a", workerid="~me", count=5, timeout=1000)
    assert [answer.status for answer in (*empty, one, many)] == [204, 200, 200, 200]
    assert len(many.body) == 2
    assert sorted(one.body) == sorted(many.body[0])
    return [
        empty,
        [one.content_type, many.content_type],
        sorted(one.body),
        pick(one.body, "status", "taskType", "workerId", "pollCount", "callbackAfterSeconds"),
        server.get("/tasks/poll/batch/~a", timeout=5001),
        server.get("/tasks/poll/batch/~a", count=0, timeout=1),
    ]


@rule()
def a_whole_polled_task(server: Server) -> Json:
    server.register(task_def("~a", retryCount=2, inputTemplate={"t": 1}))
    server.launch([simple("a", {"x": "${workflow.input.x}"})], {"x": 1})
    return server.take("~a", workerid="~me")


@rule()
def a_whole_task_read_by_id(server: Server) -> Json:
    run_id = server.launch([simple("a", {"x": 1})])
    task = server.task(run_id, "a")
    found = server.get(f"/tasks/{task['taskId']}")
    unknown = server.get(f"/tasks/{UNKNOWN}")
    assert [found.status, unknown.status] == [200, 404]
    return [found, unknown, server.get("/tasks/no-id")]


@rule()
def results_by_body(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    task = server.task(run_id, "a")
    result = {"taskId": task["taskId"], "workflowInstanceId": run_id}
    answers = {
        "first": server.post("/tasks", {**result, "status": "COMPLETED", "outputData": {"x": 1}}),
        "late": server.post("/tasks", {**result, "status": "FAILED"}),
        "unknown": server.post(
            "/tasks", {"taskId": UNKNOWN, "workflowInstanceId": run_id, "status": "COMPLETED"}
        ),
    }
    assert answers["first"].body == answers["late"].body == task["taskId"]
    assert server.task(run_id, "a")["status"] == "COMPLETED"
    return answers


@rule()
def results_by_reference_name(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    path = f"/tasks/{run_id}"
    first = server.post(f"{path}/a/COMPLETED", {"x": 1}, workerid="~me")
    synced = server.post(f"{path}/b/COMPLETED/sync", {"y": 2})
    assert [first.status, synced.status] == [200, 200]
    assert synced.body["status"] == "COMPLETED"
    run = server.run(run_id)
    answers = {
        "again": server.post(f"{path}/a/COMPLETED", {}),
        "again, sync": server.post(f"{path}/a/COMPLETED/sync", {}),
        "unknown name": server.post(f"{path}/none/COMPLETED", {}),
        "unknown run": server.post(f"/tasks/{UNKNOWN}/a/COMPLETED", {}),
        "unknown run, sync": server.post(f"/tasks/{UNKNOWN}/a/COMPLETED/sync", {}),
    }
    fields = ("status", "outputData", "workerId")
    return [
        first,
        [synced.content_type, pick(synced.body, "workflowId", "status", "output")],
        [pick(task, *fields) for task in run["tasks"]],
        answers,
    ]


@rule()
def update_v2_gives_the_next_task(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    for _ in range(2):
        server.start()
    server.until(lambda: server.get("/tasks/queue/size", taskType="~a").body == 2)
    task = server.take("~a", workerid="~me")
    seen = []
    for _ in range(2):
        result = pick(task, "taskId", "workflowInstanceId")
        answer = server.post(
            "/tasks/update-v2", {**result, "status": "COMPLETED", "workerId": "~me"}
        )
        seen.append(answer)
        task = answer.body
    assert [answer.status for answer in seen] == [200, 204]
    assert seen[0].body["taskType"] == "~a"
    unknown = server.post(
        "/tasks/update-v2",
        {"taskId": UNKNOWN, "workflowInstanceId": UNKNOWN, "status": "COMPLETED"},
    )
    return [
        [seen[0].content_type, pick(seen[0].body, "status", "workerId", "pollCount")],
        seen[1],
        unknown,
    ]


@rule()
def signals(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w"), step("WAIT", "h"), simple("z")])
    first = server.post(f"/tasks/{run_id}/COMPLETED/signal", {"x": 1})
    server.task_when(run_id, "h", "IN_PROGRESS")
    synced = server.post(f"/tasks/{run_id}/COMPLETED/signal/sync", {"y": 2})
    assert [first.status, synced.status] == [200, 200]
    server.task_when(run_id, "z", "SCHEDULED")
    run = server.run(run_id)
    assert [task["outputData"] for task in run["tasks"]] == [{"x": 1}, {"y": 2}, {}]
    return [
        first,
        [synced.content_type, synced.body["responseType"]],
        server.post(f"/tasks/{UNKNOWN}/COMPLETED/signal", {}),
        server.post(f"/tasks/{UNKNOWN}/COMPLETED/signal/sync", {}),
        server.post(f"/tasks/{run_id}/COMPLETED/signal/sync", {}),
    ]


@rule()
def logs_of_a_task(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    path = f"/tasks/{server.task(run_id, 'a')['taskId']}/log"
    none = server.get(path)
    added = [
        server.request("POST", path, raw="one", content_type="text/plain"),
        server.request("POST", path, raw='{"two": 2}', content_type="application/json"),
    ]
    assert [answer.status for answer in added] == [200, 200]

    def both() -> Json:
        found = server.get(path).body
        return found if len(found) == 2 else None

    logs = sorted(server.until(both), key=lambda log: str(log["log"]))
    assert [log["log"] for log in logs] == ["one", '{"two": 2}']
    return [none, added, logs]


@rule(difference="a task that is not there: 404, not an empty answer")
def logs_of_no_task(server: Server) -> Json:
    answer = server.get(f"/tasks/{UNKNOWN}/log")
    assert answer.status == (404 if server.is_ours else 204)
    return answer.status


@rule()
def sizes_of_queues(server: Server) -> Json:
    server.register(workflow([simple("a")]), workflow([simple("b")], "~v"))
    for name in ("~w", "~w", "~v"):
        server.start(name)
    server.until(lambda: server.get("/tasks/queue/size", taskType="~a").body == 2)
    server.until(lambda: server.get("/tasks/queue/size", taskType="~b").body == 1)
    every = server.get("/tasks/queue/all")
    verbose = server.get("/tasks/queue/all/verbose")
    assert [every.body["~a"], every.body["~b"]] == [2, 1]
    shards = verbose.body["~a"]
    assert sum(shard["size"] for shard in shards.values()) == 2
    return {
        "one": server.get("/tasks/queue/size", taskType="~a"),
        "none": server.get("/tasks/queue/size", taskType="~none"),
        "domain": server.get("/tasks/queue/size", taskType="~a", domain="~d"),
        "some": server.get("/tasks/queue/sizes", taskType=["~a", "~b", "~none"]),
        "all": [every.content_type, verbose.content_type],
        "verbose": [sorted(shard) for shard in shards.values()],
    }


@rule()
def poll_data_of_workers(server: Server) -> Json:
    none = server.get("/tasks/queue/polldata", taskType="~a")
    server.poll("~a", workerid="~one")
    server.poll("~a", workerid="~two", domain="~d")
    some = server.get("/tasks/queue/polldata", taskType="~a")
    every = server.get("/tasks/queue/polldata/all")
    assert len(some.body) == 2
    mine = [found for found in every.body if found["queueName"] == "~a"]
    assert len(mine) == 2
    return [none, sorted(some.body, key=str), [every.status, every.content_type]]


@rule()
def requeue_says_how_many(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    for _ in range(2):
        server.start()
    server.until(lambda: server.get("/tasks/queue/size", taskType="~a").body == 2)
    server.take("~a")
    answer = server.post("/tasks/queue/requeue/~a")
    assert answer.status == 200
    return [answer, server.post("/tasks/queue/requeue/~none")]


@rule()
def wrong_methods_and_unknown_paths_of_tasks(server: Server) -> Json:
    wrong = {
        f"{method} {path}": server.request(method, path)
        for method, path in (
            ("GET", "/tasks"),
            ("PUT", "/tasks"),
            ("POST", "/tasks/poll/~a"),
            ("GET", "/tasks/update-v2"),
            ("PUT", f"/tasks/{UNKNOWN}/log"),
            ("GET", "/tasks/queue/requeue/~a"),
            ("DELETE", f"/tasks/{UNKNOWN}"),
        )
    }
    unknown = {
        path: server.request(method, path)
        for method, path in (
            ("POST", f"/tasks/{UNKNOWN}/ack"),
            ("DELETE", f"/tasks/queue/~a/{UNKNOWN}"),
            ("GET", "/tasks/poll/batch/~a/b"),
            ("GET", "/nothing"),
        )
    }
    return [
        wrong,
        {path: [answer.status, answer.body] for path, answer in unknown.items()},
    ]


BAD_BODIES = {
    "broken": ("/tasks", '{"taskId": '),
    "empty": ("/tasks", ""),
    "list": ("/tasks", "[]"),
    "status": ("/tasks", '{%s, "status": "DONE"}'),
    "output": ("/tasks", '{%s, "status": "COMPLETED", "outputData": "x"}'),
    "callback": ("/tasks", '{%s, "status": "COMPLETED", "callbackAfterSeconds": {}}'),
    "v2, broken": ("/tasks/update-v2", "{"),
    "by name, list": ("/tasks/RUN/a/COMPLETED", "[]"),
    "by name, status": ("/tasks/RUN/a/DONE", "{}"),
    "sync, status": ("/tasks/RUN/a/DONE/sync", "{}"),
    "signal, status": ("/tasks/RUN/DONE/signal", "{}"),
    "signal, broken": ("/tasks/RUN/COMPLETED/signal", "{"),
}


@rule(difference="a body or a status that cannot be read is the client's error: 400, not 500")
def bad_bodies_of_tasks(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task_id = server.task(run_id, "a")["taskId"]
    ids = f'"taskId": "{task_id}", "workflowInstanceId": "{run_id}"'
    answers = {
        name: server.request("POST", path.replace("RUN", run_id), raw=text.replace("%s", ids))
        for name, (path, text) in BAD_BODIES.items()
    }
    assert server.task(run_id, "a")["status"] == "SCHEDULED"
    for name, answer in answers.items():
        assert answer.status == (400 if server.is_ours else 500), (name, answer)
        assert sorted(answer.body) == ["instance", "message", "retryable", "status"]
        assert answer.body["message"]
    return {name: answer.status for name, answer in answers.items()}


@rule(difference="no body is no output; the real server answers 500")
def a_result_by_name_without_a_body(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    answer = server.request("POST", f"/tasks/{run_id}/a/COMPLETED", raw="")
    assert answer.status == (200 if server.is_ours else 500)
    assert server.task(run_id, "a")["status"] == ("COMPLETED" if server.is_ours else "SCHEDULED")
    return answer.status


@rule(difference="a query value of the wrong kind is the client's error: 400, not 500")
def bad_queries_of_tasks(server: Server) -> Json:
    answers = {
        "count": server.get("/tasks/poll/batch/~a", count="many"),
        "timeout": server.get("/tasks/poll/batch/~a", timeout="long"),
        "no type": server.get("/tasks/queue/size"),
        "no types": server.get("/tasks/queue/sizes"),
        "poll data": server.get("/tasks/queue/polldata"),
    }
    for name, answer in answers.items():
        assert answer.status == (400 if server.is_ours else 500), (name, answer)
        assert sorted(answer.body) == ["instance", "message", "retryable", "status"]
    return {name: answer.status for name, answer in answers.items()}


@rule()
def health_is_told_at_two_paths(server: Server) -> Json:
    answers = [server.get("//health"), server.get("/health")]
    assert all(answer.body["healthy"] for answer in answers)
    return answers


@rule()
def the_version_is_text(server: Server) -> Json:
    answer = server.get("/version")
    assert answer.body
    wrong = server.post("/version")
    return [answer.status, answer.content_type, wrong]


@rule(difference="JSON is read whatever its Content-Type says; the real server answers 500")
def json_that_is_called_text(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.task(run_id, "a")
    result = {"taskId": task["taskId"], "workflowInstanceId": run_id, "status": "COMPLETED"}
    plain = server.request("POST", "/tasks", raw=json.dumps(result), content_type="text/plain")
    assert plain.status == (200 if server.is_ours else 500)
    return plain.status


@rule()
def an_accept_header_that_does_not_fit(server: Server) -> Json:
    """Some clients accept text only and still read JSON."""
    run_id = server.launch([simple("a")])
    answer = server.request("GET", f"/workflow/{run_id}", headers={"Accept": "text/plain"})
    assert answer.status == 200
    assert answer.body["workflowId"] == run_id
    return [answer.status, answer.content_type]
