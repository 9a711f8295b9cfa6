"""What holds of Cassandra alone: the race for the fence, silence, unknown outcomes, the schema."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from cluster.clock import SystemClock, SystemRandom
from cluster.errors import Conflict, Fenced, StoreFault
from cluster.ids import ShardId, WorkflowId
from cluster.sharding.insist import insist
from cluster.store.cassandra import Consistency, connected, open_cassandra, schema
from cluster.store.cassandra.session import Session
from cluster.store.cassandra.stores import stores_of
from cluster.store.ports import SEGMENT_POSITIONS, LogId, OpenEntry, Row, Stores, revision_of
from cluster.urls import CassandraUrl, Host
from tests.support import cassandra
from tests.support.failing import lose_every_second_answer
from tests.support.fence_race import race
from tests.support.rows import log_id, revised, workflow_id

pytestmark = pytest.mark.asyncio

SHARD_COUNT = 4
ALL = 1 << 30
HOUR_MS = 3_600_000


@pytest_asyncio.fixture
async def session(cassandra_url: CassandraUrl) -> AsyncIterator[Session]:
    await cassandra.set_up_empty(cassandra_url)
    async with connected(cassandra_url, Consistency()) as opened:
        yield opened


async def open_stores(session: Session) -> Stores:
    """Stores as another process has them: with a memory of their own."""
    stores = await asyncio.to_thread(stores_of, session, SHARD_COUNT, SystemClock(), SystemRandom())
    await stores.shards.create(SHARD_COUNT)
    return stores


@pytest_asyncio.fixture
async def own(session: Session) -> Stores:
    return await open_stores(session)


# -- the fence


async def test_owners_that_steal_from_each_other_lose_nothing(own: Stores) -> None:
    """`make fence-race` runs thousands of takeovers."""
    found = await race(own, takeovers=120, reads_fence=True, seed=1)
    assert found.takeovers >= 120
    assert found.count > 100
    assert found.fenced > 20
    assert found.missing == 0


async def test_without_the_fence_read_much_would_be_lost(own: Stores) -> None:
    """The race sees the fault that the fence read prevents."""
    found = await race(own, takeovers=60, reads_fence=False, seed=1)
    assert found.fenced == 0
    # Most of it on a calm machine (make fence-race); a busy one comes to fewer races.
    assert found.missing > found.count // 20


async def test_the_fence_is_read_behind_the_insert(own: Stores) -> None:
    """A seal that comes while the insert is under way fences it: it may have been missed."""
    logs: Any = own.logs
    log, execute = log_id(), logs._session.execute
    await own.logs.create(log)

    async def seal_first(statement: Any) -> Any:
        if getattr(statement, "prepared_statement", None) is logs._append:
            await own.logs.seal(log)
        return await execute(statement)

    logs._session.execute = seal_first
    with pytest.raises(Fenced):
        await own.logs.append(log, 1, b"late")
    assert (await own.logs.seal(log)).valid_to == 0


async def test_of_two_ends_the_first_one_recorded_counts(session: Session, own: Stores) -> None:
    """Two sealers see different ends, for an entry that was never acknowledged comes late."""
    log, logs = log_id(), own.logs
    await logs.create(log)
    await logs.append(log, 1, b"entry")
    slow: Any = (await open_stores(session)).logs
    contiguous_end, paused, go_on = slow._contiguous_end, asyncio.Event(), asyncio.Event()

    async def pause(*args: Any) -> int:
        end: int = await contiguous_end(*args)
        paused.set()
        await go_on.wait()
        return end

    slow._contiguous_end = pause
    first = asyncio.create_task(slow.seal(log))
    await paused.wait()
    with pytest.raises(Fenced):
        await logs.append(log, 2, b"late")
    second = await logs.seal(log)
    assert second.valid_to == 2
    go_on.set()
    assert await first == second == await logs.fence(log)


# -- silence, and answers that get lost


async def test_a_node_that_is_silent_for_a_while_keeps_what_it_took(own: Stores) -> None:
    log, node = log_id(), cassandra.shared_ring().nodes[0]
    await own.logs.create(log)
    await own.logs.append(log, 1, b"before")
    node.pause()
    try:
        append = asyncio.create_task(persistently(lambda: own.logs.append(log, 2, b"during")))
        other = asyncio.create_task(persistently(own.shards.rows))
        done, _ = await asyncio.wait([append, other], timeout=1.5)
        assert not done
    finally:
        node.resume()
    await append
    assert len(await other) == SHARD_COUNT
    assert (await own.logs.seal(log)).valid_to == 2
    found = await own.logs.read(log, after=0, upto=2, bytes_max=ALL)
    assert list(found) == [(1, b"before"), (2, b"during")]


async def test_a_seal_during_silence_has_one_outcome(own: Stores) -> None:
    log, node = log_id(), cassandra.shared_ring().nodes[0]
    await own.logs.create(log)
    await own.logs.append(log, 1, b"entry")
    node.pause()
    try:
        seals = [asyncio.create_task(persistently(lambda: own.logs.seal(log))) for _ in range(3)]
        append = asyncio.create_task(persistently(lambda: own.logs.append(log, 2, b"late")))
        await asyncio.sleep(1)
    finally:
        node.resume()
    fences = await asyncio.gather(*seals)
    assert len(set(fences)) == 1
    answer = (await asyncio.gather(append, return_exceptions=True))[0]
    valid_to = fences[0].valid_to
    assert valid_to in (1, 2)
    # Taken and counted, or fenced; never taken and not counted.
    assert isinstance(answer, Fenced) or valid_to == 2


async def test_a_session_outlives_a_restart_of_its_node(own: Stores) -> None:
    log, node = log_id(), cassandra.shared_ring().nodes[0]
    await own.logs.create(log)
    await own.logs.append(log, 1, b"before")
    await asyncio.to_thread(node.kill, 15)
    with pytest.raises(StoreFault):
        await own.logs.append(log, 2, b"after")
    # On this thread: the node ends with the thread that started it.
    node.start()
    await persistently(lambda: own.logs.append(log, 2, b"after"), deadline_ms=60_000)
    assert (await own.logs.seal(log)).valid_to == 2


async def test_every_call_may_be_repeated_when_its_answer_was_lost(own: Stores) -> None:
    stores = lose_every_second_answer().wrapped(own)
    log, one = log_id(), workflow_id()
    await persistently(lambda: stores.logs.create(log))
    for position in (1, 2):
        await persistently(lambda: stores.logs.append(log, position, b"entry"))  # noqa: B023
    seen = await persistently(stores.shards.rows)
    won = await persistently(lambda: stores.shards.claim(seen, log))
    assert {(row.owner, row.epoch) for row in won} == {(log, 1)}
    await persistently(lambda: stores.executions.write([revised(Row(one, 0, b"header"))]))
    await persistently(lambda: stores.open_set.put([(OpenEntry(one, 5, False), 1)]))
    assert [row.data for row in await persistently(lambda: stores.executions.read(one))] == [
        b"header"
    ]
    found = await persistently(lambda: stores.open_set.due(ShardId(0), before_ms=9, limit=9))
    assert [entry.workflow_id for entry in found] == [one]
    assert (await persistently(lambda: stores.logs.seal(log))).valid_to == 2
    await persistently(lambda: stores.logs.delete(log))
    assert await own.logs.logs() == []


async def test_a_definition_with_an_unknown_outcome_is_looked_up(own: Stores) -> None:
    metadata: Any = own.metadata
    compare_and_set = metadata._session.compare_and_set

    async def lose_the_answer(*args: Any) -> None:
        await compare_and_set(*args)
        raise StoreFault("the answer was lost")

    metadata._session.compare_and_set = lose_the_answer
    for revision, body in ((1, b"1"), (2, b"2")):
        put = await metadata.put(
            "workflow", "orders", 1, body, at_ms=1, expected_revision=revision - 1
        )
        assert (put.revision, put.body) == (revision, body)


async def test_a_log_id_that_was_used_is_never_open_again(own: Stores) -> None:
    """A create that was on its way while the log was sealed and deleted comes too late."""
    log = log_id()
    await own.logs.create(log)
    await own.logs.seal(log)
    await own.logs.delete(log)
    await own.logs.create(log)
    assert await own.logs.fence(log) is None
    assert await own.logs.logs() == []
    with pytest.raises(Fenced):
        await own.logs.append(log, 1, b"late")


async def test_a_removal_leaves_a_mark_that_outlasts_the_deletion(
    session: Session, own: Stores
) -> None:
    """Cassandra forgets deletions after gc_grace_seconds; a process may sleep for longer."""
    one = workflow_id()
    await own.executions.write([revised(Row(one, number, b"row")) for number in (0, 1, 8)])
    await own.executions.remove([(one, revision_of(1, 1))])
    rows = await session.run(
        f"SELECT number, data, writetime(data) FROM {session.keyspace}.executions"
    )
    assert rows == [(0, b"", revision_of(1, 1) + 1)]


async def test_a_bundle_is_one_row(session: Session, own: Stores) -> None:
    one, large = workflow_id(), workflow_id()
    rows = [revised(Row(one, number, b"row")) for number in (0, 1, 16, 20)]
    rows += [revised(Row(large, number, b"x" * 40_000)) for number in (0, 1)]
    await own.executions.write(rows, {one: 0, large: 0})
    found = await session.run(f"SELECT number FROM {session.keyspace}.executions")
    assert sorted(number for (number,) in found) == [-1, 0, 1]
    for owner in (one, large):
        mine = [row for row, _ in rows if row.workflow_id == owner]
        assert list(await own.executions.read(owner)) == mine


async def test_a_large_batch_of_one_partition_is_taken(own: Stores) -> None:
    """Cassandra's default limit of 50 KiB is for batches over several partitions."""
    one = workflow_id()
    rows = [revised(Row(one, number, b"x" * 2_000)) for number in range(200)]
    await own.executions.write(rows)
    assert [row for row, _ in rows] == list(await own.executions.read(one))
    spread = [workflow_id(at_ms=n * HOUR_MS) for n in range(100)]
    await own.executions.write([revised(Row(one, 0, b"x" * 1_500)) for one in spread])
    assert len(await own.executions.headers(spread)) == 100


