"""WAIT and HUMAN: nothing to do but to wait, for a time or for somebody."""

from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import TaskStatus
from cluster.engine.wait_times import duration_seconds, until_ms

FOREVER_S = 2**31 - 1
"""What Conductor shows as callbackAfterSeconds of a WAIT without a time."""


def begin_wait(step: Step, task: Task, node: Node) -> None:
    step.start(task)
    value = step.execution.task_input(task)
    duration = _text(value.get("duration"))
    until = _text(value.get("until"))
    if duration and until:
        reason = "Both 'duration' and 'until' specified. Please provide only one input"
        step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
    elif duration:
        wait_s = duration_seconds(duration)
        if wait_s is None:
            reason = f"Not valid duration: {duration}"
            step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
            return
        task.callback_after_s = wait_s
        step.wake(task, step.at_ms + wait_s * 1000)
    elif until:
        due_ms = until_ms(until)
        if due_ms is None:
            reason = f"Invalid/Unsupported Wait Until format.  Provided: {until}"
            step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
            return
        task.callback_after_s = max(0, (due_ms - step.at_ms) // 1000)
        step.wake(task, max(due_ms, step.at_ms))
    else:
        task.callback_after_s = FOREVER_S


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def on_due(step: Step, task: Task, node: Node) -> None:
    step.finish(task, TaskStatus.COMPLETED)


def begin_human(step: Step, task: Task, node: Node) -> None:
    step.start(task)


WAIT = TaskType(begin=begin_wait, on_wake=on_due)
HUMAN = TaskType(begin=begin_human)
