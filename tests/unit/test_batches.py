"""Many starts and events of one request: few commits, each item for itself, nothing half done."""

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import pytest

from cluster.engine.events import Event, Paused, TaskUpdated
from cluster.engine.transitions import TaskStatus
from cluster.errors import ClusterError, Conflict, Fenced, InvalidRequest, NotFound, StoreFault
from cluster.ids import TaskId, WorkflowId, number_of
from cluster.node.batches import Batches
from cluster.node.router import StartWorkflow
from cluster.store.ports import LogId
from tests.support.lives import Death, Json, Life, new_stores
from tests.support.peers import Peer, are_all_served, new_ground, until
from tests.support.virtual_time import VirtualClock, run_virtual

BODIES = [
    {
        "name": "one",
        "version": 1,
        "tasks": [{"name": "t_a", "taskReferenceName": "a", "type": "SIMPLE"}],
    },
    {
        "name": "strict",
        "version": 1,
        "tasks": [{"name": "t_a", "taskReferenceName": "a", "type": "SIMPLE"}],
        "inputSchema": {
            "name": "s",
            "version": 1,
            "type": "JSON",
            "data": {"type": "object", "required": ["k"]},
        },
        "enforceSchema": True,
    },
]

Test = Callable[[Life, Batches], Awaitable[None]]


def in_lives(*tests: Test) -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES)
        for test in tests:
            async with Life(stores, audit_interval_ms=1 << 40) as life:
                await test(life, Batches(life.router, VirtualClock()))

    run_virtual(run())


def start(name: str = "one", **fields: object) -> StartWorkflow:
    return StartWorkflow(name, **fields)  # type: ignore[arg-type]


def completed(task: Json) -> tuple[WorkflowId, Event]:
    event = TaskUpdated(
        VirtualClock().now_ms(),
        number_of(TaskId(task["taskId"])),
        TaskStatus.COMPLETED,
        output=b"{}",
    )
    return WorkflowId(task["workflowInstanceId"]), event


def entries(life: Life) -> int:
    incarnation = life.node.home.incarnation
    assert incarnation is not None
    return incarnation.commit_log.last_put


def test_a_thousand_starts_and_results_take_few_entries_of_the_log() -> None:
    async def main(life: Life, batches: Batches) -> None:
        before = entries(life)
        ids = await batches.start([start()] * 1000)
        # The log is as fast as can be here: a turn of the loop is an entry.
        assert entries(life) - before <= 1000 // 32 + 2
        assert len(set(ids)) == 1000
        tasks = await life.poll("t_a", count=1000)
        assert {task["workflowInstanceId"] for task in tasks} == set(ids)
        await asyncio.sleep(1)
        before = entries(life)
        assert await batches.submit([completed(task) for task in tasks]) == {}
        assert entries(life) - before <= 1000 // 32 + 2
        assert {(await life.show(str(one)))["status"] for one in ids} == {"COMPLETED"}

    in_lives(main)


def test_a_start_that_cannot_be_spoils_no_other() -> None:
    async def main(life: Life, batches: Batches) -> None:
        outcomes = await batches.start(
            [
                start(),
                start("unknown"),
                start("one", version=7),
                start("strict"),
                start("strict", input=b'{"k":1}'),
                start("x", definition=BODIES[0] | {"name": "inline"}),
                start("y", definition={"name": "no tasks"}),
                start(),
            ]
        )
        kinds = [type(one) for one in outcomes]
        assert kinds[1].__name__ == kinds[2].__name__ == "NoSuchWorkflow"
        assert kinds[3] is InvalidRequest
        assert issubclass(kinds[6], ClusterError)
        good = [str(one) for one in outcomes if not isinstance(one, ClusterError)]
        assert len(good) == 4
        names = [(await life.show(one))["workflowName"] for one in good]
        assert names == ["one", "strict", "inline", "one"]
        assert len(await life.poll("t_a")) == 4

    in_lives(main)


def test_a_key_starts_once_in_a_request_and_in_two() -> None:
    async def main(life: Life, batches: Batches) -> None:
        keyed = [start(idempotency_key=f"k{number % 3}") for number in range(300)]
        refusing = start(idempotency_key="k0", idempotency_strategy="FAIL")
        outcomes = await batches.start([*keyed, refusing])
        assert isinstance(outcomes.pop(), Conflict)
        assert len(set(outcomes)) == 3
        assert outcomes[:3] * 100 == outcomes
        assert await batches.start(keyed) == outcomes
        assert len(await life.poll("t_a")) == 3

    in_lives(main)


