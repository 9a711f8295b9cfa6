"""Real Redis servers for tests: each kind is started once per test process, when asked for."""

import atexit
import itertools
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from cluster.clock import SystemClock, SystemRandom
from cluster.store.redis import RedisStores, open_redis
from ops.redis_up import Servers

KINDS = ("standalone", "sentinel", "cluster")
_prefixes = itertools.count()


def start_servers(kind: str) -> Servers:
    """Servers of one's own, to be hurt; they end with this process at the latest."""
    folder = Path(tempfile.mkdtemp(prefix=f"podium-redis-{kind}-"))
    servers = Servers(kind, folder, die_with_starter=True)
    servers.start()
    atexit.register(servers.stop)
    return servers


shared_servers = cache(start_servers)


@asynccontextmanager
async def opened(
    kind: str,
    *,
    url: str = "",
    prefix: str = "",
    shard_count: int = 0,
    timeout_ms: int = 3_000,
    partitions: int = 0,
) -> AsyncIterator[RedisStores]:
    """Stores on servers of a kind, empty unless a prefix is given that was used before."""
    async with open_redis(
        url or shared_servers(kind).url,
        shard_count=shard_count,
        clock=SystemClock(),
        random=SystemRandom(),
        prefix=prefix or fresh_prefix(),
        timeout_ms=timeout_ms,
        partitions=partitions,
    ) as stores:
        yield stores


def fresh_prefix() -> str:
    return f"test-{os.getpid()}-{next(_prefixes)}"
