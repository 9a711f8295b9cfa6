"""What a new owner asks for again: every effect follows from the saved state."""

from cluster.engine.effects import HoldTask, PushTask
from cluster.engine.ending import compensate
from cluster.engine.model import Task
from cluster.engine.retries import arm_all
from cluster.engine.step import Step, queue_name
from cluster.engine.transitions import TaskStatus


def recover(step: Step) -> None:
    """Push what waits for workers, ask again for what was asked outside, arm all timers.

    Scripts and look-ups are asked for under a new token, so that an answer to the old question
    cannot be taken for one to the new.
    """
    execution = step.execution
    header = execution.header
    if header.failure_workflow == "?":
        compensate(step)
    if execution.is_terminal:
        return
    arm_all(step)
    in_work = {number for kind, number, _ in header.work if kind in ("begin", "resume")}
    for task in list(execution.open_tasks()):
        if step.types[task.type].is_worker:
            if task.status is TaskStatus.SCHEDULED:
                step.effects.append(PushTask(task.number))
            else:
                step.effects.append(HoldTask(queue_name(task), task.number, task.delivery))
        elif not task.wake_ms and task.number not in in_work:
            _ask_again(step, task)


def _ask_again(step: Step, task: Task) -> None:
    execution = step.execution
    if task.type == "DO_WHILE":
        # A scan that is under way looks at the loops itself, when it has seen all tasks.
        if not execution.pending.get(task.number) and not step.is_scanning:
            step.later("resume", task.number, 0, task.scope)
    elif task.type in _ASKING or task.status is TaskStatus.SCHEDULED:
        node = execution.node_of(task)
        if task.type == "SUB_WORKFLOW" and task.status is not TaskStatus.SCHEDULED:
            return
        step.type_of(task, node).begin(step, task, node)


_ASKING = frozenset(
    {"SWITCH", "DECISION", "INLINE", "LAMBDA", "JSON_JQ_TRANSFORM", "FORK", "DYNAMIC"}
)
"""Types that are open only while they wait for an answer from outside the engine."""
