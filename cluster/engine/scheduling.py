"""Which tasks come next: the walk over the plan."""

from collections.abc import Callable

from cluster.engine.effects import PushTask
from cluster.engine.ending import fail
from cluster.engine.model import Task
from cluster.engine.plan import Node, following
from cluster.engine.retries import (
    delay_s,
    jitter_ms,
    may_retry,
    next_attempt,
    total_timeout_reason,
)
from cluster.engine.step import Place, Step, TaskType, WorkflowFailed, place_of
from cluster.engine.transitions import (
    OPEN_TASK,
    UNSUCCESSFUL_TASK,
    TaskStatus,
    WorkflowStatus,
)


def schedule(step: Step, node: Node | None, place: Place) -> Task | None:
    """Begin the first attempt of `node`, or of what follows it where it is to be skipped."""
    execution = step.execution
    while node is not None:
        present = execution.by_ref.get(node.ref + place.suffix)
        if present is None:
            break
        if present.status is not TaskStatus.SKIPPED:
            return None
        node = following(node)
    if node is None:
        return None
    task_type = step.types[node.type]
    task = step.new_task(node, place, type=task_type.shown_as, name=task_type.shown_as)
    if task_type.deferred:
        step.later("begin", task.number, 0, task.scope)
    else:
        begin_mapped(step, task, node, task_type.begin)
    return task


def begin_mapped(
    step: Step, task: Task, node: Node, begin: Callable[[Step, Task, Node], None]
) -> None:
    """Begin a first attempt. A step that cannot be made out of its input leaves no task."""
    try:
        begin(step, task, node)
    except WorkflowFailed:
        step.discard(task.number)
        raise


def end_on_the_way(step: Step, task: Task) -> None:
    """Complete a step that only shows the way, and schedule at once what it leads to."""
    execution = step.execution
    if (
        execution.header.status is not WorkflowStatus.RUNNING
        or step.is_full
        or step.depth >= _DEPTH_MAX
    ):
        step.finish(task, TaskStatus.COMPLETED)
        return
    step.close(task, TaskStatus.COMPLETED)
    # Held as an open task still: its scope cannot be done before what follows is there.
    step.depth += 1
    on_ended(step, task)
    step.depth -= 1
    if execution.pending.get(task.scope) == 1:
        # Nothing followed. The turn finds that this scope is done when it takes this item.
        step.later("ended", task.number, 0, task.scope)
    execution.release(task.scope)


_DEPTH_MAX = 20
"""Steps in a row that are passed within each other: Python's stack is not endless."""


def on_ended(step: Step, task: Task) -> None:
    """An attempt is over: retry it, forgive it, end the workflow, or go on behind it."""
    execution = step.execution
    if task.status in OPEN_TASK or task.retried or task.executed:
        return
    node = execution.node_of(task)
    if task.status in UNSUCCESSFUL_TASK:
        if not _forgiven(step, task, node, step.types[task.type]):
            return
    advance(step, task, node)


def advance(step: Step, task: Task, node: Node) -> None:
    """Go on behind an attempt that is over for good."""
    execution = step.execution
    task_type = step.types[task.type]
    task.executed = True
    step.advanced.append(task)
    execution.touch(task)
    tell_joins(step, task)
    if execution.is_terminal:
        return
    branch = task_type.branch(execution, task, node) if task_type.branch is not None else None
    schedule(step, branch if branch is not None else following(node), place_of(task))


def _forgiven(step: Step, task: Task, node: Node, task_type: TaskType) -> bool:
    """Whether the flow goes on behind a failed attempt; if not, what had to happen has happened."""
    execution = step.execution
    definition = step.execution.definition_of(task, node)
    if task_type.retries and may_retry(task, node, definition):
        assert definition is not None
        reason = total_timeout_reason(execution, task, definition, step.at_ms)
        if reason is None:
            attempt = next_attempt(
                step,
                task,
                node,
                delay=delay_s(task, definition),
                jitter=jitter_ms(execution, task, definition),
            )
            begin_attempt(step, attempt, node)
            return False
        status = WorkflowStatus.FAILED
        if task.status is TaskStatus.TIMED_OUT:
            status = WorkflowStatus.TIMED_OUT
        fail(step, status, reason, task)
        return False
    if node.task.optional:
        task.status = TaskStatus.COMPLETED_WITH_ERRORS
        return True
    if node.task.permissive:
        loop = execution.tasks.get(task.scope)
        if loop is not None and loop.status in OPEN_TASK:
            # A loop does not go on behind a failure, however permissive the step.
            resume = step.types[loop.type].resume
            assert resume is not None
            resume(step, loop, 0)
        return True
    status = _STATUS_AFTER.get(task.status, WorkflowStatus.FAILED)
    reason = (
        f"Task {execution.task_id(task.number)} failed with status: {status} "
        f"and reason: '{task.reason or 'null'}'"
    )
    fail(step, status, reason, task)
    return False


_STATUS_AFTER = {
    TaskStatus.CANCELED: WorkflowStatus.TERMINATED,
    TaskStatus.TIMED_OUT: WorkflowStatus.TIMED_OUT,
}


def begin_attempt(step: Step, attempt: Task, node: Node) -> None:
    """Begin a further attempt, at once or when its delay is over."""
    task_type = step.type_of(attempt, node)
    if not task_type.is_worker and attempt.visible_ms > step.at_ms:
        step.wake(attempt, attempt.visible_ms)
    else:
        task_type.begin(step, attempt, node)


def tell_joins(step: Step, task: Task) -> None:
    """`task` has ended for good: every join that waits for it looks again."""
    execution = step.execution
    for number in execution.joins.pop(task.ref, ()):
        join = execution.tasks.get(number)
        if join is not None and join.status in OPEN_TASK and number in execution.waiting:
            execution.waiting[number] -= 1
            on_joined = step.types[join.type].on_joined
            assert on_joined is not None
            on_joined(step, join)


def push(step: Step, task: Task) -> None:
    """Put a worker task into its queue as its next delivery."""
    task.delivery += 1
    step.execution.touch(task)
    step.effects.append(PushTask(task.number))
