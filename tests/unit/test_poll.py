"""Long polls on virtual time, over the in-process queues and over queues that take their time."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count as count_from

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cluster.errors import InvalidRequest, Unavailable
from cluster.ids import TaskId
from cluster.metrics import Metrics
from cluster.node import poll as poll_module
from cluster.node.poll import HandOver, PollData, PollDesk, Polled
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.queue_ports import Limits, Popped, QueueItem, queue_name
from tests.support.virtual_time import START_MS, VirtualClock, run_virtual


class Owners:
    """Shards of whom only the tasks in workers' hands are of interest."""

    def __init__(self) -> None:
        self.held: dict[TaskId, str | None] = {}
        self.ended: set[TaskId] = set()
        self.polls: Counter[TaskId] = Counter()
        self.broken: set[TaskId] = set()

    def hand_over(
        self, task_id: TaskId, *, delivery: int, worker_id: str | None, at_ms: int
    ) -> HandOver | None:
        assert task_id not in self.held, "two workers have one task"
        if task_id in self.broken:
            raise RuntimeError(task_id)
        if task_id in self.ended:
            return None
        self.held[task_id] = worker_id
        self.polls[task_id] += 1
        return HandOver(at_ms - 5, at_ms, self.polls[task_id], 1234)

    def take_back(self, task_id: TaskId, *, delivery: int) -> None:
        del self.held[task_id]


class SlowQueues(MemoryTaskQueues):
    """Answers as late as a store over the network, and counts the looks."""

    def __init__(self, delay_ms: int) -> None:
        super().__init__()
        self.delay_ms = delay_ms
        self.looks = 0

    async def _travel(self) -> None:
        if self.delay_ms:
            await asyncio.sleep(self.delay_ms / 1000)

    async def pop(
        self, queue: str, *, count: int, now_ms: int, limits: Limits | None = None
    ) -> Popped:
        self.looks += 1
        await self._travel()
        if self.is_away:
            raise Unavailable("the queues are away")
        popped = await super().pop(queue, count=count, now_ms=now_ms, limits=limits)
        try:
            await self._travel()
        except asyncio.CancelledError:
            await super().hand_back(queue, popped.items)
            raise
        return popped

    async def acknowledge(self, batch: Mapping[str, Sequence[TaskId]]) -> None:
        await self._travel()
        await super().acknowledge(batch)

    is_away = False

    async def refuse(self, queue: str, items: Sequence[QueueItem]) -> None:
        await self._travel()
        await super().refuse(queue, items)

    async def hand_back(self, queue: str, items: Sequence[QueueItem]) -> None:
        await self._travel()
        if self.is_away:
            raise Unavailable("the queues are away")
        await super().hand_back(queue, items)


