"""Section 12: rerun of runs with children and of children with parents (rules 236, 237).

Recorded, as those of retry.
"""

from __future__ import annotations

from tests.conformance.cases.families import (
    Family,
    child_of,
    fail,
    failed_family,
    finish,
    report,
    seen,
    settled,
    sub,
)
from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    ok,
    rule,
    simple,
    statuses,
    step,
    workflow,
)


def rerun(server: Server, run_id: str, task: Json = None, **request: Json) -> Json:
    """Rerun from a task, or from the top."""
    if task is not None:
        request["reRunFromTaskId"] = task["taskId"]
    return ok(server.post(f"/workflow/{run_id}/rerun", request))


def rerun_by(server: Server, depth: int, by: int) -> Json:
    """Fail a family at its leaf; rerun the leaf's failed task by the id of run number `by`."""
    made = failed_family(server, depth)
    task = last_task(server.run(made.leaf), "leaf")
    answer = rerun(server, made.ids[by], task, taskInput={"mine": 1})
    revived = made.revived()
    assert last_task(server.run(made.leaf), "leaf")["inputData"] == {"mine": 1}
    ended = made.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * (depth + 1)
    return [answer, revived, ended]


@rule(235, recorded=True)
def rerun_of_a_child_brings_its_parent_back(server: Server) -> Json:
    return rerun_by(server, 1, 1)


@rule(235, recorded=True)
def rerun_at_depth_3_brings_all_above_back(server: Server) -> Json:
    return rerun_by(server, 3, 3)


@rule(236, recorded=True)
def rerun_finds_the_task_in_a_child(server: Server) -> Json:
    return rerun_by(server, 1, 0)


@rule(236, recorded=True)
def rerun_finds_the_task_in_a_grandchild(server: Server) -> Json:
    return rerun_by(server, 2, 0)


@rule(236, recorded=True)
def rerun_finds_the_task_at_depth_3(server: Server) -> Json:
    return rerun_by(server, 3, 0)


@rule(234, recorded=True)
def rerun_of_a_child_from_the_top(server: Server) -> Json:
    made = failed_family(server, 1)
    rerun(server, made.leaf, workflowInput={"n": 2})
    revived = made.revived()
    assert server.run(made.leaf)["input"] == {"n": 2}
    ended = made.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 2
    return [revived, ended]


@rule(237, recorded=True)
def rerun_of_a_sub_workflow_task_starts_a_fresh_child(server: Server) -> Json:
    made = failed_family(server, 1)
    top, old_id = made.ids
    task = last_task(server.run(top), "s")
    rerun(server, top, task)
    new_id = child_of(server, top)
    assert new_id != old_id
    again = Family(server, [top, new_id])
    revived = again.revived()
    assert last_task(server.run(top), "s")["taskId"] == task["taskId"]
    ended = again.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 2
    return [revived, ended, seen(server.run(old_id))]


@rule(237, recorded=True)
def rerun_of_a_sub_workflow_task_in_the_middle(server: Server) -> Json:
    made = failed_family(server, 2)
    top, middle, old_id = made.ids
    rerun(server, middle, last_task(server.run(middle), "s"))
    new_id = child_of(server, middle)
    assert new_id != old_id
    again = Family(server, [top, middle, new_id])
    revived = again.revived()
    ended = again.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 3
    return [revived, ended]


@rule(236, 237, recorded=True)
def rerun_by_the_top_of_a_sub_workflow_task_in_the_middle(server: Server) -> Json:
    made = failed_family(server, 2)
    top, middle, old_id = made.ids
    rerun(server, top, last_task(server.run(middle), "s"))
    new_id = child_of(server, middle)
    assert new_id != old_id
    again = Family(server, [top, middle, new_id])
    revived = again.revived()
    ended = again.finish()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 3
    return [revived, ended]


@rule(237, difference="a fresh child also if the old one completed; the real one takes the old")
def rerun_of_the_sub_workflow_task_of_a_completed_run(server: Server) -> Json:
    server.register(workflow([simple("c1")], "~c"))
    run_id = server.launch([simple("a"), sub("s", "~c"), simple("b")])
    report(server, run_id, "a")
    old_id = child_of(server, run_id)
    report(server, old_id, "c1", output={"n": 1})
    report(server, run_id, "b")
    completed = server.ended(run_id)
    rerun(server, run_id, last_task(completed, "s"))
    if server.is_ours:
        new_id = child_of(server, run_id)
        assert new_id != old_id
        report(server, new_id, "c1", output={"n": 2})
    # What came after is not done again: it was there before, and stays.
    ended = server.ended(run_id)
    output = last_task(ended, "s")["outputData"]
    assert output["n"] == (2 if server.is_ours else 1)
    return [seen(ended), output["n"]]


