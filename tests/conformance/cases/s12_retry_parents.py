"""Section 12: retry of runs with children and of children with parents (rules 232, 233).

These are recorded: while it brings parents back, the real server now and then evaluates a JOIN
half-way and ends the run again.
"""

from __future__ import annotations

from tests.conformance.cases.families import (
    Family,
    child_of,
    fail,
    failed_family,
    family,
    finish,
    nameless,
    report,
    seen,
    settled,
    sub,
)
from tests.conformance.harness import (
    TERMINAL,
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


def retry(server: Server, run_id: str, **query: Json) -> Json:
    return ok(server.post(f"/workflow/{run_id}/retry", **query))


def retried_at_the_leaf(server: Server, depth: int) -> Json:
    """Fail a family at its leaf and retry the leaf: all above it go on in place."""
    made = failed_family(server, depth)
    failed = made.seen()
    retry(server, made.leaf)
    revived = made.revived()
    # "inner" is not done again: it stands once, and the first to be done is "leaf".
    inner = [t for t in server.run(made.leaf)["tasks"] if t["referenceTaskName"] == "inner"]
    assert len(inner) == 1
    ended = made.finish()
    assert all(run["status"] == "COMPLETED" for run in ended)
    return [failed, revived, ended]


@rule(233, recorded=True)
def retry_of_a_child_brings_its_parent_back(server: Server) -> Json:
    return retried_at_the_leaf(server, 1)


@rule(233, recorded=True)
def retry_of_a_grandchild_brings_both_above_back(server: Server) -> Json:
    return retried_at_the_leaf(server, 2)


@rule(233, recorded=True)
def retry_at_depth_3_brings_all_above_back(server: Server) -> Json:
    return retried_at_the_leaf(server, 3)


def resumed_from_the_top(server: Server, depth: int) -> Json:
    made = failed_family(server, depth)
    retry(server, made.ids[0], resumeSubworkflowTasks=True)
    revived = made.revived()
    assert last_task(server.run(made.leaf), "leaf")["retryCount"] == 1
    ended = made.finish()
    assert all(run["status"] == "COMPLETED" for run in ended)
    return [revived, ended]


@rule(232, recorded=True)
def retry_with_sub_workflows_goes_down_one_level(server: Server) -> Json:
    return resumed_from_the_top(server, 1)


@rule(232, recorded=True)
def retry_with_sub_workflows_goes_down_to_the_deepest(server: Server) -> Json:
    return resumed_from_the_top(server, 3)


@rule(232, recorded=True)
def retry_without_sub_workflows_starts_a_new_child(server: Server) -> Json:
    made = failed_family(server, 1)
    top, old_id = made.ids
    retry(server, top, resumeSubworkflowTasks=False)
    new_id = child_of(server, top)
    assert new_id != old_id
    running = seen(server.run(top))
    again = Family(server, [top, new_id])
    ended = again.finish()
    assert ended[0]["status"] == "COMPLETED"
    return [running, ended, seen(server.run(old_id))]


@rule(232, 233, recorded=True)
def retry_in_the_middle_starts_a_new_child_and_revives_above(server: Server) -> Json:
    made = failed_family(server, 2)
    top, middle, old_id = made.ids
    retry(server, middle)
    new_id = child_of(server, middle)
    assert new_id != old_id
    again = Family(server, [top, middle, new_id])
    revived = again.revived()
    assert revived[0]["tasks"][1]["subWorkflowId"] == middle
    ended = again.finish()
    assert ended[0]["status"] == "COMPLETED"
    return [revived, ended, server.run(old_id)["status"]]


@rule(233, recorded=True)
def a_child_is_retried_twice(server: Server) -> Json:
    made = failed_family(server, 1)
    retry(server, made.leaf)
    made.revived()
    report(server, made.leaf, "leaf")
    fail(server, made.leaf, "tail", "later")
    failed = made.ended()
    assert failed[0]["status"] == "FAILED"
    retry(server, made.leaf)
    made.revived()
    ended = made.finish()
    assert ended[0]["status"] == "COMPLETED"
    return [failed, ended]


def half_done_children(server: Server) -> list[str]:
    """Three children in a dynamic fork; of the second and third one step is done. [run, *them]"""
    server.register(workflow([simple("c1"), simple("c2"), simple("c3")], "~c"))
    names = ["x", "y", "z"]
    branches = [sub(name, "~c") for name in names]
    fork = step(
        "FORK_JOIN_DYNAMIC",
        "f",
        {"t": branches, "i": {name: {} for name in names}},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )
    run_id = server.launch([fork, step("JOIN", "j"), simple("after")])
    children = [child_of(server, run_id, name) for name in names]
    for child_id in children[1:]:
        report(server, child_id, "c1", output={"done": 1})
        server.task_when(child_id, "c2", "SCHEDULED")
    return [run_id, *children]


@rule(233, recorded=True)
def siblings_of_a_retried_child_go_on_in_place(server: Server) -> Json:
    run_id, first, second, third = half_done_children(server)
    finish(server, first)
    server.task_when(run_id, "x", "COMPLETED")
    fail(server, second, "c2")
    family = Family(server, [run_id, first, second, third])
    failed = family.ended()
    assert [run["status"] for run in failed] == ["FAILED", "COMPLETED", "FAILED", "TERMINATED"]
    retry(server, second)
    for found in (run_id, third):
        server.run_when(found, lambda run: run["status"] == "RUNNING")
    server.run_when(run_id, lambda run: statuses(run)["z"] == statuses(run)["y"] == "IN_PROGRESS")
    revived = family.seen()
    for child_id in (second, third):
        finish(server, child_id)
    finish(server, run_id)
    ended = family.ended()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 4
    # Nobody did a finished step again, and no child was started anew.
    first_steps = [t["referenceTaskName"] for run in ended[1:] for t in run["tasks"]]
    assert first_steps.count("c1") == 3
    assert [task["subWorkflowId"] for task in ended[0]["tasks"] if "subWorkflowId" in task] == [
        first,
        second,
        third,
    ]
    return [failed, revived, ended]


@rule(232, recorded=True)
def retry_with_sub_workflows_takes_the_first_failed_child_along(server: Server) -> Json:
    run_id, first, second, third = half_done_children(server)
    family = Family(server, [run_id, first, second, third])
    ok(server.delete(f"/workflow/{run_id}", reason="all of them"))
    terminated = family.ended()
    assert [run["status"] for run in terminated] == ["TERMINATED"] * 4
    retry(server, run_id, resumeSubworkflowTasks=True)
    for found in family.ids:
        server.run_when(found, lambda run: run["status"] == "RUNNING")
    server.run_when(run_id, lambda run: [statuses(run)[n] for n in "xyz"] == ["IN_PROGRESS"] * 3)
    revived = family.seen()
    for child_id in family.ids[1:]:
        finish(server, child_id)
    finish(server, run_id)
    ended = family.ended()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 4
    return [revived, ended]


@rule(233, recorded=True)
def retry_of_a_child_in_a_loop(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    body = [simple("a"), sub("s", "~c"), simple("b")]
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 3", loopOver=body)
    run_id = server.launch([loop, simple("after")])
    report(server, run_id, "a__1")
    finish(server, child_of(server, run_id, "s__1"))
    report(server, run_id, "b__1")
    report(server, run_id, "a__2")
    child_id = child_of(server, run_id, "s__2")
    report(server, child_id, "c1")
    fail(server, child_id, "c2")
    family = Family(server, [run_id, child_id])
    failed = family.ended()
    assert failed[0]["status"] == "FAILED"
    retry(server, child_id)
    server.task_when(run_id, "s__2", "IN_PROGRESS")
    server.run_when(run_id, lambda run: run["status"] == "RUNNING")
    revived = family.seen()
    assert last_task(server.run(run_id), "s__2")["subWorkflowId"] == child_id
    finish(server, child_id)
    report(server, run_id, "b__2")
    report(server, run_id, "a__3")
    finish(server, child_of(server, run_id, "s__3"))
    report(server, run_id, "b__3")
    report(server, run_id, "after")
    ended = family.ended()
    assert ended[0]["status"] == "COMPLETED"
    return [failed, revived, ended, last_task(server.run(run_id), "l")["outputData"]["iteration"]]


@rule(232, 233, recorded=True)
def retry_with_sub_workflows_goes_down_through_a_loop(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=[sub("s", "~c")])
    run_id = server.launch([loop])
    finish(server, child_of(server, run_id, "s__1"))
    child_id = child_of(server, run_id, "s__2")
    report(server, child_id, "c1")
    fail(server, child_id, "c2")
    family = Family(server, [run_id, child_id])
    family.ended()
    retry(server, run_id, resumeSubworkflowTasks=True)
    server.task_when(run_id, "s__2", "IN_PROGRESS")
    server.run_when(run_id, lambda run: run["status"] == "RUNNING")
    revived = family.seen()
    finish(server, child_id)
    ended = family.ended()
    assert ended[0]["status"] == "COMPLETED"
    return [revived, ended]


@rule(233, recorded=True)
def retry_of_a_child_in_a_fork_in_a_loop(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    fork = step("FORK_JOIN", "f", forkTasks=[[sub("s", "~c")], [simple("side")]])
    body = [fork, step("JOIN", "j", joinOn=["s", "side"])]
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=body)
    run_id = server.launch([loop])
    finish(server, child_of(server, run_id, "s__1"))
    report(server, run_id, "side__1")
    child_id = child_of(server, run_id, "s__2")
    report(server, child_id, "c1")
    fail(server, child_id, "c2")
    family = Family(server, [run_id, child_id])
    failed = family.ended()
    retry(server, child_id)
    server.task_when(run_id, "s__2", "IN_PROGRESS")
    server.run_when(run_id, lambda run: run["status"] == "RUNNING")
    revived = family.seen()
    finish(server, child_id)
    report(server, run_id, "side__2")
    ended = family.ended()
    assert ended[0]["status"] == "COMPLETED"
    return [failed, revived, ended]


@rule(233, recorded=True)
def retry_of_an_optional_child_leaves_its_parent_alone(server: Server) -> Json:
    server.register(workflow([simple("c1")], "~c"))
    run_id = server.launch([sub("s", "~c", optional=True), simple("after")])
    child_id = child_of(server, run_id)
    fail(server, child_id, "c1")
    server.task_when(run_id, "after", "SCHEDULED")
    before = seen(server.run(run_id))
    retry(server, child_id)
    assert seen(server.run(run_id)) == before
    finish(server, child_id)
    assert server.run(child_id)["status"] == "COMPLETED"
    after = server.run(run_id)
    assert [len(after["tasks"]), after["status"]] == [2, "RUNNING"]
    report(server, run_id, "after")
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    # The real server also corrects the status of the child's task, COMPLETED_WITH_ERRORS.
    return [before, last_task(ended, "after")["status"], seen(server.run(child_id))]


@rule(233, recorded=True)
def retry_of_a_superseded_child_leaves_its_parent_alone(server: Server) -> Json:
    made = failed_family(server, 1)
    top, old_id = made.ids
    retry(server, top)
    new_id = child_of(server, top)
    before = seen(server.run(top))
    retry(server, old_id)
    assert server.run(old_id)["status"] == "RUNNING"
    assert seen(server.run(top)) == before
    finish(server, old_id)
    assert statuses(server.run(top))["s"] == "IN_PROGRESS"
    again = Family(server, [top, new_id])
    ended = again.finish()
    assert ended[0]["status"] == "COMPLETED"
    # The real server also corrects the status of the old attempt.
    ended[0]["tasks"] = [task for task in ended[0]["tasks"] if not task["retried"]]
    return [before, ended, seen(server.run(old_id))]


@rule(228, 233, recorded=True)
def retry_of_a_child_of_a_restarted_parent_leaves_it_alone(server: Server) -> Json:
    made = failed_family(server, 1)
    top, old_id = made.ids
    ok(server.post(f"/workflow/{top}/restart"))
    new_id = child_of(server, top)
    assert new_id != old_id
    before = seen(server.run(top))
    retry(server, old_id)
    finish(server, old_id)
    assert server.run(old_id)["status"] == "COMPLETED"
    after = seen(server.run(top))
    assert after == before
    # Also when it ends badly.
    fail(server, new_id, "inner")
    failed = Family(server, [top, new_id]).ended()
    assert [run["status"] for run in failed] == ["FAILED", "FAILED"]
    return [nameless(after), nameless(failed), seen(server.run(old_id))]


@rule(233, recorded=True)
def a_failure_of_an_orphan_does_not_reach_the_restarted_parent(server: Server) -> Json:
    made = failed_family(server, 1)
    top, old_id = made.ids
    ok(server.post(f"/workflow/{top}/restart"))
    new_id = child_of(server, top)
    retry(server, old_id)
    fail(server, old_id, "leaf", "once more")
    settled(server, old_id)
    assert server.run(top)["status"] == "RUNNING"
    ended = Family(server, [top, new_id]).finish()
    assert ended[0]["status"] == "COMPLETED"
    return [nameless(ended), seen(server.run(old_id))]


@rule(233, recorded=True)
def siblings_that_had_been_cancelled_keep_their_ids(server: Server) -> Json:
    server.register(workflow([simple("c1")], "~c"))
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 1", loopOver=[simple("x")])
    branches = [[sub("s", "~c")], [simple("a")], [loop], [step("HUMAN", "h")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["s", "a", "l", "h"])])
    child_id = child_of(server, run_id)
    server.task_when(run_id, "x__1", "SCHEDULED")
    server.take("~a", workerid="~me")
    fail(server, child_id, "c1")
    settled(server, run_id)
    retry(server, child_id)
    running = server.run_when(run_id, lambda run: statuses(run)["s"] == "IN_PROGRESS")
    found = pick(last_task(running, "a"), "startTime", "endTime", "pollCount", "workerId", "status")
    assert server.take("~a")["taskId"] == last_task(running, "a")["taskId"]
    for reference in ("a", "x__1", "h"):
        report(server, run_id, reference)
    finish(server, child_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    # Under this command the real server leaves the HUMAN task SCHEDULED.
    assert last_task(running, "h")["status"] in ("SCHEDULED", "IN_PROGRESS")
    running["tasks"] = [task for task in running["tasks"] if task["taskType"] != "HUMAN"]
    return [seen(running), found, seen(ended)]


@rule(227, 232, recorded=True)
def retry_of_a_terminated_parent_without_sub_workflows(server: Server) -> Json:
    made = family(server, 1)
    top, old_id = made.ids
    ok(server.delete(f"/workflow/{top}", reason="why not"))
    terminated = made.ended()
    retry(server, top)
    new_id = child_of(server, top)
    assert new_id != old_id
    ended = Family(server, [top, new_id]).finish()
    assert ended[0]["status"] == "COMPLETED"
    return [terminated, ended, server.run(old_id)["status"] in TERMINAL]


@rule(233, recorded=True)
def a_child_that_is_retried_by_its_task_definition_is_superseded(server: Server) -> Json:
    server.register(workflow([simple("c1")], "~c"))
    server.register(task_def("~s", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([sub("s", "~c", name="~s")])
    old_id = child_of(server, run_id)
    fail(server, old_id, "c1")
    new = server.run_when(run_id, lambda run: len(run["tasks"]) == 2)
    new_id = child_of(server, run_id)
    assert new_id != old_id
    assert last_task(new, "s")["retryCount"] == 1
    retry(server, old_id)
    finish(server, old_id)
    assert server.run(run_id)["status"] == "RUNNING"
    finish(server, new_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(ended)["tasks"][1], seen(server.run(old_id))]
