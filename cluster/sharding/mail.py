"""Orders for other shards: one at a time and in order per target, until they are acknowledged."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from cluster.clock import Clock
from cluster.engine.effects import Post
from cluster.engine.events import Delivered
from cluster.errors import ClusterError, Fenced, NotFound
from cluster.ids import WorkflowId
from cluster.logs import get_log
from cluster.sharding.shard import Shards

log = get_log(__name__)

_AT_ONCE = 256
_PAUSE_MS = 100
_PAUSE_MS_MAX = 5_000


class Mail:
    """Carries orders to the shard of their target, and the acknowledgement back to the sender.

    An order is kept by its sender (engine/outbox.py): what is lost here is sent again.
    """

    def __init__(
        self,
        shards: Shards,
        clock: Clock,
        *,
        spawn: Callable[[WorkflowId, Callable[[], Awaitable[None]]], None],
    ) -> None:
        """`spawn` runs work in the background, on account of a workflow."""
        self._shards = shards
        self._clock = clock
        self._spawn = spawn
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._queues: dict[tuple[WorkflowId, str], deque[Post]] = {}

    def send(self, sender: WorkflowId, order: Post) -> None:
        """Have an order delivered behind those of the same sender for the same target."""
        key = sender, order.target
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque((order,))
            self._spawn(sender, lambda: self._deliver_all(key))
        elif all(one.mark != order.mark for one in queue):
            queue.append(order)

    async def _deliver_all(self, key: tuple[WorkflowId, str]) -> None:
        queue = self._queues[key]
        try:
            while queue:
                async with self._slots:
                    await self._deliver(key[0], queue[0])
                queue.popleft()
        finally:
            del self._queues[key]

    async def _deliver(self, sender: WorkflowId, order: Post) -> None:
        pause_ms = _PAUSE_MS
        repeated = order.repeated
        while True:
            try:
                delivered = await self._hand_over(sender, order, repeated=repeated)
                try:
                    await self._shards.deliver(sender, delivered)
                except NotFound:
                    pass  # Removed meanwhile.
                return
            except Fenced:
                # This process serves no shard any more. Who does sends the order again.
                raise
            except ClusterError as failure:
                if not failure.retryable:
                    raise
                log.warning("an order is repeated", workflow_id=sender, error=failure.message)
            # The outcome is unknown: it may have been done.
            repeated = True
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)

    async def _hand_over(self, sender: WorkflowId, order: Post, *, repeated: bool) -> Delivered:
        at_ms = self._clock.now_ms()
        if order.start is not None:
            if not await self._shards.start_child(sender, order.start, repeated=repeated):
                return Delivered(at_ms, order.mark, "taken")
        elif order.event is not None:
            try:
                await self._shards.deliver(WorkflowId(order.target), order.event)
            except NotFound:
                return Delivered(at_ms, order.mark, "gone")
            except ClusterError as failure:
                if failure.retryable:
                    raise
                # It does not fit the target's present state, and never will.
                log.info("an order was refused", target=order.target, error=failure.message)
        return Delivered(at_ms, order.mark)
