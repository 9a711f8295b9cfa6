"""The paths of docs/conductor/rest-api.md, sections Workflow and Bulk.

What the control operations do is in s12_*.py; here is what the calls look like.
"""

from __future__ import annotations

import time

from tests.conformance.cases.families import report, settled
from tests.conformance.harness import (
    Answer,
    Json,
    Server,
    ok,
    pick,
    rule,
    simple,
    step,
    task_def,
    workflow,
)

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


def kinds(answers: dict[str, Answer]) -> Json:
    """Status and content type of each, and the body of those that are errors."""
    return {
        name: [answer.status, answer.content_type, answer.body if answer.status >= 400 else None]
        for name, answer in answers.items()
    }


@rule()
def starting_by_body_and_by_path(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    by_body = server.post("/workflow", {"name": "~w", "version": 1, "input": {"x": 1}})
    by_path = server.post("/workflow/~w", {"x": 2}, version=1, correlationId="~c", priority=5)
    bare = server.post("/workflow/~w", {})
    fields = ("input", "correlationId", "priority", "workflowVersion")
    runs = [server.run(str(answer.body)) for answer in (by_body, by_path, bare)]
    assert [run["input"] for run in runs] == [{"x": 1}, {"x": 2}, {}]
    return [[by_body, by_path], [pick(run, *fields) for run in runs]]


@rule()
def reading_a_run(server: Server) -> Json:
    run_id = server.launch([simple("a")], {"x": 1})
    whole = server.get(f"/workflow/{run_id}")
    bare = server.get(f"/workflow/{run_id}", includeTasks=False)
    short = server.get(f"/workflow/{run_id}", summarize=True)
    assert [len(answer.body["tasks"]) for answer in (whole, bare, short)] == [1, 0, 1]
    return [
        kinds({"whole": whole, "bare": bare}),
        [sorted(answer.body) for answer in (whole, bare)],
        server.get(f"/workflow/{UNKNOWN}"),
        server.get(f"/workflow/{UNKNOWN}", includeTasks=False),
        server.get("/workflow/no-id"),
    ]


@rule()
def the_status_of_a_run(server: Server) -> Json:
    run_id = server.launch([simple("a")], request={"correlationId": "~c"}, variables={"v": 1})
    report(server, run_id, "a", output={"x": 1})
    server.ended(run_id)
    answers = {
        "bare": server.get(f"/workflow/{run_id}/status"),
        "output": server.get(f"/workflow/{run_id}/status", includeOutput=True),
        "both": server.get(f"/workflow/{run_id}/status", includeOutput=True, includeVariables=True),
        "unknown": server.get(f"/workflow/{UNKNOWN}/status"),
    }
    assert answers["output"].body["output"] == {"x": 1}
    return answers


@rule()
def the_tasks_of_a_run_by_pages(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a"), simple("b"), simple("c")])
    report(server, run_id, "a", "FAILED")
    report(server, run_id, "a")
    report(server, run_id, "b")
    queries: dict[str, Json] = {
        "all": {},
        "first two": {"start": 0, "count": 2},
        "second": {"start": 1, "count": 1},
        "beyond": {"start": 10},
        "completed": {"status": "COMPLETED"},
        "two statuses": {"status": ["COMPLETED", "SCHEDULED"]},
        "none": {"status": "TIMED_OUT"},
    }
    said = {}
    for name, query in queries.items():
        answer = ok(server.get(f"/workflow/{run_id}/tasks", **query))
        said[name] = {
            "totalHits": answer.body["totalHits"],
            "results": [
                pick(task, "referenceTaskName", "status", "retryCount", "seq")
                for task in answer.body["results"]
            ],
        }
    assert len(said["all"]["results"]) == 4
    return [said, server.get(f"/workflow/{UNKNOWN}/tasks")]


def short(runs: Json) -> Json:
    return sorted((pick(run, "correlationId", "status") for run in runs), key=str)


@rule()
def runs_by_correlation_id(server: Server) -> Json:
    server.register(workflow([simple("a")]), workflow([simple("a")], "~v"))
    for correlation_id in ("~one", "~one", "~two"):
        server.start(correlationId=correlation_id)
    server.start("~v", correlationId="~one")
    done = server.start(correlationId="~one")
    report(server, done, "a")
    server.ended(done)
    path = "/workflow/~w/correlated"
    running = server.get(f"{path}/~one")
    closed = server.get(f"{path}/~one", includeClosed=True, includeTasks=True)
    none = server.get(f"{path}/~none")
    nobody = server.get("/workflow/~nobody/correlated/~one", includeClosed=True)
    many = server.post(path, ["~one", "~two", "~none"])
    many_closed = server.post(path, ["~one"], includeClosed=True, includeTasks=True)
    assert [len(answer.body) for answer in (running, closed, none)] == [2, 3, 0]
    tasks = [sorted({len(run["tasks"]) for run in answer.body}) for answer in (running, closed)]
    assert tasks == [[0], [1]]
    return [
        [short(answer.body) for answer in (running, closed)],
        none,
        nobody,
        {name: short(runs) for name, runs in many.body.items()},
        {name: short(runs) for name, runs in many_closed.body.items()},
        server.post(path, []),
        [running.content_type, many.content_type],
    ]


@rule()
def running_workflows_of_a_name(server: Server) -> Json:
    for version in (1, 2):
        server.register({**workflow([simple("a")]), "version": version})
    before = int(time.time() * 1000) - 1000
    first = server.start(version=1)
    second = server.start(version=2)
    done = server.start(version=1)
    report(server, done, "a")
    server.ended(done)
    answers = {
        "version 1": server.get("/workflow/running/~w"),
        "version 2": server.get("/workflow/running/~w", version=2),
        "version 3": server.get("/workflow/running/~w", version=3),
        "unknown": server.get("/workflow/running/~none"),
    }
    # The SQL stores of the real server do not look at the version.
    for name, answer in answers.items():
        wanted = set() if name == "unknown" else {first, second}
        assert set(answer.body) == wanted
    between = server.get(
        "/workflow/running/~w", version=1, startTime=before, endTime=before + 60_000
    )
    assert first in between.body
    return [kinds(answers), between.status]


@rule()
def execute_waits_for_the_end(server: Server) -> Json:
    server.register(workflow([step("SET_VARIABLE", "v", {"x": 1})], outputParameters={"y": 2}))
    answer = server.post(
        "/workflow/execute/~w/1", {"name": "~w", "input": {"z": 3}}, requestId="~r"
    )
    assert answer.status == 200
    assert answer.body["status"] == "COMPLETED"
    fields = ("status", "input", "output", "responseType", "targetWorkflowStatus", "variables")
    return [
        answer.content_type,
        sorted(answer.body),
        pick(answer.body, *fields),
        server.post("/workflow/execute/~none/1", {"name": "~none"}),
    ]


@rule()
def what_control_calls_answer(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a"), simple("b"), simple("c")])
    path = f"/workflow/{run_id}"
    answers = {
        "decide": server.put(f"/workflow/decide/{run_id}"),
        "pause": server.put(f"{path}/pause"),
        "resume": server.put(f"{path}/resume"),
        "reset": server.post(f"{path}/resetcallbacks"),
        "skip": server.put(f"{path}/skiptask/c"),
    }
    report(server, run_id, "a")
    report(server, run_id, "b", "FAILED_WITH_TERMINAL_ERROR")
    settled(server, run_id)
    answers["rerun"] = server.post(f"{path}/rerun", {})
    answers["terminate"] = server.delete(path)
    settled(server, run_id)
    answers["retry"] = server.post(f"{path}/retry")
    answers["terminate again"] = server.delete(path, reason="enough")
    settled(server, run_id)
    answers["restart"] = server.post(f"{path}/restart")
    answers["terminate-remove"] = server.delete(f"{path}/terminate-remove", archiveWorkflow=False)
    statuses = [answer.status for answer in answers.values()]
    assert statuses == [200, 200, 200, 204, 200, 200, 200, 204, 200, 204, 200]
    return answers


@rule()
def control_calls_on_what_is_unknown(server: Server) -> Json:
    def all_of(run_id: str) -> dict[str, Answer]:
        path = f"/workflow/{run_id}"
        return {
            "decide": server.put(f"/workflow/decide/{run_id}"),
            "pause": server.put(f"{path}/pause"),
            "resume": server.put(f"{path}/resume"),
            "skip": server.put(f"{path}/skiptask/a"),
            "rerun": server.post(f"{path}/rerun", {}),
            "restart": server.post(f"{path}/restart"),
            "retry": server.post(f"{path}/retry"),
            "reset": server.post(f"{path}/resetcallbacks"),
            "terminate": server.delete(path),
            "remove": server.delete(f"{path}/remove"),
            "terminate-remove": server.delete(f"{path}/terminate-remove"),
        }

    answers = [all_of(UNKNOWN), all_of("no-id")]
    assert {answer.status for found in answers for answer in found.values()} == {404}
    return answers


@rule()
def wrong_methods_and_unknown_paths_of_workflows(server: Server) -> Json:
    wrong = {
        f"{method} {path}": server.request(method, path)
        for method, path in (
            ("PUT", "/workflow"),
            ("GET", "/workflow"),
            ("PUT", f"/workflow/{UNKNOWN}"),
            ("POST", f"/workflow/{UNKNOWN}/pause"),
            ("GET", f"/workflow/{UNKNOWN}/rerun"),
            ("GET", f"/workflow/{UNKNOWN}/remove"),
            ("GET", "/workflow/execute/~w/1"),
            ("GET", "/workflow/~w/correlated"),
            ("POST", "/workflow/decide/~w"),
            ("GET", "/workflow/bulk/pause"),
            ("POST", "/workflow/bulk/pause"),
        )
    }
    unknown = {
        path: server.request(method, path)
        for method, path in (
            ("GET", f"/workflow/{UNKNOWN}/nothing"),
            ("POST", f"/workflow/{UNKNOWN}/variables"),
            ("PUT", "/workflow/bulk/nothing"),
            ("POST", "/workflow/execute/~w"),
        )
    }
    return [wrong, kinds(unknown)]


@rule()
def priorities_and_versions_of_a_start(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    return {
        "priority 100": server.post("/workflow", {"name": "~w", "priority": 100}),
        "priority -1": server.post("/workflow", {"name": "~w", "priority": -1}),
        "version 0": server.post("/workflow", {"name": "~w", "version": 0}),
        "version 7": server.post("/workflow/~w", {}, version=7),
        "version -1": server.post("/workflow/~w", {}, version=-1),
        "unknown": server.post("/workflow/~none", {}),
    }


BAD_BODIES = {
    "start, broken": ("POST", "/workflow", '{"name": "~w"'),
    "start, empty": ("POST", "/workflow", ""),
    "start, list": ("POST", "/workflow", "[]"),
    "start, text": ("POST", "/workflow", '"~w"'),
    "start, input": ("POST", "/workflow", '{"name": "~w", "input": "x"}'),
    "start, version": ("POST", "/workflow", '{"name": "~w", "version": "one"}'),
    "start, domains": ("POST", "/workflow", '{"name": "~w", "taskToDomain": [1]}'),
    "start, priority": ("POST", "/workflow", '{"name": "~w", "priority": "high"}'),
    "by path, list": ("POST", "/workflow/~w", "[1]"),
    "by path, broken": ("POST", "/workflow/~w", "{"),
    "execute, broken": ("POST", "/workflow/execute/~w/1", "{"),
    "correlated, object": ("POST", "/workflow/~w/correlated", "{}"),
    "rerun, broken": ("POST", "/workflow/RUN/rerun", "{"),
    "rerun, empty": ("POST", "/workflow/RUN/rerun", ""),
    "rerun, list": ("POST", "/workflow/RUN/rerun", "[]"),
    "bulk, object": ("PUT", "/workflow/bulk/pause", "{}"),
    "bulk, empty": ("PUT", "/workflow/bulk/pause", ""),
    "bulk, broken": ("POST", "/workflow/bulk/terminate", "["),
}


@rule(difference="a body that cannot be read is the client's error: 400, not 500")
def bad_bodies_of_workflows(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    ok(server.delete(f"/workflow/{run_id}"))
    answers = {
        name: server.request(method, path.replace("RUN", run_id), raw=text)
        for name, (method, path, text) in BAD_BODIES.items()
    }
    for name, answer in answers.items():
        assert answer.status == (400 if server.is_ours else 500), (name, answer)
        assert sorted(answer.body) == ["instance", "message", "retryable", "status"]
        assert answer.body["message"]
    assert server.run(run_id)["status"] == "TERMINATED"
    return {name: answer.status for name, answer in answers.items()}


@rule(difference="no body is no input; the real server answers 500")
def starting_by_path_without_a_body(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    answer = server.request("POST", "/workflow/~w", raw="")
    assert answer.status == (200 if server.is_ours else 500)
    return answer.status


@rule(difference="a query value of the wrong kind is the client's error: 400, not 500")
def bad_queries_of_workflows(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    answers = {
        "version": server.post("/workflow/~w", {}, version="one"),
        "priority": server.post("/workflow/~w", {}, priority="high"),
        "tasks": server.get(f"/workflow/{run_id}", includeTasks="perhaps"),
        "count": server.get(f"/workflow/{run_id}/tasks", count="many"),
        "running": server.get("/workflow/running/~w", version="one"),
        "closed": server.get("/workflow/~w/correlated/~c", includeClosed="x"),
        "resume": server.post(f"/workflow/{run_id}/retry", resumeSubworkflowTasks="x"),
        "archive": server.delete(f"/workflow/{run_id}/remove", archiveWorkflow="x"),
        "execute": server.request("POST", "/workflow/execute/~w/one", {"name": "~w"}),
        "strategy": server.post("/workflow/execute/~w/1", {"name": "~w"}, returnStrategy="ALL"),
    }
    for name, answer in answers.items():
        assert answer.status == (400 if server.is_ours else 500), (name, answer)
        assert sorted(answer.body) == ["instance", "message", "retryable", "status"]
    assert server.run(run_id)["status"] == "RUNNING"
    return {name: answer.status for name, answer in answers.items()}
