"""What operators do to a run: pause, resume, terminate, restart, retry, rerun, skip.

Commands check first and change then: one that raises has changed nothing.
"""

from cluster.engine import payloads
from cluster.engine.ending import cancel_open_tasks
from cluster.engine.ending import terminate as end_terminated
from cluster.engine.events import (
    ChildRevived,
    Rerun,
    Retried,
    TaskSkipped,
    TasksRequeued,
    Terminated,
    VariablesUpdated,
)
from cluster.engine.indexes import reindex
from cluster.engine.model import NO_SCOPE, Execution, Task
from cluster.engine.outbox import is_news, tell_ended, tell_revived
from cluster.engine.plan import Plan
from cluster.engine.retries import arm, arm_all
from cluster.engine.revival import (
    IN_PLACE,
    RERUN,
    RESUME,
    RETRY,
    REVIVE,
    go_on,
    reopen_loops_around,
    reopen_waiting,
    reset,
    wanted_again,
)
from cluster.engine.scheduling import push, tell_joins
from cluster.engine.step import Step
from cluster.engine.transitions import (
    OPEN_TASK,
    UNSUCCESSFUL_TASK,
    TaskStatus,
    WorkflowStatus,
)
from cluster.engine.views import joined_refs
from cluster.errors import Conflict, NotFound
from cluster.ids import NUMBER_MAX


def short_name(execution: Execution) -> str:
    header = execution.header
    return f"{header.name}.{header.version}/{execution.id}"


# -- pause, resume, terminate


def pause(step: Step) -> None:
    """Results are still taken, nothing new is scheduled."""
    header = step.execution.header
    if step.execution.is_terminal:
        raise Conflict(
            f"Workflow {short_name(step.execution)} has ended, status cannot be updated."
        )
    header.status = WorkflowStatus.PAUSED


def resume(step: Step) -> None:
    """Go on where it stopped; the workflow's timeout counts anew."""
    execution = step.execution
    header = execution.header
    if header.status is not WorkflowStatus.PAUSED:
        raise Conflict(
            f"The workflow {execution.id} is not PAUSED so cannot resume. "
            f"Current status is {header.status}"
        )
    header.status = WorkflowStatus.RUNNING
    header.last_retried_ms = step.at_ms
    arm_all(step)
    step.later(RESUME, 0, header.next_number - 1, NO_SCOPE)


def terminate(step: Step, event: Terminated) -> None:
    """End it and its children. A run that failed becomes TERMINATED as well."""
    execution = step.execution
    status = execution.header.status
    if event.by_parent and execution.is_terminal:
        return
    if status is WorkflowStatus.COMPLETED:
        raise Conflict("Cannot terminate a COMPLETED workflow.")
    if status is not WorkflowStatus.TERMINATED:
        end_terminated(step, event.reason)


# -- restart, rerun


def restart(step: Step) -> None:
    """Run again from the top under the same id; input and variables are kept."""
    execution = step.execution
    check_restart(execution, execution.plan)
    header = execution.header
    _start_over(step)
    header.create_ms = step.at_ms
    header.last_retried_ms = 0
    header.end_ms = 0
    arm_all(step)
    tell_revived(step)


def check_restart(execution: Execution, plan: Plan) -> None:
    """Conflict or NotFound: the run may not be restarted with this definition."""
    must_have_ended(execution, "restart")
    if not plan.definition.restartable and execution.header.status is WorkflowStatus.COMPLETED:
        raise NotFound(
            f"Workflow: {short_name(execution)}.{execution.header.status} is non-restartable"
        )


def rerun(step: Step, event: Rerun) -> None:
    """Run again from a task on: what came after it is forgotten."""
    execution = step.execution
    must_have_ended(execution, "rerun")
    target = execution.tasks.get(event.number)
    if event.number and target is None:
        raise NotFound(f"Task {execution.task_id(event.number)} not found")
    if target is not None and target.status is TaskStatus.SKIPPED:
        raise Conflict(f"Task {execution.task_id(event.number)} was skipped, nothing to rerun")
    if event.correlation_id is not None:
        execution.header.correlation_id = event.correlation_id
    if event.workflow_input is not None:
        execution.set_input(event.workflow_input)
    if target is None:
        _start_over(step)
    else:
        _rerun_from(step, target, event.task_input)
    arm_all(step)
    tell_revived(step)


def must_have_ended(execution: Execution, verb: str) -> None:
    """Conflict: the run is still open."""
    if not execution.is_terminal:
        raise Conflict(
            f"Workflow: {short_name(execution)}.{execution.header.status} is not in terminal state,"
            f" unable to {verb}."
        )


def _start_over(step: Step) -> None:
    """Forget all tasks and begin with the first step."""
    execution = step.execution
    header = execution.header
    _finish_cancelling(step)
    for task in list(execution.tasks.values()):
        execution.remove_task(task)
    execution.forget_indexes()
    _reopen(step)
    header.shows_failures = False
    execution.set_output(payloads.EMPTY)
    execution.set_task_defs(payloads.EMPTY)
    header.next_seq = 1
    step.later("start", 0, 0, 0)