@rule(233, 237, recorded=True)
def siblings_of_a_fresh_child(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    fork = step("FORK_JOIN", "f", forkTasks=[[sub(name, "~c")] for name in ("x", "y", "z")])
    join = step("JOIN", "j", joinOn=["x", "y", "z"])
    run_id = server.launch([fork, join])
    children = {name: child_of(server, run_id, name) for name in "xyz"}
    finish(server, children["x"])
    server.task_when(run_id, "x", "COMPLETED")
    report(server, children["z"], "c1")
    report(server, children["y"], "c1")
    fail(server, children["y"], "c2")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "y"))
    fresh = {name: child_of(server, run_id, name) for name in "yz"}
    running = seen(server.run(run_id))
    for child_id in fresh.values():
        finish(server, child_id)
    finish(server, run_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    return [
        seen(failed),
        running,
        seen(ended),
        [seen(server.run(child_id)) for child_id in (*children.values(), *fresh.values())],
    ]


@rule(237, recorded=True)
def rerun_of_a_sub_workflow_task_in_a_loop(server: Server) -> Json:
    server.register(workflow([simple("c1")], "~c"))
    body = [simple("a"), sub("s", "~c"), simple("b")]
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=body)
    run_id = server.launch([loop])
    report(server, run_id, "a__1")
    finish(server, child_of(server, run_id, "s__1"))
    report(server, run_id, "b__1")
    report(server, run_id, "a__2")
    old_id = child_of(server, run_id, "s__2")
    fail(server, old_id, "c1")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "s__2"))
    new_id = child_of(server, run_id, "s__2")
    assert new_id != old_id
    running = seen(server.run(run_id))
    finish(server, new_id)
    report(server, run_id, "b__2")
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    return [running, seen(ended), last_task(ended, "l")["outputData"]["iteration"]]


@rule(235, recorded=True)
def rerun_of_a_child_in_a_loop(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=[sub("s", "~c")])
    run_id = server.launch([loop])
    finish(server, child_of(server, run_id, "s__1"))
    child_id = child_of(server, run_id, "s__2")
    report(server, child_id, "c1")
    fail(server, child_id, "c2")
    settled(server, run_id)
    rerun(server, child_id, last_task(server.run(child_id), "c2"))
    server.task_when(run_id, "s__2", "IN_PROGRESS")
    family = Family(server, [run_id, child_id])
    running = family.seen()
    finish(server, child_id)
    ended = family.ended()
    assert ended[0]["status"] == "COMPLETED"
    return [running, ended]


@rule(235, recorded=True)
def rerun_of_a_child_of_a_dynamic_fork(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    fork = step(
        "FORK_JOIN_DYNAMIC",
        "f",
        {"t": [sub("x", "~c"), sub("y", "~c")], "i": {"x": {}, "y": {}}},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )
    run_id = server.launch([fork, step("JOIN", "j")])
    children = [child_of(server, run_id, name) for name in ("x", "y")]
    for child_id in children:
        report(server, child_id, "c1")
        server.task_when(child_id, "c2", "SCHEDULED")
    fail(server, children[0], "c2")
    family = Family(server, [run_id, *children])
    failed = family.ended()
    assert [run["status"] for run in failed] == ["FAILED", "FAILED", "TERMINATED"]
    rerun(server, children[0], last_task(server.run(children[0]), "c2"))
    for name in ("x", "y"):
        server.task_when(run_id, name, "IN_PROGRESS")
    server.run_when(children[1], lambda run: run["status"] == "RUNNING")
    running = family.seen()
    # The sibling goes on in place: the same child, its finished step untouched.
    assert statuses(server.run(children[1])) == {"c1": "COMPLETED", "c2": "SCHEDULED"}
    for child_id in children:
        finish(server, child_id)
    finish(server, run_id)
    ended = family.ended()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 3
    return [failed, running, ended]


@rule(237, recorded=True)
def a_child_that_a_rerun_replaced_does_not_touch_its_parent(server: Server) -> Json:
    server.register(workflow([simple("c1"), simple("c2")], "~c"))
    run_id = server.launch([sub("s", "~c")])
    old_id = child_of(server, run_id)
    report(server, old_id, "c1")
    fail(server, old_id, "c2")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "s"))
    new_id = child_of(server, run_id)
    report(server, new_id, "c1")
    ok(server.post(f"/workflow/{old_id}/retry"))
    report(server, old_id, "c2", output={"from": "old"})
    assert server.ended(old_id)["status"] == "COMPLETED"
    assert server.run(run_id)["status"] == "RUNNING"
    report(server, new_id, "c2", output={"from": "new"})
    run = settled(server, run_id)
    assert last_task(run, "s")["outputData"]["from"] == "new"
    return [seen(run), last_task(run, "s")["outputData"]]