class Desk:
    """A desk with all it needs; must be made inside the loop it runs on."""

    def __init__(self, *, delay_ms: int = 0) -> None:
        self.clock = VirtualClock()
        self.queues = SlowQueues(delay_ms)
        self.owners = Owners()
        self.metrics = Metrics()
        self.limits: dict[str, Limits] = {}
        self.desk = PollDesk(
            queues=self.queues,
            owner=self.owners,
            clock=self.clock,
            metrics=self.metrics,
            limits_of=self.limits.get,
            fragment_of=lambda key: (
                b'"workflowTask":{"name":"%b"},"taskDefinition":null' % key.encode()
            ),
            complete=lambda item: item.payload.replace(b"${secret}", b"hush"),
        )

    async def poll(
        self,
        task_type: str = "mail",
        *,
        domain: str | None = None,
        worker_id: str | None = "w",
        count: int = 1,
        timeout_ms: int = 5000,
        gone: Sequence[object] = (),
    ) -> list[str]:
        polled = await self.desk.poll(
            task_type=task_type,
            domain=domain,
            worker_id=worker_id,
            count=count,
            timeout_ms=timeout_ms,
            connected=lambda: not gone,
        )
        return [item.task_id for item in polled.items]

    def park(
        self,
        task_type: str = "mail",
        *,
        count: int = 1,
        timeout_ms: int = 5000,
        gone: Sequence[object] = (),
    ) -> "asyncio.Task[list[str]]":
        poll = self.poll(task_type, count=count, timeout_ms=timeout_ms, gone=gone)
        return asyncio.ensure_future(poll)

    async def push(self, *names: str, queue: str = "mail", delay_ms: int = 0) -> None:
        now_ms = self.clock.now_ms()
        due_ms = now_ms + delay_ms
        items = [QueueItem(TaskId(name), 1, 0, due_ms, b'{"n":1', "plan") for name in names]
        await self.queues.push({queue: items}, now_ms=now_ms)

    async def end(self, *names: str, queue: str = "mail") -> None:
        task_ids = [TaskId(name) for name in names]
        for task_id in task_ids:
            self.owners.held.pop(task_id, None)
        await self.queues.acknowledge({queue: task_ids})

    def now(self) -> int:
        return self.clock.monotonic_ms()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_answer_is_what_conductor_sends() -> None:
    async def main() -> None:
        desk = Desk()
        task = QueueItem(TaskId("a"), 1, 0, 0, b'{"taskType":"mail","inputData":{"x":"}"}', "plan")
        await desk.queues.push({"mail": [task]}, now_ms=START_MS)
        polled = await desk.desk.poll(
            task_type="mail", domain=None, worker_id='w"1é', count=1, timeout_ms=0
        )
        assert [json.loads(body) for body in polled.bodies] == [
            {
                "taskType": "mail",
                "inputData": {"x": "}"},
                "status": "IN_PROGRESS",
                "startTime": START_MS - 5,
                "updateTime": START_MS,
                "pollCount": 1,
                "workerId": 'w"1é',
                "callbackAfterSeconds": 0,
                "queueWaitTime": 1234,
                "workflowTask": {"name": "plan"},
                "taskDefinition": None,
            }
        ]

    run_virtual(main())


def test_a_worker_without_a_name_gets_no_worker_id_and_secrets_come_in_at_hand_over() -> None:
    async def main() -> None:
        desk = Desk()
        payload = b'{"inputData":{"key":"${secret}"}'
        tasks = [
            QueueItem(TaskId("a"), 1, 0, 0, payload, "plan", incomplete=True),
            QueueItem(TaskId("b"), 1, 0, 0, payload, "plan"),
        ]
        await desk.queues.push({"mail": tasks}, now_ms=START_MS)
        polled = await desk.desk.poll(
            task_type="mail", domain=None, worker_id=None, count=2, timeout_ms=0
        )
        first, second = (json.loads(body) for body in polled.bodies)
        assert "workerId" not in first
        assert first["inputData"] == {"key": "hush"}
        assert second["inputData"] == {"key": "${secret}"}, "text that only looks like a secret"

    run_virtual(main())


def test_a_batch_returns_at_once_with_what_is_there() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push("a", "b", "c")
        assert await desk.poll(count=2) == ["a", "b"]
        assert await desk.poll(count=9) == ["c"]
        assert await desk.poll(count=0) == []
        assert await desk.poll(count=-1) == []
        assert desk.now() == 0

    run_virtual(main())


@pytest.mark.parametrize("timeout_ms", [1, 100, 1000, 5000])
def test_an_empty_poll_is_answered_when_its_time_is_up(timeout_ms: int) -> None:
    async def main() -> None:
        desk = Desk()
        assert await desk.poll(timeout_ms=timeout_ms) == []
        assert timeout_ms <= desk.now() <= timeout_ms * 1.04
        assert await desk.poll(timeout_ms=0) == []
        assert await desk.poll(timeout_ms=-1) == []
        assert desk.now() <= timeout_ms * 1.04

    run_virtual(main())


def test_parked_polls_are_served_in_order_and_no_more_are_woken_than_needed() -> None:
    async def main() -> None:
        desk = Desk()
        polls = [desk.park(count=2) for _ in range(100)]
        await settle()
        looks = desk.queues.looks
        await desk.push("a", "b", "c")
        await settle()
        assert [poll.result() for poll in polls[:2]] == [["a", "b"], ["c"]]
        assert not any(poll.done() for poll in polls[2:])
        assert desk.queues.looks == looks + 2
        assert desk.now() == 0
        await desk.push("d")
        assert await polls[2] == ["d"]
        desk.desk.close()
        await asyncio.gather(*polls)

    run_virtual(main())