# -- the open set tidies up behind itself


class Tidy:
    """A shard whose owner has claimed it and truncates its log now and then."""

    def __init__(self, session: Session, stores: Stores, log: LogId, epoch: int) -> None:
        self._session = session
        self.stores = stores
        self.log = log
        self.epoch = epoch

    @classmethod
    async def claim(cls, session: Session, stores: Stores) -> "Tidy":
        log = log_id()
        await stores.logs.create(log)
        rows = await stores.shards.claim((await stores.shards.rows())[:1], log)
        return cls(session, stores, log, rows[0].epoch)

    async def truncate(self, segment: int) -> None:
        await self.stores.logs.advance_first_segment(self.log, segment)

    async def put(self, one: WorkflowId, due_ms: int | None, *, at: int) -> None:
        entry = (OpenEntry(one, due_ms, False), revision_of(self.epoch, at))
        await self.stores.open_set.put([entry])

    async def remove(self, one: WorkflowId, *, at: int) -> None:
        await self.stores.open_set.remove([(one, revision_of(self.epoch, at))])

    async def scan(self) -> list[WorkflowId]:
        found = await self.stores.open_set.scan(ShardId(0), after=None, limit=100)
        return [entry.workflow_id for entry in found]

    async def due(self, before_ms: int) -> list[WorkflowId]:
        found = await self.stores.open_set.due(ShardId(0), before_ms=before_ms, limit=100)
        return [entry.workflow_id for entry in found]

    async def count(self, table: str) -> int:
        rows = await self._session.run(f"SELECT shard FROM {self._session.keyspace}.{table}")
        return len(rows)


