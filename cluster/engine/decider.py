"""decide(execution, event): the one way in which a workflow changes.

It changes the execution in place (its shard owns it alone; when the commit fails the shard throws
it away and loads it again) and says which rows changed and what is to be done once they are safe.
"""

from typing import assert_never

from cluster.engine import control, payloads
from cluster.engine.effects import ArmTimer, Effect, StartChild
from cluster.engine.ending import fail
from cluster.engine.events import (
    CallbacksReset,
    ChildEnded,
    ChildRevived,
    Continued,
    Delivered,
    Event,
    FailureWorkflowResolved,
    LeaseExtended,
    MessageSent,
    Paused,
    Recovered,
    Rerun,
    Restarted,
    Resumed,
    Retried,
    ScheduleDeleted,
    ScheduledStarted,
    ScheduleListed,
    SchedulePaused,
    ScheduleResumed,
    ScheduleSaved,
    ScriptEvaluated,
    SubWorkflowResolved,
    TaskDefsFrozen,
    TaskExecuted,
    TaskHandedBack,
    TaskHeld,
    TaskPolled,
    TaskSkipped,
    TasksRequeued,
    TaskUnheard,
    TaskUpdated,
    Terminated,
    TimerFired,
    VariablesUpdated,
    WorkflowLaunched,
    WorkflowStarted,
)
from cluster.engine.model import INPUT, REASON_CHARS_MAX, STATE, VARIABLES, Execution, Task
from cluster.engine.outbox import RETRY, START, forget, is_new, is_news
from cluster.engine.plan import Node
from cluster.engine.recovery import on_unheard, recover
from cluster.engine.retries import (
    TimedOut,
    arm,
    arm_own_tasks,
    arm_workflow_timeout,
    check_timeouts,
    due_of,
    timeout_start_ms,
)
from cluster.engine.scheduling import begin_attempt, begin_mapped, push
from cluster.engine.schemas import task_checks
from cluster.engine.step import Outcome, Step, Surroundings, WorkflowFailed
from cluster.engine.tasks import (
    TASK_TYPES,
    messages,
    outside,
    schedule,
    start_workflow,
    sub_workflow,
)
from cluster.engine.transitions import OPEN_TASK, TaskStatus, WorkflowStatus
from cluster.engine.turn import run
from cluster.errors import Conflict, NotFound
from cluster.ids import derived_workflow_id, slot_of

DEFAULT = Surroundings()


def decide(
    execution: Execution,
    event: Event,
    surroundings: Surroundings = DEFAULT,
    *,
    budget: int | None = None,
) -> list[Effect]:
    """Apply one event; returns the effects, the rows are noted in the execution (rows.py).

    A late or repeated result or timer changes nothing; operator commands may revive what ended.
    `budget` is how many tasks may come and go, where the event shares a transition with others:
    the rest is a continuation. Raises a ClusterError for a command that does not fit; then nothing
    has changed.
    """
    header = execution.header
    status, work, due_ms = header.status, header.work, header.due_ms
    step = Step(execution, event.at_ms, surroundings, surroundings.types or TASK_TYPES)
    if budget is not None:
        step.budget = budget
    try:
        _apply(step, event)
    except TimedOut as e:
        fail(step, WorkflowStatus.TIMED_OUT, e.reason, e.task)
    except WorkflowFailed as e:
        fail(step, WorkflowStatus(e.status), e.reason)
    run(step)
    if not execution.is_terminal:
        arm_own_tasks(step)
    if header.status is not status or header.work != work or header.due_ms != due_ms:
        # Nothing else may have changed, as when a run is paused; yet the header is to be saved.
        execution.parts |= STATE
    asked = step.effects and not isinstance(event, Recovered | TaskUnheard)
    if execution.changed or execution.parts or execution.removed or asked:
        header.update_ms = step.at_ms
    return step.effects


