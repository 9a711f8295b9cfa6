"""Builds again what an execution knows besides its rows: after a load, after a command."""

from collections.abc import Iterable

from cluster.engine.model import NO_SCOPE, WITHOUT_TASK, Execution, WorkItem
from cluster.engine.tasks import dynamic_fork, join
from cluster.engine.transitions import OPEN_TASK, TaskStatus


def reindex(execution: Execution, work: Iterable[WorkItem] = ()) -> None:
    """Every index of an execution, from its tasks and the work items that are left, alone.

    Which scripts are awaited, and the timers, are not in the rows: they are kept as they are.
    """
    execution.forget_indexes()
    for task in execution.tasks.values():
        latest = execution.by_ref.get(task.ref)
        if latest is None or latest.number < task.number:
            execution.by_ref[task.ref] = task
        execution.newest[task.base_ref] = task
        if task.scope:
            execution.members.setdefault(task.scope, []).append(task.number)
        if task.status in OPEN_TASK:
            execution.open[task.number] = None
            execution.hold(task.scope)
        if task.type == "FORK":
            dynamic_fork.restore(execution, task)
    execution.scripts &= execution.open.keys()
    for kind, number, _ in work:
        if kind in WITHOUT_TASK:
            execution.hold(NO_SCOPE)
        else:
            execution.hold(execution.tasks[number].scope)
    for number in execution.open:
        task = execution.tasks[number]
        if task.type in ("JOIN", "EXCLUSIVE_JOIN"):
            join.watch(execution, task)
        elif task.type == "PULL_WORKFLOW_MESSAGES" and task.status is TaskStatus.IN_PROGRESS:
            execution.pulling[number] = None
