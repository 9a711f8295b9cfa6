"""Many starts or many events of one request: decided in turns, with one wait for their commit.

A request of its own costs a task of the event loop, a future for its commit and a way through all
layers. What is served here and in memory is decided here item after item instead, into as few log
entries as the log's group commit makes of it. Events of workflows elsewhere go to their owners in
one call each. The rest goes the usual way, in a bounded number of lanes.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from cluster.clock import Clock
from cluster.engine.events import Event
from cluster.errors import ClusterError, NotSupported
from cluster.ids import WorkflowId
from cluster.node.many import Refusals, decide_many, in_lanes, submit_many
from cluster.node.metadata import Resolved
from cluster.node.router import AGAIN, Router, StartWorkflow
from cluster.sharding.shard import Shards
from cluster.store.lease_ports import Member

Definitions = dict[tuple[str, int | None], Resolved | ClusterError]
Events = Sequence[tuple[WorkflowId, Event]]

_PER_CALL = 500
"""Events that travel together."""


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
        refusals: Refusals = {}

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

        async def usual(place: int) -> None:
            workflow_id = ids[place]
            if workflow_id is None:
                ids[place] = await self._router.start(requests[place])
            else:
                # Nobody knows whether it started: the same start once more, not another.
                await self._router.launch(workflow_id, requests[place])

        async def left(places: Sequence[int]) -> None:
            await in_lanes(places, usual, refusals)

        await decide_many(self._owner, len(requests), now, left, refusals)
        outcomes: list[WorkflowId | ClusterError] = []
        for place, workflow_id in enumerate(ids):
            refusal = refusals.get(place)
            if refusal is not None:
                outcomes.append(refusal)
            else:
                assert workflow_id is not None
                outcomes.append(workflow_id)
        return outcomes

    async def submit(self, events: Events) -> Refusals:
        """Decide events, those of a workflow in their order; returns which were refused, by place,
        when all that is durable. Does not wait for scripts that they set going."""
        return await submit_many(self._owner, events, partial(self._submit_left, events))

    async def _submit_left(self, events: Events, places: Sequence[int], refusals: Refusals) -> None:
        """What is not in memory here: to the owners elsewhere, and then what that has left over."""
        by_owner: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        owners: dict[str, Member] = {}
        alone: list[int] = []
        for place in places:
            way = self._router.way_elsewhere(events[place][0])
            if way is None:
                alone.append(place)
            else:
                owner, epoch = way
                owners[owner.node_id] = owner
                by_owner[owner.node_id].append((place, epoch))
        again: Refusals = {}
        await asyncio.gather(
            *(
                self._submit_to(owners[name], events, some[begin : begin + _PER_CALL], again)
                for name, some in by_owner.items()
                for begin in range(0, len(some), _PER_CALL)
            )
        )
        for place, failure in list(again.items()):
            if not isinstance(failure, (*AGAIN, NotSupported)):
                refusals[place] = again.pop(place)

        async def usual(place: int) -> None:
            failure = again.get(place)
            if isinstance(failure, AGAIN):
                await self._router.submit_again(*events[place], failure)
            else:
                await self._router.submit(*events[place])

        await in_lanes(sorted([*alone, *again]), usual, refusals)

    async def _submit_to(
        self, owner: Member, events: Events, some: Sequence[tuple[int, int]], failures: Refusals
    ) -> None:
        """Have one owner decide the events of these places, each in an epoch of its shard."""
        try:
            refused = await self._router.submit_to(
                owner, [(*events[place], epoch) for place, epoch in some]
            )
        except ClusterError as failure:
            failures.update({place: failure for place, _ in some})
        else:
            failures.update({some[at][0]: failure for at, failure in refused.items()})

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