def _apply(step: Step, event: Event) -> None:
    match event:
        case TaskUpdated():
            on_task_updated(step, event)
        case TaskPolled():
            on_task_polled(step, event)
        case TaskHandedBack():
            on_task_handed_back(step, event)
        case TaskUnheard():
            on_unheard(step, event)
        case TaskHeld():
            on_task_held(step, event)
        case TaskExecuted():
            on_task_executed(step, event)
        case WorkflowStarted():
            on_started(step)
        case Continued():
            pass
        case Recovered():
            recover(step)
        case TimerFired():
            on_timer(step)
        case LeaseExtended():
            on_lease_extended(step, event)
        case ScriptEvaluated():
            on_script(step, event)
        case SubWorkflowResolved():
            on_sub_workflow_resolved(step, event)
        case TaskDefsFrozen():
            on_task_defs_frozen(step, event)
        case WorkflowLaunched():
            on_workflow_launched(step, event)
        case ChildEnded():
            on_child_ended(step, event)
        case FailureWorkflowResolved():
            on_failure_workflow_resolved(step, event)
        case ChildRevived():
            control.on_child_revived(step, event)
        case Paused():
            control.pause(step)
        case Resumed():
            control.resume(step)
        case Delivered():
            on_delivered(step, event)
        case Terminated():
            if is_new(step, event):
                control.terminate(step, event)
        case Restarted():
            control.restart(step)
        case Retried():
            if is_new(step, event):
                control.retry(step, event)
        case Rerun():
            control.rerun(step, event)
        case TaskSkipped():
            control.skip(step, event)
        case CallbacksReset():
            control.reset_callbacks(step)
        case TasksRequeued():
            control.requeue(step, event)
        case VariablesUpdated():
            control.update_variables(step, event)
        case (
            ScheduleSaved()
            | SchedulePaused()
            | ScheduleResumed()
            | ScheduleDeleted()
            | ScheduledStarted()
            | ScheduleListed()
        ):
            schedule.on_event(step, event)
        case MessageSent():
            messages.on_sent(step, event)
        case _:
            assert_never(event)


def on_started(step: Step) -> None:
    """A fresh execution: its header, input and variables are in place."""
    arm_workflow_timeout(step)
    step.later("start", 0, 0, 0)
    step.execution.parts |= INPUT | VARIABLES


def open_task(step: Step, number: int) -> Task | None:
    """The task an answer is about, None when the answer comes too late to matter."""
    task = step.execution.tasks.get(number)
    if task is None or task.status not in OPEN_TASK or step.execution.is_terminal:
        return None
    return task


def on_task_polled(step: Step, event: TaskPolled) -> None:
    """A worker holds it now. Repeated, or overtaken by its end, it changes nothing."""
    task = open_task(step, event.number)
    if task is None or task.status is not TaskStatus.SCHEDULED or event.delivery != task.delivery:
        return
    task.status = TaskStatus.IN_PROGRESS
    task.start_ms = task.start_ms or step.at_ms
    task.update_ms = step.at_ms
    task.poll_count += 1
    task.callback_after_s = 0
    task.worker_id = event.worker_id
    if step.types[task.type].by_executor:
        task.wake_ms = step.at_ms + step.surroundings.executor_lease_ms
    step.execution.touch(task)
    arm(step, task, step.execution.node_of(task))


def on_task_handed_back(step: Step, event: TaskHandedBack) -> None:
    """Undo a poll whose answer could not be written."""
    task = open_task(step, event.number)
    if (
        task is None
        or task.status is not TaskStatus.IN_PROGRESS
        or task.delivery != event.delivery
        or not step.types[task.type].is_worker
    ):
        return
    task.status = TaskStatus.SCHEDULED
    task.poll_count -= 1
    if not task.poll_count:
        task.start_ms = 0
    task.wake_ms = 0
    task.worker_id = ""
    task.update_ms = step.at_ms
    step.execution.touch(task)
    arm(step, task, step.execution.node_of(task))


def on_task_held(step: Step, event: TaskHeld) -> None:
    """Raises Conflict where that delivery is nobody's business any more: its executor may stop."""
    execution = step.execution
    task = open_task(step, event.number)
    if task is None or task.delivery != event.delivery:
        raise Conflict(f"Task {execution.task_id(event.number)} is not to be executed any more")
    if task.status is TaskStatus.SCHEDULED:
        # The note of its hand-over is on its way still, or got lost.
        polled = TaskPolled(event.at_ms, event.number, event.worker_id, event.delivery)
        on_task_polled(step, polled)
    elif task.wake_ms:
        # The standing timer finds the later due time when it fires.
        task.wake_ms = step.at_ms + step.surroundings.executor_lease_ms
        execution.touch(task)


def on_task_executed(step: Step, event: TaskExecuted) -> None:
    """The first result counts, whichever delivery it is of; a word about going on has to be of
    the present one."""
    execution = step.execution
    task = open_task(step, event.number)
    if task is None:
        return
    node = execution.node_of(task)
    status, wake_ms = event.status, 0
    if status is TaskStatus.IN_PROGRESS:
        wake_ms = max(step.at_ms + event.callback_after_s * 1000, step.at_ms + 1)
    elif status is TaskStatus.COMPLETED and outside.is_completed_elsewhere(step, task, node):
        status = TaskStatus.IN_PROGRESS
    if status is TaskStatus.IN_PROGRESS:
        if event.delivery != task.delivery:
            return
        # The note of its hand-over may come later than this, and must not begin a lease.
        on_task_polled(step, TaskPolled(step.at_ms, task.number, event.worker_id, event.delivery))
        task.wake_ms = wake_ms
    report = TaskUpdated(
        step.at_ms,
        event.number,
        status,
        output=event.output,
        reason=event.reason,
        worker_id=event.worker_id,
        callback_after_s=event.callback_after_s,
        by_worker=False,
    )
    on_task_updated(step, report)


