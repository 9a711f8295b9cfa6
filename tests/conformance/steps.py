"""Builders of system steps, and how whole runs with many tasks are compared."""

from __future__ import annotations

from tests.conformance.harness import TERMINAL, WAIT_S, Answer, Json, Server, pick, step, workflow

LIVE = frozenset({"SCHEDULED", "IN_PROGRESS"})

# --- builders ---


def inline(reference: str, expression: str, **input: Json) -> Json:
    """An INLINE step; `input` are the values its script sees."""
    return step("INLINE", reference, {"expression": expression, **input})


def fork(branches: list[list[Json]], join_on: list[str], **join: Json) -> list[Json]:
    """FORK_JOIN "f" and its JOIN "j"; `join` are further fields of the JOIN."""
    return [step("FORK_JOIN", "f", forkTasks=branches), step("JOIN", "j", joinOn=join_on, **join)]


def switch(cases: Json, default: list[Json] | None = None, **fields: Json) -> Json:
    """SWITCH "s" over the workflow input `v` unless the fields say otherwise."""
    chosen: Json = {"evaluatorType": "value-param", "expression": "v", **fields}
    given = chosen.pop("input", {"v": "${workflow.input.v}"})
    name = chosen.pop("reference", "s")
    return step("SWITCH", name, given, decisionCases=cases, defaultCase=default or [], **chosen)


def loop(body: list[Json], condition: str, input: Json = None, **fields: Json) -> Json:
    """DO_WHILE "l"."""
    name = fields.pop("reference", "l")
    return step("DO_WHILE", name, input, loopCondition=condition, loopOver=body, **fields)


def rounds(count: int) -> str:
    """The condition of a loop that goes `count` rounds."""
    return f"$.l['iteration'] < {count}"


def dynamic_fork(input: Json, reference: str = "f", join: str = "j", **fields: Json) -> list[Json]:
    """FORK_JOIN_DYNAMIC and its JOIN."""
    return [step("FORK_JOIN_DYNAMIC", reference, input, **fields), step("JOIN", join)]


def listed_fork(**fields: Json) -> list[Json]:
    """A dynamic fork over a list of steps (workflow input `t`) and their inputs (`i`): form A."""
    return dynamic_fork(
        {"t": "${workflow.input.t}", "i": "${workflow.input.i}"},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
        **fields,
    )


def sub_workflow(reference: str, input: Json = None, **params: Json) -> Json:
    """SUB_WORKFLOW; `params` are its subWorkflowParam."""
    return step("SUB_WORKFLOW", reference, input or {}, subWorkflowParam=params)


# --- whole runs ---


def settled(server: Server, run_id: str, seconds: float = WAIT_S) -> Json:
    """The run once it is terminal and so is each of its tasks."""
    return server.run_when(
        run_id,
        lambda run: (
            run["status"] in TERMINAL and all(task["status"] not in LIVE for task in run["tasks"])
        ),
        seconds,
    )


def shown(run: Json) -> Json:
    """All of a run that does not depend on the moment.

    What a JOIN holds that was open when its run failed for another task does: the real server
    evaluates it now and then, and once more before or after that end, so that it is CANCELED or
    FAILED by chance. So does the output of a run that ends with such a JOIN.
    """
    cut_off = [task for task in run["tasks"] if is_cut_off(run, task)]
    fields = ["status", "reasonForIncompletion"]
    if not (cut_off and run["tasks"][-1] is cut_off[-1]):
        fields.append("output")
    refs = set(run["failedReferenceTaskNames"]) - {task["referenceTaskName"] for task in cut_off}
    names = set(run["failedTaskNames"]) - {task["taskDefName"] for task in cut_off}
    return {
        **pick(run, *fields),
        "failed": [sorted(refs), sorted(names)],
        "tasks": [shown_task(run, task) for task in run["tasks"]],
    }


def is_cut_off(run: Json, task: Json) -> bool:
    """Whether it is a JOIN that did not end by itself: the run does not name it as the reason."""
    if task["taskType"] != "JOIN":
        return False
    is_reason = task["taskId"] in run.get("reasonForIncompletion", "")
    return task["status"] == "CANCELED" or (task["status"] == "FAILED" and not is_reason)


def shown_task(run: Json, task: Json) -> Json:
    fields = ["referenceTaskName", "taskType", "taskDefName", "retryCount", "iteration"]
    fields += ["inputData"]
    seen: Json = {"status": task["status"]}
    if is_cut_off(run, task):
        seen = {"status": "CANCELED"}
    else:
        fields += ["outputData", "reasonForIncompletion"]
    seen |= pick(task, *fields)
    # The full steps are compared once, by its own case.
    seen["inputData"] = {k: v for k, v in seen["inputData"].items() if k != "forkedTaskDefs"}
    return seen


def outcome(
    server: Server, tasks: list[Json], input: Json = None, *, request: Json = None, **fields: Json
) -> Json:
    """Register and start a workflow that needs no worker: its end, or the answer that refused."""
    answer = server.put("/metadata/workflow", [workflow(tasks, **fields)])
    if answer.status == 200:
        body = {"name": "~w", "input": {} if input is None else input, **(request or {})}
        answer = server.post("/workflow", body)
    if answer.status == 200:
        return shown(settled(server, answer.body))
    return refused(answer)


def refused(answer: Answer) -> Json:
    """Status and texts of an error. A Java error that came often has no text any more."""
    errors = answer.body.get("validationErrors") or [answer.body]
    texts = sorted(error.get("message", "") for error in errors)
    return {"refused": answer.status, "texts": texts}


def task_named(observed: Json, reference: str) -> Json:
    """The last task with that name of a run that was `shown`."""
    found = [task for task in observed["tasks"] if task["referenceTaskName"] == reference]
    assert found, (reference, observed)
    return found[-1]


def names(observed: Json) -> list[str]:
    """The reference names of the tasks of a run, in order."""
    return [task["referenceTaskName"] for task in observed["tasks"]]
