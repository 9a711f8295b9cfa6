"""Real Redis servers that are killed, flushed, paused, failed over, full, or not what they were."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from cluster.errors import StoreFault
from cluster.ids import ShardId, TaskId
from cluster.store.ports import LogId
from cluster.store.queue_ports import HAND_OUT_MS, Limits, QueueItem, queue_name
from cluster.store.redis import RedisStores
from ops.redis_up import Server, Servers
from tests.support import redis
from tests.support.redis import again

# A connection to a sentinel that fell silent while it was made is dropped by the library without
# being closed; it is collected, and complains, in whichever test comes next.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

T0 = 1_800_000_000_000
LOG = LogId("node-a/1")


def item(name: str, *, delivery: int = 1, payload: bytes = b'{"a":1') -> QueueItem:
    return QueueItem(TaskId(name), delivery, 0, T0, payload, "plan")


async def push(stores: RedisStores, *names: str, queue: str = "mail") -> None:
    await stores.queues.push({queue: [item(name) for name in names]}, now_ms=T0)


async def pop(
    stores: RedisStores, queue: str = "mail", *, limits: Limits | None = None, count: int = 100
) -> list[str]:
    popped = await stores.queues.pop(queue, count=count, now_ms=T0, limits=limits)
    return [one.task_id for one in popped.items]


@contextmanager
def own(kind: str) -> Iterator[Servers]:
    """Servers that a test may hurt."""
    servers = redis.start_servers(kind)
    try:
        yield servers
    finally:
        servers.stop()


@asynccontextmanager
async def at(
    servers: Servers, *, prefix: str = "hurt", shard_count: int = 0, timeout_ms: int = 1_000
) -> AsyncIterator[RedisStores]:
    async with redis.opened(
        servers.kind,
        url=servers.url,
        prefix=prefix,
        shard_count=shard_count,
        timeout_ms=timeout_ms,
    ) as stores:
        yield stores


async def seen(condition: Callable[[], bool], *, within_s: float) -> float:
    """How long it took until a condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "it never came"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


class Parked:
    """A poll that waits at a node: it looks when it is woken, and takes what there is."""

    def __init__(self, stores: RedisStores, queue: str = "mail") -> None:
        self.got: list[str] = []
        self.woken = 0
        self._stores = stores
        self._queue = queue
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_there = True
        stores.queues.watch(self._wake)

    def _wake(self, queue: str, at_ms: int) -> None:
        if queue == self._queue and self.is_there:
            self.woken += 1
            task = asyncio.create_task(self.look())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def look(self) -> None:
        self.got += await pop(self._stores, self._queue)


# -- losses


@pytest.mark.asyncio
async def test_a_flush_is_noticed_without_anybodys_asking() -> None:
    with own("standalone") as servers:
        async with at(servers, shard_count=2) as stores:
            shards = [ShardId(0), ShardId(1)]
            one = Limits(concurrent=1)
            before = await stores.queues.generation()
            await stores.queues.counted(before, shards)
            await push(stores, "a", "b")
            await stores.leases.renew(LOG)
            leases = await stores.leases.read()
            assert await pop(stores, limits=one) == ["a"]

            servers.data[0].command("FLUSHALL")
            after = await stores.queues.generation()
            assert after != before
            assert (await stores.leases.read()).generation != leases.generation
            assert await stores.queues.unknown({"mail": [TaskId("a"), TaskId("b")]}) == ["a", "b"]

            # The owner's word, in any order; what he said of the old generation does not count.
            await stores.queues.counted(before, shards)
            await push(stores, "b")
            assert await pop(stores, limits=one) == []
            await stores.queues.hold({"mail": {TaskId("a"): 1}})
            await stores.queues.counted(after, shards)
            assert await pop(stores, limits=one) == [], "a has the only slot"
            await stores.queues.acknowledge({"mail": [TaskId("a")]})
            assert await pop(stores, limits=one) == ["b"]
            assert await stores.queues.generation() == after


