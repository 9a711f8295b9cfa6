"""Every implementation of the durable stores, opened empty for one test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.store.memory import open_memory
from cluster.store.ports import Stores
from cluster.store.sql import open_sqlite
from cluster.urls import CassandraUrl
from tests.support import cassandra

SHARD_COUNT = 4


@pytest.fixture(scope="module")
def cassandra_url() -> CassandraUrl:
    """A keyspace of this module's own on the node that all tests share."""
    return cassandra.url_of(cassandra.shared_ring(), cassandra.fresh_keyspace())


@pytest_asyncio.fixture(params=["memory", "sqlite", "cassandra"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """Stores of a cluster of 4 shards."""
    if request.param == "memory":
        opened = open_memory(shard_count=SHARD_COUNT)
        await opened.shards.create(SHARD_COUNT)
        yield opened
    elif request.param == "sqlite":
        async with open_sqlite(tmp_path / "podium.db", shard_count=SHARD_COUNT) as opened:
            yield opened
    else:
        url = request.getfixturevalue("cassandra_url")
        await cassandra.set_up_empty(url)
        async with cassandra.opened(url, shard_count=SHARD_COUNT) as opened:
            yield opened