def _rerun_from(step: Step, target: Task, task_input: bytes | None) -> None:
    execution = step.execution
    header = execution.header
    _finish_cancelling(step)
    _reopen(step)
    header.shows_failures = False
    rounds_cut = _forget_later(step, target)
    node = execution.node_of(target)
    if task_input is not None and target.type != "SUB_WORKFLOW":
        execution.set_task_input(target, task_input)
    elif node.type in ("FORK_JOIN_DYNAMIC", "SWITCH", "DECISION"):
        # They have written into their input what they found there.
        step.set_input(target, step.resolve_input(target, node))
    _reopen_for_rerun(step, target, rounds_cut)
    go_on(step, RERUN)
    step.later("begin", target.number, 0, target.scope)


def _forget_later(step: Step, target: Task) -> set[int]:
    """Remove what came after a task; returns the scopes (loops) that lost tasks."""
    execution = step.execution
    cut = set()
    for task in list(execution.tasks.values()):
        if target.type == "SUB_WORKFLOW":
            # A child runs beside the branches of its fork: only what took its place is forgotten.
            is_later = task.ref == target.ref and task.number > target.number
        else:
            is_later = task.seq > target.seq
        if is_later:
            cut.add(task.scope)
            execution.remove_task(task)
            before = execution.tasks.get(task.retried_number)
            if before is not None:
                # Its later attempt is gone: it is the last one again.
                before.retried = False
                execution.touch(before)
    execution.dynamic.pop(target.number, None)
    execution.header.next_seq = 1 + max(task.seq for task in execution.tasks.values())
    return cut


def _reopen_for_rerun(step: Step, target: Task, rounds_cut: set[int]) -> None:
    """Open again what waits for the task that runs again, or for what was removed."""
    execution = step.execution
    reset(step, target)
    for task in execution.tasks.values():
        if wanted_again(task) and task is not target:
            task.executed = False
            execution.touch(task)
            if task.type in IN_PLACE:
                reopen_waiting(step, task)
    for scope in {target.scope, *rounds_cut}:
        loop = execution.tasks.get(scope)
        if loop is not None and loop is not target:
            _cut_rounds(step, loop)
            reopen_loops_around(step, loop)
    reindex(execution)
    if target.type == "SUB_WORKFLOW":
        return
    while _reopen_joins(step):
        reindex(execution)


def _cut_rounds(step: Step, loop: Task) -> None:
    """Go back to the last round that a loop still has tasks of."""
    execution = step.execution
    members = [execution.tasks[number].iteration for number in execution.members[loop.number]]
    loop.rounds = max(members, default=0)
    output = {
        key: value
        for key, value in execution.task_output(loop).items()
        if not key.isdigit() or int(key) < loop.rounds
    }
    step.set_output(loop, output)
    reopen_waiting(step, loop)


def _reopen_joins(step: Step) -> bool:
    """Open joins that have ended though one of their tasks is open or missing; False if none."""
    execution = step.execution
    found = False
    for task in execution.tasks.values():
        if task.type not in ("JOIN", "EXCLUSIVE_JOIN") or task.status in OPEN_TASK or task.retried:
            continue
        for ref in joined_refs(execution, task):
            joined = execution.by_ref.get(ref)
            missing = joined is None and task.type == "JOIN"
            if missing or (joined is not None and not joined.executed):
                reopen_waiting(step, task)
                found = True
                break
    return found


# -- retry


def retry(step: Step, event: Retried) -> None:
    """Give the last attempt of everything that failed or was cancelled another one."""
    execution = step.execution
    if event.by_parent and not execution.is_terminal:
        return
    if not execution.is_terminal:
        raise NotFound(f"Workflow is still running.  status={execution.header.status}")
    if event.by_parent and not retryable(execution):
        # Nothing of it can be tried again: its end is what the parent gets, once more.
        tell_ended(step)
        return
    if not execution.tasks:
        raise Conflict("Workflow has not started yet")
    if not retryable(execution) and execution.header.status is not WorkflowStatus.TIMED_OUT:
        raise Conflict(
            "There are no retryable tasks! Use restart if you want to attempt entire workflow "
            "execution again."
        )
    _finish_cancelling(step)
    _reopen(step)
    for task in execution.by_ref.values():
        if wanted_again(task):
            task.executed = False
            execution.touch(task)
            if task.type in IN_PLACE:
                _retry_in_place(step, task)
    go_on(step, RETRY)
    arm_all(step)
    if not event.by_parent:
        tell_revived(step)


def _retry_in_place(step: Step, task: Task) -> None:
    reason = task.reason
    if task.status is not TaskStatus.CANCELED and task.type == "DO_WHILE":
        task.retry_count += 1
    canceled = task.status is TaskStatus.CANCELED
    reopen_waiting(step, task)
    if not canceled:
        task.reason = reason


def retryable(execution: Execution) -> list[Task]:
    """The tasks a retry begins again: latest attempts that ended without success."""
    return [
        task
        for task in execution.by_ref.values()
        if task.status in UNSUCCESSFUL_TASK
        and not (task.status is TaskStatus.CANCELED and task.type in ("JOIN", "DO_WHILE"))
    ]


