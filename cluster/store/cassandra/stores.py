"""The stores of a cluster in Cassandra, opened together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.clock import Clock, Random
from cluster.errors import StoreFault
from cluster.store.cassandra import schema
from cluster.store.cassandra.executions import CassandraExecutionStore
from cluster.store.cassandra.log import CassandraLogStore
from cluster.store.cassandra.metadata import CassandraMetadataStore
from cluster.store.cassandra.open_set import CassandraOpenSet
from cluster.store.cassandra.records import CassandraRecordStore
from cluster.store.cassandra.search import CassandraSearchIndex
from cluster.store.cassandra.session import Consistency, Session, connected
from cluster.store.cassandra.settled import Settled
from cluster.store.cassandra.shards import CassandraShardTable
from cluster.store.ports import Stores
from cluster.store.traffic import Traffic
from cluster.urls import CassandraUrl

_PAUSES_S = (0.5, 1, 2, 4)
"""Before a store that does not answer yet is asked again."""


@asynccontextmanager
async def open_cassandra(
    url: CassandraUrl,
    *,
    shard_count: int,
    clock: Clock,
    random: Random,
    consistency: Consistency,
    traffic: Traffic | None = None,
) -> AsyncIterator[Stores]:
    """The stores in the keyspace that `url` names, which `podium schema apply` has set up.

    `traffic` counts what is sent.

    StoreFault: no node answers. Conflict: the schema is missing, older or newer, or the cluster
    was created with another shard count.
    """
    async with connected(url, consistency, traffic) as session:
        await schema.check(session, url.keyspace)
        # Preparing statements waits for answers.
        stores = await asyncio.to_thread(stores_of, session, shard_count, clock, random)
        for pause_s in _PAUSES_S:
            try:
                await stores.shards.create(shard_count)
                break
            except StoreFault:
                # Nodes that start together ask for the same at the same time.
                await asyncio.sleep(pause_s)
        else:
            await stores.shards.create(shard_count)
        yield stores


def stores_of(session: Session, shard_count: int, clock: Clock, random: Random) -> Stores:
    """All ports over one session."""
    settled = Settled()
    return Stores(
        logs=CassandraLogStore(session, settled),
        shards=CassandraShardTable(session, settled),
        executions=CassandraExecutionStore(session, shard_count=shard_count),
        open_set=CassandraOpenSet(session, settled, shard_count=shard_count),
        search=CassandraSearchIndex(session, clock),
        metadata=CassandraMetadataStore(session),
        records=CassandraRecordStore(session, clock, random),
    )
