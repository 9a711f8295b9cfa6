"""Section 12: pause, resume, terminate, decide, reset callbacks (rules 225-227, 240, 241)."""

from __future__ import annotations

from tests.conformance.cases.families import child_of, seen, settled
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

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


@rule(225)
def a_paused_run_takes_results_and_schedules_nothing(server: Server) -> Json:
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a"), simple("a2")], [simple("b")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["a2", "b"]), simple("c")])
    taken = server.take("~a")
    answers = [server.put(f"/workflow/{run_id}/pause") for _ in range(2)]
    assert server.run(run_id)["status"] == "PAUSED"
    # A task in the queue is still polled, and both results are taken.
    server.work("~b", {"n": 2})
    server.update(taken, output={"n": 1})
    ok(server.put(f"/workflow/decide/{run_id}"))
    paused = server.run(run_id)
    assert statuses(paused) == {"f": "COMPLETED", "a": "COMPLETED", "b": "COMPLETED"} | {
        "j": "IN_PROGRESS"
    }
    assert server.poll("~a2") is None
    answers.append(server.put(f"/workflow/{run_id}/resume"))
    resumed = statuses(server.run(run_id))
    server.work("~a2")
    server.work("~c")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return [answers, pick(paused, "status"), statuses(paused), resumed, summary(run)["tasks"]]