def test_a_poll_that_comes_later_does_not_jump_the_line() -> None:
    async def main() -> None:
        desk = Desk()
        first = desk.park()
        await settle()
        await desk.push("a")
        assert await desk.poll(timeout_ms=0) == []
        assert await first == ["a"]

    run_virtual(main())


def test_a_poll_woken_in_vain_keeps_its_place() -> None:
    async def main() -> None:
        desk = Desk()
        before, first, second = desk.park(), desk.park(), desk.park()
        await settle()
        await desk.push("x")
        assert await before == ["x"]
        desk.owners.ended.add(TaskId("ended"))
        await desk.push("ended")
        await settle()
        await desk.push("a")
        assert await first == ["a"]
        await desk.push("b")
        assert await second == ["b"]

    run_virtual(main())


def test_each_poll_has_its_own_deadline() -> None:
    async def main() -> None:
        desk = Desk()
        ends: dict[int, int] = {}

        async def wait(timeout_ms: int) -> None:
            assert await desk.poll(timeout_ms=timeout_ms) == []
            ends[timeout_ms] = desk.now()

        await asyncio.gather(*(wait(timeout_ms) for timeout_ms in (5000, 100, 1000, 200, 10)))
        for timeout_ms, end in ends.items():
            assert timeout_ms <= end <= timeout_ms * 1.04

    run_virtual(main())


def test_a_missed_wake_costs_no_more_than_one_poll() -> None:
    async def main() -> None:
        desk = Desk()
        desk.queues.watch(lambda queue, at_ms: None)
        polls = [desk.park(timeout_ms=100), desk.park(timeout_ms=100)]
        await settle()
        await desk.push("a")
        assert sorted(await asyncio.gather(*polls)) == [[], ["a"]]

    run_virtual(main())


def test_time_runs_out_while_a_poll_looks_in_vain() -> None:
    async def main() -> None:
        desk = Desk(delay_ms=5)
        poll = desk.park(timeout_ms=100)
        await asyncio.sleep(0.098)
        desk.owners.ended.add(TaskId("ended"))
        await desk.push("ended")
        assert await poll == []
        assert desk.now() < 150

    run_virtual(main())


def test_domains_do_not_see_each_other() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push("a", queue=queue_name("mail", "x"))
        assert await desk.poll(timeout_ms=0) == []
        assert await desk.poll(timeout_ms=0, domain="y") == []
        assert await desk.poll(timeout_ms=0, domain="x") == ["a"]

    run_virtual(main())


def test_a_delayed_task_wakes_a_parked_poll_on_time() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push("late", delay_ms=3000)
        poll = desk.park()
        await settle()
        await desk.push("early", delay_ms=700)
        assert await poll == ["early"]
        assert desk.now() == 700
        assert await desk.poll() == ["late"]
        assert desk.now() == 3000

    run_virtual(main())


def test_a_freed_slot_wakes_a_parked_poll_at_once() -> None:
    async def main() -> None:
        desk = Desk()
        desk.limits["mail"] = Limits(concurrent=1)
        await desk.push("a")
        await desk.push("b", queue="x:mail")
        assert await desk.poll(count=9) == ["a"]
        waiting = asyncio.ensure_future(desk.poll(domain="x", count=9))
        await asyncio.sleep(1)
        assert not waiting.done()
        await desk.end("a")
        assert await waiting == ["b"]
        assert desk.now() == 1000

    run_virtual(main())


def test_an_opening_rate_window_wakes_a_parked_poll() -> None:
    async def main() -> None:
        desk = Desk()
        desk.limits["mail"] = Limits(rate=1, rate_window_ms=2000)
        await desk.push("a", "b", "c")
        assert await desk.poll(count=9) == ["a"]
        assert tuple(await asyncio.gather(desk.poll(), desk.poll())) == (["b"], ["c"])
        assert desk.now() == 4000
        assert desk.metrics.task_rate_limited.of("mail").value > 0

    run_virtual(main())