async def test_empty_buckets_leave_the_index(session: Session, own: Stores) -> None:
    shard = await Tidy.claim(session, own)
    ids = [workflow_id(at_ms=n * HOUR_MS) for n in range(1, 40)]
    for one in ids:
        await shard.put(one, None, at=10)
    for one in ids[:-1]:
        await shard.remove(one, at=11)
    assert await shard.scan() == ids[-1:]
    # What this epoch wrote stays until the log is cut behind it.
    assert await shard.count("open_index") == len(ids)
    await shard.truncate(1)
    assert await shard.scan() == ids[-1:]
    assert await shard.count("open_index") == 1
    # A workflow of a bucket that was tidied away is opened again.
    await shard.put(ids[0], None, at=SEGMENT_POSITIONS + 1)
    assert await shard.scan() == [ids[0], ids[-1]]


async def test_a_late_tidier_hides_nothing_of_its_successor(session: Session, own: Stores) -> None:
    """A paused owner finds a bucket empty, and deletes it from the index after the takeover."""
    shard, one = await Tidy.claim(session, own), workflow_id()
    await shard.put(one, None, at=1)
    await shard.remove(one, at=2)
    await shard.truncate(1)
    tidier: Any = own.open_set
    unindex_all, paused, go_on = tidier._unindex_all, asyncio.Event(), asyncio.Event()

    async def unindex_late(*args: Any) -> None:
        paused.set()
        await go_on.wait()
        await unindex_all(*args)

    tidier._unindex_all = unindex_late
    scan = asyncio.create_task(shard.scan())
    await paused.wait()
    # The successor replays what the log held behind the last checkpoint, then goes on.
    successor = await open_stores(session)
    replayed = revision_of(shard.epoch, SEGMENT_POSITIONS + 5)
    await successor.open_set.put([(OpenEntry(one, None, False), replayed)])
    go_on.set()
    assert await scan == []
    found = await successor.open_set.scan(ShardId(0), after=None, limit=9)
    assert [entry.workflow_id for entry in found] == [one]


