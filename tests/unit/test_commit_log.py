"""Group commit: order, grouping, and what is acknowledged when the store fails."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest

from cluster.clock import SystemClock
from cluster.errors import Fenced, StoreFault
from cluster.ids import ShardId
from cluster.metrics import Metrics
from cluster.sharding.commit_log import CommitLog, Transition, decode_entry
from cluster.store.memory.log import MemoryLogStore
from cluster.store.ports import LogId, Row
from tests.support.failing import HeldLogStore
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio

LOG = LogId("node/1")
ONE = workflow_id()
UNASKED = "cluster.sharding.commit_log._UNASKED_S"


@pytest.fixture(autouse=True)
def _nothing_waits_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put goes out, but in the tests that are about just this."""
    monkeypatch.setattr(UNASKED, 0.0)


class Node:
    """A commit log over a store, and all that it called back, in order."""

    def __init__(self, store: MemoryLogStore, **options: int) -> None:
        self.store = store
        self.heard: list[object] = []
        self.lost: list[Fenced] = []
        self.log: CommitLog[str] = CommitLog(
            store,
            LOG,
            clock=SystemClock(),
            metrics=Metrics(),
            send=self.heard.append,
            on_committed=self._on_committed,
            on_lost=self.lost.append,
            **options,
        )

    def _on_committed(self, position: int, transitions: object, size: int) -> None:
        assert size > 0
        self.heard.append(position)

    def put(self, data: bytes, *effects: str) -> int:
        return self.log.put(ShardId(1), 7, [Row(ONE, 0, data)], effects)


@asynccontextmanager
async def running(store: MemoryLogStore, **options: int) -> AsyncIterator[Node]:
    node = Node(store, **options)
    await store.create(LOG)
    run = asyncio.create_task(node.log.run())
    await turn()
    try:
        yield node
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextmanager
def fails_fenced() -> Iterator[None]:
    with pytest.raises(Fenced):
        yield


def rows_of(entry: bytes) -> list[bytes]:
    return [row.data for _, _, rows in decode_entry(entry) for row in rows]


async def test_nothing_is_acknowledged_before_it_is_durable() -> None:
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        position = node.put(b"a", "push a")
        waiter = asyncio.create_task(node.log.committed(position))
        await turn()
        assert node.store.tried
        assert not waiter.done()
        assert node.heard == []
        assert node.log.last_committed == 0
        node.store.let_through()
        await waiter
        assert node.heard == [1, ["push a"]]
        assert node.log.last_committed == 1
        assert node.log.pending_bytes == 0
        await node.log.committed(position)


async def test_an_entry_says_shard_epoch_and_rows() -> None:
    async with running(MemoryLogStore()) as node:
        expected: list[Transition] = [
            (ShardId(1), 7, [Row(ONE, 0, b"\x00header"), Row(ONE, 3, b"")]),
            (ShardId(9), 1, [Row(workflow_id(), 1 << 19, b"x" * 70_000)]),
        ]
        for shard, epoch, rows in expected:
            node.log.put(shard, epoch, rows)
        await node.log.drain()
        ((_, entry),) = await node.store.read(LOG, after=0, upto=9, bytes_max=1)
        assert [(s, e, list(r)) for s, e, r in decode_entry(entry)] == expected
        with pytest.raises(ValueError, match="unknown format"):
            decode_entry(b"\x02" + entry[1:])


async def test_what_is_put_in_one_turn_of_the_loop_is_one_entry() -> None:
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)

        async def put_later(data: bytes) -> int:
            await asyncio.sleep(0)
            return node.put(data)

        puts = [asyncio.create_task(put_later(b"%d" % n)) for n in range(3)]
        await turn()
        assert [put.result() for put in puts] == [1, 1, 1]
        assert [rows_of(entry) for _, entry in node.store.tried] == [[b"0", b"1", b"2"]]


async def test_the_next_entry_gathers_while_one_is_in_flight() -> None:
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        assert node.put(b"a", "1") == 1
        await turn()
        assert [node.put(b"b", "2", "3"), node.put(b"c"), node.put(b"d", "4")] == [2, 2, 2]
        await turn()
        assert len(node.store.tried) == 1
        node.store.let_through()
        node.store.let_through()
        await node.log.drain()
        assert [rows_of(entry) for _, entry in node.store.tried] == [[b"a"], [b"b", b"c", b"d"]]
        assert node.heard == [1, ["1"], 2, ["2", "3", "4"]]


async def test_who_was_answered_has_time_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if an append took ten seconds: what ends the gathering is who comes, not the time.
    monkeypatch.setattr("cluster.sharding.commit_log._GATHERING_S_MAX", 10.0)
    monkeypatch.setattr(
        "cluster.sharding.commit_log.stopwatch_s", partial(next, itertools.count(0, 10))
    )
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)

        async def ask(data: bytes) -> None:
            await node.log.committed(node.put(data))

        first = [asyncio.create_task(ask(b"1")), asyncio.create_task(ask(b"2"))]
        await turn()
        other = asyncio.create_task(ask(b"3"))
        await turn()
        node.store.let_through()
        await asyncio.gather(*first)
        await turn()
        assert len(node.store.tried) == 1
        again = [asyncio.create_task(ask(b"4"))]
        await turn()
        assert len(node.store.tried) == 1
        again.append(asyncio.create_task(ask(b"5")))
        await turn()
        assert [rows_of(entry) for _, entry in node.store.tried][1:] == [[b"3", b"4", b"5"]]
        node.store.let_through()
        await asyncio.gather(other, *again)


