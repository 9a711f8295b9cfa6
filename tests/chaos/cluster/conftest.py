"""What the trials stand on: one Cassandra (or a ring of three), one Redis, one schema."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.cassandra_up import Ring
from ops.redis_up import Server as RedisServer
from tests.support.cassandra import start_ring
from tests.support.redis import start_servers

RING = int(os.environ.get("CHAOS_RING", "1"))
"""Nodes of Cassandra: 1 in `make test`, 3 in `make chaos-cluster`."""
KEYSPACE = "chaos"

# What dies with its starter dies with the thread that started it, so it has to be a lasting one.
_HANDS = ThreadPoolExecutor(max_workers=1)


@dataclass(frozen=True)
class Backing:
    """The stores, each to be hurt."""

    cassandra: Ring
    redis: RedisServer
    urls: tuple[str, str]
    """Of the store and the queues."""

    @property
    def is_ring(self) -> bool:
        """Whether one node of Cassandra may be away."""
        return len(self.cassandra.nodes) > 1


async def by_hand(work: Callable[[], None]) -> None:
    """Do something to a store that takes its time, while the load goes on."""
    await asyncio.get_running_loop().run_in_executor(_HANDS, work)


@pytest.fixture(scope="session")
def backing() -> Iterator[Backing]:
    ring = _HANDS.submit(start_ring, RING).result()
    servers = _HANDS.submit(start_servers, "standalone").result()
    url = f"cassandra://{ring.hosts}/{KEYSPACE}"
    subprocess.run(
        [str(Path(sys.executable).parent / "podium"), "schema", "apply"],
        env={
            **os.environ,
            "PODIUM_STORE_URL": url,
            "PODIUM_CASSANDRA_REPLICATION": str(RING),
        },
        check=True,
    )
    yield Backing(ring, servers.data[0], (url, servers.url))
    servers.stop()
    ring.stop()