async def test_an_owner_trusts_nothing_of_its_first_time(session: Session, own: Stores) -> None:
    """A→B→A: B tidied away what A remembers to have written, then died with work in its log."""
    first, one = await Tidy.claim(session, own), workflow_id()
    await first.put(one, 5, at=1)
    second = await Tidy.claim(session, await open_stores(session))
    await second.remove(one, at=1)
    assert await second.scan() == []
    assert await second.due(2 * HOUR_MS) == []
    assert await second.count("open_index") == 0
    replayed = revision_of(second.epoch, 2)
    await own.open_set.put([(OpenEntry(one, 6, False), replayed)])
    assert await first.scan() == [one]
    assert await first.due(HOUR_MS) == [one]


async def test_a_write_under_way_keeps_its_bucket(session: Session, own: Stores) -> None:
    shard, one, other = await Tidy.claim(session, own), workflow_id(), workflow_id()
    await shard.put(one, None, at=1)
    await shard.remove(one, at=2)
    writing: Any = own.open_set
    with writing._counted([ShardId(0)]):
        await shard.truncate(1)
        assert await shard.scan() == []
        assert await shard.count("open_index") == 1
    await shard.put(other, None, at=SEGMENT_POSITIONS + 1)
    assert await shard.scan() == [other]


async def test_hours_that_are_over_are_dropped(session: Session, own: Stores) -> None:
    shard = await Tidy.claim(session, own)
    ids = [workflow_id() for _ in range(4)]
    for number, one in enumerate(ids):
        await shard.put(one, number * HOUR_MS + 5, at=1)
    assert await shard.due(9 * HOUR_MS) == ids
    # The first ends, the second is due later, the third not at all any more.
    await shard.remove(ids[0], at=2)
    await shard.put(ids[1], 8 * HOUR_MS + 1, at=2)
    await shard.put(ids[2], None, at=2)
    await shard.truncate(1)
    for _ in range(2):
        assert await shard.due(8 * HOUR_MS) == [ids[3]]
    assert await shard.due(9 * HOUR_MS) == [ids[3], ids[1]]
    assert await shard.count("due_times") == 2
    await shard.put(ids[2], 4, at=SEGMENT_POSITIONS + 1)
    assert await shard.due(8 * HOUR_MS) == [ids[2], ids[3]]


async def test_due_times_that_lead_nowhere_are_removed(session: Session, own: Stores) -> None:
    shard = await Tidy.claim(session, own)
    ids = [workflow_id() for _ in range(300)]
    entries = [(OpenEntry(one, 10 + n, False), revision_of(1, 1)) for n, one in enumerate(ids)]
    await own.open_set.put(entries)
    for one in ids[:250]:
        await shard.remove(one, at=2)
    await shard.put(ids[250], 1_000, at=3)
    await shard.truncate(1)
    assert await shard.count("due_times") == 300
    expected = [*ids[251:], ids[250]]
    assert await shard.due(2_000) == expected
    assert await shard.count("due_times") == len(expected)
    assert await shard.due(2_000) == expected