def test_what_its_owner_does_not_want_handed_out_is_dropped() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push(*(str(n) for n in range(300)))
        desk.owners.ended = {TaskId(str(n)) for n in range(299)}
        assert await desk.poll(count=2, timeout_ms=0) == ["299"]
        desk.owners.ended.add(TaskId("x"))
        poll = desk.park()
        await settle()
        await desk.push("x")
        await settle()
        assert not poll.done()
        await desk.push("y")
        assert await poll == ["y"]
        await desk.end("299", "y")
        assert await desk.queues.sizes() == {}

    run_virtual(main())


def test_an_answer_that_could_not_be_written_is_undone() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push("a", "b", "c")
        polled = await desk.desk.poll(
            task_type="mail", domain=None, worker_id="w", count=2, timeout_ms=0
        )
        next_worker = desk.park(count=9)
        assert await next_worker == ["c"]
        next_worker = desk.park(count=9)
        await settle()
        await desk.desk.hand_back(polled)
        await desk.desk.hand_back(polled)
        assert await next_worker == ["a", "b"]
        assert desk.owners.polls[TaskId("a")] == 2
        waits = desk.metrics.task_queue_wait.of("mail")
        assert sum(waits.counts) == 3, "only the first hand-over ends the wait of a task"

    run_virtual(main())


def test_a_client_that_has_gone_gets_nothing() -> None:
    async def main() -> None:
        desk = Desk()
        gone: list[object] = []
        first, second = desk.park(gone=gone), desk.park()
        await settle()
        gone.append(True)
        await desk.push("a")
        assert await second == ["a"]
        assert await first == []
        assert desk.now() == 0

    run_virtual(main())


@pytest.mark.parametrize("steps", range(6))
def test_a_cancelled_poll_passes_its_turn_on(steps: int) -> None:
    async def main() -> None:
        desk = Desk(delay_ms=1)
        first, second = desk.park(), desk.park()
        await asyncio.sleep(0.1)
        await desk.push("a")
        for _ in range(steps):
            await asyncio.sleep(0.00015 if steps > 2 else 0)
        assert first.cancel(), "this is about a poll that is under way"
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] == ["a"]
        assert desk.now() < 110

    run_virtual(main())


@pytest.mark.parametrize("after_ms", range(12))
def test_a_poll_cancelled_at_any_moment_keeps_nothing(after_ms: int) -> None:
    """With tasks in hand, while it drops one that has ended, or before it has any."""

    async def main() -> None:
        desk = Desk(delay_ms=3)
        desk.owners.ended.add(TaskId("ended"))
        await desk.push("a", "ended", "b")
        poll = desk.park(count=3)
        await asyncio.sleep(after_ms / 1000)
        assert poll.cancel()
        await asyncio.wait([poll])
        assert desk.owners.held == {}
        assert await desk.poll(count=9) == ["a", "b"]

    run_virtual(main())


def test_an_owner_that_raises_loses_no_task() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push("a", "b", "c")
        desk.owners.broken.add(TaskId("b"))
        with pytest.raises(RuntimeError):
            await desk.poll(count=9)
        assert desk.owners.held == {}
        desk.owners.broken.clear()
        assert await desk.poll(count=9) == ["a", "b", "c"]

    run_virtual(main())


def test_closing_answers_all_polls_with_nothing() -> None:
    async def main() -> None:
        desk = Desk()
        polls = [desk.park(f"type{n % 3}") for n in range(30)]
        await settle()
        desk.desk.close()
        assert await asyncio.gather(*polls) == [[]] * 30
        await desk.push("a")
        assert await desk.poll() == []
        assert desk.now() == 0
        assert desk.metrics.polls_parked.of().value == 0

    run_virtual(main())


