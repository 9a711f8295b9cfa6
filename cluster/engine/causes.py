"""What an open workflow waits for: with none of it alive it would stand still for ever."""

from dataclasses import dataclass, field

from cluster.engine.model import Execution, Task
from cluster.engine.retries import due_of, timeout_start_ms
from cluster.engine.schedules import SCHEDULE
from cluster.engine.step import queue_name
from cluster.engine.tasks import TASK_TYPES
from cluster.engine.tasks.join import watched_refs
from cluster.engine.tasks.schedule import waits_for_answers
from cluster.engine.transitions import TaskStatus, WorkflowStatus

ASKING = frozenset(
    {"SWITCH", "DECISION", "INLINE", "LAMBDA", "JSON_JQ_TRANSFORM", "FORK", "DYNAMIC"}
)
"""Types that are open only while they wait for an answer from outside the engine."""


@dataclass(slots=True)
class Causes:
    """All that must be alive for a workflow to go on. People and PAUSED runs may wait for ever."""

    queued: dict[str, list[int]] = field(default_factory=dict)
    """Queue → numbers of tasks that must wait in it, or be in a worker's hands."""
    due_ms: int = 0
    """A timer must fire at this Unix time or before; 0 = none is needed."""
    effect: bool = False
    """Something must be under way: a continuation, a script, a look-up, a start."""
    stands: bool = False
    """The walk over the plan stands still though nothing holds it."""


def causes_of(execution: Execution) -> Causes:
    """What must be alive, children apart (recovery.awaited_children)."""
    causes = Causes()
    header = execution.header
    if header.failure_workflow == "?":
        causes.effect = True
    is_paused = header.status is WorkflowStatus.PAUSED
    if (header.work and not is_paused) or execution.orders:
        causes.effect = True
    if execution.is_terminal:
        return causes
    in_work = {number for kind, number, _ in header.work if kind in ("begin", "resume")}
    for task in execution.open_tasks():
        if task.number in in_work:
            continue
        if TASK_TYPES[task.type].is_worker:
            causes.queued.setdefault(queue_name(task), []).append(task.number)
        elif task.type == SCHEDULE:
            causes.effect = causes.effect or waits_for_answers(execution)
        elif not task.wake_ms and not is_paused:
            causes.effect = causes.effect or _needs_effect(execution, task)
    if not is_paused:
        causes.due_ms = _due_ms(execution)
        causes.stands = stands(execution)
    return causes


def stands(execution: Execution) -> bool:
    """Whether an open run has nothing open, or waits for tasks that have ended.

    Counted anew, without the indexes that the decider goes by.
    """
    if execution.header.work:
        return False
    scopes = {task.scope for task in execution.open_tasks()}
    for task in execution.open_tasks():
        if task.type in ("JOIN", "EXCLUSIVE_JOIN"):
            if not any(_is_to_come(execution, ref) for ref in watched_refs(execution, task)):
                return True
        elif task.type == "DO_WHILE" and task.number not in scopes:
            if execution.pending.get(task.number):
                return True
    return not scopes


def _is_to_come(execution: Execution, ref: str) -> bool:
    task = execution.by_ref.get(ref)
    return task is None or not task.executed


def _needs_effect(execution: Execution, task: Task) -> bool:
    """Whether a task of the engine's own waits for an answer from outside."""
    if task.status is TaskStatus.SCHEDULED or task.type in ASKING:
        return True
    # Between two rounds a loop waits for its condition.
    return task.type == "DO_WHILE" and not execution.pending.get(task.number)


def _due_ms(execution: Execution) -> int:
    """When the engine has to look at a run that is not paused; 0 = never."""
    dues = []
    definition = execution.plan.definition
    if definition.timeout_seconds > 0 and definition.timeout_policy == "TIME_OUT_WF":
        dues.append(timeout_start_ms(execution) + definition.timeout_seconds * 1000)
    for task in execution.open_tasks():
        node = execution.node_of(task)
        due_ms = due_of(task, node, execution.definition_of(task, node))
        if due_ms:
            dues.append(due_ms)
    return min(dues, default=0)
