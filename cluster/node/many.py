"""Many items decided in a row where they are in memory, with one wait for their commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cluster.engine.events import Event
from cluster.errors import ClusterError, Fenced, NotOwner
from cluster.ids import WorkflowId
from cluster.node.owner import Owner
from cluster.sharding.shard import Shards

Refusals = dict[int, ClusterError]
"""Place of an item → why it was not done."""

_TURN = 32
"""Decided in a row, before others run."""
_LANES = 128
"""Items of one request that go the usual way at a time."""


async def decide_many(
    owner: Owner,
    count: int,
    now: Callable[[Shards, int], int | None],
    usual: Callable[[Sequence[int]], Awaitable[None]],
    refusals: Refusals,
) -> None:
    """Returns when all is durable or among the refusals. `now` gives the log entry that an item
    rests on, None if it takes more than a moment; `usual` takes those that are left."""
    decided: list[int] = []
    left: list[int] = []
    last_entry = 0
    shards = _shards(owner)
    for place in range(count):
        if place % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        try:
            entry = None if shards is None else now(shards, place)
        except (NotOwner, Fenced):
            entry = None
        except ClusterError as refusal:
            refusals[place] = refusal
            continue
        if entry is None:
            left.append(place)
        else:
            decided.append(place)
            last_entry = max(last_entry, entry)
    if left:
        await usual(left)
    if shards is None:
        return
    try:
        await shards.stands(last_entry)
    except ClusterError:
        # The log was lost: what was decided, refusals too, may never have been.
        for place in decided:
            refusals.pop(place, None)
        await usual(decided)


async def submit_many(
    owner: Owner,
    events: Sequence[tuple[WorkflowId, Event]],
    usual: Callable[[Sequence[int], Refusals], Awaitable[None]],
) -> Refusals:
    """Decide events, those of a workflow in their order; `usual` notes which it refuses."""
    refusals: Refusals = {}
    passed_by: set[WorkflowId] = set()

    def now(shards: Shards, place: int) -> int | None:
        workflow_id, event = events[place]
        execution = shards.resident(workflow_id)
        if execution is None or workflow_id in passed_by:
            passed_by.add(workflow_id)
            return None
        try:
            return shards.submit_now(execution, event)
        except (NotOwner, Fenced):
            raise
        except ClusterError as refusal:
            # It too must not rest on what may never become durable.
            refusals[place] = refusal
            return execution.last_entry

    async def left(places: Sequence[int]) -> None:
        await usual(places, refusals)

    await decide_many(owner, len(events), now, left, refusals)
    return refusals


async def in_lanes(
    places: Sequence[int], act: Callable[[int], Awaitable[object]], refusals: Refusals
) -> None:
    """One by one, so many at a time."""
    waiting = iter(places)

    async def lane() -> None:
        for place in waiting:
            try:
                await act(place)
            except ClusterError as refusal:
                refusals[place] = refusal

    async with asyncio.TaskGroup() as lanes:
        for _ in range(min(_LANES, len(places))):
            lanes.create_task(lane())


def _shards(owner: Owner) -> Shards | None:
    """All of a batch goes to one incarnation: log entries of another say nothing about it."""
    try:
        return owner.shards
    except NotOwner:
        return None
