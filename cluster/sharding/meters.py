"""What becomes of tasks, in numbers."""

from cluster.engine.events import TaskUpdated
from cluster.engine.model import Execution
from cluster.engine.transitions import TaskStatus
from cluster.metrics import Metrics


def count_ended(metrics: Metrics, execution: Execution, number: int) -> None:
    """An attempt at a worker's task has left its queue for good, and that is committed."""
    task = execution.tasks.get(number)
    if task is None or task.is_open:
        return  # Its run was removed, or an operator has brought it back since.
    if task.status is TaskStatus.TIMED_OUT:
        metrics.task_timeout.of(task.type).inc()
        if task.reason.startswith("responseTimeout"):
            metrics.task_response_timeout.of(task.type).inc()
    if not task.start_ms:
        return  # No worker ever had it.
    status = task.status.value
    attempt_s = (task.end_ms - task.start_ms) / 1000
    metrics.task_execution.of(task.type, "false", status).observe(attempt_s)
    first = task
    while first.retried_number in execution.tasks:
        first = execution.tasks[first.retried_number]
    all_s = (task.end_ms - (first.start_ms or first.scheduled_ms)) / 1000
    metrics.task_execution.of(task.type, "true", status).observe(all_s)


def count_conflict(metrics: Metrics, execution: Execution, event: TaskUpdated) -> None:
    """A result is about to be looked at: if it comes too late to change anything, note that."""
    task = execution.tasks.get(event.number)
    if task is None or (task.is_open and not execution.is_terminal):
        return
    header = execution.header
    metrics.task_update_conflict.of(
        header.name, task.type, task.status.value, header.status.value
    ).inc()