@rule(225)
def a_failure_in_a_paused_run_shows_after_resume(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a"), simple("b")])
    ok(server.put(f"/workflow/{run_id}/pause"))
    server.work("~a", status="FAILED", reasonForIncompletion="no")
    paused = server.run(run_id)
    assert paused["status"] == "PAUSED"
    server.put(f"/workflow/{run_id}/resume")
    run = server.ended(run_id)
    assert run["status"] == "FAILED"
    return [statuses(paused), summary(run)]


@rule(225)
def a_failed_attempt_in_a_paused_run_is_retried_after_resume(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a")])
    ok(server.put(f"/workflow/{run_id}/pause"))
    server.work("~a", status="FAILED", reasonForIncompletion="no")
    paused = server.run(run_id)
    assert len(paused["tasks"]) == 1
    ok(server.put(f"/workflow/{run_id}/resume"))
    server.work("~a")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return [statuses(paused), summary(run)]


@rule(225)
def pause_does_not_reach_sub_workflows(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c"})
    run_id = server.launch([sub, simple("after")])
    child_id = child_of(server, run_id)
    ok(server.put(f"/workflow/{run_id}/pause"))
    server.work("~c1")
    server.work("~c2", {"done": 1})
    child = server.ended(child_id)
    assert child["status"] == "COMPLETED"
    paused = server.run(run_id)
    assert paused["status"] == "PAUSED"
    assert "after" not in statuses(paused)
    ok(server.put(f"/workflow/{run_id}/resume"))
    server.work("~after")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return [statuses(child), run["status"], last_task(run, "s")["outputData"]]


@rule(225)
def a_paused_sub_workflow_holds_its_parent(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c"})
    run_id = server.launch([sub, simple("after")])
    child_id = child_of(server, run_id)
    ok(server.put(f"/workflow/{child_id}/pause"))
    server.work("~c1")
    held = [server.run(child_id)["status"], server.run(run_id)["status"]]
    assert held == ["PAUSED", "RUNNING"]
    ok(server.put(f"/workflow/{child_id}/resume"))
    server.work("~c2")
    server.work("~after")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return [held, statuses(run)]


@rule(225, 226)
def pause_and_resume_of_ended_and_unknown_runs(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    server.work("~a")
    server.ended(run_id)
    answers = {
        f"{action} {what}": server.put(f"/workflow/{which}/{action}")
        for action in ("pause", "resume")
        for what, which in (("ended", run_id), ("unknown", UNKNOWN))
    }
    assert answers["pause ended"].status == 409
    assert answers["pause unknown"].status == answers["resume unknown"].status == 404
    assert server.run(run_id)["status"] == "COMPLETED"
    return {name: answer for name, answer in answers.items() if name != "resume ended"}


@rule(226, difference="a run in the wrong state is the client's error: 409, not 500")
def only_a_paused_run_is_resumed(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    running = server.put(f"/workflow/{run_id}/resume")
    ok(server.delete(f"/workflow/{run_id}"))
    terminated = server.put(f"/workflow/{run_id}/resume")
    for answer, status in ((running, "RUNNING"), (terminated, "TERMINATED")):
        assert answer.status == (409 if server.is_ours else 500)
        assert answer.message == (
            f"The workflow {run_id} is not PAUSED so cannot resume. Current status is {status}"
        )
    return [running, terminated]


@rule(226)
def resume_counts_the_workflow_timeout_anew(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    before = server.run(run_id)
    ok(server.put(f"/workflow/{run_id}/pause"))
    paused = server.run(run_id)
    ok(server.put(f"/workflow/{run_id}/resume"))
    after = server.run(run_id)
    assert "lastRetriedTime" not in paused or not paused["lastRetriedTime"]
    assert after["lastRetriedTime"] > before["createTime"]
    fields = ("status", "createTime", "lastRetriedTime", "endTime")
    return [pick(run, *fields) for run in (before, paused, after)]


@rule(227)
def terminate_cancels_what_is_alive(server: Server) -> Json:
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a")], [simple("b")], [step("HUMAN", "h")]])
    wait = step("WAIT", "w", {"duration": "1h"})
    run_id = server.launch(
        [simple("first"), fork, step("JOIN", "j", joinOn=["a", "b", "h"]), wait],
        outputParameters={"kept": "${first.output.n}"},
        failureWorkflow="~none",
    )
    server.work("~first", {"n": 1})
    taken = server.take("~a")
    answer = server.delete(f"/workflow/{run_id}", reason="no more")
    run = settled(server, run_id)
    assert run["status"] == "TERMINATED"
    assert server.poll("~b") is None
    late = server.update(taken, output={"late": 1})
    assert server.run(run_id)["status"] == "TERMINATED"
    return [answer, late, seen(run), pick(run, "output", "endTime"), statuses(server.run(run_id))]


@rule(227)
def terminate_of_each_status(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    server.register(workflow([simple("a")]))

    def ended(status: str) -> str:
        run_id = server.start()
        server.work("~a", status=status, reasonForIncompletion="mine")
        server.ended(run_id)
        return run_id

    completed, failed = ended("COMPLETED"), ended("FAILED")
    paused, twice = server.start(), server.start()
    ok(server.put(f"/workflow/{paused}/pause"))
    ok(server.delete(f"/workflow/{twice}", reason="one"))
    answers = {
        "completed": server.delete(f"/workflow/{completed}", reason="two"),
        "failed": server.delete(f"/workflow/{failed}", reason="two"),
        "paused": server.delete(f"/workflow/{paused}"),
        "twice": server.delete(f"/workflow/{twice}", reason="two"),
        "unknown": server.delete(f"/workflow/{UNKNOWN}"),
        "no id": server.delete("/workflow/no-id"),
    }
    assert answers["completed"].status == 409
    ids = {"completed": completed, "failed": failed, "paused": paused, "twice": twice}
    runs = {name: summary(server.run(run_id)) for name, run_id in ids.items()}
    assert runs["failed"]["status"] == "TERMINATED"
    assert runs["twice"]["reasonForIncompletion"] == "one"
    return [answers, runs]


@rule(227)
def terminate_reaches_children_and_theirs(server: Server) -> Json:
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c1"})
    deeper = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c2"})
    server.register(workflow([simple("leaf")], "~c2"))
    server.register(workflow([deeper], "~c1"))
    run_id = server.launch([sub])
    child_id = child_of(server, run_id)
    grand_id = child_of(server, child_id)
    ok(server.delete(f"/workflow/{run_id}", reason="why not"))
    runs = [server.ended(found) for found in (run_id, child_id, grand_id)]
    assert [run["status"] for run in runs] == ["TERMINATED"] * 3
    assert server.poll("~leaf") is None
    return [seen(run) for run in runs]


@rule(227)
def a_terminated_child_terminates_its_parent(server: Server) -> Json:
    server.register(workflow([simple("leaf")], "~c"))
    sub = step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c"})
    fork = step("FORK_JOIN", "f", forkTasks=[[sub], [simple("side")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["s", "side"])])
    child_id = child_of(server, run_id)
    ok(server.delete(f"/workflow/{child_id}", reason="why not"))
    run = settled(server, run_id)
    assert run["status"] == "TERMINATED"
    return [seen(run), seen(server.run(child_id))]


@rule(227)
def terminate_of_a_failed_parent_leaves_ended_children_alone(server: Server) -> Json:
    server.register(workflow([simple("leaf")], "~c"), task_def("~leaf", retryCount=0))
    run_id = server.launch([step("SUB_WORKFLOW", "s", {}, subWorkflowParam={"name": "~c"})])
    server.work("~leaf", status="FAILED", reasonForIncompletion="no")
    failed = server.ended(run_id)
    assert failed["status"] == "FAILED"
    ok(server.delete(f"/workflow/{run_id}", reason="after all"))
    run = server.run(run_id)
    assert run["status"] == "TERMINATED"
    child = server.run(last_task(run, "s")["subWorkflowId"])
    return [seen(failed), seen(run), seen(child)]


@rule(240)
def reset_callbacks_makes_waiting_tasks_visible(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=3600))
    server.register(task_def("~b", retryCount=0))
    fork = step(
        "FORK_JOIN",
        "f",
        forkTasks=[[simple("a")], [simple("b")], [step("WAIT", "w", {"duration": "1h"})]],
    )
    # "a" is not joined: the real server's JOIN may see its failed attempt and end the run.
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["b", "w"])])
    server.work("~a", status="FAILED")
    server.work("~b", status="IN_PROGRESS", callbackAfterSeconds=3600)
    waiting = {ref: server.task(run_id, ref)["callbackAfterSeconds"] for ref in "abw"}
    assert waiting == {"a": 3600, "b": 3600, "w": 3600}
    assert server.poll("~a") is None
    assert server.poll("~b") is None
    answer = server.post(f"/workflow/{run_id}/resetcallbacks")
    now = {ref: pick(server.task(run_id, ref), "callbackAfterSeconds", "status") for ref in "abw"}
    taken = [server.take(kind)["retryCount"] for kind in ("~a", "~b")]
    assert now["w"]["callbackAfterSeconds"] == 3600
    return [answer, waiting, now, taken]


@rule(240)
def reset_callbacks_of_ended_and_unknown_runs(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    fresh = server.post(f"/workflow/{run_id}/resetcallbacks")
    ok(server.delete(f"/workflow/{run_id}"))
    ended = server.post(f"/workflow/{run_id}/resetcallbacks")
    unknown = server.post(f"/workflow/{UNKNOWN}/resetcallbacks")
    assert [fresh.status, ended.status, unknown.status] == [204, 409, 404]
    return [fresh, ended, unknown]


@rule(241)
def decide_of_live_ended_and_unknown_runs(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    live = server.put(f"/workflow/decide/{run_id}")
    ok(server.put(f"/workflow/{run_id}/pause"))
    paused = server.put(f"/workflow/decide/{run_id}")
    assert server.run(run_id)["status"] == "PAUSED"
    ok(server.delete(f"/workflow/{run_id}"))
    ended = server.put(f"/workflow/decide/{run_id}")
    assert [live.status, paused.status, ended.status] == [200, 200, 200]
    unknown = server.put(f"/workflow/decide/{UNKNOWN}")
    return [live, paused, ended, unknown, summary(server.run(run_id))]
