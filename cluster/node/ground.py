"""What a node stands on, opened by URL: the only place that names an implementation of a port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from cluster.clock import Clock, Random
from cluster.errors import InvalidRequest
from cluster.node.data_folder import held
from cluster.settings import Settings
from cluster.store.lease_ports import Leases, Membership
from cluster.store.memory import open_memory
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.ports import Stores
from cluster.store.queue_ports import Queues
from cluster.store.sql import open_sqlite
from cluster.store.traffic import Traffic
from cluster.urls import (
    CassandraUrl,
    MemoryUrl,
    SqliteUrl,
    parse_login,
    parse_replication,
    parse_store_url,
    without_password,
)


class Ground(NamedTuple):
    """The ports of one node."""

    stores: Stores
    queues: Queues
    leases: Leases
    membership: Membership
    is_alone: bool


@asynccontextmanager
async def open_ground(
    settings: Settings, clock: Clock, random: Random, traffic: Traffic
) -> AsyncIterator[Ground]:
    """The ports that `store_url` and `queue_url` name; `traffic` counts what they ask servers."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(settings, clock, random, traffic))
        if settings.is_alone:
            leases, membership = MemoryLeases(), MemoryMembership(clock)
            yield Ground(stores, MemoryTaskQueues(), leases, membership, is_alone=True)
            return
        # Late: a node that is alone need not have the driver.
        from cluster.store.redis import Access, open_redis

        stack.enter_context(held(Path(settings.data_dir), settings.node_id))
        redis = await stack.enter_async_context(
            open_redis(
                settings.queue_url,
                shard_count=settings.shard_count,
                clock=clock,
                random=random,
                partitions=settings.queue_partitions,
                traffic=traffic,
                access=Access(
                    ca_file=settings.queue_ca_file,
                    cert_file=settings.queue_cert_file,
                    key_file=settings.queue_key_file,
                    check_hostname=settings.queue_check_hostname,
                    sentinel_login=parse_login(settings.queue_sentinel_login),
                ),
            )
        )
        yield Ground(stores, redis.queues, redis.leases, redis.membership, is_alone=False)


@asynccontextmanager
async def open_stores(
    settings: Settings, clock: Clock, random: Random, traffic: Traffic | None = None
) -> AsyncIterator[Stores]:
    """The stores that `store_url` names."""
    match parse_store_url(settings.store_url):
        case SqliteUrl(path):
            async with open_sqlite(Path(path), shard_count=settings.shard_count) as stores:
                yield stores
        case MemoryUrl():
            stores = open_memory(shard_count=settings.shard_count)
            await stores.shards.create(settings.shard_count)
            yield stores
        case CassandraUrl() as url:
            # Late: the driver takes its time to load.
            from cluster.store.cassandra import Consistency, open_cassandra

            async with open_cassandra(
                url,
                shard_count=settings.shard_count,
                clock=clock,
                random=random,
                consistency=Consistency(
                    settings.cassandra_consistency, settings.cassandra_serial_consistency
                ),
                traffic=traffic,
            ) as stores:
                yield stores


def schema(settings: Settings, action: Literal["apply", "status", "diff"]) -> list[str]:
    """What was done with the tables of a cluster, or is to be said of them, a line each.

    ClusterError: it cannot be done.
    """
    from cluster.store.cassandra import Consistency, connected
    from cluster.store.cassandra import schema as tables

    url = parse_store_url(settings.store_url)
    if not isinstance(url, CassandraUrl):
        raise InvalidRequest(
            f"store_url is {without_password(settings.store_url)}: only Cassandra has a schema to"
            " look after (--store cassandra://h1,h2/keyspace)"
        )
    replication = parse_replication(settings.cassandra_replication)
    consistency = Consistency(settings.cassandra_consistency, settings.cassandra_serial_consistency)

    async def act() -> list[str]:
        async with connected(url, consistency) as session:
            if action == "apply":
                return await tables.apply(session, url.keyspace, replication)
            if action == "status":
                return await tables.status(session, url.keyspace)
            return await tables.diff(session, url.keyspace)

    return asyncio.run(act())