@pytest.mark.asyncio
async def test_after_a_loss_a_rate_waits_for_a_whole_window() -> None:
    with own("standalone") as servers:
        async with at(servers) as stores:
            limits = Limits(rate=5, rate_window_ms=400)
            await push(stores, "a")
            assert await pop(stores, limits=limits) == ["a"]
            servers.data[0].command("FLUSHALL")
            await push(stores, "b")
            popped = await stores.queues.pop("mail", count=9, now_ms=T0, limits=limits)
            assert (popped.items, popped.cut_by) == ([], "rate")
            assert popped.again_ms is not None
            assert T0 < popped.again_ms <= T0 + 400
            await asyncio.sleep(0.45)
            assert await pop(stores, limits=limits) == ["b"]


@pytest.mark.parametrize("kind", ["standalone", "cluster"])
@pytest.mark.asyncio
async def test_killed_under_load_and_started_again_it_serves_again(kind: str) -> None:
    with own(kind) as servers:
        async with at(servers) as stores:
            before = await stores.queues.generation()
            queues = [f"type{n}" for n in range(12)]
            faults = 0
            is_over = False

            async def load(queue: str) -> None:
                nonlocal faults
                number = 0
                while not is_over:
                    number += 1
                    try:
                        await push(stores, f"{queue}-{number}", queue=queue)
                        await pop(stores, queue)
                    except StoreFault:
                        faults += 1
                        await asyncio.sleep(0.01)

            loads = [asyncio.create_task(load(queue)) for queue in queues]
            await asyncio.sleep(0.2)
            servers.data[0].kill()
            await asyncio.sleep(0.3)
            assert faults
            servers.data[0].start()
            for queue in queues:
                await again(lambda: push(stores, "last", queue=queue))  # noqa: B023
            is_over = True
            await asyncio.gather(*loads)
            assert await stores.queues.generation() != before
            found = await stores.queues.unknown({queue: [TaskId("last")] for queue in queues})
            assert not found


