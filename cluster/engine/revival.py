"""How a run goes on that ended or was paused: a scan over its tasks, in turns like all work.

The scan goes through the tasks in the order of their numbers. It begins again what a command wants
begun again, and walks on wherever the walk over the plan stands still though it could go on.
"""

from cluster.engine.indexes import reindex
from cluster.engine.model import NO_SCOPE, Execution, Task
from cluster.engine.outbox import retry_child
from cluster.engine.plan import Node, following
from cluster.engine.retries import next_attempt
from cluster.engine.scheduling import advance, begin_attempt, on_ended
from cluster.engine.step import Step
from cluster.engine.tasks.join import watch_again
from cluster.engine.transitions import OPEN_TASK, UNSUCCESSFUL_TASK, TaskStatus

RETRY, RERUN, REVIVE, RESUME = "retry", "rerun", "revive", "walk"
"""The kinds of scans (model.SCANS), by what they begin again."""

IN_PLACE = frozenset({"JOIN", "EXCLUSIVE_JOIN", "DO_WHILE"})
"""Types that are reopened as they are: they hold no work of their own, they wait for others."""


def go_on(step: Step, kind: str) -> None:
    """Have the tasks of a run scanned; all changes that the command makes at once are made."""
    reindex(step.execution, step.work)
    step.later(kind, 0, step.execution.header.next_number - 1, NO_SCOPE)


def wanted_again(task: Task) -> bool:
    """Whether an attempt ended without success and has none after it."""
    return task.status in UNSUCCESSFUL_TASK and not task.retried


def reopen_waiting(step: Step, task: Task) -> None:
    """A JOIN or a loop goes on waiting, under the same id; a loop that never began, begins."""
    unbegun = task.type == "DO_WHILE" and not task.rounds
    step.reopen(task, TaskStatus.SCHEDULED if unbegun else TaskStatus.IN_PROGRESS)


def reopen_loops_around(step: Step, task: Task) -> None:
    """What runs inside a loop holds it open, and the loops around that one."""
    scope = task.scope
    while scope in step.execution.tasks:
        loop = step.execution.tasks[scope]
        if loop.status not in OPEN_TASK:
            reopen_waiting(step, loop)
        scope = loop.scope


def scan(step: Step, kind: str, cursor: int, limit: int) -> None:
    """Go through the tasks behind number `cursor`; those up to `limit` were there before."""
    execution = step.execution
    for number in [number for number in execution.tasks if number > cursor]:
        if step.is_full:
            step.later(kind, cursor, limit, NO_SCOPE)
            return
        cursor = number
        # A loop may forget tasks while its round ends.
        task = execution.tasks.get(number)
        if task is None or task.retried or task.status is TaskStatus.SKIPPED:
            continue
        if kind != RESUME and number <= limit and _begin_again(step, kind, task):
            continue
        _walk_on(step, task)
        if execution.is_terminal:
            return
    _look_at_waiting(step)


def _begin_again(step: Step, kind: str, task: Task) -> bool:
    if not wanted_again(task) or step.execution.by_ref.get(task.ref) is not task:
        return False
    has_child = task.type == "SUB_WORKFLOW" and task.sub_workflow_id
    if kind == REVIVE and not has_child and task.status is not TaskStatus.CANCELED:
        return False
    step.budget -= 1
    if task.executed:
        # A permissive failure: joins had done with it.
        watch_again(step.execution, task.ref)
    if kind == RETRY and task.type != "FORK":
        attempt = next_attempt(step, task, step.execution.node_of(task), delay=0)
        attempt.reason = ""
        # The total timeout of all attempts counts anew, or it would end this one at once.
        attempt.first_scheduled_ms = step.at_ms
        # As in Conductor: only a retry by an operator shows the attempt before as executed.
        task.executed = True
        begin_attempt(step, attempt, step.execution.node_of(task))
    elif kind != REVIVE:
        begin_in_place(step, task)
    elif has_child:
        retry_child(step, task)
        step.reopen(task, TaskStatus.IN_PROGRESS)
    else:
        task.retry_count += 1
        begin_in_place(step, task)
    return True


def begin_in_place(step: Step, task: Task) -> None:
    """Begin a task again under the same id."""
    reset(step, task)
    begin_attempt(step, task, step.execution.node_of(task))


def reset(step: Step, task: Task) -> None:
    """Back to an attempt that has not begun, under the same id."""
    task.scheduled_ms = step.at_ms
    task.first_scheduled_ms = step.at_ms
    task.start_ms = 0
    task.poll_count = 0
    task.retried = False
    task.callback_after_s = task.start_delay_s = 0
    task.visible_ms = step.at_ms
    task.worker_id = ""
    task.sub_workflow_id = ""
    task.rounds = 0
    task.executed = False
    step.execution.set_task_output(task, b"{}")
    step.reopen(task, TaskStatus.SCHEDULED)


def _walk_on(step: Step, task: Task) -> None:
    """Take the step that is due behind a task that has ended."""
    if task.status in OPEN_TASK:
        return
    execution = step.execution
    node = execution.node_of(task)
    if task.type == "TERMINATE" and task.status is TaskStatus.COMPLETED:
        # As in Conductor: what it has ended once, it ends again.
        step.reopen(task, TaskStatus.SCHEDULED)
        step.later("begin", task.number, 0, task.scope)
    elif task.type == "FORK":
        if _lacks_successor(execution, task, node.next):
            step.later("resume", task.number, 0, task.scope)
    elif not task.executed:
        on_ended(step, task)
    else:
        branch = step.types[task.type].branch
        successor = branch(execution, task, node) if branch is not None else None
        if _lacks_successor(execution, task, successor or following(node)):
            advance(step, task, node)


def _lacks_successor(execution: Execution, task: Task, node: Node | None) -> bool:
    """Whether the step after an ended task is missing: a rerun has taken it away."""
    while node is not None:
        present = execution.by_ref.get(node.ref + task.suffix)
        if present is None:
            return True
        if present.status is not TaskStatus.SKIPPED:
            return False
        node = following(node)
    return False


def _look_at_waiting(step: Step) -> None:
    """All tasks are where they should be: joins and loops may have nothing to wait for."""
    execution = step.execution
    taken = {(kind, number) for kind, number, _ in step.work}
    for number in list(execution.open):
        task = execution.tasks[number]
        if number in execution.waiting:
            on_joined = step.types[task.type].on_joined
            assert on_joined is not None
            on_joined(step, task)
        elif task.type == "DO_WHILE":
            if task.status is TaskStatus.SCHEDULED:
                if ("begin", number) not in taken:
                    step.later("begin", number, 0, task.scope)
            elif (
                not execution.pending.get(number)
                and number not in execution.scripts
                and ("resume", number) not in taken
            ):
                step.later("resume", number, 0, task.scope)
