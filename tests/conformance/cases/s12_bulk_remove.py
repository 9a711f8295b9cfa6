"""Section 12: remove and bulk calls (rules 242, 243)."""

from __future__ import annotations

from tests.conformance.cases.families import report, settled
from tests.conformance.harness import (
    Answer,
    Json,
    Server,
    ok,
    pick,
    rule,
    simple,
    task_def,
    workflow,
)

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


def some_runs(server: Server) -> dict[str, str]:
    """{what: id} of a running, a paused, a failed, a terminated and a completed run of "~w"."""
    server.register(task_def("~a", retryCount=0), workflow([simple("a")]))
    ids = {name: server.start() for name in ("running", "paused", "failed", "terminated")}
    ids["completed"] = server.start()
    ok(server.put(f"/workflow/{ids['paused']}/pause"))
    report(server, ids["failed"], "a", "FAILED", reasonForIncompletion="no")
    report(server, ids["completed"], "a")
    ok(server.delete(f"/workflow/{ids['terminated']}", reason="one"))
    for name in ("failed", "completed", "terminated"):
        settled(server, ids[name])
    return ids


def states(server: Server, ids: dict[str, str]) -> Json:
    answers = {what: server.get(f"/workflow/{run_id}") for what, run_id in ids.items()}
    return {
        what: pick(answer.body, "status", "reasonForIncompletion", "message")
        for what, answer in answers.items()
    }


def bulk(server: Server, method: str, action: str, **query: Json) -> Json:
    """Do it to one run of each kind and to an id that is unknown."""
    ids = some_runs(server)
    answer = server.request(
        method, f"/workflow/bulk/{action}", [*ids.values(), UNKNOWN, "no-id"], **query
    )
    assert answer.status == 200
    done, errors = answer.body["bulkSuccessfulResults"], answer.body["bulkErrorResults"]
    names = {run_id: what for what, run_id in ids.items()}
    return [
        answer.content_type,
        # terminate-remove of the real server names each twice: terminated and removed.
        sorted({names.get(run_id, run_id) for run_id in done}),
        {names.get(run_id, run_id): text for run_id, text in errors.items()},
        sorted(answer.body),
        states(server, ids),
    ]


@rule(225, 243)
def bulk_pause(server: Server) -> Json:
    return bulk(server, "PUT", "pause")


@rule(226, 243)
def bulk_resume(server: Server) -> Json:
    return bulk(server, "PUT", "resume")


@rule(228, 243)
def bulk_restart(server: Server) -> Json:
    return bulk(server, "POST", "restart")


@rule(228, 243)
def bulk_restart_with_the_latest_definitions(server: Server) -> Json:
    return bulk(server, "POST", "restart", useLatestDefinitions=True)


@rule(229, 243)
def bulk_retry(server: Server) -> Json:
    return bulk(server, "POST", "retry")


@rule(227, 243)
def bulk_terminate(server: Server) -> Json:
    return bulk(server, "POST", "terminate", reason="enough")


@rule(227, 243)
def bulk_terminate_without_reason(server: Server) -> Json:
    return bulk(server, "POST", "terminate")


@rule(242, 243)
def bulk_remove(server: Server) -> Json:
    return bulk(server, "DELETE", "remove", archiveWorkflow=False)


@rule(242, 243)
def bulk_terminate_remove(server: Server) -> Json:
    return bulk(server, "DELETE", "terminate-remove", archiveWorkflow=False, reason="enough")


