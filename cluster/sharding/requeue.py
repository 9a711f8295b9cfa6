"""The queues filled again by the owners of the shards, after a loss of what they held.

Queues hold nothing that the stores do not. Whoever serves a shard compares the generation of the
queues with the one that it last told them everything in; when they differ it walks over the open
workflows of the shard, pushes what waits and holds what workers have. Requests are served
meanwhile, and what is new goes its usual way.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from cluster.clock import Clock
from cluster.engine.effects import PushTask
from cluster.engine.model import Execution
from cluster.engine.recovery import for_queues
from cluster.errors import ClusterError, Fenced, NotFound, NotOwner, Unavailable
from cluster.ids import ShardId, WorkflowId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.sharding.decisions import Sent
from cluster.sharding.open_pages import each_open_page
from cluster.store.ports import OpenEntry, OpenSet
from cluster.store.queue_ports import QueueItem, QueueUpkeep

log = get_log(__name__)

UNKNOWN = ""
"""The generation when the queues do not answer: nothing that was told in it counts."""

_LOOK_EVERY_S = 0.5
_AT_ONCE = 64


class Served(Protocol):
    """The shards, as far as this needs them."""

    @property
    def epochs(self) -> dict[ShardId, int]:
        """The shards that are served here."""

    async def view(self, workflow_id: WorkflowId) -> Execution:
        """The committed state; to be used before the caller's next await."""


class Requeue:
    """Fills the queues again with what is open in the shards that are served here."""

    def __init__(
        self,
        shards: Served,
        *,
        queues: QueueUpkeep,
        open_set: OpenSet,
        queue_item: Callable[[Execution, int], tuple[str, QueueItem]],
        send: Callable[[list[Sent]], None],
        all_out: Callable[[], Awaitable[None]],
        take_dropped: Callable[[], bool],
        catch_up: Callable[[], Awaitable[None]],
        clock: Clock,
        metrics: Metrics,
        on_page: Callable[[], None] = lambda: None,
    ) -> None:
        """`send`, `all_out` and `take_dropped` of the dispatcher; `catch_up` returns when all that
        was committed is in the open set; `on_page` is called now and then: memory may be freed."""
        self._shards = shards
        self._queues = queues
        self._open_set = open_set
        self._queue_item = queue_item
        self._send = send
        self._all_out = all_out
        self._take_dropped = take_dropped
        self._catch_up = catch_up
        self._clock = clock
        self._losses = metrics.queue_losses.of()
        self._requeued = metrics.requeued_workflows.of()
        self._on_page = on_page
        self._told: dict[ShardId, tuple[int, str]] = {}
        """Shard → epoch, and the generation in which everything that is open was told."""

    @property
    def is_behind(self) -> bool:
        """Whether the queues lack something that is still to be told again."""
        return any(told_in == UNKNOWN for _, told_in in self._told.values())

    async def is_full(self) -> bool:
        """Whether the queues, as they are now, were told all that is open."""
        generation = await self.generation()
        return generation != UNKNOWN and not self._behind(generation)

    async def generation(self) -> str:
        """The generation of the queues, to be asked for before a recovery begins."""
        try:
            return await self._queues.generation()
        except Unavailable:
            return UNKNOWN

    async def untold(self, generation: str, shards: Collection[ShardId]) -> set[ShardId]:
        """Those among some shards of which no owner has told everything in `generation`."""
        if generation == UNKNOWN:
            return set(shards)
        try:
            return set(await self._queues.uncounted(generation, list(shards)))
        except Unavailable:
            return set(shards)

    async def told(self, generation: str, shards: Collection[ShardId]) -> None:
        """A recovery that began in `generation` has pushed and held all that is open in these
        shards, and all of it has reached the queues."""
        served = [shard for shard in shards if shard in self._shards.epochs]
        try:
            if generation != UNKNOWN:
                await self._queues.counted(generation, served)
        except Unavailable:
            # Told in vain, as far as anybody knows: once more, when the queues answer.
            generation = UNKNOWN
        for shard in served:
            if shard in self._shards.epochs:
                self._told[shard] = self._shards.epochs[shard], generation

    async def run(self) -> None:
        """Watch the queues until cancelled or the log is lost."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            generation = await self.generation()
            if generation == UNKNOWN:
                continue
            if self._take_dropped():
                self._told = {shard: (epoch, UNKNOWN) for shard, (epoch, _) in self._told.items()}
            behind = self._behind(generation)
            if not behind:
                continue
            try:
                await self._fill(behind, generation)
            except Fenced:
                return  # Whoever waits for the end of this log has been told.
            except ClusterError as error:
                log.warning("the queues are not full again yet", error=error.message)

    def _behind(self, generation: str) -> list[ShardId]:
        """The shards of which the queues may lack something. Those that are still to be recovered
        are not among them: that tells everything too."""
        epochs = self._shards.epochs
        self._told = {
            shard: told for shard, told in self._told.items() if epochs.get(shard) == told[0]
        }
        return [shard for shard, (_, told_in) in self._told.items() if told_in != generation]

    async def _fill(self, shards: list[ShardId], generation: str) -> None:
        self._losses.inc()
        log.warning("the queues lost what they held; filling them again", shards=len(shards))
        began_ms = self._clock.monotonic_ms()
        epochs = {shard: self._shards.epochs.get(shard) for shard in shards}
        # What was started in the last moment is in no open set yet.
        await self._catch_up()
        count = 0
        for shard in shards:
            count += await self._fill_from(shard)
        await self._all_out()
        # One that was given up meanwhile may have been seen in part.
        kept = [shard for shard in shards if self._shards.epochs.get(shard) == epochs[shard]]
        await self.told(UNKNOWN if self._take_dropped() else generation, kept)
        took_ms = self._clock.monotonic_ms() - began_ms
        log.info("the queues are full again", workflows=count, took_ms=took_ms)

    async def _fill_from(self, shard: ShardId) -> int:
        count = 0

        async def tell(page: Sequence[OpenEntry]) -> None:
            nonlocal count
            for start in range(0, len(page), _AT_ONCE):
                some = page[start : start + _AT_ONCE]
                told = await asyncio.gather(
                    *(self._tell(entry.workflow_id) for entry in some), return_exceptions=True
                )
                for fault in told:
                    if fault is not None:
                        raise fault
                self._on_page()
            # A page at a time: what the queues do not take does not pile up here.
            await self._all_out()
            count += len(page)
            self._requeued.inc(len(page))

        await each_open_page(
            self._open_set, shard, tell, served=self._shards.epochs, clock=self._clock
        )
        return count

    async def _tell(self, workflow_id: WorkflowId) -> None:
        """Push what waits, hold what workers have: once more, if the queues know it."""
        try:
            execution = await self._shards.view(workflow_id)
        except (NotFound, NotOwner):
            return  # It ended, or it is the next owner's.
        effects: list[Sent] = []
        for effect in for_queues(execution):
            if isinstance(effect, PushTask):
                queue, item = self._queue_item(execution, effect.number)
                effects.append(Sent(workflow_id, item, queue))
            else:
                effects.append(Sent(workflow_id, effect))
        self._send(effects)