@pytest.mark.asyncio
async def test_a_failover_that_loses_a_moment_is_found_by_the_one_who_lost_it() -> None:
    with own("sentinel") as servers:
        async with at(servers) as loser, at(servers) as other:
            await push(loser, "kept")
            await push(other, "other")
            await loser.leases.renew(LOG)
            before = await loser.queues.generation()
            leases = await loser.leases.read()
            primary, replica = servers.data
            primary.command("WAIT", "1", "1000")
            primary.command("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
            primary.command("CLIENT", "KILL", "TYPE", "replica")
            await push(loser, "lost")
            assert await loser.queues.unknown({"mail": [TaskId("lost")]}) == []
            primary.kill()

            await again(loser.queues.generation, within_s=30)
            assert servers.primary() is replica
            after = await loser.queues.generation()
            assert after != before, "the loss was not seen"
            known = [TaskId("kept"), TaskId("lost"), TaskId("other")]
            assert await loser.queues.unknown({"mail": known}) == ["lost"]
            await again(other.queues.generation)
            assert await other.queues.generation() == after
            await again(loser.leases.read)
            assert (await loser.leases.read()).generation != leases.generation
            # Told again, everything is there once.
            await push(loser, "kept", "lost")
            assert sorted(await pop(other)) == ["kept", "lost", "other"]


@pytest.mark.asyncio
async def test_a_failover_that_loses_nothing_is_no_loss() -> None:
    with own("sentinel") as servers:
        async with at(servers) as stores:
            await push(stores, "a")
            before = await stores.queues.generation()
            servers.data[0].command("WAIT", "1", "1000")
            servers.sentinels[0].command("SENTINEL", "FAILOVER", "podium")
            await seen(lambda: servers.primary() is servers.data[1], within_s=20)
            await again(lambda: push(stores, "b"))
            assert await stores.queues.generation() == before
            assert await pop(stores) == ["a", "b"]


# -- servers that do not answer, or refuse


@pytest.mark.asyncio
async def test_a_paused_server_costs_a_timeout_and_no_loss() -> None:
    with own("standalone") as servers:
        async with at(servers, timeout_ms=300) as stores:
            await push(stores, "a")
            before = await stores.queues.generation()
            servers.data[0].pause()
            began = time.monotonic()
            calls = [
                push(stores, "b"),
                stores.queues.acknowledge({"mail": [TaskId("x")]}),
                stores.leases.renew(LOG),
                stores.membership.leave("nobody"),
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(answer, StoreFault) for answer in answers), answers
            assert time.monotonic() - began < 2
            servers.data[0].resume()
            await again(lambda: push(stores, "b", "c"))
            assert await stores.queues.generation() == before
            assert await pop(stores) == ["a", "b", "c"]


@pytest.mark.asyncio
async def test_what_was_popped_into_the_void_is_asked_about() -> None:
    """The answer to a pop is lost: nobody has these tasks, and the queue says so in time."""
    with own("standalone") as servers:
        async with at(servers, timeout_ms=200) as stores:
            await push(stores, "a")
            servers.data[0].pause()
            with pytest.raises(StoreFault):
                await pop(stores)
            servers.data[0].resume()
            await again(lambda: push(stores, "b"))
            late_ms = T0 + HAND_OUT_MS
            found = await stores.queues.expired(now_ms=late_ms, count=9)
            got = await pop(stores)
            # The paused server may or may not have run the pop that nobody waited for.
            assert sorted([*found.get("mail", {}), *got]) == ["a", "b"]


@pytest.mark.asyncio
async def test_a_busy_server_is_a_fault_until_it_is_not() -> None:
    with own("standalone") as servers:
        server = servers.data[0]
        server.command("CONFIG", "SET", "busy-reply-threshold", "50")
        async with at(servers, timeout_ms=2_000) as stores:
            await push(stores, "a")
            endless = asyncio.create_task(asyncio.to_thread(_run_for_ever, server))
            await asyncio.sleep(0.3)
            with pytest.raises(StoreFault, match=r"BUSY|Busy"):
                await push(stores, "b")
            server.command("SCRIPT", "KILL")
            await endless
            await again(lambda: push(stores, "b"))
            assert await pop(stores) == ["a", "b"]


def _run_for_ever(server: Server) -> None:
    with suppress(OSError):
        server.command("EVAL", "while true do end", "0")


@pytest.mark.asyncio
async def test_a_server_that_became_a_replica_is_a_fault() -> None:
    with own("standalone") as servers, own("standalone") as others:
        async with at(servers) as stores:
            await push(stores, "a")
            servers.data[0].command("REPLICAOF", "127.0.0.1", str(others.data[0].port))
            with pytest.raises(StoreFault, match=r"READONLY|ReadOnly"):
                await push(stores, "b")
            servers.data[0].command("REPLICAOF", "NO", "ONE")
            await again(lambda: push(stores, "b"))


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MISCONF Redis is configured to save RDB snapshots",
        "NOREPLICAS Not enough good replicas to write.",
        "NOAUTH Authentication required.",
        "NOPERM this user has no permissions",
        "ERR something new",
    ],
)
@pytest.mark.asyncio
async def test_every_refusal_is_a_fault(refusal: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(65536):
                writer.write(f"-{refusal}\r\n".encode() * 3)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, redis.opened("", url=f"redis://127.0.0.1:{port}/0") as stores:
        with pytest.raises(StoreFault):
            await push(stores, "a")
        with pytest.raises(StoreFault):
            await stores.leases.read()


@pytest.mark.asyncio
async def test_a_full_server_takes_no_pushes_but_lets_go_of_tasks() -> None:
    with own("standalone") as servers:
        async with at(servers) as stores:
            big = b'{"a":"' + b"x" * 100_000
            await stores.queues.push(
                {"mail": [item(f"t{n}", payload=big) for n in range(10)]}, now_ms=T0
            )
            servers.data[0].command("CONFIG", "SET", "maxmemory", "1mb")
            pushed, popped, renewed = await asyncio.gather(
                push(stores, "one more"),
                pop(stores, count=3),
                stores.leases.renew(LOG),
                return_exceptions=True,
            )
            assert isinstance(pushed, StoreFault)
            assert popped == ["t0", "t1", "t2"]
            assert renewed is None
            await stores.queues.acknowledge({"mail": [TaskId(f"t{n}") for n in range(10)]})
            servers.data[0].command("CONFIG", "SET", "maxmemory", "0")
            await push(stores, "one more")


@pytest.mark.asyncio
async def test_a_password_is_used_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with own("standalone") as servers:
        servers.data[0].command("CONFIG", "SET", "requirepass", "s3cret+word")
        port = servers.data[0].port
        right = f"redis://:s3cret%2Bword@127.0.0.1:{port}/0"
        async with redis.opened("", url=right) as stores:
            await push(stores, "a")
            assert await pop(stores) == ["a"]
        wrong = f"redis://user:wr0ng+word@127.0.0.1:{port}/0"
        async with redis.opened("", url=wrong) as stores:
            with pytest.raises(StoreFault) as caught:
                await push(stores, "a")
    for shown in (str(caught.value), caplog.text):
        assert "s3cret" not in shown
        assert "wr0ng" not in shown


# -- wakes


@pytest.mark.parametrize("kind", redis.KINDS)
@pytest.mark.asyncio
async def test_a_push_at_one_node_wakes_a_poll_at_another(kind: str) -> None:
    prefix = redis.fresh_prefix()
    async with redis.opened(kind, prefix=prefix) as here, redis.opened(kind, prefix=prefix) as away:
        parked = Parked(away)
        await again(parked.look)
        await asyncio.sleep(0.3)  # Until it has subscribed.
        took = []
        for number in range(20):
            await push(here, f"t{number}")
            took.append(await seen(lambda: len(parked.got) > number, within_s=2))  # noqa: B023
            await asyncio.sleep(0.01)
        # Without the wake it is the second after which a poll looks again.
        assert sorted(took)[10] < 0.5, took


@pytest.mark.asyncio
async def test_a_push_and_the_pop_of_a_poll_that_waits_here_are_one_call() -> None:
    with own("standalone") as servers:
        async with at(servers) as stores:
            parked = Parked(stores)
            await parked.look()
            counted = _calls(servers)
            for number in range(20):
                await push(stores, f"t{number}")
                await seen(lambda: len(parked.got) > number, within_s=5)  # noqa: B023
            await asyncio.sleep(0.1)
            # A few more are those that look around by the clock.
            assert _calls(servers) - counted <= 25
            assert parked.woken <= 25, "nobody is woken again for what the pop has found"


@pytest.mark.asyncio
async def test_what_a_pop_leaves_of_a_push_in_the_same_call_is_told() -> None:
    async with redis.opened("standalone") as stores:
        queues = stores.queues
        assert await pop(stores) == []
        pushing = asyncio.create_task(push(stores, "a", "b", "c"))
        await asyncio.sleep(0)
        popped = await queues.pop("mail", count=2, now_ms=T0)
        assert [one.task_id for one in popped.items] == ["a", "b"]
        assert popped.again_ms is not None
        assert popped.again_ms <= T0
        await pushing
        assert await pop(stores) == ["c"]


@pytest.mark.parametrize("pusher", ["another node", "the node that is woken in vain"])
@pytest.mark.asyncio
async def test_a_wake_that_finds_nobody_goes_on_to_the_next(pusher: str) -> None:
    prefix = redis.fresh_prefix()
    async with (
        redis.opened("standalone", prefix=prefix) as here,
        redis.opened("standalone", prefix=prefix) as left,
        redis.opened("standalone", prefix=prefix) as stays,
    ):
        goes, waits = Parked(left), Parked(stays)
        took = []
        for number in range(10):
            await goes.look()
            await waits.look()
            goes.is_there = False
            await asyncio.sleep(0.2 if number == 0 else 0.01)
            await push(here if pusher == "another node" else left, f"t{number}")
            took.append(await seen(lambda: len(waits.got) > number, within_s=2))  # noqa: B023
        assert sorted(took)[5] < 0.4, took


@pytest.mark.asyncio
async def test_a_wake_that_was_lost_delays_by_a_second_at_most() -> None:
    with own("standalone") as servers:
        async with at(servers) as here, at(servers) as away:
            parked = Parked(away)
            await parked.look()
            await asyncio.sleep(0.2)
            servers.data[0].command("CLIENT", "KILL", "TYPE", "pubsub")
            await push(here, "a")
            assert await seen(lambda: parked.got == ["a"], within_s=3) < 1.5


@pytest.mark.asyncio
async def test_polls_that_wait_ask_redis_nothing() -> None:
    with own("standalone") as servers:
        async with at(servers) as stores:
            for number in range(200):
                await pop(stores, f"type{number}")
            await asyncio.sleep(0.5)
            counted = _calls(servers)
            await asyncio.sleep(2)
            # One look a second for all of them.
            assert _calls(servers) - counted <= 3


def _calls(servers: Servers) -> int:
    stats = servers.data[0].command("INFO", "commandstats")
    line = next(line for line in stats.splitlines() if line.startswith("cmdstat_evalsha:"))
    return int(line.partition("calls=")[2].partition(",")[0])


# -- calls, partitions, slots


@pytest.mark.asyncio
async def test_what_is_asked_in_one_turn_is_one_call() -> None:
    with own("standalone") as servers:
        async with at(servers) as stores:
            await push(stores, "first")
            counted = _calls(servers)
            await asyncio.gather(
                *(push(stores, f"t{n}", queue=f"type{n}") for n in range(50)),
                *(pop(stores, f"type{n}") for n in range(50)),
                stores.queues.acknowledge({"mail": [TaskId("first")]}),
            )
            assert _calls(servers) - counted <= 2


@pytest.mark.asyncio
async def test_types_are_spread_and_the_domains_of_one_stay_together() -> None:
    prefix = redis.fresh_prefix()
    servers = redis.shared_servers("cluster")
    async with redis.opened("cluster", prefix=prefix) as stores:
        for number in range(40):
            queues = [queue_name(f"type{number}", domain) for domain in (None, "x", "y")]
            await stores.queues.push({queue: [item("a")] for queue in queues}, now_ms=T0)
    used = []
    for server in servers.data:
        keys = server.command("KEYS", f"{prefix}:*task:*").split()
        used.append(len(keys))
        for key in keys:
            home, _, queue = key.partition("}")
            kind = queue.rpartition(":")[2]
            others = [one for one in keys if one.endswith(f":{kind}")]
            assert len(others) == 3
            assert all(one.startswith(home) for one in others)
    assert sum(used) == 120
    assert min(used) > 0


@pytest.mark.asyncio
async def test_nodes_that_divide_the_queues_otherwise_are_refused() -> None:
    prefix = redis.fresh_prefix()
    async with redis.opened("standalone", prefix=prefix, partitions=4) as first:
        await push(first, "a", queue="mail")
        async with redis.opened("standalone", prefix=prefix, partitions=8) as second:
            with pytest.raises(StoreFault, match="divided into 4, this node is set to 8"):
                await second.queues.generation()
        async with redis.opened("standalone", prefix=prefix, partitions=4) as third:
            assert await pop(third) == ["a"]


@pytest.mark.asyncio
async def test_a_partition_that_moves_to_another_primary_is_followed() -> None:
    with own("cluster") as servers:
        async with at(servers) as stores:
            queues = [f"type{n}" for n in range(30)]
            for queue in queues:
                await push(stores, "a", queue=queue)
            source, target = servers.data[0], servers.data[1]
            ids = {one.port: one.command("CLUSTER", "MYID") for one in servers.data}
            keys = source.command("KEYS", "hurt:*").split()
            slots = {source.command("CLUSTER", "KEYSLOT", key) for key in keys}
            assert slots
            for slot in slots:
                target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
                source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
                here = source.command("CLUSTER", "GETKEYSINSLOT", slot, "1000").split()
                source.command(
                    *("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *here)
                )
                for one in servers.data:
                    one.command("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
            for queue in queues:
                await again(lambda: push(stores, "b", queue=queue))  # noqa: B023
                assert await pop(stores, queue) == ["a", "b"]


@pytest.mark.asyncio
async def test_large_payloads_come_in_portions_and_all_of_them() -> None:
    async with redis.opened("standalone") as stores:
        big = b'{"a":"' + b"x" * 1_000_000
        names = [f"t{n:02}" for n in range(30)]
        await stores.queues.push({"mail": [item(name, payload=big) for name in names]}, now_ms=T0)
        got: list[str] = []
        while True:
            popped = await stores.queues.pop("mail", count=100, now_ms=T0)
            if not popped.items:
                break
            assert sum(len(one.payload) for one in popped.items) < 64_000_000
            got += [one.task_id for one in popped.items]
            assert popped.again_ms == (T0 if len(got) < 30 else None)
        assert got == names
