"""Section 12: rerun of a run without children (rules 234-238).

Those with a JOIN or a loop are recorded: the real server needs several seconds for them now and
then, or ends the run by a JOIN it evaluated half-way.
"""

from __future__ import annotations

from tests.conformance.cases.families import fail, finish, report, seen, settled
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
    task_def,
)

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


def rerun(server: Server, run_id: str, task: Json = None, **request: Json) -> Answer:
    """Rerun from a task, or from the top."""
    if task is not None:
        request["reRunFromTaskId"] = task["taskId"]
    return ok(server.post(f"/workflow/{run_id}/rerun", request))


@rule(234, 236)
def rerun_of_runs_and_tasks_that_cannot_be(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    answers = {"running": server.post(f"/workflow/{run_id}/rerun", {})}
    ok(server.put(f"/workflow/{run_id}/pause"))
    answers["paused"] = server.post(f"/workflow/{run_id}/rerun", {})
    ok(server.delete(f"/workflow/{run_id}"))
    answers["unknown task"] = server.post(f"/workflow/{run_id}/rerun", {"reRunFromTaskId": UNKNOWN})
    other_id = server.task(server.start(), "a")["taskId"]
    other = {"reRunFromTaskId": other_id}
    answers["task of another run"] = server.post(f"/workflow/{run_id}/rerun", other)
    answers["unknown run"] = server.post(f"/workflow/{UNKNOWN}/rerun", {})
    assert [answer.status for answer in answers.values()] == [409, 409, 400, 400, 404]
    run = server.run(run_id)
    assert run["status"] == "TERMINATED"
    return [answers, seen(run)]


@rule(234)
def rerun_from_the_top_with_other_input(server: Server) -> Json:
    run_id = server.launch(
        [step("SET_VARIABLE", "v", {"n": "${workflow.input.n}"}), simple("a"), simple("b")],
        {"n": 1},
        request={"correlationId": "~one"},
        variables={"m": "given"},
        outputParameters={"n": "${workflow.variables.n}"},
    )
    report(server, run_id, "a", output={"x": 1})
    fail(server, run_id, "b")
    failed = settled(server, run_id)
    answer = rerun(server, run_id, workflowInput={"n": 2}, correlationId="~two")
    running = server.run(run_id)
    old = {task["taskId"] for task in failed["tasks"]}
    assert old.isdisjoint(task["taskId"] for task in running["tasks"])
    assert running["input"] == {"n": 2}
    finish(server, run_id)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    fields = ("input", "output", "correlationId", "variables", "createTime")
    return [
        answer,
        seen(failed),
        seen(running),
        seen(ended),
        # What `output` and the times show while it runs again is left over from before.
        [pick(run, *fields) for run in (failed, ended)],
        [task["correlationId"] for task in running["tasks"]],
    ]


@rule(234)
def rerun_from_the_top_keeps_input_and_gives_a_completed_run_a_second_life(
    server: Server,
) -> Json:
    run_id = server.launch([simple("a", {"n": "${workflow.input.n}"})], {"n": 1})
    report(server, run_id, "a", output={"x": 1})
    completed = server.ended(run_id)
    assert completed["status"] == "COMPLETED"
    rerun(server, run_id)
    running = server.run(run_id)
    assert running["tasks"][0]["inputData"] == {"n": 1}
    report(server, run_id, "a", output={"x": 2})
    ended = server.ended(run_id)
    assert ended["output"] == {"x": 2}
    return [seen(completed), seen(running), [run["output"] for run in (completed, ended)]]


@rule(235)
def rerun_from_a_task_forgets_what_came_later(server: Server) -> Json:
    inputs = {"x": "${a.output.x}"}
    run_id = server.launch([simple("a"), simple("b", inputs), simple("c"), simple("d")])
    report(server, run_id, "a", output={"x": 1})
    report(server, run_id, "b", output={"y": 2})
    report(server, run_id, "c")
    fail(server, run_id, "d")
    failed = settled(server, run_id)
    answer = rerun(server, run_id, last_task(failed, "b"), taskInput={"mine": 1})
    running = server.run(run_id)
    assert list(statuses(running)) == ["a", "b"]
    task = last_task(running, "b")
    assert task["taskId"] == last_task(failed, "b")["taskId"]
    assert [task["inputData"], task["outputData"]] == [{"mine": 1}, {}]
    polled = server.take("~b")
    assert polled["inputData"] == {"mine": 1}
    server.update(polled, output={"y": 3})
    finish(server, run_id)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    fields = ("startTime", "endTime", "scheduledTime", "pollCount")
    return [
        answer,
        seen(running),
        pick(task, *fields),
        seen(ended),
    ]


@rule(235)
def rerun_from_a_task_keeps_its_input_by_default(server: Server) -> Json:
    run_id = server.launch(
        [simple("a"), simple("b", {"x": "${a.output.x}", "n": "${workflow.input.n}"})], {"n": 1}
    )
    report(server, run_id, "a", output={"x": 1})
    report(server, run_id, "b")
    completed = server.ended(run_id)
    rerun(server, run_id, last_task(completed, "b"), workflowInput={"n": 2}, correlationId="~c")
    running = server.run(run_id)
    # The task's input is not computed again from the run's new one.
    assert last_task(running, "b")["inputData"] == {"x": 1, "n": 1}
    report(server, run_id, "b", output={"done": True})
    ended = server.ended(run_id)
    return [seen(running), pick(ended, "input", "correlationId", "output", "status")]


@rule(235)
def rerun_from_an_attempt_that_was_retried(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a"), simple("b")])
    for reason in ("one", "two"):
        report(server, run_id, "a", "FAILED", reasonForIncompletion=reason)
    failed = settled(server, run_id)
    assert [task["retryCount"] for task in failed["tasks"]] == [0, 1]
    rerun(server, run_id, failed["tasks"][0])
    running = server.run(run_id)
    finish(server, run_id)
    return [seen(failed), seen(running), seen(server.ended(run_id))]


@rule(235)
def rerun_from_the_last_attempt_keeps_the_earlier(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a"), simple("b")])
    for reason in ("one", "two"):
        report(server, run_id, "a", "FAILED", reasonForIncompletion=reason)
    failed = settled(server, run_id)
    rerun(server, run_id, failed["tasks"][1])
    running = server.run(run_id)
    finish(server, run_id)
    return [seen(running), seen(server.ended(run_id))]


def switched(server: Server) -> Json:
    """A completed run: a, INLINE "i", SWITCH "s" that took "l", z."""
    script = {"evaluatorType": "javascript", "expression": "$.n + 1", "n": "${a.output.n}"}
    switch = step(
        "SWITCH",
        "s",
        {"v": "${a.output.way}"},
        evaluatorType="value-param",
        expression="v",
        decisionCases={"left": [simple("l")]},
        defaultCase=[simple("r")],
    )
    run_id = server.launch([simple("a"), step("INLINE", "i", script), switch, simple("z")])
    report(server, run_id, "a", output={"n": 1, "way": "left"})
    finish(server, run_id)
    return server.ended(run_id)


@rule(235)
def rerun_from_a_script_runs_it_at_once(server: Server) -> Json:
    completed = switched(server)
    run_id = completed["workflowId"]
    task_input = {**last_task(completed, "i")["inputData"], "n": 5}
    rerun(server, run_id, last_task(completed, "i"), taskInput=task_input)
    running = server.run(run_id)
    assert last_task(running, "i")["outputData"] == {"result": 6}
    finish(server, run_id)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(completed), seen(running), seen(ended)]


@rule(235, difference="a SWITCH that runs again goes on; on the real server the run hangs")
def rerun_from_a_switch(server: Server) -> Json:
    completed = switched(server)
    run_id = completed["workflowId"]
    rerun(server, run_id, last_task(completed, "s"))
    ok(server.put(f"/workflow/decide/{run_id}"))
    running = server.run(run_id)
    assert running["status"] == "RUNNING"
    if server.is_ours:
        assert statuses(running)["l"] == "SCHEDULED"
        finish(server, run_id)
        assert server.ended(run_id)["status"] == "COMPLETED"
    else:
        assert list(statuses(running)) == ["a", "i", "s"]
    return statuses(running)


@rule(235)
def rerun_from_a_wait_and_a_human_task(server: Server) -> Json:
    run_id = server.launch([step("HUMAN", "h", {"n": 1}), step("WAIT", "w"), simple("z")])
    report(server, run_id, "h", output={"who": "me"})
    report(server, run_id, "w", output={"x": 1})
    report(server, run_id, "z")
    completed = server.ended(run_id)
    seen_runs = []
    for reference in ("w", "h"):
        rerun(server, run_id, last_task(completed, reference))
        running = server.run_when(run_id, lambda run: run["tasks"][-1]["status"] == "IN_PROGRESS")
        seen_runs.append([seen(running), running["tasks"][-1]["outputData"]])
        for name in ("h", "w", "z")[0 if reference == "h" else 1 :]:
            report(server, run_id, name)
        completed = server.ended(run_id)
        assert completed["status"] == "COMPLETED"
        seen_runs.append(seen(completed))
    return seen_runs


def forked(server: Server) -> Json:
    """A run that failed at "b2" in a fork of three branches: "a" is done, "c" cancelled."""
    branches = [[simple("a")], [simple("b1"), simple("b2")], [simple("c")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    join = step("JOIN", "j", joinOn=["a", "b2", "c"])
    run_id = server.launch([simple("first"), fork, join, simple("after")])
    report(server, run_id, "first")
    report(server, run_id, "a", output={"a": 1})
    report(server, run_id, "b1")
    server.task_when(run_id, "b2", "SCHEDULED")
    fail(server, run_id, "b2")
    return settled(server, run_id)


def rerun_in_fork(server: Server, reference: str) -> Json:
    failed = forked(server)
    run_id = failed["workflowId"]
    rerun(server, run_id, last_task(failed, reference))
    running = server.run(run_id)
    finish(server, run_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(failed), seen(running), seen(ended)]


@rule(235, recorded=True)
def rerun_from_the_failed_task_of_a_branch(server: Server) -> Json:
    return rerun_in_fork(server, "b2")


@rule(235, recorded=True)
def rerun_before_a_fork(server: Server) -> Json:
    return rerun_in_fork(server, "first")


@rule(235, difference="steps that a rerun took away are made again; the real run hangs")
def rerun_from_a_branch_brings_later_steps_of_other_branches_back(server: Server) -> Json:
    failed = forked(server)
    run_id = failed["workflowId"]
    # "b2" and the JOIN came after "c": they are forgotten, and only ours finds "b2" again.
    rerun(server, run_id, last_task(failed, "c"))
    report(server, run_id, "c")
    ok(server.put(f"/workflow/decide/{run_id}"))
    running = server.run(run_id)
    assert running["status"] == "RUNNING"
    if server.is_ours:
        assert statuses(running)["b2"] == "SCHEDULED"
        finish(server, run_id)
        assert server.ended(run_id)["status"] == "COMPLETED"
    else:
        assert "b2" not in statuses(running)
    return statuses(running)


@rule(235, difference="a JOIN that runs again joins; on the real server it waits for ever")
def rerun_from_a_join(server: Server) -> Json:
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a")], [simple("b")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["a", "b"]), simple("after")])
    completed = finish(server, run_id)
    rerun(server, run_id, last_task(completed, "j"))
    ok(server.put(f"/workflow/decide/{run_id}"))
    running = server.run(run_id)
    assert running["status"] == "RUNNING"
    if server.is_ours:
        assert statuses(running) | {"after": "SCHEDULED"} == statuses(running)
        finish(server, run_id)
        assert server.ended(run_id)["status"] == "COMPLETED"
    else:
        assert statuses(running)["j"] == "SCHEDULED"
    return statuses(running)


@rule(235, recorded=True)
def rerun_of_a_failed_task_in_a_loop(server: Server) -> Json:
    body = [simple("a"), simple("b")]
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 3", loopOver=body)
    run_id = server.launch([loop, simple("after")])
    report(server, run_id, "a__1", output={"n": 1})
    report(server, run_id, "b__1")
    report(server, run_id, "a__2", output={"n": 2})
    fail(server, run_id, "b__2")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "b__2"))
    running = server.run(run_id)
    finish(server, run_id)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(failed), seen(running), seen(ended), last_task(ended, "l")["outputData"]]


@rule(235, recorded=True)
def rerun_of_an_earlier_round(server: Server) -> Json:
    body = [simple("a"), simple("b")]
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 3", loopOver=body)
    run_id = server.launch([loop, simple("after")])
    for number in (1, 2):
        report(server, run_id, f"a__{number}", output={"n": number})
        report(server, run_id, f"b__{number}")
    fail(server, run_id, "a__3")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "b__1"))
    running = server.run(run_id)
    finish(server, run_id)
    ended = server.ended(run_id)
    return [seen(failed), seen(running), seen(ended), last_task(ended, "l")["outputData"]]


