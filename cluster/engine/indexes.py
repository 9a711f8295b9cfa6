"""Builds again what an execution knows besides its rows: after a load, after a command."""

from cluster.engine.model import NO_SCOPE, Execution
from cluster.engine.tasks import dynamic_fork, join
from cluster.engine.transitions import OPEN_TASK


def reindex(execution: Execution) -> None:
    """Every index of an execution, from its header and tasks alone."""
    work = execution.header.work
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
    for kind, number, _ in work:
        if kind != "cancel":
            execution.hold(execution.tasks[number].scope if number else NO_SCOPE)
    for number in execution.open:
        task = execution.tasks[number]
        if task.type in ("JOIN", "EXCLUSIVE_JOIN"):
            join.watch(execution, task)
