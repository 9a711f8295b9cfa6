"""The walk over the open workflows of a shard, page by page."""

from collections.abc import Awaitable, Callable, Container, Sequence
from functools import partial

from cluster.clock import Clock
from cluster.ids import ShardId, WorkflowId
from cluster.sharding.insist import insist
from cluster.store.ports import OpenEntry, OpenSet

_PAGE = 500


async def each_open_page(
    open_set: OpenSet,
    shard: ShardId,
    take: Callable[[Sequence[OpenEntry]], Awaitable[None]],
    *,
    served: Container[ShardId],
    clock: Clock,
) -> None:
    """Have `take` go through all pages, as long as the shard is among those that are served.

    It waits for the store as long as that takes. What `take` raises ends the walk.
    """
    after: WorkflowId | None = None
    while shard in served:
        page = await insist(
            partial(open_set.scan, shard, after=after, limit=_PAGE), clock=clock, deadline_ms=None
        )
        if not page:
            return
        await take(page)
        after = page[-1].workflow_id