@rule(235, difference="a loop that had completed is open again; the real run hangs after the round")
def rerun_inside_a_loop_that_had_completed(server: Server) -> Json:
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=[simple("a")])
    run_id = server.launch([loop, simple("after")])
    completed = finish(server, run_id)
    rerun(server, run_id, last_task(completed, "a__1"))
    report(server, run_id, "a__1")
    ok(server.put(f"/workflow/decide/{run_id}"))
    running = server.run(run_id)
    assert running["status"] == "RUNNING"
    if server.is_ours:
        assert statuses(running)["a__2"] == "SCHEDULED"
        finish(server, run_id)
        assert server.ended(run_id)["status"] == "COMPLETED"
    else:
        assert statuses(running) == {"l": "COMPLETED", "a__1": "COMPLETED"}
    return statuses(running)


@rule(235, difference="attempts that were retried stay ended; on the real server they come back")
def a_rerun_leaves_superseded_attempts_alone(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a"), simple("b")])
    report(server, run_id, "a", "FAILED", reasonForIncompletion="one")
    report(server, run_id, "a")
    fail(server, run_id, "b")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "b"))
    running = server.run(run_id)
    found = [task["status"] for task in running["tasks"]]
    first = "FAILED" if server.is_ours else "SCHEDULED"
    assert found == [first, "COMPLETED", "SCHEDULED"]
    return found


