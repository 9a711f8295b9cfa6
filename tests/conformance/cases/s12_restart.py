"""Section 12: restart (rule 228)."""

from __future__ import annotations

from tests.conformance.cases.families import (
    Family,
    child_of,
    fail,
    failed_family,
    finish,
    nameless,
    report,
    seen,
    settled,
)
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

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


@rule(228)
def restart_runs_again_from_the_top_under_the_same_id(server: Server) -> Json:
    run_id = server.launch(
        [
            simple("a", {"n": "${workflow.input.n}", "v": "${workflow.variables.v}"}),
            step("SET_VARIABLE", "set", {"v": "${a.output.x}"}),
            simple("b"),
        ],
        {"n": 1},
        request={"correlationId": "~c", "priority": 7},
        variables={"v": "given"},
        outputParameters={"v": "${workflow.variables.v}"},
    )
    report(server, run_id, "a", output={"x": 5})
    fail(server, run_id, "b")
    failed = settled(server, run_id)
    ok(server.post(f"/workflow/{run_id}/retry"))
    report(server, run_id, "b", "FAILED_WITH_TERMINAL_ERROR")
    failed = settled(server, run_id)
    answer = server.post(f"/workflow/{run_id}/restart")
    assert answer.status == 204
    running = server.run(run_id)
    assert [running["createTime"] > failed["createTime"], running["lastRetriedTime"]] == [True, 0]
    # The variables are those that the run had when it ended.
    assert last_task(running, "a")["inputData"] == {"n": 1, "v": 5}
    old = {task["taskId"] for task in failed["tasks"]}
    assert old.isdisjoint(task["taskId"] for task in running["tasks"])
    polled = server.take("~a")
    assert polled["taskId"] == running["tasks"][0]["taskId"]
    server.update(polled, output={"x": 6})
    finish(server, run_id)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    fields = ("input", "output", "variables", "correlationId", "priority", "workflowVersion")
    return [
        answer,
        [nameless(seen(run)) for run in (failed, running, ended)],
        [pick(run, *fields, "endTime") for run in (failed, running, ended)],
    ]


@rule(228)
def restart_of_each_status(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    server.register(workflow([simple("a")]))
    ids = {}
    for status in ("COMPLETED", "FAILED", "CANCELED"):
        ids[status] = server.start()
        report(server, ids[status], "a", status)
        settled(server, ids[status])
    ids["running"] = server.start()
    ids["paused"] = server.start()
    ok(server.put(f"/workflow/{ids['paused']}/pause"))
    ids["unknown"] = UNKNOWN
    answers = {what: server.post(f"/workflow/{found}/restart") for what, found in ids.items()}
    assert [answer.status for answer in answers.values()] == [204, 204, 204, 409, 409, 404]
    runs = {what: server.run(found)["status"] for what, found in ids.items() if what != "unknown"}
    assert list(runs.values()) == ["RUNNING"] * 4 + ["PAUSED"]
    return [answers, runs]


@rule(228)
def a_run_that_is_not_restartable_is_restarted_only_when_it_failed(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0), workflow([simple("a")], restartable=False))
    failed, completed = server.start(), server.start()
    report(server, failed, "a", "FAILED")
    report(server, completed, "a")
    for run_id in (failed, completed):
        settled(server, run_id)
    answers = [server.post(f"/workflow/{run_id}/restart") for run_id in (failed, completed)]
    assert [answer.status for answer in answers] == [204, 404]
    return [answers, server.run(completed)["status"]]


@rule(228)
def restart_with_the_latest_definitions(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a")])
    report(server, run_id, "a", "FAILED")
    settled(server, run_id)
    server.register(workflow([simple("a"), simple("b")]))
    server.register({**workflow([simple("c")]), "version": 3})
    server.register(task_def("~c", retryCount=5))
    ok(server.post(f"/workflow/{run_id}/restart"))
    same = server.run(run_id)
    assert list(statuses(same)) == ["a"]
    report(server, run_id, "a", "FAILED")
    settled(server, run_id)
    ok(server.post(f"/workflow/{run_id}/restart", useLatestDefinitions=True))
    latest = server.run(run_id)
    assert [latest["workflowVersion"], list(statuses(latest))] == [3, ["c"]]
    definition = latest["workflowDefinition"]["tasks"][0]["taskDefinition"]
    assert definition["retryCount"] == 5
    report(server, run_id, "c")
    return [
        [same["workflowVersion"], len(same["workflowDefinition"]["tasks"])],
        nameless(seen(server.ended(run_id))),
    ]


@rule(228, difference="the failed tasks of its life before are forgotten; the real run shows them")
def a_restarted_run_forgets_the_names_of_failed_tasks(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    fail(server, run_id, "a")
    assert settled(server, run_id)["failedReferenceTaskNames"] == ["a"]
    ok(server.post(f"/workflow/{run_id}/restart"))
    report(server, run_id, "a")
    run = server.ended(run_id)
    assert run["failedReferenceTaskNames"] == ([] if server.is_ours else ["a"])
    return pick(run, "failedReferenceTaskNames", "failedTaskNames")


@rule(228, recorded=True)
def restart_of_a_child_brings_its_parent_back(server: Server) -> Json:
    made = failed_family(server, 1)
    ok(server.post(f"/workflow/{made.leaf}/restart"))
    revived = made.revived()
    assert statuses(server.run(made.leaf)) == {"inner": "SCHEDULED"}
    ended = made.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 2
    return nameless([*revived, *ended])


@rule(228, recorded=True)
def restart_at_depth_3_brings_all_above_back(server: Server) -> Json:
    made = failed_family(server, 3)
    ok(server.post(f"/workflow/{made.leaf}/restart"))
    revived = made.revived()
    ended = made.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 4
    return nameless([*revived, *ended])


@rule(228, recorded=True)
def restart_of_a_parent_starts_new_children(server: Server) -> Json:
    made = failed_family(server, 2)
    top, middle, leaf = made.ids
    ok(server.post(f"/workflow/{top}/restart"))
    ids = [top]
    for _ in range(2):
        ids.append(child_of(server, ids[-1]))
    assert not {middle, leaf} & set(ids)
    again = Family(server, ids)
    ended = again.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 3
    return [nameless(ended), [server.run(old)["status"] for old in (middle, leaf)]]
