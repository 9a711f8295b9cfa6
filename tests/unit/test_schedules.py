"""Schedules on a node that lives, dies and lives again, on virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.engine import payloads
from cluster.engine.events import ScheduleDeleted, SchedulePaused, ScheduleResumed
from cluster.engine.schedules import keep_state, shown, state_of
from cluster.engine.tasks.schedule import KEPT_MAX
from cluster.errors import ClusterError, NotFound
from cluster.ids import schedule_id
from cluster.node.router import StartWorkflow
from cluster.store.ports import Stores
from tests.support.lives import Death, Json, Life, new_stores
from tests.support.virtual_time import VirtualClock, run_virtual

NAME = "ticks"
WORKFLOW = {
    "name": "tick",
    "version": 1,
    "tasks": [{"name": "do", "taskReferenceName": "do", "type": "SIMPLE"}],
}
DAY_MS = 86_400_000


def now_ms() -> int:
    return VirtualClock().now_ms()


async def save(life: Life, name: str = NAME, cron: str = "* * * * * *", **fields: Any) -> Json:
    saved = {
        "name": name,
        "cronExpression": cron,
        "zoneId": "UTC",
        "startWorkflowRequest": {"name": "tick", "version": 1, "input": {"mine": 1}},
        **fields,
    }
    return shown(await life.router.save_schedule(name, payloads.dump(saved)))


async def show(life: Life, name: str = NAME) -> Json:
    return shown(await life.router.schedule(name))


async def runs(life: Life, name: str = NAME) -> list[Json]:
    """The workflows that a schedule has started, by instant."""
    found = [await life.show(workflow_id) for workflow_id in await life.ids(["tick"])]
    found = [run for run in found if run["input"]["_startedByScheduler"] == name]
    return sorted(found, key=lambda run: int(run["input"]["_scheduledTime"]))


async def instants(life: Life, name: str = NAME) -> list[int]:
    """For which instants, in order, with repetitions."""
    return [run["input"]["_scheduledTime"] for run in await runs(life, name)]


async def executions(life: Life, name: str | None = NAME) -> list[Json]:
    """What is on record, the latest first."""
    return [one async for one in life.node.services.schedule_book.executions(name)]


async def listed(life: Life) -> list[str]:
    return [one["name"] for one in await life.node.services.schedule_book.schedules()]


async def reach(at_ms: int) -> None:
    """Wait until a moment in virtual time."""
    await asyncio.sleep(max(0, at_ms - now_ms()) / 1000)


def each_second(first_ms: int, last_ms: int) -> list[int]:
    return list(range(first_ms, last_ms + 1, 1000))


def in_one_life(test: Callable[[Life], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with Life(await new_stores(), **settings) as life:
            await life.register([WORKFLOW])
            await life.recovered()
            await test(life)

    run_virtual(run())


def test_a_schedule_starts_a_workflow_at_each_instant() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life))["nextRunTime"]
        await reach(first_ms + 9_500)
        assert await instants(life) == each_second(first_ms, first_ms + 9_000)
        run = (await runs(life))[0]
        assert run["input"]["mine"] == 1
        assert run["input"]["_startedByScheduler"] == NAME
        assert run["input"]["_schedulerCron"] == "* * * * * * UTC"
        assert first_ms <= run["input"]["_executedTime"] < first_ms + 100
        records = await executions(life)
        assert [one["scheduledTime"] for one in records[::-1]] == await instants(life)
        assert {one["state"] for one in records} == {"EXECUTED"}
        assert records[-1]["workflowId"] == run["workflowId"]
        assert records[-1]["executionId"] == run["input"]["_executionId"]
        assert records == await executions(life, None)

    in_one_life(test)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("appends", range(1, 16))
def test_a_node_that_dies_at_any_append_starts_each_instant_once(
    appends: int, applied: bool
) -> None:
    """Between the decision of a start, the start, and what is noted of it."""

    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register([WORKFLOW])
            first_ms = (await save(life))["nextRunTime"]
        death = Death(appends=appends, applied=applied)
        async with Life(stores, death=death) as life:
            await asyncio.wait_for(death.has_come.wait(), 60)
        await asyncio.sleep(3)
        async with Life(stores) as life:
            await life.recovered()
            last_ms = now_ms() // 1000 * 1000 + 3_000
            await reach(last_ms + 500)
            assert await instants(life) == each_second(first_ms, last_ms)
            records = [one["scheduledTime"] for one in await executions(life)]
            assert records[::-1] == each_second(first_ms, last_ms)
            assert await life.audit.walk() == 0

    run_virtual(run())


@pytest.mark.parametrize("method", ["put", "write", "append"])
def test_a_store_that_fails_once_costs_no_start(method: str) -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life))["nextRunTime"]
        await reach(first_ms + 1_500)
        life.death.hold(method)
        await reach(first_ms + 4_500)
        life.death.let_go(method)
        await reach(first_ms + 9_500)
        assert await instants(life) == each_second(first_ms, first_ms + 9_000)
        assert len(await executions(life)) == 10

    in_one_life(test)


async def lives_apart(life_stores: Stores, gap_s: float, **fields: Any) -> tuple[list[int], int]:
    """A schedule that is saved, and then nobody serves it for a while; what it starts, and since
    when it is served again."""
    async with Life(life_stores) as life:
        await life.register([WORKFLOW])
        await save(life, **fields)
    await asyncio.sleep(gap_s)
    async with Life(life_stores) as life:
        await life.recovered()
        again_ms = now_ms()
        await asyncio.sleep(5.5)
        return await instants(life), again_ms


def test_what_was_missed_for_long_is_left_out() -> None:
    async def run() -> None:
        found, again_ms = await lives_apart(await new_stores(), 300)
        assert again_ms - 61_000 <= found[0] <= again_ms - 59_000
        assert found == each_second(found[0], found[-1])
        assert found[-1] > again_ms

    run_virtual(run())


def test_what_comes_seldom_and_was_missed_comes_once() -> None:
    async def run() -> None:
        found, again_ms = await lives_apart(await new_stores(), 5 * 86_400, cron="0 0 3 * * *")
        assert len(found) == 1
        assert again_ms - DAY_MS <= found[0] <= again_ms

    run_virtual(run())


def test_what_catches_up_leaves_nothing_out() -> None:
    async def run() -> None:
        found, again_ms = await lives_apart(
            await new_stores(), 600, runCatchupScheduleInstances=True
        )
        assert found[0] < again_ms - 599_000
        assert found == each_second(found[0], found[-1])
        assert found[-1] > again_ms

    run_virtual(run())


def test_a_schedule_rests_and_goes_on() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life, runCatchupScheduleInstances=True))["nextRunTime"]
        await reach(first_ms + 2_500)
        await life.router.change_schedule(NAME, SchedulePaused(now_ms(), "lunch"))
        shown = await show(life)
        assert (shown["paused"], shown["pausedReason"]) == (True, "lunch")
        assert "nextRunTime" not in shown
        await reach(first_ms + 10_500)
        await life.router.change_schedule(NAME, ScheduleResumed(now_ms()))
        assert "pausedReason" not in await show(life)
        await reach(first_ms + 12_500)
        rested = {first_ms + second * 1000 for second in range(3, 11)}
        assert await instants(life) == [
            at for at in each_second(first_ms, first_ms + 12_000) if at not in rested
        ]
        with pytest.raises(NotFound):
            await life.router.change_schedule(NAME, ScheduleResumed(now_ms()))
        assert (await show(life))["nextRunTime"] > now_ms()

    in_one_life(test)


def test_one_that_is_saved_anew_starts_what_it_says_now() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life, createdBy="me"))["nextRunTime"]
        await reach(first_ms + 1_500)
        start = {"name": "tick", "version": 1, "input": {"mine": 2}}
        again = await save(life, startWorkflowRequest=start)
        assert again["createTime"] < again["updatedTime"]
        assert again["createdBy"] == "me"
        await reach(first_ms + 3_500)
        assert [run["input"]["mine"] for run in await runs(life)] == [1, 1, 2, 2]
        assert await instants(life) == each_second(first_ms, first_ms + 3_000)
        await save(life, cron="0 0 0 1 1 *")
        await reach(first_ms + 9_500)
        assert len(await instants(life)) == 4

    in_one_life(test)


def test_one_that_is_deleted_is_gone_and_may_come_again() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life))["nextRunTime"]
        assert await listed(life) == [NAME]
        await reach(first_ms + 1_500)
        await life.router.change_schedule(NAME, ScheduleDeleted(now_ms()))
        assert await listed(life) == []
        assert await executions(life) == []
        assert await executions(life, None) == []
        with pytest.raises(NotFound):
            await life.router.schedule(NAME)
        with pytest.raises(NotFound):
            await life.router.change_schedule(NAME, ScheduleDeleted(now_ms()))
        await reach(first_ms + 5_500)
        assert len(await instants(life)) == 2
        second_ms = (await save(life))["nextRunTime"]
        await reach(second_ms + 1_500)
        await life.node.services.catch_up()
        life.parts.residents.executions.clear()
        assert await listed(life) == [NAME]
        assert (await show(life))["createTime"] > first_ms
        assert (await instants(life))[2:] == [second_ms, second_ms + 1000]

    in_one_life(test)


def test_one_that_takes_the_place_of_a_deleted_one_stays() -> None:
    async def test(life: Life) -> None:
        await save(life)
        await life.router.change_schedule(NAME, ScheduleDeleted(now_ms()))
        await save(life)
        await asyncio.sleep(2.5)
        life.parts.residents.drop(await life.router.schedule(NAME))
        assert (await show(life))["name"] == NAME

    in_one_life(test)


def test_an_instant_that_was_decided_is_not_planned_again() -> None:
    """The clock of the next owner may be behind."""

    async def test(life: Life) -> None:
        await save(life)
        await asyncio.sleep(2)
        execution = await life.router.schedule(NAME)
        state = state_of(execution)
        ahead_ms = state.last_ms = now_ms() + 60_000
        keep_state(execution, state)
        await save(life, cron="*/5 * * * * *")
        assert (await show(life))["nextRunTime"] > ahead_ms

    in_one_life(test)


def test_a_deletion_that_is_cut_short_is_finished() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register([WORKFLOW])
            await save(life)
            life.death.hold("put")
            deletion = asyncio.ensure_future(
                life.router.change_schedule(NAME, ScheduleDeleted(now_ms()))
            )
            await asyncio.sleep(1)
        deletion.cancel()
        async with Life(stores) as life:
            assert await listed(life) == [NAME]
            await life.recovered()
            await asyncio.sleep(1)
            assert await listed(life) == []
            assert life.parts.shards.resident(schedule_id(NAME)) is None
            assert (await save(life))["name"] == NAME

    run_virtual(run())


def test_saved_by_many_at_once_there_is_one() -> None:
    async def test(life: Life) -> None:
        await asyncio.gather(*(save(life, description=str(n)) for n in range(5)))
        assert await listed(life) == [NAME]
        first_ms = (await show(life))["nextRunTime"]
        await reach(first_ms + 1_500)
        assert await instants(life) == [first_ms, first_ms + 1000]

    in_one_life(test)


def test_a_start_that_is_not_possible_is_on_record() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life, startWorkflowRequest={"name": "nobody"}))["nextRunTime"]
        await reach(first_ms + 1_500)
        failed = await executions(life)
        assert [one["state"] for one in failed] == ["FAILED", "FAILED"]
        assert "nobody" in failed[0]["reason"]
        await life.register([{**WORKFLOW, "name": "nobody"}])
        await reach(first_ms + 2_500)
        assert (await executions(life))[0]["state"] == "EXECUTED"

    in_one_life(test)


def test_with_a_key_one_runs_at_a_time() -> None:
    async def test(life: Life) -> None:
        start = {
            "name": "tick",
            "idempotencyKey": "alone",
            "idempotencyStrategy": "FAIL_ON_RUNNING",
        }
        first_ms = (await save(life, startWorkflowRequest=start))["nextRunTime"]
        await reach(first_ms + 2_500)
        assert await instants(life) == [first_ms]
        assert [one["state"] for one in await executions(life)] == ["FAILED", "FAILED", "EXECUTED"]
        (task,) = await life.poll("do")
        await life.report(task)
        await reach(first_ms + 3_500)
        assert await instants(life) == [first_ms, first_ms + 3_000]

    in_one_life(test)


def test_bounds_count_as_in() -> None:
    async def test(life: Life) -> None:
        first_ms = now_ms() // 1000 * 1000 + 5_000
        saved = await save(life, scheduleStartTime=first_ms, scheduleEndTime=first_ms + 3_000)
        assert saved["nextRunTime"] == first_ms
        await reach(first_ms + 9_500)
        assert await instants(life) == each_second(first_ms, first_ms + 3_000)
        assert "nextRunTime" not in await show(life)
        assert await life.audit.walk() == 0

    in_one_life(test)


def test_several_crons_that_come_at_once_start_one() -> None:
    async def test(life: Life) -> None:
        crons = [
            {"cronExpression": "*/2 * * * * *", "zoneId": "UTC"},
            {"cronExpression": "*/3 * * * * *", "zoneId": "Asia/Tokyo"},
        ]
        await save(life, cronSchedules=crons)
        first_ms = now_ms() // 6000 * 6000 + 6_000
        await reach(first_ms + 6_500)
        found = {
            run["input"]["_scheduledTime"] - first_ms: run["input"]["_schedulerCron"]
            for run in await runs(life)
        }
        assert len(found) == len(await runs(life))
        two, three = "*/2 * * * * * UTC", "*/3 * * * * * Asia/Tokyo"
        wanted = {0: two, 2000: two, 3000: three, 4000: two, 6000: two}
        assert {at: cron for at, cron in found.items() if at >= 0} == wanted

    in_one_life(test)


def test_starts_are_spread_by_the_jitter() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life, cron="*/10 * * * * *"))["nextRunTime"]
        await reach(first_ms + 59_500)
        late = [
            run["input"]["_executedTime"] - run["input"]["_scheduledTime"]
            for run in await runs(life)
        ]
        assert len(late) == 6
        assert len(set(late)) > 2
        assert 0 <= min(late) <= max(late) <= 5_100

    in_one_life(test, schedule_jitter_ms=5_000)


def test_the_switch_of_the_scheduler_holds_all_and_survives() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register([WORKFLOW])
            await life.recovered()
            first_ms = (await save(life))["nextRunTime"]
            await reach(first_ms + 1_500)
            await life.node.services.scheduler_switch.turn(off=True)
            await reach(first_ms + 5_500)
            assert len(await instants(life)) == 2
            assert await life.audit.walk() == 0
        async with Life(stores) as life:
            await life.recovered()
            await reach(first_ms + 9_500)
            assert len(await instants(life)) == 2
            await life.node.services.scheduler_switch.turn(off=False)
            await reach(first_ms + 12_500)
            assert await instants(life) == each_second(first_ms, first_ms + 12_000)

    run_virtual(run())


def test_a_schedule_keeps_so_many_executions() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life))["nextRunTime"]
        last_ms = first_ms + (KEPT_MAX + 20) * 1000
        await reach(last_ms + 500)
        wanted = each_second(last_ms - (KEPT_MAX - 1) * 1000, last_ms)[::-1]
        assert [one["scheduledTime"] for one in await executions(life)] == wanted
        assert [one["scheduledTime"] for one in await executions(life, None)] == wanted

    in_one_life(test)


def test_a_clock_that_is_set_back_starts_nothing_twice() -> None:
    async def test(life: Life) -> None:
        first_ms = (await save(life))["nextRunTime"]
        await reach(first_ms + 5_500)
        clock: Any = life.parts.timers
        steady = clock._clock

        class SetBack:
            def now_ms(self) -> int:
                return int(steady.now_ms()) - 4_000

            def monotonic_ms(self) -> int:
                return int(steady.monotonic_ms())

        clock._clock = SetBack()
        await reach(first_ms + 14_500)
        found = await instants(life)
        assert found == each_second(first_ms, found[-1])
        assert found[-1] >= first_ms + 9_000

    in_one_life(test)


def test_it_is_no_workflow_to_those_who_ask_for_one() -> None:
    async def test(life: Life) -> None:
        await save(life)
        await life.node.services.catch_up()
        assert await life.ids(["_schedule"]) == []
        with pytest.raises(ClusterError):
            await life.router.start(StartWorkflow("_schedule", 1))

    in_one_life(test)


def test_a_workflow_cannot_use_its_type() -> None:
    async def test(life: Life) -> None:
        step = {"name": "s", "taskReferenceName": "s", "type": "_SCHEDULE"}
        await life.register([{"name": "thief", "version": 1, "tasks": [step]}])
        workflow_id = await life.start("thief")
        assert (await life.show(workflow_id))["status"] == "FAILED"

    in_one_life(test)


def test_idle_schedules_rest() -> None:
    async def test(life: Life) -> None:
        for number in range(50):
            await save(life, f"s{number}", cron="0 0 0 1 1 *")
        await asyncio.sleep(5)
        before = life.parts.commit_log.last_committed
        await asyncio.sleep(3_600)
        assert life.parts.commit_log.last_committed == before
        state = state_of(await life.router.schedule("s1"))
        assert state.listed == state.revision == 1

    in_one_life(test)