@rule(235, recorded=True)
def rerun_of_the_loop_itself(server: Server) -> Json:
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 2", loopOver=[simple("a")])
    run_id = server.launch([simple("first"), loop, simple("after")])
    for name in ("first", "a__1", "a__2"):
        report(server, run_id, name, output={"at": name})
    fail(server, run_id, "after")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "l"))
    running = server.run(run_id)
    finish(server, run_id)
    ended = server.ended(run_id)
    # The real server shows the loop as SCHEDULED until it is decided again.
    assert statuses(running)["l"] in ("SCHEDULED", "IN_PROGRESS")
    again = seen(running)["tasks"][2]
    return [seen(failed), again, seen(ended), last_task(ended, "l")["outputData"]]


def dynamic(server: Server) -> Json:
    """A run whose dynamic fork had the branches that "first" named, and that failed in it."""
    fork = step(
        "FORK_JOIN_DYNAMIC",
        "f",
        {"t": "${first.output.t}", "i": "${first.output.i}"},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )
    run_id = server.launch([simple("first"), fork, step("JOIN", "j"), simple("after")])
    branches = [
        {"name": f"~{name}", "taskReferenceName": name, "type": "SIMPLE"} for name in ("x", "y")
    ]
    report(server, run_id, "first", output={"t": branches, "i": {"x": {"n": 1}, "y": {"n": 2}}})
    report(server, run_id, "x", output={"done": "x"})
    server.task_when(run_id, "y", "SCHEDULED")
    fail(server, run_id, "y")
    return settled(server, run_id)


