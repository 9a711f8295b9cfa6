"""What cases of retry, rerun and restart look at, and the runs within runs they look at it with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.conformance.harness import (
    TERMINAL,
    WAIT_S,
    Json,
    Server,
    pick,
    simple,
    statuses,
    step,
    workflow,
)

TASK = (
    "referenceTaskName",
    "taskType",
    "status",
    "taskId",
    "retriedTaskId",
    "subWorkflowId",
    "seq",
    "retryCount",
    "iteration",
    "retried",
    "reasonForIncompletion",
)
RUN = (
    "workflowId",
    "parentWorkflowId",
    "parentWorkflowTaskId",
    "status",
    "reasonForIncompletion",
    "failedReferenceTaskNames",
    "failedTaskNames",
)
NAMES = ("failedReferenceTaskNames", "failedTaskNames")
JOIN = re.compile(r"j(__\d+)*|JOIN")


def seen(run: Json, *, joins: bool = False) -> Json:
    """A run with the ids of its tasks and of its children: the same id gets the same number.

    joins: show also what JOINs say about a branch that failed. Whether the real server evaluates
    a JOIN (always called "j" here) once more before it ends a run, and so fails it instead of
    cancelling it, is chance if the branch is a sub-workflow.
    """
    shown = pick(run, *RUN)
    for names in NAMES:
        kept = [name for name in run[names] if joins or not JOIN.fullmatch(name)]
        shown[names] = sorted(kept)
    return {**shown, "tasks": [seen_task(task, joins) for task in run["tasks"]]}


def seen_task(task: Json, joins: bool) -> Json:
    shown = pick(task, *TASK)
    if task["status"] in ("SCHEDULED", "IN_PROGRESS"):
        # After a rerun the real server still shows why the task failed last time.
        shown.pop("reasonForIncompletion", None)
    if task["taskType"] == "JOIN" and not joins:
        del shown["retryCount"]
        shown.pop("reasonForIncompletion", None)
        shown["status"] = shown["status"].replace("FAILED", "CANCELED")
    return shown


def nameless(shown: Json) -> Json:
    """What `seen` showed, without the names of failed tasks: of one run or of several.

    The real server keeps them over a restart; one case shows that ours does not.
    """
    if isinstance(shown, list):
        return [nameless(run) for run in shown]
    return {key: value for key, value in shown.items() if key not in NAMES}


def settled(server: Server, run_id: str, seconds: float = WAIT_S) -> Json:
    """The run once it has ended, and all its tasks have.

    An evaluation that was under way can leave a JOIN of the real server open; rule 8 closes it.
    """

    def look() -> Json:
        run = server.run(run_id)
        if run["status"] not in TERMINAL:
            return None
        if all(task["status"] not in ("SCHEDULED", "IN_PROGRESS") for task in run["tasks"]):
            return run
        if not server.is_ours:
            server.put(f"/workflow/decide/{run_id}")
        return None

    return server.until(look, seconds, nudge=lambda: server.put(f"/workflow/decide/{run_id}"))


def report(
    server: Server,
    run_id: str,
    reference: str,
    status: str = "COMPLETED",
    output: Json = None,
    **result: Json,
) -> Json:
    """Report a task without polling it, once its step is there and open; the task as it was.

    The queues of the real server are slow when it is busy; what the engine does next is the same.
    """
    task = server.task_when(run_id, reference, "SCHEDULED", "IN_PROGRESS")
    server.update(task, status, output, **result)
    return task


def fail(server: Server, run_id: str, reference: str, reason: str = "no", **result: Json) -> Json:
    """Report that a task failed for good; the task as it was."""
    status = "FAILED_WITH_TERMINAL_ERROR"
    return report(server, run_id, reference, status, reasonForIncompletion=reason, **result)


def sub(reference: str, child: str, **fields: Json) -> Json:
    """A SUB_WORKFLOW step."""
    return step("SUB_WORKFLOW", reference, {}, subWorkflowParam={"name": child}, **fields)


@dataclass(frozen=True)
class Family:
    """A run, its child, the child of that and so on: `ids` from the top down to the leaf.

    Each but the leaf forks into "s" (its child) and "side", and goes on with "after"; the leaf
    does "inner", "leaf" and "tail".
    """

    server: Server
    ids: list[str]

    @property
    def leaf(self) -> str:
        return self.ids[-1]

    def runs(self) -> list[Json]:
        return [self.server.run(run_id) for run_id in self.ids]

    def seen(self) -> Json:
        return [seen(run) for run in self.runs()]

    def ended(self) -> Json:
        """All of them once they have ended."""
        runs = [settled(self.server, run_id) for run_id in self.ids]
        for run in runs:
            # The real server now and then ends a run twice at a time: that is not to be recorded.
            newest = {task["referenceTaskName"]: task for task in run["tasks"]}
            assert len(newest) == sum(not task["retried"] for task in run["tasks"]), seen(run)
            if run["status"] == "COMPLETED":
                assert set(statuses(run).values()) == {"COMPLETED"}, seen(run)
        return [seen(run) for run in runs]

    def revived(self) -> Json:
        """All of them once they run and wait for their children."""
        for run_id in self.ids:
            self.server.run_when(run_id, is_waiting)
        return self.seen()

    def finish(self) -> Json:
        """Do all that is left to do; all of them when they have ended."""
        for run_id in reversed(self.ids):
            finish(self.server, run_id)
        return self.ended()


W = "IN_PROGRESS"


def is_waiting(run: Json) -> bool:
    newest = statuses(run)
    return bool(newest) and run["status"] == "RUNNING" and newest.get("s", W) == W


def finish(server: Server, run_id: str) -> Json:
    """Complete the worker tasks of a run as they come, until it has ended."""

    def look() -> Json:
        run = server.run(run_id)
        if run["status"] in TERMINAL:
            return run
        for task in run["tasks"]:
            if task["taskType"].startswith("~") and task["status"] == "SCHEDULED":
                server.update(task)
        return None

    def nudge() -> None:
        # A JOIN that a rerun reopened has no place in the real server's queue for 30 s.
        server.post("/tasks/queue/requeue/JOIN")
        server.put(f"/workflow/decide/{run_id}")

    return server.until(look, WAIT_S if server.is_ours else 45, nudge=nudge)


def child_of(server: Server, run_id: str, reference: str = "s") -> str:
    """The id of the child that a run is waiting for, once its first task is there.

    The real server creates a child before it decides it.
    """
    child_id = str(server.task_when(run_id, reference, "IN_PROGRESS")["subWorkflowId"])
    server.run_when(child_id, lambda run: bool(run["tasks"]))
    return child_id


def family(server: Server, depth: int) -> Family:
    """Start a family of depth + 1 runs."""
    server.register(workflow([simple("inner"), simple("leaf"), simple("tail")], f"~l{depth}"))
    for level in reversed(range(depth)):
        fork = step("FORK_JOIN", "f", forkTasks=[[sub("s", f"~l{level + 1}")], [simple("side")]])
        join = step("JOIN", "j", joinOn=["s", "side"])
        server.register(workflow([fork, join, simple("after")], f"~l{level}"))
    ids = [server.start("~l0")]
    for _ in range(depth):
        ids.append(child_of(server, ids[-1]))
    return Family(server, ids)


def failed_family(server: Server, depth: int) -> Family:
    """A family that failed at its leaf: "inner" is done, "leaf" failed, all others cancelled."""
    made = family(server, depth)
    report(server, made.leaf, "inner", output={"n": 1})
    fail(server, made.leaf, "leaf")
    for run_id in reversed(made.ids):
        run = settled(server, run_id)
        assert run["status"] == "FAILED", run
    return made
