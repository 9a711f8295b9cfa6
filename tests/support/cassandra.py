"""One real Cassandra node per test process, started when it is asked for; a keyspace per module."""

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from cluster.clock import SystemClock, SystemRandom
from cluster.store.cassandra import Consistency, connected, open_cassandra, schema
from cluster.store.ports import Stores
from cluster.urls import CassandraUrl, Host
from ops.cassandra_up import Options, Ring

_keyspaces = itertools.count()
_set_up: set[str] = set()
_broken: set[str] = set()
# Short-lived: compiling well costs more than it brings.
_OPTIONS = Options(heap="768m", jvm=("-XX:TieredStopAtLevel=1",), die_with_starter=True)


def start_ring(nodes: int = 1) -> Ring:
    """Nodes of one's own, to be hurt; they end with this process at the latest."""
    folder = Path(tempfile.mkdtemp(prefix="podium-cassandra-"))
    ring = Ring(folder, nodes=nodes, options=_OPTIONS)
    ring.start()
    atexit.register(_remove, ring)
    return ring


shared_ring = cache(start_ring)


def _remove(ring: Ring) -> None:
    for node in ring.nodes:
        node.kill()
    shutil.rmtree(ring.folder, ignore_errors=True)


def fresh_keyspace() -> str:
    return f"test_{os.getpid()}_{next(_keyspaces)}"


def url_of(ring: Ring, keyspace: str) -> CassandraUrl:
    return CassandraUrl(
        tuple(Host(node.host, node.port) for node in ring.nodes), keyspace, login=None
    )


async def set_up_empty(url: CassandraUrl) -> None:
    """Create the keyspace with its tables, or forget all rows of all tables.

    Only what holds rows is truncated, for that takes its time.
    """
    async with connected(url, Consistency()) as session:
        if url.keyspace in _broken:
            await session.change_schema(f"DROP KEYSPACE {url.keyspace}")
            _set_up.discard(url.keyspace)
            _broken.discard(url.keyspace)
        if url.keyspace not in _set_up:
            await schema.apply(session, url.keyspace, {})
            _set_up.add(url.keyspace)
            return
        tables = await session.run(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s", (url.keyspace,)
        )
        for (table,) in tables:
            name = f"{url.keyspace}.{table}"
            if table != "schema_steps" and await session.run(f"SELECT * FROM {name} LIMIT 1"):
                await session.change_schema(f"TRUNCATE {name}")


def forget(keyspace: str) -> None:
    """The tables were changed: the next test gets new ones."""
    _broken.add(keyspace)


@asynccontextmanager
async def opened(url: CassandraUrl, *, shard_count: int) -> AsyncIterator[Stores]:
    async with open_cassandra(
        url,
        shard_count=shard_count,
        clock=SystemClock(),
        random=SystemRandom(),
        consistency=Consistency(),
    ) as stores:
        yield stores