async def test_what_nobody_waits_for_goes_with_the_next_that_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UNASKED, 3600.0)
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        node.put(b"note", "arm")
        await turn()
        assert node.store.tried == []
        asked = asyncio.create_task(node.log.committed(node.put(b"result")))
        await turn()
        assert [rows_of(entry) for _, entry in node.store.tried] == [[b"note", b"result"]]
        node.put(b"another note")
        node.store.let_through()
        await asked
        await turn()
        assert len(node.store.tried) == 1
        # Whoever looks at it is one that waits.
        looked = asyncio.create_task(node.log.drain())
        await turn()
        assert len(node.store.tried) == 2
        node.store.let_through()
        await looked


async def test_what_nobody_waits_for_goes_out_on_its_own_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UNASKED, 0.01)
    async with running(MemoryLogStore()) as node:
        node.put(b"note", "arm")
        while not node.heard:
            await turn()
        assert node.heard == [1, ["arm"]]


async def test_one_alone_is_never_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.sharding.commit_log._GATHERING_S_MAX", 10.0)
    monkeypatch.setattr(
        "cluster.sharding.commit_log.stopwatch_s", partial(next, itertools.count(0, 10))
    )
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        for count in range(1, 4):
            asked = asyncio.create_task(node.log.committed(node.put(b"x")))
            await turn()
            assert len(node.store.tried) == count
            node.store.let_through()
            await asked


async def test_who_was_answered_is_not_waited_for_longer_than_the_append_took() -> None:
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        first = asyncio.create_task(node.log.committed(node.put(b"1")))
        await turn()
        other = asyncio.create_task(node.log.committed(node.put(b"2")))
        await turn()
        node.store.let_through()
        node.store.let_through()
        await asyncio.gather(first, other)


async def test_a_full_entry_is_followed_by_another() -> None:
    async with running(MemoryLogStore(), entry_bytes_max=1_000) as node:
        sizes = [300, 300, 300, 5_000, 10]
        positions = [node.put(b"x" * size, str(size)) for size in sizes]
        assert positions == [1, 1, 2, 3, 4]
        await node.log.drain()
        assert node.heard == [1, ["300", "300"], 2, ["300"], 3, ["5000"], 4, ["10"]]
        found = await node.store.read(LOG, after=0, upto=9, bytes_max=1 << 20)
        assert [p for p, _ in found] == [1, 2, 3, 4]


async def test_a_waiter_that_gives_up_does_not_take_others_with_it() -> None:
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        position = node.put(b"a")
        waiters = [asyncio.create_task(node.log.committed(position)) for _ in range(3)]
        await turn()
        waiters[1].cancel()
        await turn()
        assert waiters[1].cancelled()
        node.store.let_through()
        await asyncio.gather(waiters[0], waiters[2])


async def test_an_append_without_an_answer_is_repeated_with_the_same_bytes() -> None:
    async with running(HeldLogStore(), attempt_ms=20) as node:
        assert isinstance(node.store, HeldLogStore)
        position = node.put(b"a", "push a")
        await turn()
        # The first attempt is written, but its answer is lost; the second one never gets there.
        node.store.let_through(outcome=StoreFault("lost"))
        while len(node.store.tried) < 3:
            await asyncio.sleep(0.001)
            node.put(b"later")
        assert node.log.last_committed == 0
        assert node.heard == []
        node.store.let_through()
        await node.log.committed(position)
        first, second, third = node.store.tried[:3]
        assert first == second == third
        assert rows_of(first[1]) == [b"a"]
        assert node.heard == [1, ["push a"]]


async def test_a_fenced_log_acknowledges_nothing_more() -> None:
    async with running(HeldLogStore()) as node:
        assert isinstance(node.store, HeldLogStore)
        node.put(b"a")
        node.store.let_through()
        await node.log.drain()
        in_flight = node.put(b"b", "push b")
        await turn()
        gathering = node.put(b"c", "push c")
        waiters = [asyncio.create_task(node.log.committed(p)) for p in (in_flight, gathering)]
        await turn()
        await node.store.seal(LOG)
        node.store.let_through()
        for waiter in waiters:
            with fails_fenced():
                await waiter
        assert len(node.lost) == 1
        assert node.heard == [1]
        with fails_fenced():
            node.put(b"d")
        with fails_fenced():
            await node.log.committed(gathering)
        await node.log.committed(1)


async def test_an_append_that_stays_away_gives_the_log_up() -> None:
    async with running(HeldLogStore(), attempt_ms=5, deadline_ms=20) as node:
        position = node.put(b"a", "push a")
        with fails_fenced():
            await node.log.committed(position)
        assert len(node.lost) == 1
        assert node.heard == []
        with fails_fenced():
            node.put(b"b")


async def test_those_who_wait_hear_when_the_log_is_closed() -> None:
    async with running(HeldLogStore()) as node:
        waiter = asyncio.create_task(node.log.committed(node.put(b"a")))
        await turn()
    with fails_fenced():
        await waiter
    assert node.lost == []
    with fails_fenced():
        node.put(b"b")


async def test_who_puts_while_the_log_is_about_to_close_hears_that_it_is_closed() -> None:
    store = HeldLogStore()
    node = Node(store)
    await store.create(LOG)
    run = asyncio.create_task(node.log.run())
    await turn()
    run.cancel()
    # Its loop, which slept, has not been told yet.
    waiter = asyncio.create_task(node.log.committed(node.put(b"a")))
    await asyncio.gather(run, return_exceptions=True)
    with fails_fenced():
        await waiter