def test_what_is_out_of_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk()
        with pytest.raises(InvalidRequest, match="cannot be more than 5 seconds"):
            await desk.poll(timeout_ms=5001)
        with pytest.raises(InvalidRequest):
            await desk.poll(worker_id="\ud800")
        monkeypatch.setattr(poll_module, "PARKED_MAX", 2)
        polls = [desk.park("other"), desk.park("mail"), desk.park("mail")]
        await settle()
        assert [poll.done() for poll in polls] == [False, False, True]
        # A worker polls again; an error would make it pause for minutes.
        assert polls[2].result() == []
        assert desk.metrics.requests_refused.of("poll", "under_way").value == 1
        await desk.push("a")
        assert await polls[1] == ["a"]
        desk.desk.close()
        await polls[0]

    run_virtual(main())


def test_every_poll_is_recorded_and_records_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk()
        await desk.poll(timeout_ms=0)
        await desk.poll(timeout_ms=0, worker_id="w2", domain="x")
        await asyncio.sleep(0.02)
        await desk.poll(timeout_ms=0, worker_id=None)
        plain = PollData("mail", None, None, START_MS + 20)
        domain = PollData("mail", "x", "w2", START_MS)
        assert set(desk.desk.poll_data("mail")) == {plain, domain}
        assert set(desk.desk.drain_poll_data()) == {plain, domain}
        assert desk.desk.drain_poll_data() == []
        assert desk.desk.last_poll("mail", "x") == domain
        monkeypatch.setattr(poll_module, "POLLED_QUEUES_MAX", 2)
        await desk.poll("bill", timeout_ms=0)
        assert desk.desk.last_poll("mail", "x") is None, "the oldest goes"
        assert [data.task_type for data in desk.desk.drain_poll_data()] == ["bill"]
        assert desk.metrics.poll_data_dropped.of().value == 1
        assert desk.metrics.task_poll.of("mail").value == 3

    run_virtual(main())


STEP = st.one_of(
    st.tuples(
        st.just("poll"),
        st.sampled_from(["mail", "bill"]),
        st.sampled_from([None, "x"]),
        st.integers(1, 3),
        st.sampled_from([0, 3, 20, 100]),
        # When the client goes away: by a cancelled handler, or so that only a write would fail.
        st.none() | st.integers(0, 8),
    ),
    st.tuples(
        st.just("push"),
        st.sampled_from(["mail", "bill"]),
        st.sampled_from([None, "x"]),
        st.integers(1, 4),
        st.sampled_from([0, 0, 5, 40]),
    ),
    st.tuples(st.just("end"), st.integers(1, 3)),
    st.tuples(st.just("unwritten")),
    st.tuples(st.just("wait"), st.sampled_from([0, 1, 2, 7])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=40), st.sampled_from([0, 1, 3]), st.sampled_from([None, 1, 2]))
