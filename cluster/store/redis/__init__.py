"""Queues, leases and membership on Redis: one server, a Sentinel group, or a Cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from cluster.clock import Clock, Random
from cluster.logs import get_log
from cluster.store.redis.connection import NOTHING_MORE, Access, connected
from cluster.store.redis.leases import RedisLeases, RedisMembership, SignsOfLife
from cluster.store.redis.queues import RedisTaskQueues
from cluster.store.traffic import Traffic
from cluster.urls import MemoryUrl, RedisClusterUrl, parse_queue_url

__all__ = ["Access", "RedisStores", "open_redis"]

log = get_log(__name__)

_CLUSTER_PARTITIONS = 16


class RedisStores(msgspec.Struct, frozen=True):
    """What a node keeps in Redis. All of it may be lost at any moment."""

    queues: RedisTaskQueues
    leases: RedisLeases
    membership: RedisMembership


@asynccontextmanager
async def open_redis(
    url: str,
    *,
    shard_count: int,
    clock: Clock,
    random: Random,
    partitions: int = 0,
    timeout_ms: int = 3_000,
    prefix: str = "podium",
    traffic: Traffic | None = None,
    access: Access = NOTHING_MORE,
) -> AsyncIterator[RedisStores]:
    """Queues, leases and membership at a `redis…://` address. Connects with the first call.

    `shard_count` shards must be counted after a loss before limits hold (QueueUpkeep). All nodes
    of a cluster give the same `partitions`: into so many the task types are divided; 0 = one on
    a single server, 16 in a Redis Cluster. Clusters that share a server have different prefixes.
    `traffic` counts what is sent; `access` is what the servers want to see.
    """
    traffic = traffic or Traffic()
    parsed = parse_queue_url(url)
    assert not isinstance(parsed, MemoryUrl), "memory:// is no server"
    if not partitions:
        partitions = _CLUSTER_PARTITIONS if isinstance(parsed, RedisClusterUrl) else 1
    async with connected(parsed, timeout_ms=timeout_ms, access=access) as connection:
        queues = RedisTaskQueues(
            connection,
            prefix=prefix,
            partitions=partitions,
            shard_count=shard_count,
            clock=clock,
            random=random,
            traffic=traffic,
        )
        life = SignsOfLife(connection, prefix, random, traffic)
        # No TaskGroup: what the caller raises shall reach its caller as it is.
        loops = [asyncio.create_task(queues.run()), asyncio.create_task(life.run())]
        for loop in loops:
            loop.add_done_callback(_report)
        try:
            yield RedisStores(queues, RedisLeases(life), RedisMembership(life))
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


def _report(loop: "asyncio.Task[None]") -> None:
    """A loop that ends by itself is a defect; whoever asks for something hears that it is over."""
    if not loop.cancelled() and loop.exception() is not None:
        log.error("a loop of the Redis stores has died", exc_info=loop.exception())
