"""The paths of docs/conductor/rest-api.md, section Metadata: good calls and the usual bad ones."""

from __future__ import annotations

from tests.conformance.harness import (
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


@rule()
def post_workflow_creates_and_conflicts(server: Server) -> Json:
    first = server.post("/metadata/workflow", workflow([simple("a")]))
    again = server.post("/metadata/workflow", workflow([simple("a")]))
    over = server.post("/metadata/workflow", workflow([simple("b")]), overwrite=True)
    second = server.post("/metadata/workflow", {**workflow([simple("c")]), "version": 2})
    assert [answer.status for answer in (first, again, over, second)] == [200, 409, 200, 200]
    kept = ok(server.get("/metadata/workflow/~w", version=1)).body
    assert [made["name"] for made in kept["tasks"]] == ["~b"]
    return [first, again, over, second]


@rule()
def put_workflow_takes_a_list(server: Server) -> Json:
    definitions = [
        workflow([simple("a")]),
        {**workflow([simple("a")]), "version": 2},
        workflow([simple("a")], "~v"),
    ]
    created = server.put("/metadata/workflow", definitions)
    updated = server.put("/metadata/workflow", [workflow([simple("b")])])
    assert [created.status, updated.status] == [200, 200]
    kept = ok(server.get("/metadata/workflow/~w", version=1)).body
    assert [made["name"] for made in kept["tasks"]] == ["~b"]
    return [created, updated]


@rule()
def get_workflow_by_name_and_version(server: Server) -> Json:
    for version in (1, 3, 2):
        server.register({**workflow([simple("a")]), "version": version})
    answers = {
        "latest": server.get("/metadata/workflow/~w"),
        "2": server.get("/metadata/workflow/~w", version=2),
        "0": server.get("/metadata/workflow/~w", version=0),
        "9": server.get("/metadata/workflow/~w", version=9),
        "unknown": server.get("/metadata/workflow/~none"),
        "unknown, version": server.get("/metadata/workflow/~none", version=1),
    }
    assert answers["latest"].body["version"] == 3
    assert answers["2"].body["version"] == 2
    return answers


@rule()
def a_definition_reads_back_as_it_was_posted(server: Server) -> Json:
    """Whole: every default the real server fills in, every field it knows."""
    definition = workflow(
        [
            simple("a", {"x": "${workflow.input.x}", "n": None}, optional=True, startDelay=3),
            step(
                "SWITCH",
                "s",
                {"v": "${a.output.v}"},
                evaluatorType="value-param",
                expression="v",
                decisionCases={"x": [simple("b")], "empty": []},
                defaultCase=[step("TERMINATE", "t", {"terminationStatus": "FAILED"})],
            ),
            step("FORK_JOIN", "f", forkTasks=[[simple("c")], [simple("d"), simple("e")]]),
            step("JOIN", "j", joinOn=["c", "e"]),
            step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=[simple("g")]),
            step("SUB_WORKFLOW", "sub", {}, subWorkflowParam={"name": "~c", "version": 2}),
            step("WAIT", "w", {"duration": "1 minute"}),
        ],
        description="all of it",
        inputParameters=["x", "y"],
        outputParameters={"o": "${a.output}"},
        inputTemplate={"x": 1},
        variables={"v": [1, {"w": None}]},
        failureWorkflow="~f",
        timeoutPolicy="TIME_OUT_WF",
        timeoutSeconds=60,
        ownerEmail="me@example.com",
        restartable=False,
        workflowStatusListenerEnabled=True,
        metadata={"team": "orders"},
    )
    ok(server.post("/metadata/workflow", definition))
    answer = server.get("/metadata/workflow/~w")
    assert answer.body["tasks"][0]["inputParameters"] == {"x": "${workflow.input.x}", "n": None}
    return answer


@rule(difference="unknown fields of definitions are kept")
def unknown_fields_of_a_definition_read_back(server: Server) -> Json:
    definition = workflow([simple("a", heard={"of": "nothing"})], unheard={"of": [1]})
    ok(server.post("/metadata/workflow", definition))
    kept = ok(server.get("/metadata/workflow/~w")).body
    assert ("unheard" in kept) == server.is_ours
    assert ("heard" in kept["tasks"][0]) == server.is_ours
    return [kept.get("unheard"), kept["tasks"][0].get("heard")]


