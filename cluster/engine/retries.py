"""Attempts, back-off and timeouts of tasks (rules 70-95)."""

from hashlib import blake2b

from cluster.engine import payloads
from cluster.engine.definitions import TaskDef
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node
from cluster.engine.step import Step, WorkflowFailed
from cluster.engine.transitions import NOT_RETRIABLE, TaskStatus, WorkflowStatus

_INT_MAX = 2**31 - 1


class TimedOut(WorkflowFailed):
    """A timeout whose policy is to end the workflow."""

    def __init__(self, reason: str, task: Task | None = None) -> None:
        super().__init__(reason, status=WorkflowStatus.TIMED_OUT)
        self.task = task


def may_retry(task: Task, node: Node, definition: TaskDef | None) -> bool:
    """Whether a failed attempt gets another one by itself."""
    if definition is None or task.status in NOT_RETRIABLE:
        return False
    allowed = node.task.retry_count
    if allowed is None:
        allowed = definition.retry_count
    return task.retry_count < allowed


def total_timeout_reason(
    execution: Execution, task: Task, definition: TaskDef, at_ms: int
) -> str | None:
    """Why no further attempt may be made, None while there is time left."""
    total_s = definition.total_timeout_seconds
    if total_s <= 0 or at_ms - task.first_scheduled_ms < total_s * 1000:
        return None
    elapsed_s = (at_ms - task.first_scheduled_ms) // 1000
    return (
        f"Task {execution.task_id(task.number)}/{task.name} exceeded total timeout of "
        f"{total_s} seconds (elapsed {elapsed_s} seconds across all attempts). "
        "No further retries will be attempted."
    )


def delay_s(task: Task, definition: TaskDef) -> int:
    """Seconds before the attempt after `task`, without jitter."""
    delay = definition.retry_delay_seconds
    match definition.retry_logic:
        case "LINEAR_BACKOFF":
            delay *= definition.backoff_scale_factor * (task.retry_count + 1)
        case "EXPONENTIAL_BACKOFF":
            delay *= 1 << min(task.retry_count, 32)
    delay = min(delay, _INT_MAX)
    if definition.max_retry_delay_seconds > 0:
        delay = min(delay, definition.max_retry_delay_seconds)
    return delay


def jitter_ms(execution: Execution, task: Task, definition: TaskDef) -> int:
    """0…backoffJitterMs, spread over workflows but the same each time it is asked."""
    limit = definition.backoff_jitter_ms
    if limit <= 0:
        return 0
    origin = f"{execution.id}/{task.number}/{task.retry_count}".encode()
    return int.from_bytes(blake2b(origin, digest_size=8).digest(), "big") % (limit + 1)


def next_attempt(step: Step, task: Task, node: Node, *, delay: int, jitter: int = 0) -> Task:
    """Create the attempt after `task`: same step, old input with the parameters resolved anew."""
    step.check_number()
    execution = step.execution
    task.retried = True
    execution.touch(task)
    header = execution.header
    attempt = Task(
        number=header.next_number,
        ref=task.ref,
        base_ref=task.base_ref,
        type=task.type,
        name=task.name,
        status=TaskStatus.SCHEDULED,
        seq=header.next_seq,
        scope=task.scope,
        iteration=task.iteration,
        origin=task.origin,
        retry_count=task.retry_count + 1,
        retried_number=task.number,
        scheduled_ms=step.at_ms,
        first_scheduled_ms=task.first_scheduled_ms,
        start_delay_s=delay,
        callback_after_s=delay,
        visible_ms=step.at_ms + delay * 1000 + jitter,
        domain=task.domain,
    )
    header.next_number += 1
    header.next_seq += 1
    step.budget -= 1
    attempt_input = dict(execution.task_input(task))
    attempt_input.pop("subWorkflowId", None)
    attempt_input.update(step.resolve_input(attempt, node))
    attempt.input = payloads.dump_map(attempt_input)
    step.bytes_left -= len(attempt.input)
    attempt.reason = task.reason
    execution.add_task(attempt)
    return attempt


def due_of(task: Task, node: Node, definition: TaskDef | None) -> int:
    """When an open task next needs the engine, in Unix ms; 0 = never."""
    due = task.wake_ms
    if definition is None:
        return due
    # A timeout that only alerts ends nothing, and must not stand before one that does.
    ends = definition.timeout_policy != "ALERT_ONLY"
    if ends and definition.total_timeout_seconds > 0:
        due = _earlier(due, task.first_scheduled_ms + definition.total_timeout_seconds * 1000)
    if ends and definition.timeout_seconds > 0 and task.start_ms:
        due = _earlier(due, _timeout_due(task, definition))
    if task.status is TaskStatus.SCHEDULED:
        if ends and definition.poll_timeout_seconds:
            due = _earlier(due, _poll_due(task, definition))
    elif definition.response_timeout_seconds > 0 and not _is_completed_elsewhere(task, node):
        due = _earlier(due, _response_due(task, definition))
    return due


def _is_completed_elsewhere(task: Task, node: Node) -> bool:
    """Whether nobody is expected to give a sign of life meanwhile (rule 131)."""
    return node.task.async_complete or task.type == "SUB_WORKFLOW"


