"""A schedule as it is saved, and when it comes next.

A schedule is an execution of its own kind (tasks/schedule.py): its input is the WorkflowSchedule
as it was saved, its variables are the `State` below.
"""

from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from cluster.engine import payloads
from cluster.engine.definitions import Snapshot
from cluster.engine.model import Execution
from cluster.engine.zoned_cron import latest, zoned_cron
from cluster.ids import slot_of_key

SCHEDULE = "_SCHEDULE"
"""The task type of the one step that a schedule has."""

NAME = "_schedule"
"""What the execution of a schedule is called, where somebody sees it."""

_BODY = payloads.dump(
    {
        "name": NAME,
        "version": 1,
        "tasks": [{"name": NAME, "taskReferenceName": NAME, "type": SCHEDULE}],
        "schemaVersion": 2,
    }
)
SNAPSHOT = Snapshot(blake2b(_BODY, digest_size=16).hexdigest(), _BODY)
"""What every schedule follows. It must never change: those that are saved name it by its hash."""


class Firing(msgspec.Struct, frozen=True):
    """A start that was decided and that nobody has confirmed yet."""

    number: int
    """Counts the starts of a schedule."""
    instant_ms: int
    at_ms: int
    """When it was decided."""
    cron: int
    """Which of the schedule's crons it was."""
    workflow_id: str
    forgets_ms: int = 0
    """The instant whose record of execution goes for it, so that a schedule keeps so many."""


class State(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a schedule knows beside what was saved. Times are Unix ms, 0 = none."""

    next_ms: int = 0
    """The first instant that no start was decided for."""
    last_ms: int = 0
    """The last one for which one was."""
    next_cron: int = 0
    paused: bool = False
    paused_reason: str | None = None
    updated_ms: int = 0
    deleted: bool = False
    count: int = 0
    firings: list[Firing] = []
    kept: list[int] = []
    """Instants whose execution is on record, the oldest first."""
    revision: int = 0
    """Counts the changes that the list of schedules has to show."""
    listed: int = 0
    """The last of them that it does show."""
    asked: int = 0
    """The last one that it was told."""


class Next(NamedTuple):
    """When a schedule comes, and by which of its crons."""

    instant_ms: int
    cron: int


_decode_state = msgspec.json.Decoder(State).decode
_encode_state = msgspec.json.Encoder().encode


def state_of(execution: Execution) -> State:
    return _decode_state(execution.variables)


def keep_state(execution: Execution, state: State) -> None:
    execution.set_variables(_encode_state(state))


def crons_of(saved: dict[str, Any]) -> list[tuple[str, str]]:
    """The (expression, zone) pairs of a schedule; `cronSchedules` go before `cronExpression`."""
    several = saved.get("cronSchedules")
    if several:
        return [(one["cronExpression"], one.get("zoneId") or "UTC") for one in several]
    return [(saved["cronExpression"], saved.get("zoneId") or "UTC")]


def timing_of(saved: dict[str, Any]) -> tuple[Any, ...]:
    """What decides when a schedule comes."""
    return crons_of(saved), saved.get("scheduleStartTime"), saved.get("scheduleEndTime")


def next_of(saved: dict[str, Any], after_ms: int) -> Next | None:
    """The first instant after `after_ms`, within the bounds of the schedule, which count as in.

    Where several crons come at once it is one instant, of the first of them.
    """
    start_ms, end_ms = saved.get("scheduleStartTime"), saved.get("scheduleEndTime")
    if start_ms is not None:
        after_ms = max(after_ms, start_ms - 1)
    found: Next | None = None
    for place, (expression, zone_id) in enumerate(crons_of(saved)):
        instant_ms = zoned_cron(expression, zone_id).next_after(after_ms)
        if instant_ms is not None and (found is None or instant_ms < found.instant_ms):
            found = Next(instant_ms, place)
    if found is None or (end_ms is not None and found.instant_ms > end_ms):
        return None
    return found


def not_missed(saved: dict[str, Any], missed: Next, at_ms: int, grace_ms: int) -> Next:
    """Where a schedule that does not catch up goes on that should have come at `missed`.

    With the first instant within the grace; where there is none, with the last one that came.
    """
    if missed.instant_ms >= at_ms - grace_ms:
        return missed
    found = next_of(saved, at_ms - grace_ms - 1)
    if found is not None and found.instant_ms <= at_ms:
        return found
    instant_ms = latest(partial(_instant_after, saved), missed.instant_ms, at_ms)
    return next_of(saved, instant_ms - 1) or missed


def _instant_after(saved: dict[str, Any], after_ms: int) -> int | None:
    found = next_of(saved, after_ms)
    return None if found is None else found.instant_ms


def slot_of_start(schedule_id: str, request: dict[str, Any], instant_ms: int) -> int:
    """Where a start lives: with its idempotency key if it has one, else anywhere."""
    key = request.get("idempotencyKey")
    if key:
        return slot_of_key(str(request["name"]), str(key))
    return slot_of_key(schedule_id, str(instant_ms))


def jitter_ms(schedule_id: str, instant_ms: int, limit_ms: int) -> int:
    """How much later than its instant a start begins: 0…limit, the same each time it is asked."""
    if limit_ms <= 0:
        return 0
    digest = blake2b(f"{schedule_id}/{instant_ms}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (limit_ms + 1)


def shown(execution: Execution) -> dict[str, Any]:
    """A WorkflowSchedule as clients see it."""
    return shown_as(execution.workflow_input(), state_of(execution), execution.header.create_ms)


def shown_as(saved: dict[str, Any], state: State, create_ms: int) -> dict[str, Any]:
    """The same of its parts."""
    wire = {**saved, "paused": state.paused}
    if state.paused_reason is not None:
        wire["pausedReason"] = state.paused_reason
    wire["createTime"] = create_ms
    wire["updatedTime"] = state.updated_ms
    if state.next_ms and not state.paused:
        wire["nextRunTime"] = state.next_ms
    return wire
