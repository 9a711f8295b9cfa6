"""What is hard about queues: limits that hold exactly, and nobody who waits longer than needed."""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.client import Client, connected, overlapping_max, simple, until
from tests.support.served import Server, serving

pytestmark = pytest.mark.asyncio
PROMPT_MS = 300
"""What `at once` means here, as a median: well below the second after which a poll looks again by
itself, on a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("queues")) as running:
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connected(server.url) as client:
        yield client


async def tasks_of(client: Client, workflow_ids: list[str]) -> list[dict[str, Any]]:
    runs = await asyncio.gather(*(client.run(workflow_id) for workflow_id in workflow_ids))
    return [task for run in runs for task in run["tasks"]]


async def test_a_concurrency_limit_is_never_exceeded(client: Client) -> None:
    limit, count = 5, 120
    await client.task_def("lim", concurrentExecLimit=limit)
    await client.register("limited", simple("a", "lim"))
    dice = random.Random(7)
    held, most, done = 0, 0, 0

    async def work(name: int) -> None:
        nonlocal held, most, done
        while done < count:
            tasks = await client.poll("lim", count=10, timeout_ms=300)
            held += len(tasks)
            most = max(most, held)
            for task in tasks:
                await asyncio.sleep(dice.random() * 0.02)
                held -= 1
                if dice.random() < 0.2:
                    # It goes back into its queue, and its slot is free meanwhile.
                    await client.report(task, "IN_PROGRESS")
                else:
                    await client.report(task)
                    done += 1

    working = [asyncio.create_task(work(name)) for name in range(12)]
    workflow_ids = [await client.start("limited") for _ in range(count)]
    await asyncio.gather(*working)
    assert most == limit, "the limit is reached, and not exceeded"
    assert [await client.status(one) for one in workflow_ids] == ["COMPLETED"] * count


async def test_a_freed_slot_is_taken_within_milliseconds(client: Client) -> None:
    await client.task_def("one", concurrentExecLimit=1)
    await client.register("one_by_one", simple("a", "one"))
    workflow_ids = [await client.start("one_by_one") for _ in range(30)]
    [held] = await client.poll("one", count=10)
    waits_ms = []
    for _ in range(29):
        waiting = asyncio.create_task(client.poll("one", count=10, timeout_ms=5000))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        began = time.perf_counter()
        await client.report(held)
        [held] = await waiting
        waits_ms.append((time.perf_counter() - began) * 1000)
    await client.report(held)
    assert statistics.median(waits_ms) < PROMPT_MS, waits_ms
    tasks = await tasks_of(client, workflow_ids)
    assert overlapping_max([(task["startTime"], task["endTime"]) for task in tasks]) == 1


async def test_a_limit_holds_over_all_domains(client: Client) -> None:
    await client.task_def("lim_dom", concurrentExecLimit=2)
    await client.register("limited_domains", simple("a", "lim_dom"))
    for domain in ("x", "y"):
        for _ in range(3):
            await client.start("limited_domains", taskToDomain={"lim_dom": domain})
    got_x = await client.poll("lim_dom", count=10, timeout_ms=100, domain="x")
    assert len(got_x) == 2
    assert await client.poll("lim_dom", count=10, timeout_ms=100, domain="y") == []
    waiting = asyncio.create_task(client.poll("lim_dom", count=10, timeout_ms=5000, domain="y"))
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    await client.report(got_x[0])
    assert [task["domain"] for task in await waiting] == ["y"]
    assert time.perf_counter() - began < 1


async def test_a_rate_limit_is_exact(client: Client) -> None:
    rate, window_ms, count = 10, 1000, 45
    await client.task_def("rated", rateLimitPerFrequency=rate, rateLimitFrequencyInSeconds=1)
    await client.register("rated", simple("a", "rated"))
    workflow_ids = [await client.start("rated") for _ in range(count)]
    done = 0

    async def work() -> None:
        nonlocal done
        while done < count:
            for task in await client.poll("rated", count=3, timeout_ms=1000):
                done += 1
                await client.report(task)

    await asyncio.gather(*(work() for _ in range(6)))
    starts = sorted(task["startTime"] for task in await tasks_of(client, workflow_ids))
    assert len(starts) == count
    for first, next_window in zip(starts, starts[rate:], strict=False):
        assert next_window - first >= window_ms, "never more than the rate in any window"
    # And as many as the rate allows: polls are woken when the window opens, not at some interval.
    assert starts[-1] - starts[0] < 4 * window_ms + 400


async def test_parked_polls_are_woken_at_once_in_their_order(client: Client) -> None:
    await client.register("woken", simple("a", "woken"))
    order: list[int] = []
    waits_ms = []

    async def poll(number: int) -> float:
        [task] = await client.poll("woken", timeout_ms=5000)
        order.append(number)
        await client.report(task)
        return time.perf_counter()

    for number in range(25):
        waiting = asyncio.create_task(poll(number))
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        await client.start("woken")
        waits_ms.append((await waiting - began) * 1000)
    assert statistics.median(waits_ms) < PROMPT_MS, waits_ms

    order.clear()
    polls = []
    for number in range(20):
        polls.append(asyncio.create_task(poll(number)))
        await asyncio.sleep(0.02)
    for number in range(20):
        await client.start("woken")
        await until_length(order, number + 1)
    await asyncio.gather(*polls)
    assert order == list(range(20))


async def until_length(values: list[int], length: int) -> None:
    async def is_long() -> bool:
        return len(values) >= length

    await until(is_long)


async def test_a_poll_whose_client_went_away_takes_nothing(client: Client, server: Server) -> None:
    await client.register("gone", simple("a", "gone"))
    parked = [asyncio.create_task(client.poll("gone", timeout_ms=5000)) for _ in range(5)]
    await asyncio.sleep(0.1)
    for poll in parked:
        poll.cancel()
    await asyncio.gather(*parked, return_exceptions=True)
    workflow_id = await client.start("gone")
    [task] = await client.poll("gone", timeout_ms=3000)
    assert (task["workflowInstanceId"], task["pollCount"]) == (workflow_id, 1)


async def test_a_batch_poll_takes_the_most_urgent_first(client: Client) -> None:
    await client.register("urgent", simple("a", "urgent"))
    priorities = [0, 50, 99, 1, 50, 0, 99]
    for number, priority in enumerate(priorities):
        await client.start("urgent", {"n": number}, priority=priority)
    first = await client.poll("urgent", count=3)
    rest = await client.poll("urgent", count=10)
    seen = [task["workflowPriority"] for task in first + rest]
    assert seen == sorted(priorities, reverse=True)


async def test_domains_keep_to_themselves(client: Client) -> None:
    await client.register("homely", simple("a", "homely"), simple("b", "other"))
    nobody = await client.poll("homely", timeout_ms=50, domain="east")
    assert nobody == []
    # East has just been polled, west never: the first active one of the list is taken.
    first = await client.start("homely", taskToDomain={"*": "west,east"})
    assert await client.poll("homely", timeout_ms=50) == []
    assert await client.poll("homely", timeout_ms=50, domain="west") == []
    [task] = await client.poll("homely", domain="east")
    assert (task["workflowInstanceId"], task["domain"]) == (first, "east")
    await client.report(task)
    # For the next task nobody is active: the last one of the list.
    [task] = await client.poll("other", domain="east")
    assert task["domain"] == "east"
    second = await client.start("homely", taskToDomain={"homely": "NO_DOMAIN"})
    [task] = await client.poll("homely")
    assert task["workflowInstanceId"] == second
    assert "domain" not in task


async def test_a_response_timeout_is_seen_within_a_second(client: Client) -> None:
    await client.task_def(
        "silent",
        responseTimeoutSeconds=1,
        pollTimeoutSeconds=60,
        timeoutSeconds=120,
        retryCount=1,
        retryDelaySeconds=0,
    )
    await client.register("silent", simple("a", "silent"))
    workflow_id = await client.start("silent")
    [task] = await client.poll("silent")
    polled_at = time.perf_counter()
    [again] = await client.poll("silent", timeout_ms=4000)
    waited_s = time.perf_counter() - polled_at
    assert 0.95 < waited_s < 3.5, waited_s
    assert (again["retriedTaskId"], again["retryCount"]) == (task["taskId"], 1)
    first, second = (await client.run(workflow_id))["tasks"]
    assert (first["status"], second["status"]) == ("TIMED_OUT", "IN_PROGRESS")
    assert 1000 <= first["endTime"] - first["startTime"] < 2000
    # Each report begins a new wait: this one outlives the first limit.
    for _ in range(3):
        await asyncio.sleep(0.6)
        await client.report(again, "IN_PROGRESS")
        [again] = await client.poll("silent")
    await client.report(again)
    assert await client.status(workflow_id) == "COMPLETED"
    # A late result of the first attempt is heard and changes nothing.
    await client.report(task, outputData={"late": True})
    assert (await client.run(workflow_id))["tasks"][0]["status"] == "TIMED_OUT"


async def test_a_poll_timeout_is_seen_within_a_second(client: Client) -> None:
    await client.task_def(
        "unasked", pollTimeoutSeconds=1, responseTimeoutSeconds=60, timeoutSeconds=120
    )
    await client.register("unasked", simple("a", "unasked"))
    workflow_id = await client.start("unasked")
    run = await client.ended(workflow_id, deadline_s=10)
    assert run["status"] == "TIMED_OUT" or run["tasks"][0]["status"] == "TIMED_OUT"
    assert 1000 <= run["endTime"] - run["createTime"] < 2000
