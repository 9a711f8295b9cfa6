"""What operators do to a run: pause, resume, terminate, restart, retry, rerun, skip.

Commands check first and change then: one that raises has changed nothing.
"""

from cluster.engine import payloads
from cluster.engine.effects import Tell
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
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Plan, following
from cluster.engine.retries import arm, arm_all, next_attempt
from cluster.engine.scheduling import begin_attempt, push
from cluster.engine.step import Step
from cluster.engine.transitions import (
    OPEN_TASK,
    UNSUCCESSFUL_TASK,
    TaskStatus,
    WorkflowStatus,
)
from cluster.errors import Conflict, NotFound

IN_PLACE = frozenset({"JOIN", "EXCLUSIVE_JOIN", "DO_WHILE", "FORK"})
"""Types that are reopened as they are: they hold no work of their own, they wait for others."""


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
    _revive_parent(step)


def check_restart(execution: Execution, plan: Plan) -> None:
    """Conflict or NotFound: the run may not be restarted with this definition."""
    must_have_ended(execution, "restart")
    if not plan.definition.restartable and execution.header.status is WorkflowStatus.COMPLETED:
        raise NotFound(f"Workflow: {short_name(execution)} is non-restartable")


def rerun(step: Step, event: Rerun) -> None:
    """Run again from a task on: what came after it is forgotten."""
    execution = step.execution
    must_have_ended(execution, "rerun")
    target = execution.tasks.get(event.number)
    if event.number and target is None:
        raise NotFound(f"Task {execution.task_id(event.number)} not found")
    if event.correlation_id is not None:
        execution.header.correlation_id = event.correlation_id
    if event.workflow_input is not None:
        execution.set_input(event.workflow_input)
    if target is None:
        _start_over(step)
    else:
        _rerun_from(step, target, event.task_input)
    arm_all(step)
    _revive_parent(step)


