"""The executions that are in memory: loaded once however many ask, evicted when they are idle."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.retries import rebuild_timers
from cluster.engine.rows import HEADER_ROW, decode_header, load
from cluster.errors import NotFound, NotOwner
from cluster.ids import ShardId, WorkflowId, same_slot, shard_of
from cluster.sharding.plans import Plans
from cluster.store.ports import ExecutionStore

_EXECUTION_BYTES = 4_000
_TASK_BYTES = 1_500
_CHECKS_PER_CALL_MAX = 2_000
_BUNDLES_MAX = 3
"""A workflow that lives on changes few rows at a time, and its rows are not to become many."""


class Residents:
    """Executions of all shards of one node. An execution in memory has its co-located ancestors
    in memory too, so that the end of a child is one commit with its parent's next step."""

    def __init__(
        self,
        store: ExecutionStore,
        plans: Plans,
        *,
        epochs: Mapping[ShardId, int],
        shard_count: int,
        bytes_max: int,
        settle: Callable[[int], "asyncio.Future[None]"],
    ) -> None:
        """`epochs` are the shards that are served at present; others are not loaded.
        `settle(position)` waits until everything up to a log position is in the store."""
        self._store = store
        self._plans = plans
        self._epochs = epochs
        self._shard_count = shard_count
        self._bytes_max = bytes_max
        self._settle = settle
        self.executions: dict[WorkflowId, Execution] = {}
        self.never_written: set[WorkflowId] = set()
        """Begun here, and not seen by a checkpoint yet."""
        self._bundles: dict[WorkflowId, int] = {}
        """How many checkpoints had what was begun here and has been in memory since."""
        self._loading: dict[WorkflowId, asyncio.Future[None]] = {}
        self._dropped: dict[WorkflowId, int] = {}
        self._removed: dict[WorkflowId, int] = {}
        self._pins: Counter[str] = Counter()
        self._weights: dict[WorkflowId, int] = {}
        self.bytes = 0

    async def get(self, workflow_id: WorkflowId) -> Execution:
        """The execution; NotFound if there is none. Valid until the caller's next await.

        NotOwner: its shard is not served here, or was given up meanwhile.
        """
        while True:
            execution = self.executions.get(workflow_id)
            if execution is not None:
                return execution
            if workflow_id in self._removed:
                raise _not_found(workflow_id)
            await self._load_once(workflow_id)

    def add(self, execution: Execution) -> None:
        """A new execution; a schedule may take the place of one of its name that was deleted."""
        self._removed.pop(execution.id, None)
        self.never_written.add(execution.id)
        self._bundles[execution.id] = 0
        self._keep(execution)

    def next_bundle(self, workflow_id: WorkflowId) -> int | None:
        """The number under which its next rows may be kept as one; nobody else uses it."""
        return self._bundles.get(workflow_id)

    def _keep(self, execution: Execution) -> None:
        self.executions[execution.id] = execution
        parent = execution.header.parent_id
        if parent is not None and same_slot(parent, execution.id):
            self._pins[parent] += 1
        self._weigh(execution)

    def pin(self, workflow_id: WorkflowId) -> None:
        """Keep it in memory until `unpin`."""
        self._pins[workflow_id] += 1

    def unpin(self, workflow_id: WorkflowId) -> None:
        self._pins[workflow_id] -= 1
        if self._pins[workflow_id] <= 0:
            del self._pins[workflow_id]

    def drop(self, execution: Execution) -> None:
        """Throw away what was changed and not logged; it is read again when it is needed."""
        if self.executions.get(execution.id) is execution:
            self._dropped[execution.id] = execution.last_entry
            self._remove(execution)

    def remove(self, execution: Execution, entry: int) -> None:
        """It was deleted by log entry `entry`: from now on there is none such."""
        self._removed[execution.id] = entry
        self._remove(execution)

    async def forget(self, shards: Collection[ShardId]) -> None:
        """These shards are not served any more: drop all that is in memory of them."""
        count = self._shard_count
        for part in _slices(list(self.executions.values())):
            for execution in part:
                if shard_of(execution.id, shard_count=count) in shards:
                    if self.executions.get(execution.id) is execution:
                        self._remove(execution)
            await asyncio.sleep(0)
        for positions in (self._dropped, self._removed):
            for one in [one for one in positions if shard_of(one, shard_count=count) in shards]:
                del positions[one]

    def written(self, workflow_ids: Sequence[WorkflowId], position: int) -> None:
        """The store has all rows of these up to `position`: those at rest may go."""
        self.never_written.difference_update(workflow_ids)
        for workflow_id in workflow_ids:
            execution = self.executions.get(workflow_id)
            if execution is None:
                if self._removed.get(workflow_id, position + 1) <= position:
                    del self._removed[workflow_id]
                continue
            self._count_bundle(workflow_id)
            self._weigh(execution)
            if execution.is_terminal:
                self._evict(execution, position)

    def _count_bundle(self, workflow_id: WorkflowId) -> None:
        count = self._bundles.get(workflow_id)
        if count is None:
            return
        if count + 1 < _BUNDLES_MAX:
            self._bundles[workflow_id] = count + 1
        else:
            del self._bundles[workflow_id]

    def relieve(self, position: int) -> None:
        """The store has all rows of everything up to `position`: free memory, if it is short."""
        checks = _CHECKS_PER_CALL_MAX
        if self.bytes > self._bytes_max:
            # Oldest in memory first: who is used again is loaded again, at the end of the line.
            for execution in list(self.executions.values())[:checks]:
                if self.bytes <= self._bytes_max:
                    break
                self._evict(execution, position)

    def _evict(self, execution: Execution, position: int) -> None:
        if (
            execution.last_entry <= position
            and not execution.scripts
            and not execution.orders
            and execution.id not in self._pins
            and not (execution.header.work and execution.header.status != "PAUSED")
        ):
            self._remove(execution)

    def _remove(self, execution: Execution) -> None:
        del self.executions[execution.id]
        self.never_written.discard(execution.id)
        self._bundles.pop(execution.id, None)
        self.bytes -= self._weights.pop(execution.id, 0)
        parent = execution.header.parent_id
        if parent is not None and same_slot(parent, execution.id):
            self.unpin(WorkflowId(parent))

    def _weigh(self, execution: Execution) -> None:
        weight = _EXECUTION_BYTES + len(execution.input) + len(execution.output)
        weight += len(execution.tasks) * _TASK_BYTES
        self.bytes += weight - self._weights.get(execution.id, 0)
        self._weights[execution.id] = weight

    async def _load_once(self, workflow_id: WorkflowId) -> None:
        loading = self._loading.get(workflow_id)
        if loading is not None:
            await asyncio.shield(loading)
            return
        loading = asyncio.ensure_future(self._load(workflow_id))
        self._loading[workflow_id] = loading
        loading.add_done_callback(partial(self._loaded, workflow_id))
        # Whoever gives up waiting must not stop the load for the others.
        await asyncio.shield(loading)

    def _loaded(self, workflow_id: WorkflowId, loading: "asyncio.Future[None]") -> None:
        del self._loading[workflow_id]
        if not loading.cancelled():
            loading.exception()  # Whoever still waits hears of it.

    def _epoch_of(self, workflow_id: WorkflowId) -> int:
        epoch = self._epochs.get(shard_of(workflow_id, shard_count=self._shard_count))
        if epoch is None:
            raise NotOwner(f"This node does not own the shard of workflow {workflow_id}")
        return epoch

    async def _load(self, workflow_id: WorkflowId) -> None:
        epoch = self._epoch_of(workflow_id)
        entry = self._dropped.get(workflow_id)
        if entry is not None:
            await self._settle(entry)
        rows = [(row.number, row.data) for row in await self._store.read(workflow_id)]
        self._dropped.pop(workflow_id, None)
        header_row = next((data for number, data in rows if number == HEADER_ROW), None)
        if self._epoch_of(workflow_id) != epoch:
            raise _moved(workflow_id)
        if header_row is None:
            raise _not_found(workflow_id)
        header = decode_header(header_row)
        plan = await self._plans.load(header.snapshot)
        parent = header.parent_id
        if parent is not None and same_slot(parent, workflow_id):
            self.pin(WorkflowId(parent))
            try:
                await self.get(WorkflowId(parent))
            except NotFound:
                pass  # Removed by an operator: the child goes on alone.
            finally:
                self.unpin(WorkflowId(parent))

        def plan_of(_: Header) -> Plan:
            return plan

        if self._epoch_of(workflow_id) != epoch:
            # Another owner has been at it since the rows were read.
            raise _moved(workflow_id)
        execution = load(workflow_id, rows, plan_of)
        rebuild_timers(execution)
        self._keep(execution)


def _slices(executions: list[Execution]) -> Iterator[list[Execution]]:
    for start in range(0, len(executions), _CHECKS_PER_CALL_MAX):
        yield executions[start : start + _CHECKS_PER_CALL_MAX]


def _moved(workflow_id: WorkflowId) -> NotOwner:
    return NotOwner(f"The shard of workflow {workflow_id} has moved")


def _not_found(workflow_id: WorkflowId) -> NotFound:
    return NotFound(f"No such workflow found by id: {workflow_id}")
