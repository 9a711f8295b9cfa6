"""A new owner's first look at its open workflows: what may have been under way is asked for again.

The audit (node/audit.py) uses the same way for single workflows that stand still without a cause.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from cluster.clock import Clock
from cluster.engine.events import Recovered
from cluster.engine.model import Execution
from cluster.engine.recovery import awaited_children, is_unfinished, word_to_child, word_to_parent
from cluster.engine.rows import decode_header
from cluster.engine.transitions import OPEN_WORKFLOW
from cluster.errors import ClusterError, Fenced, NotFound, NotOwner, Unavailable
from cluster.ids import ShardId, WorkflowId, same_slot
from cluster.logs import get_log
from cluster.sharding.open_pages import each_open_page
from cluster.sharding.residents import Residents
from cluster.sharding.shard import Shards
from cluster.store.ports import ExecutionStore, OpenEntry, OpenSet

log = get_log(__name__)

_AT_ONCE = 64
_SHARDS_AT_ONCE = 8
_PAUSES_S = (0.1, 0.4, 1.6, 6.4)
"""Before a workflow whose store did not answer is tried again."""


class Recovery:
    """Has open workflows issue their effects again, and tells their families what went unheard."""

    def __init__(
        self,
        shards: Shards,
        *,
        residents: Residents,
        open_set: OpenSet,
        executions: ExecutionStore,
        settled: Callable[[], Awaitable[None]],
        clock: Clock,
        on_page: Callable[[], None] = lambda: None,
    ) -> None:
        """`settled` returns when all that was decided is committed and its effects are on their
        way; `on_page` is called now and then: memory that is not needed any more may be freed."""
        self._shards = shards
        self._residents = residents
        self._open_set = open_set
        self._executions = executions
        self.settled = settled
        self._clock = clock
        self._on_page = on_page
        self.pending: set[ShardId] = set()
        """Shards whose open workflows have not all been looked at."""

    async def run(self, shards: Collection[ShardId], *, marked_only: bool = False) -> None:
        """Recover the open workflows of some shards. Requests are served meanwhile.

        `marked_only`: the queues hold what they held under the last owner, so that only those need
        it whose last checkpoint, or replay, does not know that all their effects were issued.
        """
        self.pending.update(shards)
        walks, slots = asyncio.Semaphore(_SHARDS_AT_ONCE), asyncio.Semaphore(_AT_ONCE)
        counts: list[int] = []
        began_ms = self._clock.monotonic_ms()
        log.info("recovery begins", shards=len(shards))

        async def walk(shard: ShardId) -> None:
            try:
                counts.append(await self._run(shard, slots, marked_only=marked_only))
            finally:
                walks.release()

        async with asyncio.TaskGroup() as group:
            for shard in shards:
                await walks.acquire()
                group.create_task(walk(shard))
        took_ms = self._clock.monotonic_ms() - began_ms
        log.info("recovery ended", workflows=sum(counts), took_ms=took_ms)

    async def _run(self, shard: ShardId, slots: asyncio.Semaphore, *, marked_only: bool) -> int:
        count = 0
        async with asyncio.TaskGroup() as group:

            async def begin(page: Sequence[OpenEntry]) -> None:
                nonlocal count
                for entry in page:
                    if marked_only and not entry.has_unfinished_effects:
                        continue
                    await slots.acquire()
                    group.create_task(self._recover(entry.workflow_id, slots))
                    count += 1
                self._on_page()

            await each_open_page(
                self._open_set, shard, begin, served=self._shards.epochs, clock=self._clock
            )
        try:
            if count:
                # Until then a checkpoint cannot know that an effect is still to leave.
                await self.settled()
        except Fenced:
            return count  # Whoever waits for the end of this log has been told.
        self.pending.discard(shard)
        return count

    async def _recover(self, workflow_id: WorkflowId, slots: asyncio.Semaphore) -> None:
        try:
            for pause_s in (*_PAUSES_S, None):
                try:
                    await self.recover(workflow_id)
                    return
                except NotOwner:
                    return  # Given up meanwhile: it is the next owner's.
                except ClusterError as error:
                    if pause_s is None or not isinstance(error, Unavailable):
                        # The audit comes by later.
                        log.error(
                            "a workflow was not recovered",
                            workflow_id=workflow_id,
                            error=error.message,
                        )
                        return
                await asyncio.sleep(pause_s)
        finally:
            slots.release()

    async def recover(self, workflow_id: WorkflowId) -> None:
        """Recover one workflow; one that ended, or is not there, needs nothing."""
        try:
            execution = await self._residents.get(workflow_id)
        except NotFound:
            return  # It ended or was removed after the hint was written.
        if not is_unfinished(execution):
            return
        at_ms = self._clock.now_ms()
        event = word_to_child(execution, self.parent_of(execution), at_ms)
        if event is not None:
            self._shards.apply_now(execution, event)
        if event is None or execution.orders:
            self._shards.apply_now(execution, Recovered(at_ms))
        await self._hear_of_children(workflow_id)

    def parent_of(self, execution: Execution) -> Execution | None:
        """The parent of a workflow in memory, which is then in memory too if it is co-located."""
        parent_id = execution.header.parent_id
        if parent_id is None or not same_slot(execution.id, parent_id):
            return None
        return self._shards.resident(WorkflowId(parent_id))

    async def _hear_of_children(self, workflow_id: WorkflowId) -> None:
        """Tell a workflow of those of its children that have ended while it waits for them."""
        for child_id in await self.ended_children(workflow_id):
            try:
                child = await self._residents.get(child_id)
            except NotFound:
                continue
            parent = self._shards.resident(workflow_id)
            if parent is None:
                parent = await self._residents.get(workflow_id)
            found = word_to_parent(parent, child, self._clock.now_ms())
            if found is None:
                continue
            told, event = found
            try:
                self._shards.apply_now(told, event)
            except ClusterError as error:
                log.warning("a child was not taken along", workflow_id=told.id, error=error.message)

    async def ended_children(self, workflow_id: WorkflowId) -> list[WorkflowId]:
        """The children that a workflow in memory waits for and that are known to have ended."""
        execution = self._shards.resident(workflow_id)
        if execution is None or execution.is_terminal:
            return []
        ended, elsewhere = [], []
        for child_id in awaited_children(execution):
            child = self._shards.resident(child_id)
            if child is None:
                elsewhere.append(child_id)
            elif child.is_terminal:
                ended.append(child_id)
        if elsewhere:
            # Who is not in memory has not changed since it was written.
            headers = await self._executions.headers(elsewhere)
            for child_id, header in headers.items():
                child = self._shards.resident(child_id)
                if child is None and decode_header(header).status not in OPEN_WORKFLOW:
                    ended.append(child_id)
        return ended
