"""What is asked of the servers behind the stores is counted, by what it is for."""

from collections.abc import Callable

import pytest

from cluster.clock import SystemClock, SystemRandom
from cluster.ids import TaskId
from cluster.store.cassandra import Consistency, open_cassandra
from cluster.store.ports import LogId, Row
from cluster.store.queue_ports import QueueItem
from cluster.store.redis import open_redis
from cluster.store.traffic import Traffic
from cluster.urls import CassandraUrl
from tests.support import cassandra, redis
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio


def since(traffic: Traffic) -> Callable[[str], tuple[int, int, int]]:
    """Requests, items and bytes of a kind, from now on."""
    before = {
        key: (flow.requests, flow.items, flow.sent_bytes) for key, flow in traffic.flows.items()
    }

    def grown(kind: str) -> tuple[int, int, int]:
        server = "redis" if kind in ("queues", "push", "acknowledge") else "cassandra"
        flow = traffic.of(server, kind)
        requests, items, sent = before.get((server, kind), (0, 0, 0))
        return flow.requests - requests, flow.items - items, flow.sent_bytes - sent

    return grown


async def test_cassandra(cassandra_url: CassandraUrl) -> None:
    await cassandra.set_up_empty(cassandra_url)
    traffic = Traffic()
    async with open_cassandra(
        cassandra_url,
        shard_count=4,
        clock=SystemClock(),
        random=SystemRandom(),
        consistency=Consistency(),
        traffic=traffic,
    ) as stores:
        log = LogId("node/traffic")
        await stores.logs.create(log)
        grown = since(traffic)
        await stores.logs.append(log, 1, b"x" * 1_000)
        assert grown("insert log_entries") == (1, 1, 1_000)
        assert grown("select fences") == (1, 0, 0)
        one = workflow_id()
        await stores.executions.write([(Row(one, number, b"x" * 500), 1) for number in range(9)])
        requests, items, sent = grown("insert executions")
        assert (requests, items) == (1, 9)
        assert sent >= 9 * 500
        assert [row.data for row in await stores.executions.read(one)] == [b"x" * 500] * 9
        assert grown("select executions")[0] == 1


async def test_redis() -> None:
    traffic = Traffic()
    async with open_redis(
        redis.shared_servers("standalone").url,
        shard_count=0,
        clock=SystemClock(),
        random=SystemRandom(),
        prefix=redis.fresh_prefix(),
        traffic=traffic,
    ) as stores:
        items = [QueueItem(TaskId(f"task-{n}"), 1, 0, 0, b"x" * 100, "") for n in range(5)]
        await stores.queues.generation()
        grown = since(traffic)
        await stores.queues.push({"one": items[:2], "two": items[2:]}, now_ms=1)
        requests, _, sent = grown("queues")
        assert requests == 1
        assert sent >= 500
        assert grown("push")[1] == 2
        await stores.queues.acknowledge({"one": [items[0].task_id]})
        assert grown("queues")[0] == 2
        assert grown("acknowledge")[1] == 1