def test_no_schedule_of_polls_pushes_and_disconnects_loses_a_task(
    steps: list[tuple[object, ...]], delay_ms: int, concurrent: int | None
) -> None:
    """Owners.hand_over fails the test when a task has two holders."""

    async def main() -> None:
        desk = Desk(delay_ms=delay_ms)
        if concurrent is not None:
            desk.limits["mail"] = Limits(concurrent=concurrent)
        pushed: dict[str, str] = {}
        given: dict[str, Polled] = {}
        polls: list[asyncio.Task[None]] = []
        numbers = count_from()

        async def worker(task_type: str, domain: str | None, count: int, timeout_ms: int) -> None:
            polled = await desk.desk.poll(
                task_type=task_type,
                domain=domain,
                worker_id="w",
                count=count,
                timeout_ms=timeout_ms,
            )
            for item in polled.items:
                given[item.task_id] = polled
            if concurrent is not None:
                held = [name for name in desk.owners.held if pushed[name].endswith("mail")]
                assert len(held) <= concurrent

        for step in steps:
            match step:
                case ("poll", str(task_type), domain, int(count), int(timeout_ms), gone_ms):
                    assert domain is None or isinstance(domain, str)
                    poll = asyncio.ensure_future(worker(task_type, domain, count, timeout_ms))
                    polls.append(poll)
                    if isinstance(gone_ms, int):
                        asyncio.get_running_loop().call_later(gone_ms / 1000, poll.cancel)
                case ("push", str(task_type), domain, int(count), int(due_ms)):
                    assert domain is None or isinstance(domain, str)
                    queue = queue_name(task_type, domain)
                    names = [f"t{next(numbers)}" for _ in range(count)]
                    pushed.update(dict.fromkeys(names, queue))
                    await desk.push(*names, queue=queue, delay_ms=due_ms)
                case ("end", int(count)):
                    for name in list(given)[:count]:
                        del given[name]
                        await desk.end(name, queue=pushed.pop(name))
                case ("unwritten",):
                    if given:
                        polled = next(iter(given.values()))
                        for item in polled.items:
                            given.pop(item.task_id, None)
                        polled.items = [i for i in polled.items if i.task_id in pushed]
                        await desk.desk.hand_back(polled)
                case ("wait", int(wait_ms)):
                    await asyncio.sleep(wait_ms / 1000)
                case _:
                    raise AssertionError(step)
        for result in await asyncio.gather(*polls, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        # Everybody is answered. What no worker has must still come out, each task once.
        desk.limits.clear()
        await asyncio.sleep(0.1)
        assert set(desk.owners.held) == set(given)
        for queue in sorted(set(pushed.values())):
            domain, _, task_type = queue.rpartition(":")
            left = await desk.poll(task_type, domain=domain or None, count=1000, timeout_ms=0)
            waiting = {name for name in pushed if pushed[name] == queue and name not in given}
            assert set(left) == waiting
        assert desk.metrics.polls_parked.of().value == 0
        assert desk.desk._lines == {}, "a line stays behind when its polls have gone"

    run_virtual(main())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0, 0, 13])), max_size=12),
    st.sampled_from([0, 1, 4]),
)
def test_a_task_never_waits_while_a_poll_is_parked(
    workers: list[tuple[int, int]], pushes: list[tuple[int, int]], delay_ms: int
) -> None:
    """Each task is out within a few round trips to the queues after it falls due, since 12
    workers poll again and again; only wakes can bring that about, for polls last 5 s."""

    async def main() -> None:
        desk = Desk(delay_ms=delay_ms)
        late: dict[str, int] = {}

        async def work(after_ms: int, count: int) -> None:
            await asyncio.sleep(after_ms / 1000)
            while names := await desk.poll(count=count):
                for name in names:
                    late[name] = desk.now() - int(name.split("@")[1])
                await desk.end(*names)

        async def push(number: int, at_ms: int, wait_ms: int) -> None:
            await asyncio.sleep(at_ms / 1000)
            await desk.push(f"{number}@{at_ms + wait_ms}", delay_ms=wait_ms)

        tasks = [asyncio.ensure_future(work(*worker)) for worker in workers]
        await asyncio.gather(*(push(n, *one) for n, one in enumerate(pushes)))
        await asyncio.sleep(0.5)
        assert len(late) == len(pushes)
        assert max(late.values(), default=0) <= 30 + (4 * delay_ms + 1) * (len(pushes) + 2)
        desk.desk.close()
        await asyncio.gather(*tasks)

    run_virtual(main())


def test_polls_wait_while_the_queues_are_away_and_get_their_task_afterwards() -> None:
    async def main() -> None:
        desk = Desk()
        desk.queues.is_away = True
        assert await desk.poll(timeout_ms=0) == []
        waiting = desk.park(timeout_ms=5000)
        await asyncio.sleep(2.5)
        assert not waiting.done()
        assert desk.queues.looks <= 5, "who is away is not hammered"
        await desk.push("a")
        desk.queues.is_away = False
        assert await waiting == ["a"]

    run_virtual(main())


def test_what_cannot_be_handed_back_now_is_no_error() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push("a")
        polled = await desk.desk.poll(
            task_type="mail", domain=None, worker_id="w", count=1, timeout_ms=0
        )
        desk.queues.is_away = True
        await desk.desk.hand_back(polled)
        assert desk.owners.held == {}, "its owner knows all the same"

    run_virtual(main())
