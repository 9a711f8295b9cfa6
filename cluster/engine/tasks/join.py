"""JOIN and EXCLUSIVE_JOIN: wait for branches. Told when one ends, never polled."""

from cluster.engine import payloads
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import UNSUCCESSFUL_TASK, TaskStatus
from cluster.engine.views import join_output, joined_refs, output_of


def begin_join(step: Step, task: Task, node: Node) -> None:
    """A static JOIN; a dynamic fork has put the references of its branches in place already."""
    step.start(task)
    if "joinOn" not in step.execution.task_input(task):
        step.set_input(task, {"joinOn": list(node.task.join_on)})
    watch(step.execution, task)
    check(step, task)


def watch(execution: Execution, join: Task) -> None:
    """Have an open join told when each of its tasks that has not ended does."""
    waiting = 0
    for ref in dict.fromkeys(watched_refs(execution, join)):
        task = execution.by_ref.get(ref)
        if task is None or not task.executed:
            told = execution.joins.setdefault(ref, [])
            if join.number not in told:
                told.append(join.number)
            waiting += 1
    execution.waiting[join.number] = waiting


def watch_again(execution: Execution, ref: str) -> None:
    """A task that had ended is about to run again: open joins wait for it once more."""
    for number in execution.waiting:
        join = execution.tasks[number]
        if join.is_open and ref in watched_refs(execution, join):
            execution.joins.setdefault(ref, []).append(number)
            execution.waiting[number] += 1


def watched_refs(execution: Execution, join: Task) -> list[str]:
    """All references whose end an open join has to hear of."""
    refs = joined_refs(execution, join)
    if join.type == "EXCLUSIVE_JOIN":
        defaults = execution.task_input(join).get("defaultExclusiveJoinTask") or []
        refs = refs + [ref + join.suffix for ref in defaults]
    return refs


def check(step: Step, join: Task) -> None:
    """End a JOIN whose tasks have all ended.

    A failed branch has ended the workflow before it gets here, unless it may fail: an optional one
    shows in the status, a permissive one fails the join.
    """
    execution = step.execution
    if execution.waiting[join.number] > 0:
        return
    del execution.waiting[join.number]
    unsuccessful: list[Task] = []
    failed = False
    forgiven: list[str] = []
    for ref in joined_refs(execution, join):
        task = execution.by_ref[ref]
        if task.status in UNSUCCESSFUL_TASK:
            unsuccessful.append(task)
            failed = failed or not execution.node_of(task).task.optional
        elif task.status is TaskStatus.COMPLETED_WITH_ERRORS:
            if execution.node_of(task).task.optional:
                forgiven.append(f"{task.name}/{execution.task_id(task.number)} ")
    step.set_output(join, join_output(execution, join, upto_failure=failed))
    if failed:
        canceled = all(task.status is TaskStatus.CANCELED for task in unsuccessful)
        status = TaskStatus.CANCELED if canceled else TaskStatus.FAILED
        step.finish(join, status, " ".join(task.reason or "null" for task in unsuccessful))
    elif forgiven:
        reason = "".join(forgiven) + "completed with errors"
        step.finish(join, TaskStatus.COMPLETED_WITH_ERRORS, reason)
    else:
        step.finish(join, TaskStatus.COMPLETED)


def begin_exclusive(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    step.set_input(
        task,
        {
            "joinOn": list(node.task.join_on),
            "defaultExclusiveJoinTask": list(node.task.default_exclusive_join_task),
        },
    )
    watch(step.execution, task)
    check_exclusive(step, task)


def check_exclusive(step: Step, join: Task) -> None:
    """Take over the end of the first joined task that exists, else of the first default one."""
    execution = step.execution
    chosen = _first_present(execution, joined_refs(execution, join))
    if chosen is None:
        defaults = execution.task_input(join).get("defaultExclusiveJoinTask") or []
        chosen = _first_present(execution, [ref + join.suffix for ref in defaults])
    if chosen is None or not chosen.executed:
        return
    execution.waiting.pop(join.number, None)
    execution.set_task_output(join, output_of(execution, chosen) or payloads.EMPTY)
    if chosen.status in UNSUCCESSFUL_TASK:
        status = TaskStatus.CANCELED if chosen.status is TaskStatus.CANCELED else TaskStatus.FAILED
        step.finish(join, status, chosen.reason)
    else:
        step.finish(join, TaskStatus.COMPLETED)


def _first_present(execution: Execution, refs: list[str]) -> Task | None:
    for ref in refs:
        task = execution.by_ref.get(ref)
        if task is not None and task.status is not TaskStatus.SKIPPED:
            return task
    return None


JOIN = TaskType(
    begin=begin_join, on_joined=check, shown_as="JOIN", resolves_input=False, retries=False
)
EXCLUSIVE_JOIN = TaskType(
    begin=begin_exclusive,
    on_joined=check_exclusive,
    shown_as="EXCLUSIVE_JOIN",
    resolves_input=False,
    retries=False,
)