@rule()
def lists_of_workflows(server: Server) -> Json:
    for version in (2, 1):
        server.register({**workflow([simple("a")]), "version": version})
    server.register(workflow([simple("a")], "~v"))

    def mine(definitions: Json) -> Json:
        found = [found for found in definitions if found["name"].startswith("~")]
        found.sort(key=lambda found: (found["name"], found["version"]))
        return [pick(found, "name", "version") for found in found]

    every = server.get("/metadata/workflow")
    latest = server.get("/metadata/workflow/latest-versions")
    names = server.get("/metadata/workflow/names")
    summaries = server.get("/metadata/workflow/names-and-versions")
    versions = server.get("/metadata/workflow/~w/versions")
    none = server.get("/metadata/workflow/~none/versions")
    answers = (every, latest, names, summaries, versions, none)
    assert [answer.status for answer in answers] == [200] * 6
    assert len(mine(every.body)) == 3
    assert [found["version"] for found in mine(latest.body)] == [1, 2]
    return [
        [answer.content_type for answer in answers],
        mine(every.body),
        mine(latest.body),
        [name for name in names.body if name.startswith("~")],
        {name: found for name, found in summaries.body.items() if name.startswith("~")},
        versions,
        none,
    ]


@rule()
def delete_workflow(server: Server) -> Json:
    for version in (1, 2):
        server.register({**workflow([simple("a")]), "version": version})
    deleted = server.delete("/metadata/workflow/~w/1")
    assert deleted.status == 200
    gone = server.get("/metadata/workflow/~w", version=1)
    left = server.get("/metadata/workflow/~w")
    assert [gone.status, left.body["version"]] == [404, 2]
    return [
        deleted,
        gone,
        server.delete("/metadata/workflow/~w/2"),
        server.get("/metadata/workflow/~w"),
    ]


@rule(difference="what is not there cannot be deleted: 404, as on Redis; the SQL stores say 500")
def delete_what_is_not_there(server: Server) -> Json:
    answers = [
        server.delete("/metadata/workflow/~none/1"),
        server.delete("/metadata/taskdefs/~none"),
    ]
    assert [answer.status for answer in answers] == ([404] * 2 if server.is_ours else [500] * 2)
    return [answer.status for answer in answers]


@rule()
def validate_says_nothing_of_a_good_workflow(server: Server) -> Json:
    answer = server.post("/metadata/workflow/validate", workflow([simple("a")]))
    assert answer.status == 200
    # It is only looked at.
    assert server.get("/metadata/workflow/~w").status == 404
    return answer


@rule()
def task_definitions_are_posted_read_and_deleted(server: Server) -> Json:
    fields: dict[str, Json] = {
        "description": "all of it",
        "retryCount": 5,
        "retryLogic": "EXPONENTIAL_BACKOFF",
        "retryDelaySeconds": 2,
        "timeoutSeconds": 60,
        "timeoutPolicy": "RETRY",
        "responseTimeoutSeconds": 30,
        "pollTimeoutSeconds": 20,
        "concurrentExecLimit": 3,
        "rateLimitPerFrequency": 10,
        "rateLimitFrequencyInSeconds": 5,
        "inputKeys": ["x"],
        "outputKeys": ["y"],
        "inputTemplate": {"x": 1},
        "ownerEmail": "me@example.com",
        "maxRetryDelaySeconds": 100,
        "backoffJitterMs": 10,
        "totalTimeoutSeconds": 600,
    }
    posted = server.post("/metadata/taskdefs", [task_def("~full", **fields), task_def("~bare")])
    assert posted.status == 200
    full, bare = (server.get(f"/metadata/taskdefs/{name}") for name in ("~full", "~bare"))
    assert pick(full.body, *fields) == fields
    every = server.get("/metadata/taskdefs")
    mine = sorted(found["name"] for found in every.body if found["name"].startswith("~"))
    assert mine == ["~bare", "~full"]
    deleted = server.delete("/metadata/taskdefs/~bare")
    gone = server.get("/metadata/taskdefs/~bare")
    assert [deleted.status, gone.status] == [200, 404]
    return [posted, full, bare, [every.status, every.content_type], deleted, gone]


