"""Many starts or many events of one request: decided in turns, with one wait for their commit.

A request of its own costs a task of the event loop, a future for its commit and a way through all
layers. What is served here and in memory is decided here item after item instead, into as few log
entries as the log's group commit makes of it. The rest goes the usual way, in a bounded number of
lanes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cluster.clock import Clock
from cluster.engine.events import Event
from cluster.errors import ClusterError, Fenced, NotOwner
from cluster.ids import WorkflowId
from cluster.node.metadata import Resolved
from cluster.node.router import Router, StartWorkflow
from cluster.sharding.shard import Shards

T = TypeVar("T")
Definitions = dict[tuple[str, int | None], Resolved | ClusterError]

_TURN = 32
"""Decided in a row, before others run."""
_LANES = 128
"""Items of one request that go the usual way at a time."""


class Batches:
    """Starts and events by the thousand. What becomes of one item says nothing of the others."""

    def __init__(self, router: Router, clock: Clock) -> None:
        self._router = router
        self._owner = router.owner
        self._clock = clock

    async def start(self, requests: Sequence[StartWorkflow]) -> list[WorkflowId | ClusterError]:
        """Start workflows; returns their ids, or why not, when all that is durable."""
        found = await self._definitions(requests)
        ids: list[WorkflowId | None] = [None] * len(requests)
        refusals: dict[int, ClusterError] = {}

        def now(shards: Shards, place: int) -> int | None:
            request = requests[place]
            definition = None
            if request.definition is None and request.idempotency_key is None:
                definition = found.get((request.name, request.version))
            if definition is None:
                return None
            if isinstance(definition, ClusterError):
                refusals[place] = definition
                return 0
            workflow_id = ids[place] = self._router.draw_id()
            at_ms = self._clock.now_ms()
            try:
                new = self._owner.new_workflow(workflow_id, request, definition, at_ms)
            except ClusterError as refusal:
                refusals[place] = refusal
                return 0
            return shards.start_now(new)

        async def usual(place: int) -> WorkflowId:
            workflow_id = ids[place]
            if workflow_id is None:
                workflow_id = ids[place] = await self._router.start(requests[place])
            else:
                # Nobody knows whether it started: the same start once more, not another.
                await self._router.launch(workflow_id, requests[place])
            return workflow_id

        await self._decide(len(requests), now, usual, refusals)
        outcomes: list[WorkflowId | ClusterError] = []
        for place, workflow_id in enumerate(ids):
            refusal = refusals.get(place)
            if refusal is not None:
                outcomes.append(refusal)
            else:
                assert workflow_id is not None
                outcomes.append(workflow_id)
        return outcomes

    async def submit(self, events: Sequence[tuple[WorkflowId, Event]]) -> dict[int, ClusterError]:
        """Decide events, those of a workflow in their order; returns which were refused, by place,
        when all that is durable. Does not wait for scripts that they set going."""
        refusals: dict[int, ClusterError] = {}
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

        async def usual(place: int) -> None:
            await self._router.submit(*events[place])

        await self._decide(len(events), now, usual, refusals)
        return refusals

    async def _definitions(self, requests: Sequence[StartWorkflow]) -> Definitions:
        """Each definition once. What cannot be found out just now is left to the usual way."""
        found: Definitions = {}
        for request in requests:
            key = (request.name, request.version)
            if request.definition is not None or key in found:
                continue
            try:
                found[key] = await self._owner.definition(request)
            except ClusterError as refusal:
                if not refusal.retryable:
                    found[key] = refusal
        return found

    async def _decide(
        self,
        count: int,
        now: Callable[[Shards, int], int | None],
        usual: Callable[[int], Awaitable[object]],
        refusals: dict[int, ClusterError],
    ) -> None:
        """`now` gives the log entry that an item rests on, None if it takes more than a moment."""
        decided: list[int] = []
        left: list[int] = []
        last_entry = 0
        shards = self._shards()
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
        await _in_lanes(left, usual, refusals)
        if shards is None:
            return
        try:
            await shards.stands(last_entry)
        except ClusterError:
            # The log was lost: what was decided, refusals too, may never have been.
            await _in_lanes(decided, usual, refusals)

    def _shards(self) -> Shards | None:
        """All of a batch goes to one incarnation: log entries of another say nothing about it."""
        try:
            return self._owner.shards
        except NotOwner:
            return None


async def _in_lanes(
    places: Sequence[int],
    usual: Callable[[int], Awaitable[object]],
    refusals: dict[int, ClusterError],
) -> None:
    waiting = iter(places)

    async def lane() -> None:
        for place in waiting:
            refusals.pop(place, None)
            try:
                await usual(place)
            except ClusterError as refusal:
                refusals[place] = refusal

    async with asyncio.TaskGroup() as lanes:
        for _ in range(min(_LANES, len(places))):
            lanes.create_task(lane())
