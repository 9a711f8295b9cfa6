"""Children that end before their parent knows of them, many at once, thousands under one parent."""

from __future__ import annotations

from tests.conformance.cases.families import sub
from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    pick,
    rule,
    simple,
    statuses,
    step,
    workflow,
)


def children(count: int) -> Json:
    """A dynamic fork of `count` children "~c", each given its number, and its JOIN."""
    branches = [
        {
            "name": "~c",
            "taskReferenceName": f"s{number}",
            "type": "SUB_WORKFLOW",
            "subWorkflowParam": {"name": "~c"},
        }
        for number in range(count)
    ]
    inputs = {f"s{number}": {"n": number} for number in range(count)}
    fork = step(
        "FORK_JOIN_DYNAMIC",
        "f",
        {"t": branches, "i": inputs},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )
    return [fork, step("JOIN", "j")]


@rule(178, 183)
def a_child_that_ends_at_once(server: Server) -> Json:
    """It has ended before its parent could note that it runs."""
    server.register(
        workflow([step("SET_VARIABLE", "v", {"x": 1})], "~c", outputParameters={"n": 5})
    )
    run_id = server.launch([sub("s", "~c"), sub("t", "~c")])
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    outputs = [last_task(run, name)["outputData"] for name in "st"]
    assert [output["n"] for output in outputs] == [5, 5]
    return [statuses(run), outputs, run["output"]]


@rule(183, 184)
def a_child_that_fails_at_once(server: Server) -> Json:
    end = {"terminationStatus": "FAILED", "terminationReason": "at once"}
    server.register(workflow([step("TERMINATE", "t", end)], "~c"))
    run = server.ended(server.launch([sub("s", "~c"), simple("a")]))
    assert run["status"] == "FAILED"
    task = last_task(run, "s")
    return [pick(run, "status", "reasonForIncompletion"), task["status"], task["outputData"]]


@rule(178, 183, recorded=True)
def children_that_end_at_once_in_a_loop(server: Server) -> Json:
    server.register(workflow([step("NOOP", "n")], "~c", outputParameters={"n": 1}))
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 5", loopOver=[sub("s", "~c")])
    run = server.ended(server.launch([loop]))
    assert run["status"] == "COMPLETED"
    made = [task["subWorkflowId"] for task in run["tasks"] if "subWorkflowId" in task]
    assert len(set(made)) == 5
    return [statuses(run), last_task(run, "l")["outputData"]["iteration"]]


@rule(178, 183, recorded=True)
def fifty_parents_at_once(server: Server) -> Json:
    server.register(
        workflow([simple("c", {"n": "${workflow.input.n}"})], "~c"),
        workflow([sub("s", "~c"), step("NOOP", "z")]),
    )
    runs = [server.start(input={"n": number}) for number in range(50)]
    for _ in runs:
        task = server.take("~c", 60)
        server.update(task, output={"from": task["workflowInstanceId"]})
    found = []
    for run_id in runs:
        run = server.ended(run_id, 60)
        task = last_task(run, "s")
        # Each has got the result of its own child.
        assert task["outputData"]["from"] == task["subWorkflowId"]
        found.append(run["status"])
    assert found == ["COMPLETED"] * 50
    return found


@rule(178, 183, recorded=True)
def a_hundred_children_under_one_parent(server: Server) -> Json:
    server.register(workflow([simple("c")], "~c"))
    run_id = server.launch(children(100))
    for _ in range(100):
        task = server.take("~c", 60)
        server.update(task, output={"child": task["workflowInstanceId"]})
    run = server.ended(run_id, 120)
    assert run["status"] == "COMPLETED"
    joined = last_task(run, "j")["outputData"]
    assert len(joined) == 100
    for task in run["tasks"]:
        if task["taskType"] == "SUB_WORKFLOW":
            assert joined[task["referenceTaskName"]]["child"] == task["subWorkflowId"]
    return [run["status"], sorted(set(statuses(run).values()))]


# The real server needs about a second for ten children: it is asked for fewer.
MANY = {True: 4000, False: 200}


@rule(178, 183, recorded=True)
def thousands_of_children_that_end_at_once(server: Server) -> Json:
    count = MANY[server.is_ours]
    server.register(
        workflow([step("NOOP", "n")], "~c", outputParameters={"n": "${workflow.input.n}"})
    )
    run_id = server.launch(children(count))
    run = server.ended(run_id, 240)
    assert run["status"] == "COMPLETED"
    joined = last_task(run, "j")["outputData"]
    assert [joined[f"s{number}"]["n"] for number in range(count)] == list(range(count))
    made = {task["subWorkflowId"] for task in run["tasks"] if "subWorkflowId" in task}
    assert len(made) == count
    return [run["status"], len(run["tasks"]) - count]


@rule(184, 186, recorded=True)
def one_of_many_children_fails_and_all_others_are_terminated(server: Server) -> Json:
    count = 100 if server.is_ours else 30
    server.register(workflow([simple("c")], "~c"))
    run_id = server.launch(children(count))
    run = server.run_when(
        run_id,
        lambda run: sum(task["status"] == "IN_PROGRESS" for task in run["tasks"]) > count,
        60,
    )
    made = {task["referenceTaskName"]: task["subWorkflowId"] for task in run["tasks"][1:-1]}
    child = server.task_when(made["s7"], "c", "SCHEDULED")
    server.update(child, "FAILED_WITH_TERMINAL_ERROR", reasonForIncompletion="no")
    run = server.ended(run_id, 60)
    assert run["status"] == "FAILED"
    ended = {name: server.ended(child_id, 60)["status"] for name, child_id in made.items()}
    assert ended.pop("s7") == "FAILED"
    assert set(ended.values()) == {"TERMINATED"}
    return [run["status"], last_task(run, "s7")["status"], last_task(run, "s1")["status"]]
