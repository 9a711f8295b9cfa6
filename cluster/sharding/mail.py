"""Orders for other shards: one at a time and in order per target, until they are acknowledged."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from cluster.clock import Clock
from cluster.engine.effects import Post, StartChild
from cluster.engine.events import Delivered, Event
from cluster.errors import ClusterError, Fenced, NotFound, NotOwner, Unreached
from cluster.ids import WorkflowId
from cluster.logs import get_log
from cluster.sharding.shard import Shards

log = get_log(__name__)

_Key: TypeAlias = tuple[WorkflowId, str, int | None]
"""Sender, target, and the epoch of the sender's shard."""

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
        self._queues: dict[_Key, deque[Post]] = {}

    def send(self, sender: WorkflowId, order: Post) -> None:
        """Have an order delivered behind those of the same sender for the same target."""
        # Of another epoch: what an earlier one left under way ends without a word to the sender.
        key = sender, order.target, self._shards.epoch_of(sender)
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque((order,))
            self._spawn(sender, lambda: self._deliver_all(key))
        elif all(one.mark != order.mark for one in queue):
            queue.append(order)

    async def _deliver_all(self, key: _Key) -> None:
        sender, _, epoch = key
        queue = self._queues[key]
        try:
            while queue:
                await self._deliver(sender, queue[0], epoch)
                queue.popleft()
        except (Fenced, NotOwner) as moved:
            # The sender's next owner sends them again; what they started may have ended since.
            log.info("orders are left to another owner", workflow_id=sender, why=moved.message)
        finally:
            del self._queues[key]

    def _must_serve(self, sender: WorkflowId, epoch: int | None) -> None:
        if epoch is None or self._shards.epoch_of(sender) != epoch:
            raise NotOwner(f"The shard of {sender} has moved")

    async def _deliver(self, sender: WorkflowId, order: Post, epoch: int | None) -> None:
        pause_ms = _PAUSE_MS
        repeated = order.repeated
        while True:
            self._must_serve(sender, epoch)
            try:
                async with self._slots:
                    delivered = await self._hand_over(sender, order, repeated=repeated)
                break
            except ClusterError as failure:
                # Fenced too: it may be the target's owner that has lost its log, not this one.
                if not failure.retryable:
                    raise
                log.info("an order is repeated", workflow_id=sender, error=failure.message)
                # It may have been done, unless the other side says that it was not.
                repeated = repeated or not isinstance(failure, NotOwner | Unreached)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)
        await self._acknowledge(sender, delivered, epoch)

    async def _acknowledge(
        self, sender: WorkflowId, delivered: Delivered, epoch: int | None
    ) -> None:
        """Tell the sender, who stays open until it has heard of all its orders."""
        pause_ms = _PAUSE_MS
        while True:
            self._must_serve(sender, epoch)
            try:
                await self._shards.deliver(sender, delivered)
                return
            except NotFound:
                return  # Removed meanwhile.
            except (Fenced, NotOwner):
                raise
            except ClusterError as failure:
                if not failure.retryable:
                    raise
                log.info("a sender has not heard yet", workflow_id=sender, error=failure.message)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)

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
