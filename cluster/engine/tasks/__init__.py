"""What the engine does with each task type: one module per family, one line per type here."""

from collections.abc import Iterable

from cluster.engine.schedules import SCHEDULE
from cluster.engine.step import TaskType
from cluster.engine.tasks import (
    builtin,
    decision,
    dynamic_fork,
    fork,
    join,
    loop,
    messages,
    outside,
    schedule,
    scripts,
    start_workflow,
    sub_workflow,
    wait,
    worker,
)


class TaskTypes(dict[str, TaskType]):
    """Task types by name; a name the engine does not know is work for whoever polls for it."""

    def __missing__(self, name: str) -> TaskType:
        return worker.TYPE


TASK_TYPES = TaskTypes(
    {
        "SWITCH": decision.SWITCH,
        "DECISION": decision.DECISION,
        "FORK": fork.TYPE,
        "FORK_JOIN": fork.TYPE,
        "FORK_JOIN_DYNAMIC": dynamic_fork.TYPE,
        "JOIN": join.JOIN,
        "EXCLUSIVE_JOIN": join.EXCLUSIVE_JOIN,
        "DO_WHILE": loop.TYPE,
        "DYNAMIC": builtin.DYNAMIC,
        "SUB_WORKFLOW": sub_workflow.TYPE,
        "START_WORKFLOW": start_workflow.TYPE,
        "WAIT": wait.WAIT,
        "HUMAN": wait.HUMAN,
        "NOOP": builtin.NOOP,
        "SET_VARIABLE": builtin.SET_VARIABLE,
        "TERMINATE": builtin.TERMINATE,
        "INLINE": scripts.INLINE,
        "LAMBDA": scripts.LAMBDA,
        "JSON_JQ_TRANSFORM": scripts.JSON_JQ_TRANSFORM,
        "PULL_WORKFLOW_MESSAGES": messages.TYPE,
        **dict.fromkeys(outside.BUILT_IN, outside.TYPE),
        SCHEDULE: schedule.TYPE,
    }
)


def with_custom_types(names: Iterable[str]) -> TaskTypes:
    """The engine's task types and those that are installed in this process."""
    return TaskTypes({**dict.fromkeys(names, outside.TYPE), **TASK_TYPES})
