"""The work items of one turn: as many as a transition may hold, the rest with the next one.

A work item is (kind, task number, index); what is left stands in the header, so that a crash
between two turns loses none.
"""

from cluster.engine.effects import ContinueLater
from cluster.engine.ending import cancel_open_tasks, complete, fail
from cluster.engine.model import NO_SCOPE, SCANS, WITHOUT_TASK, Task
from cluster.engine.revival import scan
from cluster.engine.scheduling import on_ended, schedule
from cluster.engine.step import TOP, Step, WorkflowFailed
from cluster.engine.transitions import OPEN_TASK, TaskStatus, WorkflowStatus


def run(step: Step) -> None:
    """Take work items until none is left or this transition is large enough."""
    execution = step.execution
    header = execution.header
    work = step.work
    while work and header.status is WorkflowStatus.RUNNING:
        if step.is_full:
            break
        kind, number, index = work.popleft()
        scope = NO_SCOPE
        if kind not in WITHOUT_TASK:
            scope = execution.tasks[number].scope
        try:
            _take(step, kind, number, index)
            if execution.release(scope):
                _scope_done(step, scope)
        except WorkflowFailed as e:
            fail(step, WorkflowStatus(e.status), e.reason)
    if execution.is_terminal:
        work.clear()
        if execution.open and not cancel_open_tasks(step):
            work.append(("cancel", 0, 0))
    elif header.status is WorkflowStatus.PAUSED:
        _put_aside(step)
    header.work = list(work)
    if work and header.status is not WorkflowStatus.PAUSED:
        step.effects.append(ContinueLater())


def _take(step: Step, kind: str, number: int, index: int) -> None:
    tasks = step.execution.tasks
    match kind:
        case "ended":
            on_ended(step, tasks[number])
        case "resume":
            task = tasks[number]
            resume = step.types[task.type].resume
            assert resume is not None
            resume(step, task, index)
        case "begin":
            _begin_deferred(step, tasks[number])
        case "start":
            _start(step)
        case _:
            assert kind in SCANS
            scan(step, kind, number, index)


def _put_aside(step: Step) -> None:
    """Forget which tasks ended while the run is paused: `resume` looks for them anyway.

    Else the header would grow with every result that comes in the meantime.
    """
    execution = step.execution
    kept = []
    for item in step.work:
        kind, number, _ = item
        if kind == "ended":
            execution.release(execution.tasks[number].scope)
        else:
            kept.append(item)
    step.work.clear()
    step.work.extend(kept)


def _begin_deferred(step: Step, task: Task) -> None:
    """The turn of a task that stood back until its neighbours were scheduled."""
    if task.status is TaskStatus.SCHEDULED:
        node = step.execution.node_of(task)
        step.type_of(task, node).begin(step, task, node)


def _scope_done(step: Step, scope: int) -> None:
    execution = step.execution
    if execution.is_terminal or step.is_scanning:
        return
    while scope != NO_SCOPE:
        loop_task = execution.tasks[scope]
        if loop_task.status in OPEN_TASK:
            step.later("resume", scope, 0, loop_task.scope)
            return
        # Somebody ended the loop from outside while its round went on.
        scope = loop_task.scope
        if execution.pending.get(scope):
            return
    if not execution.open and not step.work:
        complete(step)


def _start(step: Step) -> None:
    """Schedule the first step of the definition."""
    first = step.execution.plan.first
    if first is None:
        complete(step, reason="No tasks found to be executed")
    else:
        schedule(step, first, TOP)