def on_task_updated(step: Step, event: TaskUpdated) -> None:
    """A worker's result, or anybody's word about a task."""
    execution = step.execution
    if event.number not in execution.tasks:
        raise NotFound(f"No such task found by id: {execution.task_id(event.number)}")
    task = open_task(step, event.number)
    if task is None:
        return
    if event.output is not None:
        output = event.output
        if event.merge:
            merged = {**execution.task_output(task), **payloads.load(event.output)}
            output = payloads.dump_map(merged)
        step.bytes_left -= len(output)
        execution.set_task_output(task, output)
    task.worker_id = event.worker_id or ""
    task.reason = (event.reason or "")[:REASON_CHARS_MAX]
    if event.sub_workflow_id:
        task.sub_workflow_id = event.sub_workflow_id
    task.callback_after_s = event.callback_after_s
    node = execution.node_of(task)
    if event.status not in OPEN_TASK:
        limit = step.surroundings.task_output_bytes_max
        if len(task.output) > limit:
            reason = (
                f"The task output payload size: {len(task.output) // 1024} is greater than the "
                f"permissible limit: {limit // 1024} kilobytes"
            )
            execution.set_task_output(task, payloads.EMPTY)
            step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)
            return
        fault = None
        _, check_output = task_checks(node, execution.definition_of(task, node))
        if check_output is not None and event.status is TaskStatus.COMPLETED:
            fault = check_output(execution.task_output(task))
        if fault is None:
            step.finish(task, event.status)
        else:
            # The output is kept: it shows what the worker has to mend.
            step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, f"Task {fault}")
        return
    task.update_ms = step.at_ms
    task_type = step.types[task.type]
    if task_type.is_worker and not task_type.by_executor and event.by_worker:
        task.status = TaskStatus.SCHEDULED
        task.visible_ms = step.at_ms + event.callback_after_s * 1000
        push(step, task)
    else:
        if task.status is not TaskStatus.SCHEDULED or not event.by_worker:
            # What the engine has not begun yet still has to be begun.
            task.status = TaskStatus.IN_PROGRESS
        execution.touch(task)
    arm(step, task, node)


def on_lease_extended(step: Step, event: LeaseExtended) -> None:
    execution = step.execution
    if event.number not in execution.tasks:
        raise NotFound(f"No such task found by id: {execution.task_id(event.number)}")
    task = open_task(step, event.number)
    if task is not None:
        # The standing timer finds the later due time when it fires.
        task.update_ms = step.at_ms
        execution.touch(task)


def on_timer(step: Step) -> None:
    """Handle every due time that has come, then say which is the next."""
    execution = step.execution
    if execution.is_terminal:
        return
    timers = execution.timers
    while timers and timers[0][0] <= step.at_ms:
        number = timers[0][1]
        execution.drop_first_timer()
        if number == 0:
            _workflow_timed_out(step)
            continue
        task = open_task(step, number)
        if task is None or execution.header.status is WorkflowStatus.PAUSED:
            continue
        _task_timer(step, task)
    header = execution.header
    header.due_ms = timers[0][0] if timers else 0
    if header.due_ms:
        step.effects.append(ArmTimer(header.due_ms))


def _workflow_timed_out(step: Step) -> None:
    execution = step.execution
    timeout_s = execution.plan.definition.timeout_seconds
    elapsed_ms = step.at_ms - timeout_start_ms(execution)
    if elapsed_ms < timeout_s * 1000:
        arm_workflow_timeout(step)
        return
    raise TimedOut(
        f"Workflow timed out after {elapsed_ms // 1000} seconds. Timeout configured as "
        f"{timeout_s} seconds. Timeout policy configured to TIME_OUT_WF"
    )


def _task_timer(step: Step, task: Task) -> None:
    execution = step.execution
    node = execution.node_of(task)
    if not check_timeouts(step, task, node) and task.wake_ms and task.wake_ms <= step.at_ms:
        task.wake_ms = 0
        execution.touch(task)
        task_type = step.types[task.type]
        if task_type.on_wake is not None and task.status is TaskStatus.IN_PROGRESS:
            task_type.on_wake(step, task, node)
        else:
            task.visible_ms = step.at_ms
            begin_attempt(step, task, node)
    if task.status in OPEN_TASK:
        due = due_of(task, node, step.execution.definition_of(task, node))
        if due > step.at_ms:
            execution.arm(task, due)