def must_have_ended(execution: Execution, verb: str) -> None:
    """Conflict: the run is still open."""
    if not execution.is_terminal:
        raise Conflict(
            f"Workflow: {short_name(execution)} is not in terminal state, unable to {verb}."
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
    header.restarts += 1
    step.later("start", 0, 0, 0)


def _rerun_from(step: Step, target: Task, task_input: bytes | None) -> None:
    execution = step.execution
    _finish_cancelling(step)
    _reopen(step)
    execution.header.shows_failures = False
    if target.type != "SUB_WORKFLOW":
        # A child runs beside the branches of its fork: only what follows others is forgotten.
        for task in list(execution.tasks.values()):
            if task.seq > target.seq:
                execution.remove_task(task)
    ref = target.ref
    node = execution.node_of(target)
    if target.type == "FORK" and node.type == "FORK_JOIN_DYNAMIC":
        # Its branches are read from the input again.
        node_input = step.resolve_input(target, node)
        step.set_input(target, node_input)
        execution.dynamic.pop(target.number, None)
    if task_input is not None:
        execution.set_task_input(target, task_input)
    _reset(step, target)
    reindex(execution)
    for task in list(execution.tasks.values()):
        if task.status in UNSUCCESSFUL_TASK and not task.retried and task.ref != ref:
            _bring_back(step, task)
    if target.scope and target.scope in execution.tasks:
        _reopen_loops(step, target)
    reindex(execution)
    step.types[node.type if target.type == "FORK" else target.type].begin(step, target, node)
    _walk_on(step)


def _reopen_loops(step: Step, target: Task) -> None:
    """The loops around a task that runs again are open again, in its round."""
    inner = target
    while inner.scope:
        loop = step.execution.tasks[inner.scope]
        loop.rounds = inner.iteration
        if loop.status not in OPEN_TASK:
            step.reopen(loop, TaskStatus.IN_PROGRESS)
        inner = loop


def _reset(step: Step, task: Task) -> None:
    """Back to a first attempt that has not begun, under the same id."""
    task.scheduled_ms = step.at_ms
    task.first_scheduled_ms = step.at_ms
    task.start_ms = 0
    task.poll_count = 0
    task.retried = False
    task.callback_after_s = task.start_delay_s = 0
    task.visible_ms = step.at_ms
    task.worker_id = ""
    task.sub_workflow_id = ""
    step.execution.set_task_output(task, payloads.EMPTY)
    step.reopen(task, TaskStatus.SCHEDULED)


# -- retry


def retry(step: Step, event: Retried) -> None:
    """Give the last attempt of everything that failed or was cancelled another one."""
    execution = step.execution
    if not execution.is_terminal:
        raise NotFound(f"Workflow is still running.  status={execution.header.status}")
    if not execution.tasks:
        raise Conflict("Workflow has not started yet")
    wanted = retryable(execution)
    if not wanted and execution.header.status is not WorkflowStatus.TIMED_OUT:
        raise Conflict(
            "There are no retryable tasks! Use restart if you want to attempt entire workflow "
            "execution again."
        )
    _finish_cancelling(step)
    wanted = retryable(execution)
    _reopen(step)
    for task in sorted(wanted, key=lambda task: task.seq):
        _attempt_again(step, task)
    for task in list(execution.by_ref.values()):
        if task.type in IN_PLACE and task.status in UNSUCCESSFUL_TASK:
            step.reopen(task, TaskStatus.IN_PROGRESS)
    reindex(execution)
    _walk_on(step)
    arm_all(step)
    if not event.by_parent:
        _revive_parent(step)


def retryable(execution: Execution) -> list[Task]:
    """The tasks a retry begins again: latest attempts that ended without success."""
    return [
        task
        for task in execution.by_ref.values()
        if task.status in UNSUCCESSFUL_TASK
        and not (task.status is TaskStatus.CANCELED and task.type in ("JOIN", "DO_WHILE"))
    ]


def _attempt_again(step: Step, task: Task) -> None:
    execution = step.execution
    if task.type in IN_PLACE:
        if task.type == "DO_WHILE":
            task.retry_count += 1
        reason = task.reason
        step.reopen(task, TaskStatus.IN_PROGRESS)
        task.reason = reason
        return
    node = execution.node_of(task)
    attempt = next_attempt(step, task, node, delay=0)
    attempt.reason = ""
    step.types[attempt.type].begin(step, attempt, node)


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
    was_terminal = execution.is_terminal
    if was_terminal:
        _finish_cancelling(step)
        _reopen(step)
        execution.header.shows_failures = False
    step.reopen(task, TaskStatus.IN_PROGRESS)
    if not was_terminal:
        return
    for other in list(execution.by_ref.values()):
        if other is not task and other.status in UNSUCCESSFUL_TASK:
            _bring_back_for_child(step, other)
    reindex(execution)
    _walk_on(step)
    arm_all(step)
    _revive_parent(step)


def _bring_back_for_child(step: Step, task: Task) -> None:
    """A sibling: a failed child is retried in place, cancelled tasks go on under the same id."""
    if task.type == "SUB_WORKFLOW" and task.sub_workflow_id:
        step.effects.append(Tell(task.sub_workflow_id, Retried(step.at_ms, by_parent=True)))
        step.reopen(task, TaskStatus.IN_PROGRESS)
    elif task.status is TaskStatus.CANCELED:
        if task.type not in IN_PLACE:
            task.retry_count += 1
        _bring_back(step, task)


def _bring_back(step: Step, task: Task) -> None:
    """Reopen a task under the same id: those that wait go on waiting, the others begin again."""
    if task.type in IN_PLACE:
        step.reopen(task, TaskStatus.IN_PROGRESS)
        return
    retry_count = task.retry_count
    _reset(step, task)
    task.retry_count = retry_count
    begin_attempt(step, task, step.execution.node_of(task))


def _revive_parent(step: Step) -> None:
    header = step.execution.header
    if header.parent_id is not None:
        event = ChildRevived(step.at_ms, header.parent_number, step.execution.id)
        step.effects.append(Tell(header.parent_id, event))


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
    header.last_retried_ms = step.at_ms
    header.due_ms = 0


def _walk_on(step: Step) -> None:
    """Find every place where the walk over the plan stands still though it could go on."""
    execution = step.execution
    for task in list(execution.tasks.values()):
        if task.retried:
            continue
        if task.type == "FORK":
            join = execution.node_of(task).next
            if join is None or join.ref + task.suffix not in execution.by_ref:
                if task.status not in OPEN_TASK:
                    step.later("resume", task.number, 0, task.scope)
        elif task.status not in OPEN_TASK:
            if not task.executed or _lacks_successor(step, task):
                step.later("ended", task.number, 0, task.scope)
        elif task.type == "DO_WHILE":
            if not execution.pending.get(task.number) and task.number not in execution.scripts:
                step.later("resume", task.number, 0, task.scope)
        elif task.number in execution.waiting:
            on_joined = step.types[task.type].on_joined
            assert on_joined is not None
            on_joined(step, task)


def _lacks_successor(step: Step, task: Task) -> bool:
    """Whether the step after an ended task is missing: a rerun has taken it away."""
    execution = step.execution
    node = execution.node_of(task)
    branch = step.types[task.type].branch
    successor = branch(execution, task, node) if branch is not None else None
    if successor is None:
        successor = following(node)
    return successor is not None and successor.ref + task.suffix not in execution.by_ref


# -- single tasks


def skip(step: Step, event: TaskSkipped) -> None:
    """Note that a step shall not run; the flow jumps over it when it gets there."""
    execution = step.execution
    if execution.header.status is not WorkflowStatus.RUNNING:
        raise Conflict(
            f"Workflow {execution.id} is not running so the task referenced by {event.ref} "
            "cannot be skipped."
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
    task = Task(
        number=header.next_number,
        ref=node.ref,
        base_ref=node.ref,
        type=node.name,
        name="",
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
        if task.type == event.task_type and step.types[task.type].is_worker:
            task.status = TaskStatus.SCHEDULED
            task.visible_ms = max(task.visible_ms, step.at_ms)
            push(step, task)


def update_variables(step: Step, event: VariablesUpdated) -> None:
    execution = step.execution
    variables = {**execution.workflow_variables(), **event.variables}
    execution.set_variables(payloads.dump_map(variables))