def failed_child(execution: Execution) -> Task | None:
    """The SUB_WORKFLOW task a retry "with sub-workflows" descends through, if there is one."""
    for task in execution.tasks.values():
        if task.status in UNSUCCESSFUL_TASK and not task.retried:
            if task.type == "SUB_WORKFLOW" and task.sub_workflow_id:
                return task
            if task.type != "DO_WHILE":
                return None
    return None


# -- parents of runs that go on


def on_child_revived(step: Step, event: ChildRevived) -> None:
    """A child that had ended runs again: wait for it again, and bring back what was cancelled."""
    execution = step.execution
    task = execution.tasks.get(event.number)
    if (
        task is None
        or task.retried
        or task.type != "SUB_WORKFLOW"
        or (event.child_id and task.sub_workflow_id != event.child_id)
        or execution.node_of(task).task.optional
    ):
        # Superseded by a restart, a retry or a rerun of this run: the child lives on alone.
        return
    if not is_news(step, task, event):
        return
    was_terminal = execution.is_terminal
    if was_terminal:
        _finish_cancelling(step)
        _reopen(step)
        execution.header.shows_failures = False
    step.reopen(task, TaskStatus.IN_PROGRESS)
    reopen_loops_around(step, task)
    if not was_terminal:
        reindex(execution, step.work)
        return
    for other in execution.by_ref.values():
        if other.type in IN_PLACE and wanted_again(other):
            reopen_waiting(step, other)
    go_on(step, REVIVE)
    arm_all(step)
    tell_revived(step)


# -- the state of a run that goes on


def _finish_cancelling(step: Step) -> None:
    """A run that ended a moment ago may still have tasks to cancel; now it needs them closed."""
    budget, step.budget = step.budget, len(step.execution.open) + 1
    cancel_open_tasks(step)
    step.budget = budget
    step.work.clear()


def _reopen(step: Step) -> None:
    header = step.execution.header
    header.status = WorkflowStatus.RUNNING
    header.reason = ""
    header.failed_number = 0
    header.failure_workflow = ""
    header.terminated_output = False
    header.revivals += 1
    header.last_retried_ms = step.at_ms
    header.due_ms = 0


# -- single tasks


def skip(step: Step, event: TaskSkipped) -> None:
    """Note that a step shall not run; the flow jumps over it when it gets there."""
    execution = step.execution
    if execution.header.status is not WorkflowStatus.RUNNING:
        raise Conflict(
            f"The workflow {execution.id} is not running so the task referenced by {event.ref} "
            "cannot be skipped"
        )
    node = execution.plan.nodes.get(event.ref)
    if node is None:
        raise NotFound(
            f"The task referenced by {event.ref} does not exist in the WorkflowDefinition "
            f"{execution.header.name}"
        )
    if event.ref in execution.by_ref:
        raise Conflict(
            f"The task referenced {event.ref} has already been processed, cannot be skipped"
        )
    header = execution.header
    if header.next_number > NUMBER_MAX:
        raise Conflict(f"A workflow can have at most {NUMBER_MAX} tasks")
    task = Task(
        number=header.next_number,
        ref=node.ref,
        base_ref=node.ref,
        type=node.name,
        name=node.name,
        status=TaskStatus.SKIPPED,
        seq=0,
        end_ms=step.at_ms,
        update_ms=step.at_ms,
        executed=True,
        input=event.input or payloads.EMPTY,
        output=event.output or payloads.EMPTY,
    )
    header.next_number += 1
    execution.add_task(task)
    tell_joins(step, task)


def reset_callbacks(step: Step) -> None:
    """What waits for its callback becomes visible now."""
    execution = step.execution
    if execution.is_terminal:
        raise Conflict(f"Workflow is in terminal state. Status = {execution.header.status}")
    for task in list(execution.open_tasks()):
        if (
            step.types[task.type].is_worker
            and task.status is TaskStatus.SCHEDULED
            and task.callback_after_s > 0
        ):
            task.callback_after_s = 0
            task.visible_ms = step.at_ms
            push(step, task)
            arm(step, task, execution.node_of(task))


def requeue(step: Step, event: TasksRequeued) -> None:
    """Hand out again what a worker has or waits for, with what is left of its callback."""
    execution = step.execution
    for task in list(execution.open_tasks()):
        task_type = step.types[task.type]
        is_done = (
            # An executor has done its part; somebody else completes the task.
            task_type.by_executor and task.status is TaskStatus.IN_PROGRESS and not task.wake_ms
        )
        if task.type == event.task_type and task_type.is_worker and not is_done:
            task.status = TaskStatus.SCHEDULED
            task.wake_ms = 0
            task.visible_ms = max(task.visible_ms, step.at_ms)
            push(step, task)
            arm(step, task, execution.node_of(task))


def update_variables(step: Step, event: VariablesUpdated) -> None:
    execution = step.execution
    variables = {**execution.workflow_variables(), **event.variables}
    execution.set_variables(payloads.dump_map(variables))