async def test_many_due_times_come_in_pages(own: Stores) -> None:
    ids = [workflow_id() for _ in range(2_300)]
    await own.open_set.put([(OpenEntry(one, 10 + n, False), 1) for n, one in enumerate(ids)])
    found = await own.open_set.due(ShardId(0), before_ms=HOUR_MS, limit=2_200)
    assert [entry.workflow_id for entry in found] == ids[:2_200]


# -- the schema


async def test_a_missing_schema_is_refused_by_name(cassandra_url: CassandraUrl) -> None:
    url = CassandraUrl(cassandra_url.hosts, "absent", None)
    with pytest.raises(Conflict, match="no keyspace absent: run `podium schema apply`"):
        await open_and_close(url)


async def test_an_older_or_newer_schema_is_refused(session: Session, own: Stores) -> None:
    url = CassandraUrl(cassandra.url_of(cassandra.shared_ring(), "").hosts, session.keyspace, None)
    steps = f"{session.keyspace}.schema_steps"
    await session.run(f"INSERT INTO {steps} (part, step) VALUES (0, 999)")
    with pytest.raises(Conflict, match="step 999"):
        await open_and_close(url)
    with pytest.raises(Conflict, match="step 999"):
        await schema.apply(session, session.keyspace, {})
    await session.run(f"DELETE FROM {steps} WHERE part = 0")
    names = [step.name for step in schema.steps()]
    with pytest.raises(Conflict, match=f"lacks {', '.join(names)}: run `podium schema apply`"):
        await open_and_close(url)
    applied = [f"applied {name}" for name in names]
    assert await schema.apply(session, session.keyspace, {}) == applied
    await open_and_close(url)
    with pytest.raises(Conflict, match="4 shards, not 8"):
        await open_and_close(url, shard_count=8)


async def test_what_was_changed_by_hand_is_found(session: Session, own: Stores) -> None:
    keyspace = session.keyspace
    url = CassandraUrl(cassandra.url_of(cassandra.shared_ring(), "").hosts, keyspace, None)
    assert await schema.diff(session, keyspace) == []
    await session.change_schema(f"ALTER TABLE {keyspace}.logs ADD more int")
    await session.change_schema(f"ALTER TABLE {keyspace}.fences WITH read_repair = 'NONE'")
    await session.change_schema(f"ALTER TABLE {keyspace}.executions WITH default_time_to_live = 9")
    await session.change_schema(f"DROP INDEX {keyspace}.summaries_status")
    await session.change_schema(f"DROP TABLE {keyspace}.correlated")
    assert await schema.diff(session, keyspace) == [
        "table fences has read_repair NONE, wanted: BLOCKING",
        "column logs.more is int, wanted: none",
        "table executions has default_time_to_live 9, wanted: 0",
        "index summaries_status is missing",
        "table correlated is missing",
    ]
    with pytest.raises(Conflict, match="read_repair = 'BLOCKING'"):
        await open_and_close(url)
    cassandra.forget(keyspace)


async def test_status_says_what_is_there(session: Session, own: Stores) -> None:
    lines = await schema.status(session, session.keyspace)
    assert lines[0].startswith(f"keyspace {session.keyspace}: NetworkTopologyStrategy")
    assert "0001_first.cql: applied" in lines
    assert "not there" in (await schema.status(session, "absent"))[0]


async def test_a_wrong_address_is_named() -> None:
    url = CassandraUrl((Host("127.0.0.1", 1),), "podium", None)
    with pytest.raises(StoreFault, match=r"cannot connect to Cassandra at 127\.0\.0\.1:1"):
        await open_and_close(url)


async def open_and_close(url: CassandraUrl, *, shard_count: int = SHARD_COUNT) -> None:
    async with open_cassandra(
        url,
        shard_count=shard_count,
        clock=SystemClock(),
        random=SystemRandom(),
        consistency=Consistency(),
    ):
        pass


async def persistently(call: Callable[[], Awaitable[Any]], *, deadline_ms: int = 30_000) -> Any:
    return await insist(call, clock=SystemClock(), deadline_ms=deadline_ms, attempt_ms=500)