def arm_own_tasks(step: Step) -> None:
    """Have the engine come back to its own tasks that changed: they may have timeouts as well."""
    execution = step.execution
    for number in execution.changed:
        task = execution.tasks[number]
        if task.is_open and not step.types[task.type].is_worker:
            node = execution.node_of(task)
            if execution.definition_of(task, node) is not None:
                arm(step, task, node)


def _earlier(due: int, other: int) -> int:
    return other if not due or other < due else due


def _timeout_due(task: Task, definition: TaskDef) -> int:
    return task.start_ms + (task.start_delay_s + definition.timeout_seconds) * 1000


def _poll_due(task: Task, definition: TaskDef) -> int:
    wait_s = task.start_delay_s + task.callback_after_s + (definition.poll_timeout_seconds or 0)
    return task.scheduled_ms + wait_s * 1000


def _response_due(task: Task, definition: TaskDef) -> int:
    wait_s = definition.response_timeout_seconds + task.callback_after_s
    return (task.update_ms or task.start_ms) + wait_s * 1000


def arm(step: Step, task: Task, node: Node) -> None:
    """Have the engine come back when the first of the task's timeouts is due."""
    due = due_of(task, node, step.execution.definition_of(task, node))
    if due:
        step.arm(task, due)


def check_timeouts(step: Step, task: Task, node: Node) -> bool:
    """End `task` when one of its timeouts is over; True if it has ended. May raise TimedOut."""
    definition = step.execution.definition_of(task, node)
    if definition is None:
        return False
    at_ms = step.at_ms
    policy = definition.timeout_policy
    reason = None
    if definition.total_timeout_seconds > 0:
        total_ms = definition.total_timeout_seconds * 1000
        if at_ms >= task.first_scheduled_ms + total_ms:
            reason = (
                f"Task {task.name}/{step.execution.task_id(task.number)} exceeded total timeout "
                f"of {definition.total_timeout_seconds} seconds (elapsed "
                f"{(at_ms - task.first_scheduled_ms) // 1000} seconds across all attempts "
                f"including retry delays). Timeout policy: {policy}"
            )
    if reason is None and definition.timeout_seconds > 0 and task.start_ms:
        if at_ms >= _timeout_due(task, definition):
            elapsed_ms = at_ms - task.start_ms - task.start_delay_s * 1000
            reason = (
                f"Task timed out after {elapsed_ms // 1000} seconds. Timeout configured as "
                f"{definition.timeout_seconds} seconds. Timeout policy configured to {policy}"
            )
    if (
        reason is None
        and task.status is TaskStatus.SCHEDULED
        and definition.poll_timeout_seconds
        and at_ms >= _poll_due(task, definition)
    ):
        elapsed_ms = at_ms - task.scheduled_ms - task.start_delay_s * 1000
        reason = (
            f"Task poll timed out after {elapsed_ms // 1000} seconds. Poll timeout configured as "
            f"{definition.poll_timeout_seconds} seconds. Timeout policy configured to {policy}"
        )
    if reason is not None:
        if policy == "RETRY":
            step.finish(task, TaskStatus.TIMED_OUT, reason)
            return True
        if policy == "TIME_OUT_WF":
            step.close(task, TaskStatus.TIMED_OUT, reason)
            raise TimedOut(reason, task)
    if (
        task.status is TaskStatus.IN_PROGRESS
        and definition.response_timeout_seconds > 0
        and not _is_completed_elsewhere(task, node)
        and at_ms >= _response_due(task, definition)
    ):
        reason = (
            f"responseTimeout: {definition.response_timeout_seconds} exceeded for the taskId: "
            f"{step.execution.task_id(task.number)} with Task Definition: {task.name}"
        )
        step.finish(task, TaskStatus.TIMED_OUT, reason)
        return True
    return False


def arm_workflow_timeout(step: Step) -> None:
    """Have the whole run looked at when its own timeout is over."""
    execution = step.execution
    definition = execution.plan.definition
    if definition.timeout_seconds > 0 and definition.timeout_policy == "TIME_OUT_WF":
        due = timeout_start_ms(execution) + definition.timeout_seconds * 1000
        execution.arm_workflow(due)
        step.set_due(due)


def timeout_start_ms(execution: Execution) -> int:
    """What a workflow's timeout counts from."""
    return execution.header.last_retried_ms or execution.header.create_ms


def arm_all(step: Step) -> None:
    """Arm the timers of the workflow and of all its open tasks anew."""
    execution = step.execution
    execution.timers.clear()
    execution.header.due_ms = 0
    arm_workflow_timeout(step)
    for task in execution.open_tasks():
        arm(step, task, execution.node_of(task))


def rebuild_timers(execution: Execution) -> None:
    """The timers of a loaded execution: the same that `arm_all` would arm."""
    execution.timers.clear()
    if execution.is_terminal:
        return
    definition = execution.plan.definition
    if definition.timeout_seconds > 0 and definition.timeout_policy == "TIME_OUT_WF":
        execution.arm_workflow(timeout_start_ms(execution) + definition.timeout_seconds * 1000)
    for task in execution.open_tasks():
        node = execution.node_of(task)
        due = due_of(task, node, execution.definition_of(task, node))
        if due:
            execution.arm(task, due)
