"""Every implementation of the durable stores, opened empty for one test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.store.memory import open_memory
from cluster.store.ports import Stores
from cluster.store.sql import open_sqlite

SHARD_COUNT = 4


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """Stores of a cluster of 4 shards."""
    if request.param == "memory":
        opened = open_memory(shard_count=SHARD_COUNT)
        await opened.shards.create(SHARD_COUNT)
        yield opened
    else:
        async with open_sqlite(tmp_path / "podium.db", shard_count=SHARD_COUNT) as opened:
            yield opened
