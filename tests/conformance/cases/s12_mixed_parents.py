"""Retry, rerun and restart at the bottom of a loop, a dynamic fork and a fork (rules 232-236).

Recorded, as those of retry.
"""

from __future__ import annotations

from tests.conformance.cases.families import (
    Family,
    child_of,
    fail,
    finish,
    nameless,
    report,
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


def register(server: Server) -> None:
    """~w: a loop of two rounds of ~d; ~d: a dynamic fork of two ~f; ~f: "side" beside ~leaf."""
    branches = [sub("x", "~f"), sub("y", "~f")]
    dynamic = step(
        "FORK_JOIN_DYNAMIC",
        "d",
        {"t": branches, "i": {"x": {}, "y": {}}},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )
    fork = step("FORK_JOIN", "f", forkTasks=[[sub("s", "~leaf")], [simple("side")]])
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=[sub("s", "~d")])
    server.register(
        workflow([simple("inner"), simple("leaf")], "~leaf"),
        workflow([fork, step("JOIN", "j", joinOn=["s", "side"])], "~f"),
        workflow([dynamic, step("JOIN", "j")], "~d"),
        workflow([loop, simple("after")]),
    )


def all_below(server: Server, run_id: str, reference: str) -> Family:
    """The child of a run at that task, its two children, and the leaf of each."""
    middle = child_of(server, run_id, reference)
    forks = [child_of(server, middle, name) for name in ("x", "y")]
    leaves = [child_of(server, fork_id) for fork_id in forks]
    for leaf in leaves:
        server.task_when(leaf, "inner", "SCHEDULED")
    return Family(server, [run_id, middle, *forks, *leaves])


def failed_in_round_2(server: Server) -> Family:
    """All have failed or been terminated: in round 2 the leaf below "x" failed."""
    register(server)
    run_id = server.start()
    first = all_below(server, run_id, "s__1")
    for found in reversed(first.ids[1:]):
        finish(server, found)
    family = all_below(server, run_id, "s__2")
    leaf, sibling = family.ids[4:]
    for found in (leaf, sibling):
        report(server, found, "inner")
    server.task_when(sibling, "leaf", "SCHEDULED")
    fail(server, leaf, "leaf")
    for found in family.ids:
        run = settled(server, found)
        # The fork below "y" and its leaf did nothing wrong.
        assert run["status"] in ("FAILED", "TERMINATED")
    return family


def gone_on(family: Family) -> Json:
    """What all of them are when they run again, and when they have ended."""
    server = family.server
    top, middle, *forks = family.ids[:4]
    for run_id in family.ids[:5]:
        server.run_when(run_id, lambda run: run["status"] == "RUNNING")
    server.task_when(top, "s__2", "IN_PROGRESS")
    for name in ("x", "y"):
        server.task_when(middle, name, "IN_PROGRESS")
    # The sibling "y" is retried, as by a call: it goes on under its id, with a new leaf.
    leaves = [child_of(server, run_id) for run_id in forks]
    assert leaves[0] == family.ids[4]
    server.task_when(leaves[1], "inner", "SCHEDULED")
    family = Family(server, [*family.ids[:4], *leaves])
    revived = family.seen()
    for run_id in reversed(family.ids):
        finish(server, run_id)
    ended = family.ended()
    assert [run["status"] for run in ended] == ["COMPLETED"] * 6
    # Nobody else was started anew.
    children = {task.get("subWorkflowId") for run in ended for task in run["tasks"]}
    assert set(family.ids[1:]) <= children
    assert len(ended[0]["tasks"]) == 4
    return [nameless(revived), nameless(ended)]


@rule(233, recorded=True)
def retry_below_a_loop_and_two_forks(server: Server) -> Json:
    family = failed_in_round_2(server)
    ok(server.post(f"/workflow/{family.ids[4]}/retry"))
    return gone_on(family)


@rule(232, 233, recorded=True)
def retry_from_the_top_through_a_loop_and_two_forks(server: Server) -> Json:
    family = failed_in_round_2(server)
    ok(server.post(f"/workflow/{family.ids[0]}/retry", resumeSubworkflowTasks=True))
    return gone_on(family)


@rule(235, 236, recorded=True)
def rerun_from_the_top_through_a_loop_and_two_forks(server: Server) -> Json:
    family = failed_in_round_2(server)
    top, leaf = family.ids[0], family.ids[4]
    task = last_task(server.run(leaf), "leaf")
    ok(server.post(f"/workflow/{top}/rerun", {"reRunFromTaskId": task["taskId"]}))
    return gone_on(family)


@rule(228, 233, recorded=True)
def restart_below_a_loop_and_two_forks(server: Server) -> Json:
    family = failed_in_round_2(server)
    leaf = family.ids[4]
    ok(server.post(f"/workflow/{leaf}/restart"))
    assert statuses(server.run(leaf)) == {"inner": "SCHEDULED"}
    return gone_on(family)
