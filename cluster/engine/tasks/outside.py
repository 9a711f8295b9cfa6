"""What nodes carry out themselves, outside the engine: HTTP, KAFKA_PUBLISH, JDBC, custom types.

Such a task waits in the queue of its type, as a worker's does, and an executor of some node takes
it from there. Whoever takes it has it for a lease that it renews while it works. When the lease
runs out the same attempt is put into its queue again: a node that dies costs time, not an attempt.
"""

from cluster.engine.model import Task
from cluster.engine.plan import Node
from cluster.engine.retries import arm
from cluster.engine.scheduling import push
from cluster.engine.schemas import task_checks
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import TaskStatus

BUILT_IN = ("HTTP", "HTTP_POLL", "JDBC", "KAFKA_PUBLISH")
"""EVENT will stand here when there is something to publish to."""


def begin(step: Step, task: Task, node: Node) -> None:
    """Put the attempt into the queue of its type, visible when its delay is over."""
    if not task.retry_count:
        delay_s = node.task.start_delay
        task.callback_after_s = delay_s
        task.visible_ms = step.at_ms + delay_s * 1000
    value = step.execution.task_input(task)
    if task.type == "HTTP" and value.get("asyncComplete") is not node.task.async_complete:
        # Conductor shows it there, and its clients look for it.
        step.set_input(task, {**value, "asyncComplete": node.task.async_complete})
    check_input, _ = task_checks(node, step.execution.definition_of(task, node))
    fault = check_input(step.execution.task_input(task)) if check_input is not None else None
    if fault is not None:
        step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, f"Task {fault}")
        return
    push(step, task)
    arm(step, task, node)


def again(step: Step, task: Task, node: Node) -> None:
    """The lease has run out, or the pause that the executor asked for is over."""
    task.status = TaskStatus.SCHEDULED
    task.visible_ms = step.at_ms
    task.callback_after_s = 0
    task.update_ms = step.at_ms
    push(step, task)


def is_completed_elsewhere(step: Step, task: Task, node: Node) -> bool:
    """Whether the task stays open when its work is done, until somebody completes it (rule 131)."""
    given = step.execution.task_input(task).get("asyncComplete")
    return given is True or (given is None and node.task.async_complete)


TYPE = TaskType(begin=begin, on_wake=again, is_worker=True, by_executor=True)
