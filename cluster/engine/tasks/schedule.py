"""The one step of a schedule: it wakes at each instant, decides a start, and never ends.

A start is decided once per instant, in the same commit that moves the schedule on to the next one;
then it is carried out as often as it takes, under the id that was decided with it.
"""

from typing import assert_never

from cluster.engine import payloads
from cluster.engine.effects import ForgetSchedule, ListSchedule, StartScheduled
from cluster.engine.events import (
    ScheduleDeleted,
    ScheduledStarted,
    ScheduleListed,
    SchedulePaused,
    ScheduleResumed,
    ScheduleSaved,
)
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node
from cluster.engine.schedules import (
    Firing,
    Next,
    State,
    crons_of,
    jitter_ms,
    keep_state,
    next_of,
    not_missed,
    shown_as,
    slot_of_start,
    state_of,
    timing_of,
)
from cluster.engine.step import Step, TaskType
from cluster.engine.transitions import TaskStatus
from cluster.errors import NotFound
from cluster.ids import derived_text, derived_workflow_id, is_schedule

FIRINGS_MAX = 32
"""Starts of one schedule that are under way; with more to catch up on, the rest waits for them."""

KEPT_MAX = 100
"""Executions of one schedule on record."""

_KEPT_FIELDS = ("tags", "createdBy")
"""What stays when a schedule is saved anew without it."""

ScheduleEvent = (
    ScheduleSaved
    | SchedulePaused
    | ScheduleResumed
    | ScheduleDeleted
    | ScheduledStarted
    | ScheduleListed
)


def begin(step: Step, task: Task, node: Node) -> None:
    if not is_schedule(step.execution.id):
        step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, "This type is the engine's own")
        return
    step.start(task)
    state = State()
    _save(step, state)
    _plan(step, state)
    _go_on(step, task, state)


def on_wake(step: Step, task: Task, node: Node) -> None:
    _go_on(step, task, state_of(step.execution))


def on_event(step: Step, event: ScheduleEvent) -> None:
    """NotFound: the schedule was deleted, or is not paused and cannot be resumed."""
    execution = step.execution
    state = state_of(execution)
    match event:
        case ScheduledStarted():
            state.firings = [one for one in state.firings if one.number != event.number]
        case ScheduleListed():
            state.listed = max(state.listed, event.revision)
        case ScheduleSaved():
            _check(state)
            _fire_due(step, state)
            before, was_paused = execution.workflow_input(), state.paused
            kept = {key: before[key] for key in _KEPT_FIELDS if key in before}
            execution.set_input(payloads.dump({**kept, **payloads.load(event.saved)}))
            _save(step, state)
            if was_paused or timing_of(execution.workflow_input()) != timing_of(before):
                _plan(step, state)
        case SchedulePaused():
            _check(state)
            _fire_due(step, state)
            state.paused, state.paused_reason = True, event.reason
            _changed(step, state)
        case ScheduleResumed():
            _check(state)
            if not state.paused:
                raise NotFound("The schedule is not paused")
            state.paused, state.paused_reason = False, None
            _plan(step, state)
            _changed(step, state)
        case ScheduleDeleted():
            _check(state)
            _fire_due(step, state)
            state.deleted = True
            _changed(step, state)
        case _:
            assert_never(event)
    for task in list(execution.open_tasks()):
        _go_on(step, task, state)


def ask_again(step: Step, task: Task) -> None:
    """After a takeover: whatever was asked for and not confirmed is asked for again."""
    state = state_of(step.execution)
    for firing in state.firings:
        step.effects.append(_start(step.execution, firing))
    state.asked = state.listed
    _tend(step, state)
    keep_state(step.execution, state)


def waits_for_answers(execution: Execution) -> bool:
    """Whether something that it asked for is to be confirmed."""
    state = state_of(execution)
    return bool(state.firings) or state.listed != state.revision or state.deleted


def _check(state: State) -> None:
    if state.deleted:
        raise NotFound("The schedule was deleted")


def _save(step: Step, state: State) -> None:
    saved = step.execution.workflow_input()
    state.paused = bool(saved.get("paused"))
    state.paused_reason = saved.get("pausedReason") if state.paused else None
    _changed(step, state)


def _changed(step: Step, state: State) -> None:
    state.updated_ms = step.at_ms
    state.revision += 1


