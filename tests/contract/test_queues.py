"""What every implementation of TaskQueues keeps, whatever comes in whatever order."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

import hypothesis.strategies as st
import msgspec
import pytest
import pytest_asyncio
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cluster.ids import ShardId, TaskId
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.queue_ports import (
    HAND_OUT_MS,
    Limits,
    QueueItem,
    QueueNews,
    QueueSize,
    QueueUpkeep,
    TaskQueues,
    queue_name,
)
from tests.support import redis

T0 = 1_800_000_000_000


class Queues(TaskQueues, QueueUpkeep, Protocol):
    """What every implementation is."""


class OpenQueues(Protocol):
    def __call__(self, shard_count: int = 0) -> AbstractAsyncContextManager[Queues]: ...


@asynccontextmanager
async def open_memory(shard_count: int = 0) -> AsyncIterator[Queues]:
    yield MemoryTaskQueues(shard_count=shard_count)


@asynccontextmanager
async def open_redis(kind: str, shard_count: int = 0) -> AsyncIterator[Queues]:
    async with redis.opened(kind, shard_count=shard_count) as stores:
        yield stores.queues


OPEN_QUEUES: dict[str, OpenQueues] = {
    "memory": open_memory,
    **{kind: partial(open_redis, kind) for kind in redis.KINDS},
}


@pytest.fixture(params=OPEN_QUEUES)
def open_queues(request: pytest.FixtureRequest) -> OpenQueues:
    return OPEN_QUEUES[request.param]


@pytest_asyncio.fixture
async def queues(open_queues: OpenQueues) -> AsyncIterator[Queues]:
    async with open_queues() as queues:
        yield queues


def item(name: str, *, delivery: int = 1, priority: int = 0, due_ms: int = T0) -> QueueItem:
    return QueueItem(TaskId(name), delivery, priority, due_ms, b'{"a":1', "plan")


async def pop(
    queues: Queues,
    queue: str = "mail",
    *,
    count: int = 100,
    now_ms: int = T0,
    limits: Limits | None = None,
) -> list[str]:
    popped = await queues.pop(queue, count=count, now_ms=now_ms, limits=limits)
    return [item.task_id for item in popped.items]


def ids(*names: str) -> list[TaskId]:
    return [TaskId(name) for name in names]


@pytest.mark.asyncio
async def test_a_task_comes_out_once_as_it_went_in(queues: Queues) -> None:
    pushed = QueueItem(TaskId("a"), 3, 7, T0 - 5, b'{"x":"\xc3\xa9"', "plan", incomplete=True)
    await queues.push({"mail": [pushed]}, now_ms=T0)
    assert (await queues.pop("mail", count=5, now_ms=T0)).items == [pushed]
    assert (await queues.pop("mail", count=5, now_ms=T0)).items == []


@pytest.mark.asyncio
async def test_priority_then_due_time_then_order_of_arrival(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b"), item("c", priority=9)]}, now_ms=T0)
    await queues.push({"mail": [item("d", due_ms=T0 - 7), item("e"), item("f")]}, now_ms=T0)
    await queues.push({"mail": [item("g", priority=9, due_ms=T0 - 1)]}, now_ms=T0)
    assert await pop(queues) == ["g", "c", "d", "a", "b", "e", "f"]


@pytest.mark.asyncio
async def test_one_call_serves_many_queues_and_a_domain_is_a_queue_of_its_own(
    queues: Queues,
) -> None:
    home, away = queue_name("mail", None), queue_name("mail", "away")
    await queues.push({home: [item("a")], away: [item("b")]}, now_ms=T0)
    assert await pop(queues, away) == ["b"]
    assert await pop(queues, home) == ["a"]
    assert await pop(queues, "other") == []


@pytest.mark.asyncio
async def test_a_delayed_task_comes_when_it_is_due(queues: Queues) -> None:
    await queues.push({"mail": [item("a", due_ms=T0 + 50), item("b")]}, now_ms=T0)
    first = await queues.pop("mail", count=5, now_ms=T0)
    assert [i.task_id for i in first.items] == ["b"]
    assert first.again_ms == T0 + 50
    assert await pop(queues, now_ms=T0 + 49) == []
    assert await pop(queues, now_ms=T0 + 50) == ["a"]


@pytest.mark.asyncio
async def test_the_higher_delivery_wins_wherever_the_task_is(queues: Queues) -> None:
    await queues.push({"mail": [item("a", delivery=2)]}, now_ms=T0)
    await queues.push({"mail": [item("a", delivery=2, due_ms=0), item("a", delivery=1)]}, now_ms=T0)
    assert (await queues.pop("mail", count=5, now_ms=T0)).items == [item("a", delivery=2)]
    await queues.push({"mail": [item("a", delivery=2)]}, now_ms=T0)
    assert await pop(queues) == [], "a repeated push of what a worker has must change nothing"
    await queues.push({"mail": [item("a", delivery=3, due_ms=T0 + 9)]}, now_ms=T0)
    await queues.push({"mail": [item("a", delivery=4, due_ms=T0 + 1)]}, now_ms=T0)
    again = (await queues.pop("mail", count=5, now_ms=T0 + 9)).items
    assert again == [item("a", delivery=4, due_ms=T0 + 1)]


@pytest.mark.asyncio
async def test_what_is_handed_back_comes_before_its_equals(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b"), item("c", priority=5)]}, now_ms=T0)
    await queues.push({"mail": [item("d"), item("e")]}, now_ms=T0)
    first = (await queues.pop("mail", count=3, now_ms=T0)).items
    await queues.hand_back("mail", first)
    assert await pop(queues) == ["c", "a", "b", "d", "e"]


@pytest.mark.asyncio
async def test_nobody_hands_back_what_is_not_his_any_more(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b")]}, now_ms=T0)
    mine = (await queues.pop("mail", count=5, now_ms=T0)).items
    await queues.push({"mail": [item("a", delivery=2)]}, now_ms=T0)
    assert await pop(queues) == ["a"]
    await queues.acknowledge({"mail": ids("b")})
    await queues.hand_back("mail", mine)
    assert await pop(queues) == []


@pytest.mark.asyncio
async def test_an_acknowledged_task_is_gone_from_everywhere(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b"), item("c", due_ms=T0 + 9)]}, now_ms=T0)
    assert await pop(queues, count=1) == ["a"]
    await queues.acknowledge({"mail": ids("a", "b", "c", "unknown"), "unknown": ids("x")})
    assert await pop(queues, now_ms=T0 + 99) == []
    assert await queues.sizes() == {}


@pytest.mark.asyncio
async def test_what_owners_tell_in_one_call(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b")]}, now_ms=T0)
    assert await pop(queues, count=1) == ["a"]
    news = QueueNews(
        pushed={"mail": [item("c")], "post": [item("d"), item("d", delivery=2)]},
        held={"mail": {TaskId("e"): 1}},
        acknowledged={"mail": ids("a")},
    )
    for _ in range(2):
        await queues.tell(news, now_ms=T0)
    assert await queues.sizes() == {"mail": QueueSize(2, 1, T0), "post": QueueSize(1, 0, T0)}
    assert (await queues.pop("post", count=5, now_ms=T0)).items == [item("d", delivery=2)]
    assert await pop(queues) == ["b", "c"]
    await queues.tell(QueueNews({}, {}, {}), now_ms=T0)


@pytest.mark.asyncio
async def test_much_is_told_in_one_call(queues: Queues) -> None:
    names = [f"task-{number}" for number in range(7_000)]
    pushed = {
        f"queue-{first}": [item(name) for name in names[first : first + 1_750]]
        for first in range(0, len(names), 1_750)
    }
    await queues.tell(QueueNews(pushed, {}, {}), now_ms=T0)
    sizes = await queues.sizes()
    assert sizes == {queue: QueueSize(1_750, 0, T0) for queue in pushed}
    gone = {queue: [one.task_id for one in items] for queue, items in pushed.items()}
    await queues.tell(QueueNews({}, {}, gone), now_ms=T0)
    assert await queues.sizes() == {}


@pytest.mark.asyncio
async def test_slots_are_counted_over_all_domains(queues: Queues) -> None:
    two = Limits(concurrent=2)
    await queues.push({"mail": [item("a"), item("b")], "x:mail": [item("c")]}, now_ms=T0)
    assert await pop(queues, "x:mail", limits=two) == ["c"]
    assert await pop(queues, limits=two) == ["a"]
    assert await pop(queues, limits=two) == []
    await queues.acknowledge({"x:mail": ids("c")})
    assert await pop(queues, limits=two) == ["b"]


@pytest.mark.asyncio
async def test_a_task_that_comes_back_with_a_delay_frees_its_slot(queues: Queues) -> None:
    one = Limits(concurrent=1)
    await queues.push({"mail": [item("a"), item("b")]}, now_ms=T0)
    assert await pop(queues, limits=one) == ["a"]
    await queues.push({"mail": [item("a", delivery=2, due_ms=T0 + 60)]}, now_ms=T0)
    assert await pop(queues, limits=one) == ["b"]
    assert await pop(queues, limits=one, now_ms=T0 + 60) == []


@pytest.mark.asyncio
async def test_tasks_held_since_before_a_restart_take_slots_even_beyond_the_limit(
    queues: Queues,
) -> None:
    two = Limits(concurrent=2)
    await queues.hold({"mail": {TaskId("a"): 1, TaskId("b"): 4}, "x:mail": {TaskId("c"): 1}})
    await queues.push({"mail": [item("d"), item("b", delivery=4)]}, now_ms=T0)
    await queues.acknowledge({"mail": ids("a")})
    assert await pop(queues, limits=two) == []
    await queues.acknowledge({"x:mail": ids("c")})
    assert await pop(queues, limits=two) == ["d"]


@pytest.mark.asyncio
async def test_tasks_handed_out_before_there_was_a_limit_take_slots(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b"), item("c")]}, now_ms=T0)
    assert await pop(queues, count=2) == ["a", "b"]
    assert await pop(queues, limits=Limits(concurrent=2)) == []
    assert await pop(queues, limits=Limits(concurrent=3)) == ["c"]


@pytest.mark.asyncio
async def test_a_task_that_waits_moves_to_its_worker_by_hold(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b")]}, now_ms=T0)
    await queues.hold({"mail": {TaskId("a"): 1}})
    assert await pop(queues) == ["b"]
    assert (await queues.sizes(["mail"]))["mail"] == QueueSize(0, 2, None)


@pytest.mark.asyncio
async def test_no_window_holds_more_than_the_rate(queues: Queues) -> None:
    limits = Limits(rate=2, rate_window_ms=100)
    await queues.push({"mail": [item(str(n)) for n in range(9)]}, now_ms=T0)
    assert await pop(queues, limits=limits, count=1) == ["0"]
    cut = await queues.pop("mail", count=9, now_ms=T0 + 60, limits=limits)
    assert [i.task_id for i in cut.items] == ["1"]
    assert (cut.again_ms, cut.cut_by) == (T0 + 100, "rate")
    assert await pop(queues, limits=limits, now_ms=T0 + 99) == []
    assert await pop(queues, limits=limits, now_ms=T0 + 100) == ["2"]
    await queues.acknowledge({"mail": ids("0", "1", "2")})
    assert await pop(queues, limits=limits, now_ms=T0 + 159) == []
    assert await pop(queues, limits=limits, now_ms=T0 + 160) == ["3"]
    lower = Limits(rate=1, rate_window_ms=100)
    popped = await queues.pop("mail", count=9, now_ms=T0 + 190, limits=lower)
    assert (popped.items, popped.again_ms) == ([], T0 + 260)


@pytest.mark.asyncio
async def test_a_clock_set_back_costs_a_rate_window_not_the_difference(queues: Queues) -> None:
    limits = Limits(rate=1, rate_window_ms=100)
    await queues.push({"mail": [item("a", due_ms=0), item("b", due_ms=0)]}, now_ms=T0)
    assert await pop(queues, limits=limits) == ["a"]
    popped = await queues.pop("mail", count=1, now_ms=T0 - 3_600_000, limits=limits)
    assert (popped.items, popped.again_ms) == ([], T0 - 3_600_000 + 100)


@pytest.mark.asyncio
async def test_no_domain_starves_the_others_of_slots(queues: Queues) -> None:
    one = Limits(concurrent=1)
    lanes = ["mail", "x:mail", "y:mail"]
    await queues.push({q: [item(f"{q}{n}") for n in range(9)] for q in lanes}, now_ms=T0)
    woken: list[str] = []
    queues.watch(lambda queue, at_ms: woken.append(queue))
    served: Counter[str] = Counter()
    held = ("mail", (await pop(queues, limits=one, count=9))[0])
    for queue in lanes:
        assert await pop(queues, queue, limits=one) == []
    for _ in range(9):
        woken.clear()
        await queues.acknowledge({held[0]: ids(held[1])})
        for queue in woken:
            for got in await pop(queues, queue, limits=one):
                held = (queue, got)
                served[queue] += 1
    assert set(served.values()) == {3}


@pytest.mark.asyncio
async def test_sizes_tell_depth_and_age(queues: Queues) -> None:
    await queues.push(
        {"mail": [item("a"), item("b", priority=3), item("c", due_ms=T0 - 5)]}, now_ms=T0
    )
    await queues.push({"mail": [item("d", due_ms=T0 + 5)]}, now_ms=T0)
    assert await pop(queues, count=1) == ["b"]
    assert await queues.sizes() == {"mail": QueueSize(3, 1, T0 - 5)}
    assert await queues.sizes(["nothing"]) == {"nothing": QueueSize(0, 0, None)}
    await pop(queues, count=2)
    assert await queues.sizes() == {"mail": QueueSize(1, 3, T0 + 5)}


@pytest.mark.asyncio
async def test_a_pop_that_was_given_up_has_taken_nothing(queues: Queues) -> None:
    await queues.push({"mail": [item("a"), item("b")]}, now_ms=T0)
    for turns in range(6):
        asked = asyncio.create_task(queues.pop("mail", count=5, now_ms=T0))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await queues.hand_back("mail", (await asked).items)
    got: list[str] = []
    for _ in range(500):
        # What was on its way when it was given up comes back a moment later.
        got += await pop(queues)
        if len(got) == 2:
            break
        await asyncio.sleep(0.01)
    assert sorted(got) == ["a", "b"]


@pytest.mark.asyncio
async def test_what_an_owner_refuses_is_forgotten_but_no_later_delivery(queues: Queues) -> None:
    one = Limits(concurrent=3)
    await queues.push({"mail": [item("a"), item("b"), item("c"), item("d")]}, now_ms=T0)
    mine = (await queues.pop("mail", count=9, now_ms=T0, limits=one)).items
    assert [taken.task_id for taken in mine] == ["a", "b", "c"]
    await queues.push({"mail": [item("b", delivery=2)]}, now_ms=T0)
    await queues.hold({"mail": {TaskId("c"): 2}})
    await queues.refuse("mail", mine)
    await queues.refuse("nothing", mine)
    assert await queues.unknown({"mail": ids("a", "b", "c", "d")}) == ["a"]
    assert sorted(await pop(queues, limits=one)) == ["b", "d"]


@pytest.mark.asyncio
async def test_of_hand_outs_nobody_spoke_of_the_owner_is_asked_in_time(queues: Queues) -> None:
    names = ["acknowledged", "back", "held", "pushed", "silent", "waits"]
    await queues.push({"mail": [item(name) for name in names[:-1]]}, now_ms=T0)
    await queues.push({"bill": [item("silent")]}, now_ms=T0)
    mine = (await queues.pop("mail", count=9, now_ms=T0)).items
    await queues.pop("bill", count=9, now_ms=T0 + 5)
    await queues.push({"mail": [item("waits")]}, now_ms=T0)
    await queues.acknowledge({"mail": ids("acknowledged")})
    await queues.hand_back("mail", [one for one in mine if one.task_id == "back"])
    await queues.hold({"mail": {TaskId("held"): 1}})
    await queues.push({"mail": [item("pushed", delivery=2)]}, now_ms=T0)
    assert await queues.expired(now_ms=T0 + HAND_OUT_MS - 1, count=9) == {}
    assert await queues.expired(now_ms=T0 + HAND_OUT_MS, count=9) == {"mail": {"silent": 1}}
    later_ms = T0 + HAND_OUT_MS + 5
    assert await queues.expired(now_ms=later_ms, count=9) == {"bill": {"silent": 1}}
    assert await queues.expired(now_ms=later_ms, count=9) == {}
    await queues.acknowledge({"mail": ids("silent")})
    again_ms = later_ms + HAND_OUT_MS
    assert await queues.expired(now_ms=again_ms, count=9) == {"bill": {"silent": 1}}


@pytest.mark.asyncio
async def test_an_owner_who_says_that_nobody_has_it_sees_it_go_out_again(queues: Queues) -> None:
    await queues.push({"mail": [item("a")]}, now_ms=T0)
    await pop(queues)
    await queues.expired(now_ms=T0 + HAND_OUT_MS, count=9)
    await queues.hand_back("mail", [item("a")])
    assert await pop(queues, now_ms=T0 + HAND_OUT_MS) == ["a"]


@pytest.mark.asyncio
async def test_many_hand_outs_are_asked_for_in_portions(queues: Queues) -> None:
    names = {f"t{n}" for n in range(25)}
    await queues.push({"mail": [item(name) for name in names]}, now_ms=T0)
    await pop(queues)
    asked: list[str] = []
    for _ in range(5):
        found = await queues.expired(now_ms=T0 + HAND_OUT_MS, count=5)
        asked += found["mail"]
    assert len(asked) == 25
    assert set(asked) == names


@pytest.mark.asyncio
async def test_limits_hand_out_nothing_until_all_shards_are_counted(
    open_queues: OpenQueues,
) -> None:
    one, shards = Limits(concurrent=1), [ShardId(n) for n in range(4)]
    async with open_queues(4) as queues:
        await queues.push({"mail": [item("a")], "bill": [item("b")]}, now_ms=T0)
        generation = await queues.generation()
        assert await queues.generation() == generation
        assert await pop(queues, "bill") == ["b"], "without a limit nobody waits"
        popped = await queues.pop("mail", count=5, now_ms=T0, limits=one)
        assert (popped.items, popped.cut_by) == ([], "concurrent")
        assert popped.again_ms is not None
        assert T0 < popped.again_ms <= T0 + 1000
        await queues.counted(generation, shards[:3])
        await queues.counted(generation, shards[:3])
        assert await pop(queues, limits=one) == []
        await queues.counted(generation, shards[3:])
        assert await pop(queues, limits=one) == ["a"]


@pytest.mark.asyncio
async def test_which_shards_were_counted_is_known_until_the_generation_is_over(
    open_queues: OpenQueues,
) -> None:
    shards = [ShardId(n) for n in range(4)]
    async with open_queues(4) as queues:
        generation = await queues.generation()
        assert await queues.uncounted(generation, shards) == shards
        await queues.counted(generation, shards[1:3])
        assert await queues.uncounted(generation, shards) == [shards[0], shards[3]]
        assert await queues.uncounted(generation, shards[1:3]) == []
        assert await queues.uncounted(generation, []) == []
        another = ",".join("another" for _ in generation.split(","))
        assert await queues.uncounted(another, shards) == shards


@pytest.mark.asyncio
async def test_everyone_who_watches_is_woken(queues: Queues) -> None:
    first: list[str] = []
    second: list[str] = []
    queues.watch(lambda queue, at_ms: first.append(queue))
    queues.watch(lambda queue, at_ms: second.append(queue))
    assert await pop(queues) == []
    await queues.push({"mail": [item("a")]}, now_ms=T0)
    assert set(first) == set(second) == {"mail"}


TYPES = {"mail": ["mail", "x:mail"], "bill": ["bill"]}
QUEUES = [queue for lanes in TYPES.values() for queue in lanes]
TYPE_OF = {queue: task_type for task_type, lanes in TYPES.items() for queue in lanes}
NAMES = [TaskId(f"t{n}") for n in range(12)]
LIMITS = st.builds(
    Limits,
    concurrent=st.none() | st.integers(1, 4),
    rate=st.integers(0, 4),
    rate_window_ms=st.sampled_from([1, 10, 50]),
)


class Model:
    """One queue as a plain list would be."""

    def __init__(self) -> None:
        self.waiting: dict[TaskId, QueueItem] = {}
        self.held: dict[TaskId, int] = {}
        self.asleep: int | None = None
        """Nobody looks before this time: what the last pop and the wakes since have said."""

    def visible(self, now_ms: int) -> list[QueueItem]:
        due = [item for item in self.waiting.values() if item.due_ms <= now_ms]
        return sorted(due, key=rank)


def rank(item: QueueItem) -> tuple[int, int]:
    return (-item.priority, item.due_ms)


NEVER = 1 << 62


class QueueMachine(RuleBasedStateMachine):
    """Random calls against the implementation and against lists."""

    open_queues: OpenQueues

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.context = self.open_queues()
        self.queues = self.runner.run(self.enter())
        self.now_ms = T0
        self.models = {queue: Model() for queue in QUEUES}
        self.stamps: dict[str, list[int]] = {task_type: [] for task_type in TYPES}
        self.limits: dict[str, Limits | None] = {}
        self.in_hand: list[tuple[str, QueueItem]] = []

    async def enter(self) -> Queues:
        return await self.context.__aenter__()

    def teardown(self) -> None:
        self.runner.run(self.leave())
        self.runner.close()

    async def leave(self) -> None:
        await self.context.__aexit__(None, None, None)

    @initialize(mail=st.none() | LIMITS, bill=st.none() | LIMITS)
    def start(self, mail: Limits | None, bill: Limits | None) -> None:
        self.limits = {"mail": mail, "bill": bill}
        self.queues.watch(self.on_wake)

    def on_wake(self, queue: str, at_ms: int) -> None:
        model = self.models[queue]
        if model.asleep is None or at_ms < model.asleep:
            model.asleep = at_ms

    def room(self, queue: str) -> int:
        task_type = TYPE_OF[queue]
        limits = self.limits[task_type]
        room = 99
        if limits is not None and limits.concurrent is not None:
            held = sum(len(self.models[lane].held) for lane in TYPES[task_type])
            room = limits.concurrent - held
        if limits is not None and limits.rate:
            since = self.now_ms - limits.rate_window_ms
            recent = [stamp for stamp in self.stamps[task_type] if stamp > since]
            room = min(room, limits.rate - len(recent))
        return max(room, 0)

    @rule(
        queue=st.sampled_from(QUEUES),
        tasks=st.lists(
            st.tuples(
                st.sampled_from(NAMES),
                st.integers(0, 4),
                st.integers(0, 2),
                st.sampled_from([-20, -1, 0, 0, 0, 1, 7, 30]),
            ),
            max_size=6,
        ),
    )
    def push(self, queue: str, tasks: list[tuple[TaskId, int, int, int]]) -> None:
        model = self.models[queue]
        items = []
        for name, delivery, priority, delay_ms in tasks:
            new = QueueItem(name, delivery, priority, self.now_ms + delay_ms, b"{", "f")
            items.append(new)
            known = model.waiting[name].delivery if name in model.waiting else model.held.get(name)
            if known is None or delivery > known:
                model.held.pop(name, None)
                model.waiting[name] = new
        self.runner.run(self.queues.push({queue: items}, now_ms=self.now_ms))

    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 8))
    def pop(self, queue: str, count: int) -> None:
        model, task_type = self.models[queue], TYPE_OF[queue]
        expected = model.visible(self.now_ms)[: min(count, self.room(queue))]
        popped = self.runner.run(
            self.queues.pop(queue, count=count, now_ms=self.now_ms, limits=self.limits[task_type])
        )
        assert [rank(item) for item in popped.items] == [rank(item) for item in expected]
        for taken in popped.items:
            assert model.waiting.pop(taken.task_id) == taken, "handed out twice, or stale"
            model.held[taken.task_id] = taken.delivery
            self.stamps[task_type].append(self.now_ms)
            self.in_hand.append((queue, taken))
        more = bool(model.visible(self.now_ms)) and self.room(queue) > 0
        assert more == (popped.again_ms is not None and popped.again_ms <= self.now_ms)
        model.asleep = NEVER if popped.again_ms is None else popped.again_ms

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        """Right after the pop or much later: it may be somebody else's by then."""
        queue, taken = data.draw(st.sampled_from(self.in_hand))
        self.in_hand.remove((queue, taken))
        model = self.models[queue]
        if model.held.get(taken.task_id) == taken.delivery:
            del model.held[taken.task_id]
            model.waiting[taken.task_id] = taken
        self.runner.run(self.queues.hand_back(queue, [taken]))

    @rule(queue=st.sampled_from(QUEUES), names=st.lists(st.sampled_from(NAMES), max_size=4))
    def acknowledge(self, queue: str, names: list[TaskId]) -> None:
        for name in names:
            self.models[queue].waiting.pop(name, None)
            self.models[queue].held.pop(name, None)
        self.runner.run(self.queues.acknowledge({queue: names}))

    @rule(
        queue=st.sampled_from(QUEUES),
        deliveries=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4), max_size=2),
    )
    def hold(self, queue: str, deliveries: dict[TaskId, int]) -> None:
        for name in deliveries:
            self.models[queue].waiting.pop(name, None)
        self.models[queue].held.update(deliveries)
        self.runner.run(self.queues.hold({queue: deliveries}))

    @rule(by_ms=st.sampled_from([1, 1, 3, 10, 60]))
    def time_passes(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @invariant()
    def whoever_sleeps_is_woken(self) -> None:
        """A poll that follows the hints and the wakes misses nothing."""
        for queue, model in self.models.items():
            if model.asleep is not None and model.visible(self.now_ms) and self.room(queue):
                assert model.asleep <= self.now_ms, f"nobody would look at {queue}"

    @invariant()
    def nothing_is_lost(self) -> None:
        sizes = self.runner.run(self.queues.sizes(QUEUES))
        for queue, model in self.models.items():
            oldest = min((item.due_ms for item in model.waiting.values()), default=None)
            assert sizes[queue] == QueueSize(len(model.waiting), len(model.held), oldest)


def test_random_calls_agree_with_a_list(open_queues: OpenQueues) -> None:
    # Every call to a server takes its time.
    examples = 150 if open_queues is open_memory else 30
    machine = type("Machine", (QueueMachine,), {"open_queues": staticmethod(open_queues)})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None)
    )


@pytest.mark.asyncio
async def test_ten_thousand_tasks_through_many_hands(queues: Queues) -> None:
    """Priorities, delays, replaced and cancelled tasks, hand-backs: in order, once, all."""
    tasks = [item(f"t{n}", priority=n * 7 % 3, due_ms=T0 + n * 7919 % 1000) for n in range(10_000)]
    for start in range(0, 10_000, 100):
        await queues.push({"mail": tasks[start : start + 100]}, now_ms=T0 + start // 10)
    newer = [msgspec.structs.replace(task, delivery=2, due_ms=T0) for task in tasks[::5]]
    await queues.push({"mail": newer}, now_ms=T0)
    cancelled = {task.task_id for task in tasks[3::5]}
    await queues.acknowledge({"mail": sorted(cancelled)})
    out: list[QueueItem] = []
    while popped := (await queues.pop("mail", count=37, now_ms=T0 + 1000)).items:
        await queues.hand_back("mail", popped[30:])
        out += popped[:30]
    assert [rank(task) for task in out] == sorted(rank(task) for task in out)
    assert len(out) == 8000
    assert {task.task_id for task in out} == {task.task_id for task in tasks} - cancelled
    assert sum(task.delivery for task in out) == 8000 + 2000
