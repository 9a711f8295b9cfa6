"""Sync execute and sync signal: wait until a run ends or blocks, and show what it stopped at."""

from typing import NamedTuple

from cluster.engine.model import Execution, Task
from cluster.engine.transitions import OPEN_TASK
from cluster.errors import InvalidRequest, NotFound
from cluster.ids import WorkflowId
from cluster.node import wire
from cluster.node.api.services import Services
from cluster.node.middleware import EMPTY, Answer

STRATEGIES = ("TARGET_WORKFLOW", "BLOCKING_WORKFLOW", "BLOCKING_TASK", "BLOCKING_TASK_INPUT")
_OF_TASK = ("BLOCKING_TASK", "BLOCKING_TASK_INPUT")

# A run tells when it changes, but not when its children do: those are looked at, the less often
# the longer it takes.
_CHILD_LOOK_MS, _CHILD_LOOK_MS_MAX = 20, 250
_CHILD_DEPTH_MAX = 50


class Stop(NamedTuple):
    """Why a wait is over: the task that blocks and the run it stands in, if one does."""

    timed_out: bool
    blocking: tuple[WorkflowId, int] | None


def strategy_of(text: str | None) -> str:
    """A return strategy; raises InvalidRequest."""
    if not text:
        return STRATEGIES[0]
    if text not in STRATEGIES:
        raise InvalidRequest(
            f"returnStrategy must be one of {', '.join(STRATEGIES)}, not '{text[:100]}'"
        )
    return text


async def wait_for_stop(
    services: Services, workflow_id: WorkflowId, *, refs: frozenset[str], timeout_ms: int
) -> Stop:
    """Wait until the run has ended, or an untimed WAIT is pending in it or in a live child, or a
    task named in `refs` has ended; at most `timeout_ms`."""
    router, clock = services.router, services.clock
    deadline_ms = clock.monotonic_ms() + max(0, timeout_ms)

    def stands(execution: Execution) -> bool:
        return (
            execution.is_terminal
            or any(_blocks(task) or _waits_for_child(task) for task in execution.open_tasks())
            or _has_ended(execution, refs)
        )

    look_ms = _CHILD_LOOK_MS
    while True:
        left_ms = deadline_ms - clock.monotonic_ms()
        reached = await router.wait_until(workflow_id, stands, max(0, left_ms))
        execution = await router.view(workflow_id)
        if execution.is_terminal:
            return Stop(False, None)
        ended = _has_ended(execution, refs)
        blocking = await find_blocking(services, workflow_id)
        if ended or blocking is not None:
            return Stop(False, blocking)
        left_ms = deadline_ms - clock.monotonic_ms()
        if left_ms <= 0:
            return Stop(True, None)
        if reached:
            # It waits for a child that has not blocked yet.
            await router.wait_until(workflow_id, _is_over, min(left_ms, look_ms))
            look_ms = min(look_ms * 5 // 4, _CHILD_LOOK_MS_MAX)


async def find_blocking(
    services: Services, workflow_id: WorkflowId, *, depth: int = 0
) -> tuple[WorkflowId, int] | None:
    """The first untimed WAIT that is pending: in the run itself, else depth first in its children,
    as (run, task number)."""
    try:
        execution = await services.router.view(workflow_id)
    except NotFound:
        # Removed meanwhile.
        return None
    children = []
    for task in execution.open_tasks():
        if _blocks(task):
            return workflow_id, task.number
        if _waits_for_child(task):
            children.append(WorkflowId(task.sub_workflow_id))
    if depth < _CHILD_DEPTH_MAX:
        for child in children:
            found = await find_blocking(services, child, depth=depth + 1)
            if found is not None:
                return found
    return None


async def stop_answer(
    services: Services, workflow_id: WorkflowId, stop: Stop, *, strategy: str, request_id: str
) -> Answer:
    """The state a wait ended in, in the shape that was asked for."""
    target = await services.router.view(workflow_id)
    answer = wire.Signalled(
        strategy, target.id, target.header.status.value, request_id, stop.timed_out
    )
    blocking = stop.blocking
    shown_id = workflow_id if blocking is None or strategy == STRATEGIES[0] else blocking[0]
    shown = await services.router.view(shown_id)
    if strategy not in _OF_TASK:
        return Answer(wire.workflow_run_json(answer, shown, now_ms=services.clock.now_ms()))
    task = None if blocking is None else shown.tasks.get(blocking[1])
    return EMPTY if task is None else Answer(wire.task_run_json(answer, shown, task))


def _is_over(execution: Execution) -> bool:
    return execution.is_terminal


def _blocks(task: Task) -> bool:
    return task.type == "WAIT" and task.status in OPEN_TASK and not task.wake_ms


def _waits_for_child(task: Task) -> bool:
    return task.type == "SUB_WORKFLOW" and bool(task.sub_workflow_id)


def _has_ended(execution: Execution, refs: frozenset[str]) -> bool:
    for ref in refs:
        task = execution.by_ref.get(ref) or execution.newest.get(ref)
        if task is not None and not task.is_open:
            return True
    return False