def _plan(step: Step, state: State) -> None:
    """From now on, and never again for an instant that a start was decided for."""
    after_ms = max(step.at_ms, state.last_ms)
    _set_next(state, next_of(step.execution.workflow_input(), after_ms))


def _set_next(state: State, found: Next | None) -> None:
    state.next_ms, state.next_cron = (0, 0) if found is None else found


def _go_on(step: Step, task: Task, state: State) -> None:
    """Decide the starts that are due, then say when to come back."""
    execution = step.execution
    task.wake_ms = 0
    execution.touch(task)
    _fire_due(step, state)
    due_ms = _due_ms(step, state)
    if due_ms > step.at_ms:
        step.wake(task, due_ms)
    # Else so many are under way that the next one waits for the end of one of them.
    _tend(step, state)
    keep_state(execution, state)


def _fire_due(step: Step, state: State) -> None:
    saved = step.execution.workflow_input()
    if 0 < _due_ms(step, state) <= step.at_ms and not saved.get("runCatchupScheduleInstances"):
        missed = Next(state.next_ms, state.next_cron)
        _set_next(state, not_missed(saved, missed, step.at_ms, step.surroundings.schedule_grace_ms))
    while 0 < _due_ms(step, state) <= step.at_ms and len(state.firings) < FIRINGS_MAX:
        _fire(step, state)


def _due_ms(step: Step, state: State) -> int:
    """When the next start is due; 0: none is."""
    if not state.next_ms or state.paused or state.deleted:
        return 0
    limit_ms = step.surroundings.schedule_jitter_ms
    return state.next_ms + jitter_ms(step.execution.id, state.next_ms, limit_ms)


def _fire(step: Step, state: State) -> None:
    execution = step.execution
    saved, instant_ms = execution.workflow_input(), state.next_ms
    slot = slot_of_start(execution.id, saved["startWorkflowRequest"], instant_ms)
    origin = f"{execution.id}/{instant_ms}"
    state.count += 1
    forgets_ms = state.kept.pop(0) if len(state.kept) >= KEPT_MAX else 0
    firing = Firing(
        number=state.count,
        instant_ms=instant_ms,
        at_ms=step.at_ms,
        cron=state.next_cron,
        workflow_id=derived_workflow_id(at_ms=step.at_ms, slot=slot, origin=origin),
        forgets_ms=forgets_ms,
    )
    state.kept.append(instant_ms)
    state.firings.append(firing)
    state.last_ms = instant_ms
    _set_next(state, next_of(saved, instant_ms))
    step.effects.append(_start(execution, firing))


def _start(execution: Execution, firing: Firing) -> StartScheduled:
    saved = execution.workflow_input()
    name, request = saved["name"], saved["startWorkflowRequest"]
    crons = crons_of(saved)
    # The schedule may have been saved anew since.
    expression, zone_id = crons[min(firing.cron, len(crons) - 1)]
    execution_id = derived_text(f"{execution.id}/{firing.instant_ms}/{firing.number}")
    value = {
        **(request.get("input") or {}),
        "_startedByScheduler": name,
        "_scheduledTime": firing.instant_ms,
        "_executedTime": firing.at_ms,
        "_executionId": execution_id,
        "_schedulerCron": f"{expression} {zone_id}",
    }
    return StartScheduled(
        number=firing.number,
        workflow_id=firing.workflow_id,
        request={**request, "input": value},
        record={
            "executionId": execution_id,
            "scheduleName": name,
            "scheduledTime": firing.instant_ms,
            "executionTime": firing.at_ms,
            "workflowName": request["name"],
            "startWorkflowRequest": request,
            "zoneId": zone_id,
        },
        forgets_ms=firing.forgets_ms,
    )


def _tend(step: Step, state: State) -> None:
    """Have the list of schedules show what there is now: one word at a time, so that a later one
    is never overtaken. A schedule that was deleted goes when the list has forgotten it."""
    execution = step.execution
    if state.deleted and state.firings:
        return
    saved = execution.workflow_input()
    if state.asked == state.listed < state.revision:
        state.asked = state.revision
        value = None
        if not state.deleted:
            value = payloads.dump(shown_as(saved, state, execution.header.create_ms))
        forgets = tuple(state.kept) if state.deleted else ()
        step.effects.append(ListSchedule(state.revision, saved["name"], value, forgets))
    elif state.deleted and state.listed == state.revision:
        step.effects.append(ForgetSchedule())


TYPE = TaskType(begin=begin, on_wake=on_wake, resolves_input=False)
