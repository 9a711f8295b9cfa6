"""Orders for other shards: one at a time and in order per target, until they are acknowledged."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from cluster.clock import Clock
from cluster.engine.effects import Post, StartChild
from cluster.engine.events import Delivered, Event
from cluster.errors import ClusterError, Fenced, NotFound, NotOwner, Unreached
from cluster.ids import WorkflowId
from cluster.logs import get_log
from cluster.sharding.shard import Shards

log = get_log(__name__)

_AT_ONCE = 256
_PAUSE_MS = 100
_PAUSE_MS_MAX = 1_000


class Carrier(Protocol):
    """The way to the shards of others, on this node or elsewhere. One attempt at a time: NotOwner
    and Unreached say that nothing was done, other retryable errors that nobody knows."""

    async def deliver(self, workflow_id: WorkflowId, event: Event) -> None:
        """Have an event decided; returns when it is durable. NotFound."""

    async def start_child(
        self, parent_id: WorkflowId, child: StartChild, *, repeated: bool
    ) -> bool:
        """Start a child; returns when it is durable. Repeated, it starts once. False: the id
        belongs to another workflow."""


class Mail:
    """Carries orders to the shard of their target, and the acknowledgement back to the sender.

    An order is kept by its sender (engine/outbox.py): what is lost here is sent again.
    """

    def __init__(
        self,
        shards: Shards,
        carrier: Carrier,
        clock: Clock,
        *,
        spawn: Callable[[WorkflowId, Callable[[], Awaitable[None]]], None],
    ) -> None:
        """`spawn` runs work in the background, on account of a workflow."""
        self._shards = shards
        self._carrier = carrier
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
            epoch = self._shards.epoch_of(sender)
            self._spawn(sender, lambda: self._deliver_all(key, epoch))
        elif all(one.mark != order.mark for one in queue):
            queue.append(order)

    async def _deliver_all(self, key: tuple[WorkflowId, str], epoch: int | None) -> None:
        queue = self._queues[key]
        try:
            while queue:
                await self._deliver(key[0], queue[0], epoch)
                queue.popleft()
        finally:
            del self._queues[key]

    async def _deliver(self, sender: WorkflowId, order: Post, epoch: int | None) -> None:
        pause_ms = _PAUSE_MS
        repeated = order.repeated
        while True:
            if epoch is None or self._shards.epoch_of(sender) != epoch:
                # The sender's next owner sends it again; what it started may have ended since.
                raise NotOwner(f"The shard of {sender} has moved")
            try:
                async with self._slots:
                    delivered = await self._hand_over(sender, order, repeated=repeated)
                break
            except Fenced:
                # This process serves no shard any more. Who does sends the order again.
                raise
            except ClusterError as failure:
                if not failure.retryable:
                    raise
                log.info("an order is repeated", workflow_id=sender, error=failure.message)
                # It may have been done, unless the other side says that it was not.
                repeated = repeated or not isinstance(failure, NotOwner | Unreached)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)
        try:
            await self._shards.deliver(sender, delivered)
        except NotFound:
            pass  # Removed meanwhile.

    async def _hand_over(self, sender: WorkflowId, order: Post, *, repeated: bool) -> Delivered:
        at_ms = self._clock.now_ms()
        if order.start is not None:
            if not await self._carrier.start_child(sender, order.start, repeated=repeated):
                return Delivered(at_ms, order.mark, "taken")
        elif order.event is not None:
            try:
                await self._carrier.deliver(WorkflowId(order.target), order.event)
            except NotFound:
                return Delivered(at_ms, order.mark, "gone")
            except ClusterError as failure:
                if failure.retryable:
                    raise
                # It does not fit the target's present state, and never will.
                log.info("an order was refused", target=order.target, error=failure.message)
        return Delivered(at_ms, order.mark)