def test_events_are_refused_one_by_one_and_keep_their_order() -> None:
    async def main(life: Life, batches: Batches) -> None:
        one, other = [await life.start("one") for _ in range(2)]
        tasks = await life.poll("t_a")
        await life.terminate(other)
        unknown = WorkflowId("01970000-0000-8000-8000-000000100000")
        pause = Paused(VirtualClock().now_ms())
        first = next(task for task in tasks if task["workflowInstanceId"] == one)
        failed = TaskUpdated(
            VirtualClock().now_ms(), number_of(TaskId(first["taskId"])), TaskStatus.FAILED
        )
        refusals = await batches.submit(
            [(other, pause), completed(first), (unknown, pause), (one, failed)]
        )
        assert {place: type(refusal) for place, refusal in refusals.items()} == {
            0: Conflict,
            2: NotFound,
        }
        assert (await life.show(one))["status"] == "COMPLETED"

    in_lives(main)


def test_workflows_that_sleep_in_the_store_are_woken() -> None:
    ids: list[WorkflowId] = []

    async def first(life: Life, batches: Batches) -> None:
        ids.extend([await life.start("one") for _ in range(200)])

    async def second(life: Life, batches: Batches) -> None:
        pause = Paused(VirtualClock().now_ms())
        assert await batches.submit([(one, pause) for one in ids]) == {}
        assert {(await life.show(one))["status"] for one in ids} == {"PAUSED"}

    in_lives(first, second)


def test_nothing_is_acknowledged_that_a_crash_can_undo() -> None:
    """Whatever append is the last: who got an id finds its workflow in the next life."""

    async def run(appends: int, *, applied: bool) -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES)
        got: list[str] = []
        death = Death(appends=appends, applied=applied)
        async with Life(stores, death=death) as life:
            batches = Batches(life.router, VirtualClock())

            async def some() -> None:
                got.extend(map(str, await batches.start([start()] * 100)))

            starting = asyncio.gather(*(some() for _ in range(3)))
            await asyncio.wait([starting], timeout=5)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        async with Life(stores) as life:
            await life.recovered()
            for workflow_id in got:
                assert (await life.show(workflow_id))["status"] == "RUNNING"

    for appends in range(1, 8):
        run_virtual(run(appends, applied=appends % 2 == 0))


def test_without_a_log_every_item_says_so() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES)
            life.death.faults["append"] = Fenced("sealed by a test")
            outcomes = await Batches(life.router, VirtualClock()).start([start()] * 50)
            assert all(isinstance(one, ClusterError) and one.status == 503 for one in outcomes)

    run_virtual(run())


def test_a_log_that_is_lost_half_way_costs_no_start_and_doubles_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sealed by others before an append, or after one that nobody heard the end of."""
    # Appends go out while starts are still being decided, though nobody waits for them yet.
    monkeypatch.setattr("cluster.sharding.commit_log._UNASKED_S", 0.0)

    async def run(*, is_unheard: bool) -> None:
        ground = await new_ground()
        peer = await Peer(ground, "one").begin()
        await until(lambda: are_all_served([peer]))
        batches = Batches(peer.node.services.router, ground.clock)
        own, logs = peer.incarnation.own, ground.stores.logs
        append = logs.append

        async def lose(log: LogId, position: int, entry: bytes) -> None:
            if log != own or position < 3:
                await append(log, position, entry)
                return
            if is_unheard:
                await append(log, position, entry)
            await logs.seal(log)
            raise StoreFault("no answer")

        logs.append = lose  # type: ignore[method-assign]
        outcomes = await batches.start([start()] * 200)
        assert peer.incarnation.own != own, "the log was not lost"
        ids = [one for one in outcomes if not isinstance(one, ClusterError)]
        assert len(ids) == len(set(ids)) == 200
        await until(lambda: are_all_served([peer]))
        await asyncio.sleep(5)
        tasks = await peer.poll("t_one")
        assert sorted(task["workflowInstanceId"] for task in tasks) == sorted(ids)
        await peer.drain()

    run_virtual(run(is_unheard=False))
    run_virtual(run(is_unheard=True))


def test_the_input_goes_in_as_it_came() -> None:
    async def main(life: Life, batches: Batches) -> None:
        [one] = await batches.start([start(input=orjson.dumps({"k": ["ü", 1]}), priority=7)])
        shown = await life.show(str(one))
        assert (shown["input"], shown["priority"]) == ({"k": ["ü", 1]}, 7)

    in_lives(main)