@rule()
def put_of_a_task_definition(server: Server) -> Json:
    server.register(task_def("~t", retryCount=1))
    updated = server.put("/metadata/taskdefs", task_def("~t", retryCount=2))
    unknown = server.put("/metadata/taskdefs", task_def("~none"))
    assert [updated.status, unknown.status] == [200, 404]
    return [updated, unknown, ok(server.get("/metadata/taskdefs/~t")).body["retryCount"]]


@rule()
def wrong_methods_of_metadata(server: Server) -> Json:
    answers = {
        f"{method} {path}": server.request(method, path)
        for method, path in (
            ("DELETE", "/metadata/workflow"),
            ("PATCH", "/metadata/workflow"),
            ("POST", "/metadata/workflow/~w"),
            ("PUT", "/metadata/workflow/~w"),
            ("GET", "/metadata/workflow/~w/1"),
            ("PUT", "/metadata/workflow/validate"),
            ("DELETE", "/metadata/taskdefs"),
            ("POST", "/metadata/taskdefs/~t"),
        )
    }
    assert {answer.status for answer in answers.values()} == {405}
    return answers


@rule()
def unknown_paths_of_metadata(server: Server) -> Json:
    answers = [
        server.get("/metadata"),
        server.get("/metadata/nothing"),
        server.get("/metadata/workflow/~w/1/2"),
        server.delete("/metadata/workflow/~w/versions/1"),
        server.post("/metadata/tags", {}),
    ]
    assert {answer.status for answer in answers} == {404}
    return answers


# What a body can be that is no good: (method, path, text).
BAD_BODIES = {
    "broken": ("POST", "/metadata/workflow", '{"name": "~w", '),
    "no JSON": ("POST", "/metadata/workflow", "hello"),
    "list for object": ("POST", "/metadata/workflow", "[]"),
    "object for list": ("PUT", "/metadata/workflow", '{"name": "~w"}'),
    "list of text": ("PUT", "/metadata/workflow", '["~w"]'),
    "text for object": ("POST", "/metadata/workflow", '"~w"'),
    "wrong type": ("POST", "/metadata/workflow", '{"name": "~w", "tasks": "none"}'),
    "wrong number": ("POST", "/metadata/workflow", '{"name": "~w", "version": "one"}'),
    "unknown enum": ("POST", "/metadata/workflow", '{"name": "~w", "timeoutPolicy": "NEVER"}'),
    "validate": ("POST", "/metadata/workflow/validate", "{"),
    "task defs": ("POST", "/metadata/taskdefs", "[{"),
    "task defs, object": ("POST", "/metadata/taskdefs", '{"name": "~t"}'),
    "task def, list": ("PUT", "/metadata/taskdefs", '[{"name": "~t"}]'),
    "task def, enum": ("PUT", "/metadata/taskdefs", '{"name": "~t", "retryLogic": "SOON"}'),
    "task def, number": ("PUT", "/metadata/taskdefs", '{"name": "~t", "retryCount": "many"}'),
    "empty": ("POST", "/metadata/workflow", ""),
    "null": ("POST", "/metadata/workflow", "null"),
}


@rule(difference="a body that cannot be read is the client's error: 400, not 500")
def bad_bodies_of_metadata(server: Server) -> Json:
    answers = {
        name: server.request(method, path, raw=text)
        for name, (method, path, text) in BAD_BODIES.items()
    }
    for answer in answers.values():
        assert answer.status == (400 if server.is_ours else 500), answer
        assert sorted(answer.body) == ["instance", "message", "retryable", "status"]
        assert answer.body["message"]
    assert server.get("/metadata/workflow/~w").status == 404
    return {name: answer.status for name, answer in answers.items()}


@rule(difference="a version that is no number is the client's error: 400, not 500")
def versions_that_are_no_numbers(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    answers = [
        server.get("/metadata/workflow/~w", version="one"),
        server.delete("/metadata/workflow/~w/one"),
        server.post("/metadata/workflow", workflow([simple("a")]), overwrite="perhaps"),
    ]
    assert {answer.status for answer in answers} == {400 if server.is_ours else 500}
    return [answer.status for answer in answers]