def on_script(step: Step, event: ScriptEvaluated) -> None:
    task = open_task(step, event.number)
    if task is None or task.token != event.token or event.number not in step.execution.scripts:
        return
    step.execution.scripts.discard(task.number)
    task_type = step.types[task.type]
    assert task_type.on_script is not None
    value = payloads.load(event.result) if event.result else None
    outcome = Outcome(value, event.error, event.timed_out)
    on_answer = task_type.on_script

    def begin(step: Step, task: Task, node: Node) -> None:
        on_answer(step, task, node, outcome)

    begin_mapped(step, task, step.execution.node_of(task), begin)


def on_sub_workflow_resolved(step: Step, event: SubWorkflowResolved) -> None:
    task = open_task(step, event.number)
    if task is not None and task.token == event.token and task.status is TaskStatus.SCHEDULED:
        step.execution.scripts.discard(task.number)
        sub_workflow.on_resolved(step, task, event)


def on_task_defs_frozen(step: Step, event: TaskDefsFrozen) -> None:
    task = open_task(step, event.number)
    if task is None or task.token != event.token:
        return
    step.execution.scripts.discard(task.number)
    step.keep_definitions(event.definitions)
    node = step.execution.node_of(task)
    on_definitions = step.types[node.type].on_definitions
    assert on_definitions is not None
    task.token += 1
    begin_mapped(step, task, node, on_definitions)


def on_workflow_launched(step: Step, event: WorkflowLaunched) -> None:
    task = open_task(step, event.number)
    if task is not None and task.token == event.token and task.status is TaskStatus.SCHEDULED:
        start_workflow.on_launched(step, task, event)


def on_child_ended(step: Step, event: ChildEnded) -> None:
    task = step.execution.tasks.get(event.number)
    if task is None or task.sub_workflow_id != event.child_id or not is_news(step, task, event):
        return
    if open_task(step, event.number) is not None:
        sub_workflow.on_child_ended(step, task, event)


def on_delivered(step: Step, event: Delivered) -> None:
    """Another shard has an order; where it could not be carried out, the task is told."""
    order = forget(step, event.mark)
    if order is None or event.outcome == "done":
        return
    task = open_task(step, order.number)
    if task is None or task.sub_workflow_id != order.target or task.asked != event.mark:
        return
    if order.kind == START:
        snapshot, name = order.text.split(" ", 1)
        sub_workflow.place(step, task, step.execution.node_of(task), snapshot, name)
    elif order.kind == RETRY:
        reason = f"Sub workflow {order.target} is not there any more"
        step.finish(task, TaskStatus.FAILED, reason)


def on_failure_workflow_resolved(step: Step, event: FailureWorkflowResolved) -> None:
    """Start the compensating run in the same commit that notes its id."""
    execution = step.execution
    header = execution.header
    if header.failure_workflow != "?":
        return
    output = dict(execution.workflow_output())
    if event.snapshot is None:
        header.failure_workflow = "-"
        output["conductor.failure_workflow"] = (
            f"Error workflow {event.name} failed to start.  reason: {event.error}"
        )
        execution.set_output(payloads.dump(output))
        return
    origin = f"{execution.id}/failure/{header.revivals}"
    run_id = derived_workflow_id(at_ms=step.at_ms, slot=slot_of(execution.id), origin=origin)
    value = {
        **execution.workflow_input(),
        "workflowId": execution.id,
        "reason": header.reason,
        "failureStatus": header.status.value,
    }
    if header.failed_number:
        value["failureTaskId"] = execution.task_id(header.failed_number)
    step.effects.append(
        StartChild(
            workflow_id=run_id,
            snapshot=event.snapshot,
            name=event.name,
            version=event.version,
            input=payloads.dump(value),
            correlation_id=header.correlation_id,
            priority=0,
            task_to_domain=header.task_to_domain,
            parent_number=0,
            failed_run=True,
        )
    )
    header.failure_workflow = run_id
    output["conductor.failure_workflow"] = run_id
    execution.set_output(payloads.dump(output))


def may_be_polled(execution: Execution, number: int, delivery: int) -> Task | None:
    """The task a queue offers, if this delivery of it is still to be handed out."""
    task = execution.tasks.get(number)
    if (
        task is None
        or execution.is_terminal
        or task.status is not TaskStatus.SCHEDULED
        or task.delivery != delivery
    ):
        return None
    return task
