"""What a new owner asks for again: every effect follows from the saved state."""

from cluster.engine.causes import ASKING, stands
from cluster.engine.effects import AcknowledgeTask, HoldTask, PushTask
from cluster.engine.ending import compensate
from cluster.engine.events import ChildEnded, Retried, TaskUnheard, Terminated
from cluster.engine.model import Execution, Task
from cluster.engine.outbox import START, send_again
from cluster.engine.retries import arm_all
from cluster.engine.revival import RESUME, go_on
from cluster.engine.schedules import SCHEDULE
from cluster.engine.scheduling import push
from cluster.engine.step import Step, queue_name
from cluster.engine.tasks import TASK_TYPES, schedule, sub_workflow
from cluster.engine.transitions import OPEN_TASK, TaskStatus, WorkflowStatus
from cluster.ids import WorkflowId, same_slot


def recover(step: Step) -> None:
    """Push what waits for workers, ask again for what was asked outside, arm all timers.

    Scripts and look-ups are asked for under a new token, so that an answer to the old question
    cannot be taken for one to the new.
    """
    execution = step.execution
    header = execution.header
    if header.failure_workflow == "?":
        compensate(step)
    for mark, order in list(execution.orders.items()):
        if order.kind == START:
            sub_workflow.start_again(step, mark, order)
        else:
            send_again(step, mark, order)
    if execution.is_terminal:
        return
    arm_all(step)
    if header.status is WorkflowStatus.RUNNING and stands(execution):
        go_on(step, RESUME)
    in_work = _in_work(execution)
    for task in list(execution.open_tasks()):
        if task.number in in_work:
            continue
        if step.types[task.type].is_worker:
            step.effects.append(_for_queue(task))
        elif task.type == SCHEDULE:
            schedule.ask_again(step, task)
        elif not task.wake_ms:
            _ask_again(step, task)


def for_queues(execution: Execution) -> list[PushTask | HoldTask]:
    """What the queues ought to hold of a workflow."""
    if execution.is_terminal:
        return []
    in_work = _in_work(execution)
    return [
        _for_queue(task)
        for task in execution.open_tasks()
        if TASK_TYPES[task.type].is_worker and task.number not in in_work
    ]


def _in_work(execution: Execution) -> set[int]:
    """Tasks that a later turn begins: nothing was asked for them yet."""
    return {number for kind, number, _ in execution.header.work if kind in ("begin", "resume")}


def _for_queue(task: Task) -> PushTask | HoldTask:
    if task.status is TaskStatus.SCHEDULED:
        return PushTask(task.number)
    return HoldTask(queue_name(task), task.number, task.delivery)


def on_unheard(step: Step, event: TaskUnheard) -> None:
    """Tell a queue what has become of a task that it handed out: whoever popped it may be dead."""
    execution = step.execution
    task = execution.tasks.get(event.number)
    if (
        task is None
        or execution.is_terminal
        or task.status not in OPEN_TASK
        or not step.types[task.type].is_worker
    ):
        step.effects.append(AcknowledgeTask(event.queue, event.number))
    elif task.status is TaskStatus.SCHEDULED and task.delivery <= event.delivery:
        # It never came to a worker that would have been noted: it goes out once more.
        task.delivery = event.delivery
        push(step, task)
    else:
        step.effects.append(_for_queue(task))


def is_unfinished(execution: Execution) -> bool:
    """Whether anything is still to come: an ended run may have tasks to cancel, a failure
    workflow to start, orders for other shards."""
    header = execution.header
    return (
        not execution.is_terminal
        or bool(header.work)
        or header.failure_workflow == "?"
        or bool(execution.orders)
    )


def _ask_again(step: Step, task: Task) -> None:
    execution = step.execution
    if task.type == "DO_WHILE":
        # A scan that is under way looks at the loops itself, when it has seen all tasks.
        if not execution.pending.get(task.number) and not step.is_scanning:
            step.later("resume", task.number, 0, task.scope)
    elif task.type in ASKING or task.status is TaskStatus.SCHEDULED:
        node = execution.node_of(task)
        if task.type == "SUB_WORKFLOW" and task.status is not TaskStatus.SCHEDULED:
            return
        step.type_of(task, node).begin(step, task, node)


# -- what relatives told each other in one commit, or in an effect that a crash has swallowed


def awaited_children(execution: Execution) -> list[WorkflowId]:
    """The children in its own slot that an open run waits for; others speak up (outbox.py)."""
    return [
        WorkflowId(task.sub_workflow_id)
        for task in execution.open_tasks()
        if task.type == "SUB_WORKFLOW"
        and task.sub_workflow_id
        and same_slot(execution.id, task.sub_workflow_id)
    ]


def word_to_child(child: Execution, parent: Execution | None, at_ms: int) -> Terminated | None:
    """What an open child has not heard: that it ended with its parent."""
    if parent is None or not parent.is_terminal or child.is_terminal:
        return None
    task = parent.tasks.get(child.header.parent_number)
    if (
        task is None
        or task.sub_workflow_id != child.id
        or task.status is not TaskStatus.CANCELED
        # Somebody made it run again on its own since.
        or child.header.last_retried_ms > task.end_ms
    ):
        return None
    reason = f"Parent workflow has been terminated with reason: {parent.header.reason}"
    return Terminated(at_ms, reason, by_parent=True)


def word_to_parent(
    parent: Execution, child: Execution, at_ms: int
) -> tuple[Execution, ChildEnded | Retried] | None:
    """What was not heard between an open parent and a child that has ended: whom to tell what."""
    task = parent.tasks.get(child.header.parent_number)
    if (
        task is None
        or task.sub_workflow_id != child.id
        or task.status is not TaskStatus.IN_PROGRESS
        or parent.is_terminal
        or not child.is_terminal
        # What it was ordered to do is still on its way.
        or any(order.target == child.id for order in parent.orders.values())
    ):
        return None
    if child.header.status is not WorkflowStatus.COMPLETED and task.update_ms > child.header.end_ms:
        # The parent has gone on after this end: it took the child along.
        return child, Retried(at_ms, by_parent=True)
    return parent, ChildEnded(
        at_ms,
        number=task.number,
        child_id=child.id,
        status=child.header.status.value,
        output=child.output,
        reason=child.header.reason,
    )