@rule(243)
def bulk_search_gives_whole_runs(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    run_id = server.start()
    answers = [
        server.post("/workflow/bulk/search", [run_id, UNKNOWN], **query)
        for query in ({}, {"includeTasks": False})
    ]
    assert [answer.status for answer in answers] == [200, 200]
    runs = [answer.body["bulkSuccessfulResults"][0] for answer in answers]
    assert [len(run["tasks"]) for run in runs] == [1, 0]
    return [
        [answer.body["bulkErrorResults"] for answer in answers],
        [pick(run, "workflowId", "status") for run in runs],
    ]


ACTIONS = (
    ("PUT", "pause"),
    ("PUT", "resume"),
    ("POST", "restart"),
    ("POST", "retry"),
    ("POST", "terminate"),
    ("DELETE", "remove"),
    ("DELETE", "terminate-remove"),
)


@rule(243)
def bulk_calls_take_1_to_1000_ids(server: Server) -> Json:
    none = [server.request(method, f"/workflow/bulk/{action}", []) for method, action in ACTIONS]
    assert [answer.status for answer in none] == [400] * 7
    many = [f"no-id-{number}" for number in range(1001)]
    over = [server.request(method, f"/workflow/bulk/{action}", many) for method, action in ACTIONS]
    assert [answer.status for answer in over] == [400] * 7
    full = server.put("/workflow/bulk/pause", many[:1000])
    assert full.status == 200
    assert len(full.body["bulkErrorResults"]) == 1000
    # The refused value of 1001 ids is printed whole: only that it is there counts.
    for answer in over:
        for error in answer.body["validationErrors"]:
            error.pop("invalidValue", None)
    return [none, over, full.body["bulkErrorResults"]["no-id-999"]]


@rule(243)
def an_id_that_is_named_twice(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    run_id = server.start()
    paused = server.put("/workflow/bulk/pause", [run_id, run_id])
    assert server.run(run_id)["status"] == "PAUSED"
    resumed = server.put("/workflow/bulk/resume", [run_id, run_id])
    assert server.run(run_id)["status"] == "RUNNING"
    # Whether it is named twice, or an error the second time, is of no use to anybody.
    found = [set(answer.body["bulkSuccessfulResults"]) for answer in (paused, resumed)]
    assert found == [{run_id}, {run_id}]
    return [paused.status, resumed.status]


def removed(server: Server, run_id: str) -> Answer:
    """What reading a run says that is gone."""
    answer = server.get(f"/workflow/{run_id}")
    assert answer.status == 404
    return answer


@rule(242)
def remove_deletes_a_run_of_any_status(server: Server) -> Json:
    ids = some_runs(server)
    task_id = server.run(ids["running"])["tasks"][0]["taskId"]
    answers = {}
    for what, run_id in ids.items():
        answers[what] = server.delete(f"/workflow/{run_id}/remove", archiveWorkflow=False)
        assert answers[what].status == 200
        removed(server, run_id)
    # Its tasks are gone as well: nobody gets them.
    assert server.get(f"/tasks/{task_id}").status == 404
    assert server.poll("~a") is None
    again = server.delete(f"/workflow/{ids['running']}/remove", archiveWorkflow=False)
    return [answers, removed(server, ids["running"]), again]


@rule(242)
def archiving_needs_an_ended_run(server: Server) -> Json:
    ids = some_runs(server)
    del ids["terminated"]
    answers = {what: server.delete(f"/workflow/{run_id}/remove") for what, run_id in ids.items()}
    assert [answers[what].status for what in ("running", "paused")] == [400, 400]
    assert [answers[what].status for what in ("failed", "completed")] == [200, 200]
    assert server.run(ids["running"])["status"] == "RUNNING"
    return answers


@rule(242)
def terminate_remove_does_both(server: Server) -> Json:
    ids = some_runs(server)
    answers = {
        what: server.delete(
            f"/workflow/{run_id}/terminate-remove", archiveWorkflow=False, reason="enough"
        )
        for what, run_id in ids.items()
    }
    assert answers["running"].status == 200
    assert answers["completed"].status == 409
    unknown = server.delete(f"/workflow/{UNKNOWN}/terminate-remove")
    for what in ("running", "paused", "failed", "terminated"):
        removed(server, ids[what])
    return [answers, unknown, states(server, ids)]


@rule(242)
def remove_of_an_unknown_run(server: Server) -> Json:
    answers = [
        server.delete(f"/workflow/{UNKNOWN}/remove"),
        server.delete(f"/workflow/{UNKNOWN}/remove", archiveWorkflow=False),
        server.delete("/workflow/no-id/remove"),
    ]
    assert [answer.status for answer in answers] == [404, 404, 404]
    return answers
