"""Bulk jobs: what they act upon, how fast, and what a crash in the middle of one means."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from cluster.errors import InvalidRequest, NotFound, Overloaded, StoreFault
from cluster.node import jobs as jobs_module
from cluster.node.jobs import BulkJobs, Job, Order, Query
from cluster.store.ports import Summary
from tests.support.lives import Death, Life, new_stores
from tests.support.virtual_time import VirtualClock, run_virtual

BODIES = [
    {
        "name": name,
        "version": version,
        "tasks": [{"name": "t_a", "taskReferenceName": "a", "type": "SIMPLE"}],
    }
    for name, version in (("one", 1), ("one", 2), ("two", 1))
]
TASK_DEFS = [{"name": "t_a", "retryCount": 0, "timeoutSeconds": 0, "responseTimeoutSeconds": 3600}]
Test = Callable[[Life], Awaitable[None]]


def in_lives(*tests: Test, deaths: list[Death] | None = None) -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
        for number, test in enumerate(tests):
            death = deaths[number] if deaths else None
            async with Life(stores, death=death, audit_interval_ms=1 << 40) as life:
                await test(life)

    run_virtual(run())


def jobs_of(life: Life) -> BulkJobs:
    return life.node.services.jobs


def order(operation: str = "terminate", **fields: object) -> Order:
    query = {"name": "one"} | {
        key: fields.pop(key)
        for key in ("name", "version", "statuses", "start_time_from", "start_time_to")
        if key in fields
    }
    return Order(operation, Query(**query), **fields)  # type: ignore[arg-type]


async def done(life: Life, job: Job, *, timeout_s: float = 60) -> Job:
    """The job, once it has ended."""
    async with asyncio.timeout(timeout_s):
        while True:
            job = await jobs_of(life).get(job.id)
            if job.ended_time:
                return job
            await asyncio.sleep(0.01)


async def carried_out(life: Life, order: Order) -> Job:
    return await done(life, await jobs_of(life).create(order))


async def started(life: Life, count: int, name: str = "one") -> list[str]:
    return [str(await life.start(name)) for _ in range(count)]


async def fail_all(life: Life) -> int:
    tasks = await life.poll("t_a", count=1000)
    await asyncio.gather(*(life.report(task, "FAILED") for task in tasks))
    return len(tasks)


async def statuses(life: Life, ids: list[str]) -> Counter[str]:
    return Counter([(await life.show(one))["status"] for one in ids])


def told(job: Job) -> tuple[str, int, int, int, int]:
    return job.state, job.matched, job.succeeded, job.skipped, job.failed


def test_every_operation_does_what_its_single_form_does() -> None:
    async def main(life: Life) -> None:
        ids, others = await started(life, 250), await started(life, 3, "two")
        for operation, status in (
            ("pause", "PAUSED"),
            ("resume", "RUNNING"),
            ("terminate", "TERMINATED"),
            ("restart", "RUNNING"),
        ):
            job = await carried_out(life, order(operation, reason="enough"))
            assert told(job) == ("COMPLETED", 250, 250, 0, 0)
            assert await statuses(life, ids) == {status: 250}
            assert await statuses(life, others) == {"RUNNING": 3}
            # What it is done with, it does not find again.
            assert told(await carried_out(life, order(operation)))[1] == 0
        assert await fail_all(life) == 253
        job = await carried_out(life, order("retry"))
        assert told(job) == ("COMPLETED", 250, 250, 0, 0)
        assert await statuses(life, ids) == {"RUNNING": 250}
        shown = await life.show(others[0])
        assert shown["status"] == "FAILED"

    in_lives(main)


def test_a_reason_is_the_runs_reason() -> None:
    async def main(life: Life) -> None:
        [one] = await started(life, 1)
        await carried_out(life, order(reason="enough of it"))
        assert (await life.show(one))["reasonForIncompletion"] == "enough of it"

    in_lives(main)


def test_version_status_and_time_narrow_the_query() -> None:
    async def main(life: Life) -> None:
        early = await started(life, 3)
        await asyncio.sleep(10)
        middle_ms = VirtualClock().now_ms()
        late = await started(life, 4)
        await carried_out(life, order("pause", start_time_from=middle_ms))
        assert (await statuses(life, early), await statuses(life, late)) == (
            {"RUNNING": 3},
            {"PAUSED": 4},
        )
        assert (await carried_out(life, order(version=2))).matched == 0
        job = await carried_out(life, order(version=1, statuses=("PAUSED",)))
        assert told(job) == ("COMPLETED", 4, 4, 0, 0)
        assert (await carried_out(life, order(start_time_to=middle_ms))).matched == 3

    in_lives(main)


def test_a_dry_run_changes_nothing_and_shows_what_it_would_do() -> None:
    async def main(life: Life) -> None:
        ids = await started(life, 150)
        job = await carried_out(life, order(dry_run=True))
        assert told(job) == ("COMPLETED", 150, 0, 0, 0)
        assert len(job.sample) == 100
        assert set(job.sample) < set(ids)
        assert await statuses(life, ids) == {"RUNNING": 150}

    in_lives(main)


def test_a_rate_is_kept_and_a_job_can_be_cancelled_meanwhile() -> None:
    async def main(life: Life) -> None:
        ids = await started(life, 200)
        began = asyncio.get_running_loop().time()
        job = await jobs_of(life).create(order(rate_per_second=20))
        await asyncio.sleep(5)
        so_far = (await jobs_of(life).get(job.id)).succeeded
        assert 90 <= so_far <= 108
        await jobs_of(life).cancel(job.id)
        job = await done(life, job)
        assert job.state == "CANCELLED"
        assert so_far <= job.succeeded <= so_far + 8
        assert asyncio.get_running_loop().time() - began < 6
        assert (await statuses(life, ids))["TERMINATED"] == job.succeeded
        assert await jobs_of(life).cancel(job.id) == job, "to cancel what has ended does nothing"

    in_lives(main)


def test_who_is_not_what_the_query_found_any_more_is_passed_over() -> None:
    async def main(life: Life) -> None:
        ids = sorted(await started(life, 6))
        job = await jobs_of(life).create(order("pause", rate_per_second=1))
        await asyncio.sleep(1.5)
        for one in ids[3:]:
            await life.terminate(one)
        job = await done(life, job)
        assert job.succeeded == 3
        assert job.succeeded + job.skipped == job.matched

    in_lives(main)


def test_a_search_that_lags_behind_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(life: Life) -> None:
        ids = sorted(await started(life, 4))
        await life.node.services.catch_up()
        search = life.stores.search
        stale = await search.by_definition(
            "one", version=None, statuses=(), start_ms=0, end_ms=1 << 60, after=None, limit=9
        )

        async def lag(*_: object, after: str | None, **__: object) -> list[Summary]:
            return [one for one in stale if after is None or one.workflow_id > after]

        for task in await life.poll("t_a"):
            if task["workflowInstanceId"] in ids[:2]:
                await life.report(task, "FAILED")
        monkeypatch.setattr(search, "by_definition", lag)
        assert told(await carried_out(life, order())) == ("COMPLETED", 4, 2, 2, 0)
        assert await statuses(life, ids) == {"TERMINATED": 2, "FAILED": 2}

    in_lives(main)


def test_who_starts_after_the_job_is_none_of_its_business() -> None:
    async def main(life: Life) -> None:
        old = await started(life, 5)
        job = await jobs_of(life).create(order(rate_per_second=2))
        await asyncio.sleep(0.5)
        new = await started(life, 5)
        await done(life, job)
        assert await statuses(life, old) == {"TERMINATED": 5}
        assert await statuses(life, new) == {"RUNNING": 5}

    in_lives(main)


def test_what_fails_is_told_with_its_reason() -> None:
    async def main(life: Life) -> None:
        await life.register(
            [{**BODIES[2], "name": "once", "restartable": False}],
        )
        await started(life, 2, "once")
        for task in await life.poll("t_a"):
            await life.report(task)
        job = await carried_out(life, order("restart", name="once"))
        assert told(job) == ("COMPLETED", 2, 0, 0, 2)
        assert {failure.status for failure in job.failures} == {404}
        assert "non-restartable" in job.failures[0].message

    in_lives(main)


@pytest.mark.parametrize("operation", ["retry", "restart"])
@pytest.mark.parametrize("fails_again", [False, True])
def test_a_job_that_a_crash_interrupts_does_nothing_twice(
    operation: str, *, fails_again: bool
) -> None:
    """Its node dies when some are done and the record does not say so yet."""
    ids: list[str] = []
    jobs: list[Job] = []
    death = Death()

    async def first(life: Life) -> None:
        ids.extend(await started(life, 150))
        assert await fail_all(life) == 150
        # The first part is recorded, the second is not.
        death.hold("put", after=2)
        jobs.append(await jobs_of(life).create(order(operation)))
        await life.until(lambda: life.node.services.jobs._mine[jobs[0].id].matched == 150)
        if fails_again:
            assert await fail_all(life) == 150

    async def second(life: Life) -> None:
        job = await done(life, jobs[0])
        assert job.state == "COMPLETED"
        # What was restarted has begun after the job, so it is not found once more.
        found = 150 if fails_again and operation == "retry" else 100
        assert (job.matched, job.succeeded + job.skipped) == (found, found)
        for one in ids:
            tasks = (await life.show(one))["tasks"]
            attempts = 2 if operation == "retry" else 1
            assert len(tasks) == attempts
            assert tasks[-1]["status"] == ("FAILED" if fails_again else "SCHEDULED")
        expected = "FAILED" if fails_again else "RUNNING"
        assert await statuses(life, ids) == {expected: 150}

    in_lives(first, second, deaths=[death, Death()])


def test_a_job_goes_on_after_a_restart_and_finds_that_it_was_cancelled() -> None:
    jobs: list[Job] = []
    ids: list[str] = []

    async def first(life: Life) -> None:
        ids.extend(await started(life, 40))
        jobs.extend([await jobs_of(life).create(order("pause", rate_per_second=5)) for _ in "ab"])
        await asyncio.sleep(2)

    async def second(life: Life) -> None:
        await jobs_of(life).cancel(jobs[1].id)
        finished, cancelled = [await done(life, job) for job in jobs]
        assert (finished.state, cancelled.state) == ("COMPLETED", "CANCELLED")
        assert await statuses(life, ids) == {"PAUSED": 40}
        assert await life.stores.records.get("bulk-job-cancel", jobs[1].id) is None

    in_lives(first, second)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_job_whose_node_is_gone_for_good_goes_on_at_another(*, is_cancelled: bool) -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores, node_id="old") as life:
            await life.register(BODIES, TASK_DEFS)
            ids = await started(life, 40)
            job = await jobs_of(life).create(order("pause", rate_per_second=5))
            await asyncio.sleep(2)
        async with Life(stores, node_id="new", audit_interval_ms=1 << 40) as life:
            if is_cancelled:
                await jobs_of(life).cancel(job.id)
            await asyncio.sleep(29)
            assert (await jobs_of(life).get(job.id)).node == "old", "its node may come back"
            job = await done(life, job, timeout_s=120)
            assert (job.node, job.state) == ("new", "CANCELLED" if is_cancelled else "COMPLETED")
            if not is_cancelled:
                assert await statuses(life, ids) == {"PAUSED": 40}

    run_virtual(run())


def test_a_store_that_is_away_for_a_while_only_delays() -> None:
    async def main(life: Life) -> None:
        ids = await started(life, 10)
        for method in ("by_definition", "put"):
            life.death.faults[method] = StoreFault("away")
        try:
            job = await jobs_of(life).create(order())
        except StoreFault:
            job = await jobs_of(life).create(order())
        assert told(await done(life, job)) == ("COMPLETED", 10, 10, 0, 0)
        assert await statuses(life, ids) == {"TERMINATED": 10}

    in_lives(main)


def test_jobs_are_listed_newest_first_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_MAX", 5)

    async def main(life: Life) -> None:
        made = []
        for _ in range(8):
            made.append((await carried_out(life, order(dry_run=True))).id)
            await asyncio.sleep(0.01)
        listed = [job.id for job in await jobs_of(life).all()]
        assert listed == made[:-6:-1]
        with pytest.raises(NotFound):
            await jobs_of(life).get(made[0])

    in_lives(main)


def test_a_record_of_another_version_stops_nothing() -> None:
    async def first(life: Life) -> None:
        await life.stores.records.put("bulk-job", {"0": b'{"id":"0","order":{"new":1}}', "1": b"?"})

    async def second(life: Life) -> None:
        ids = await started(life, 3)
        assert (await carried_out(life, order())).succeeded == 3
        assert await statuses(life, ids) == {"TERMINATED": 3}
        assert len(await jobs_of(life).all()) == 1
        with pytest.raises(NotFound):
            await jobs_of(life).get("0")
        await asyncio.sleep(100)
        assert life.node.succession.lost is None

    in_lives(first, second)


def test_there_is_a_bound_to_jobs_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "OPEN_MAX", 2)

    async def main(life: Life) -> None:
        await started(life, 5)
        for _ in range(2):
            await jobs_of(life).create(order("pause", rate_per_second=1))
        with pytest.raises(Overloaded):
            await jobs_of(life).create(order())

    in_lives(main)


@pytest.mark.parametrize(
    "wrong",
    [
        order("explode"),
        order(name=""),
        order("pause", statuses=("PAUSED",)),
        order("retry", statuses=("FAILED", "COMPLETED")),
        order(rate_per_second=0),
        order(start_time_from=5, start_time_to=5),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Order) -> None:
    async def main(life: Life) -> None:
        with pytest.raises(InvalidRequest):
            await jobs_of(life).create(wrong)
        assert await jobs_of(life).all() == []

    in_lives(main)