@rule(238, recorded=True)
def rerun_from_a_dynamic_fork_makes_its_branches_again(server: Server) -> Json:
    failed = dynamic(server)
    run_id = failed["workflowId"]
    rerun(server, run_id, last_task(failed, "f"))
    running = server.run_when(run_id, lambda run: statuses(run).get("y") == "SCHEDULED")
    inputs = {name: last_task(running, name)["inputData"] for name in "xy"}
    assert inputs == {"x": {"n": 1}, "y": {"n": 2}}
    finish(server, run_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    for run in (running, ended):
        # The real server makes the FORK anew as well.
        del last_task(run, "f")["taskId"]
    return [seen(failed), seen(running), inputs, seen(ended)]


@rule(238, recorded=True)
def rerun_from_a_dynamic_fork_reads_its_input_again(server: Server) -> Json:
    fork = step(
        "FORK_JOIN_DYNAMIC",
        "f",
        {"t": "${workflow.input.t}", "i": "${workflow.input.i}"},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )

    def input_of(*names: str) -> Json:
        branches = [
            {"name": f"~{name}", "taskReferenceName": name, "type": "SIMPLE"} for name in names
        ]
        return {"t": branches, "i": {name: {"of": name} for name in names}}

    run_id = server.launch([fork, step("JOIN", "j")], input_of("x", "y"))
    fail(server, run_id, "y")
    failed = settled(server, run_id)
    rerun(server, run_id, last_task(failed, "f"), workflowInput=input_of("x", "z"))
    running = server.run_when(run_id, lambda run: "z" in statuses(run))
    finish(server, run_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    shown = [pick(task, "referenceTaskName", "status", "inputData") for task in ended["tasks"]]
    for task in shown:
        # The full steps are compared elsewhere.
        task["inputData"].pop("forkedTaskDefs", None)
    return [sorted(statuses(running)), shown]


@rule(238, recorded=True)
def rerun_before_a_dynamic_fork_may_change_its_branches(server: Server) -> Json:
    failed = dynamic(server)
    run_id = failed["workflowId"]
    rerun(server, run_id, last_task(failed, "first"))
    branches = [{"name": "~z", "taskReferenceName": "z", "type": "SIMPLE"}]
    report(server, run_id, "first", output={"t": branches, "i": {"z": {"n": 3}}})
    running = server.run_when(run_id, lambda run: "z" in statuses(run))
    finish(server, run_id)
    ended = settled(server, run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(running), seen(ended), last_task(ended, "j")["inputData"]]


@rule(
    235,
    recorded=True,
    difference="the JOIN that a rerun took away is made again; the real run mostly hangs",
)
def rerun_from_a_branch_of_a_dynamic_fork(server: Server) -> Json:
    failed = dynamic(server)
    run_id = failed["workflowId"]
    rerun(server, run_id, last_task(failed, "y"))
    running = server.run(run_id)
    assert list(statuses(running))[:4] == ["first", "f", "x", "y"]
    report(server, run_id, "y")
    if server.is_ours:
        finish(server, run_id)
        ended = settled(server, run_id)
        assert ended["status"] == "COMPLETED"
        return [seen(ended), last_task(ended, "j")["outputData"]]
    ok(server.put(f"/workflow/decide/{run_id}"))
    hanging = server.run(run_id)
    assert list(statuses(hanging)) == ["first", "f", "x", "y"]
    return seen(hanging)
