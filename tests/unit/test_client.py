"""The client against a server that answers as it is told: refusals, faults, and nothing lost."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import orjson
import pytest
from aiohttp import web

from cluster.client import (
    ApiError,
    Client,
    Fleet,
    InProgress,
    Start,
    Task,
    TaskFailed,
    TaskResult,
    Unreachable,
    Worker,
    worker,
)
from cluster.client import backoff as backoff_module
from cluster.client.backoff import Backoff
from cluster.client.worker import result_of

pytestmark = pytest.mark.asyncio
Json = dict[str, Any]
Answer = tuple[int, Any, dict[str, str]]
BUSY: Answer = (429, {"status": 429, "message": "busy", "retryable": True}, {"Retry-After": "0"})
GONE: Answer = (503, {"status": 503, "message": "no owner", "retryable": True}, {})
HANG_UP: Answer = (0, {}, {})


class Server:
    """Keeps what it was asked; answers by `script` as long as there is something in it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.script: list[Answer] = []
        self.tasks: list[Json] = []
        self.done: dict[str, Json] = {}
        self.leases: list[str] = []
        self.item_status: Callable[[Json], int] = lambda _: 200
        self.delay_s = 0.0
        self.polls = 0
        self.most_polls = 0
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        sent: Any = orjson.loads(body) if body else None
        self.asked.append((request.path, sent))
        if self.script:
            status, answer, headers = self.script.pop(0)
            if status == 0:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            return web.Response(status=status, body=orjson.dumps(answer), headers=headers)
        if request.path.endswith("/exchange"):
            return web.Response(body=orjson.dumps(await self.exchange(sent)))
        return web.Response(body=orjson.dumps({"results": self.results(sent)}))

    async def exchange(self, sent: Json) -> Json:
        results = self.results(sent["results"])
        poll = sent.get("poll")
        await asyncio.sleep(self.delay_s)
        tasks: list[Json] = []
        if poll:
            self.polls += 1
            self.most_polls = max(self.most_polls, self.polls)
            loop = asyncio.get_running_loop()
            end = loop.time() + poll["timeout"] / 1000
            while not tasks:
                for task in list(self.tasks):
                    if task["taskType"] in poll["types"] and len(tasks) < poll["count"]:
                        self.tasks.remove(task)
                        tasks.append(task)
                if tasks or loop.time() >= end:
                    break
                await asyncio.sleep(0.005)
            self.polls -= 1
        return {"results": results, "tasks": tasks}

    def results(self, items: list[Json]) -> list[Json]:
        found = []
        for index, item in enumerate(items):
            status = self.item_status(item)
            found.append({"index": index, "status": status, "message": "as told"})
            if status == 200:
                found[-1] = {"index": index, "status": status, "id": str(index)}
                if item.get("extendLease"):
                    self.leases.append(item["taskId"])
                elif "taskId" in item:
                    assert item["taskId"] not in self.done, "reported twice"
                    self.done[item["taskId"]] = item
        return found

    def offer(self, *names: str, task_type: str = "mail", **fields: Any) -> None:
        for name in names:
            ids = {"taskId": name, "workflowInstanceId": f"w{name}", "taskType": task_type}
            self.tasks.append(ids | fields)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, Client]]:
    server = Server()
    loop = asyncio.get_running_loop()

    def request(
        message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=1 << 24
        )

    runner = web.ServerRunner(web.Server(server.handle, request_factory=request))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    async with Client(server.url) as client:
        yield server, client
    await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "_FIRST_S", 0.005)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def working(client: Client, *workers: Worker) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    fleet = asyncio.ensure_future(Fleet(client, workers, worker_id="w1").run(stop, grace_s=5))
    try:
        yield stop
    finally:
        stop.set()
        await fleet


def quick_worker(function: Any, **options: Any) -> Worker:
    return worker("mail", **({"poll_timeout_ms": 100} | options))(function)


async def double(task: Task) -> Json:
    return {"twice": 2 * task.input_data.get("n", 0)}


# -- back-off


async def test_pauses_grow_to_a_bound_and_differ() -> None:
    backoff = Backoff(first_s=1, most_s=8)
    most = [1, 2, 4, 8, 8, 8]
    pauses = [backoff.next_s() for _ in most]
    assert all(0 <= pause < bound for pause, bound in zip(pauses, most, strict=True))
    assert len(set(pauses)) == len(pauses)
    assert backoff.next_s(at_least_s=3) >= 3
    backoff.succeeded()
    assert backoff.next_s() < 1


# -- producers


async def test_starts_travel_in_requests_of_a_thousand() -> None:
    async with serving() as (server, client):
        found = await client.bulk_start(Start("one", {"n": n}) for n in range(2500))
        assert [len(sent) for _, sent in server.asked] == [1000, 1000, 500]
        assert [one.index for one in found] == list(range(2500))
        assert all(one.is_taken for one in found)


async def test_large_starts_travel_in_more_requests() -> None:
    async with serving() as (server, client):
        await client.bulk_start([Start("one", {"x": "y" * 1_500_000})] * 5)
        assert [len(sent) for _, sent in server.asked] == [2, 2, 1]


async def test_a_busy_server_is_asked_again() -> None:
    async with serving() as (server, client):
        server.script = [BUSY, BUSY]
        [one] = await client.bulk_start([Start("one")])
        assert one.is_taken
        assert len(server.asked) == 3


async def test_items_that_were_refused_for_now_are_asked_for_again_alone() -> None:
    async with serving() as (server, client):
        items = [{"index": n, "status": (200, 429, 404)[n % 3], "id": "i"} for n in range(6)]
        server.script = [(200, {"results": items}, {})]
        found = await client.bulk_start([Start("one", {"n": n}) for n in range(6)])
        assert [one.status for one in found] == [200, 200, 404] * 2
        assert [one.index for one in found] == list(range(6))
        assert [item["input"]["n"] for item in server.asked[1][1]] == [1, 4]


@pytest.mark.parametrize("fault", [GONE, HANG_UP])
async def test_only_starts_with_keys_are_repeated_when_nobody_knows(fault: Answer) -> None:
    async with serving() as (server, client):
        server.script = [fault]
        starts = [Start("one"), Start("one", idempotency_key="k")]
        first, second = await client.bulk_start(starts)
        assert first.status == fault[0]
        assert second.is_taken
        assert [len(sent) for _, sent in server.asked] == [2, 1]


async def test_patience_ends() -> None:
    async with serving() as (server, client):
        server.script = [BUSY] * 1000
        [one] = await client.bulk_start([Start("one")], patience_s=0.2)
        assert (one.status, one.message) == (429, "busy")


async def test_nobody_there() -> None:
    async with Client("http://127.0.0.1:9") as client:
        with pytest.raises(Unreachable) as caught:
            await client.poll("mail")
        assert not caught.value.was_sent
        [one] = await client.bulk_start([Start("one")], patience_s=0.1)
        assert one.status == 0


async def test_a_refusal_is_an_error_with_its_parts() -> None:
    async with serving() as (server, client):
        server.script = [BUSY, (400, {"status": 400, "message": "no", "retryable": False}, {})]
        with pytest.raises(ApiError) as caught:
            await client.update_many([TaskResult("w", "t", "COMPLETED")])
        error = caught.value
        assert (error.status, error.message, error.retryable) == (429, "busy", True)
        assert error.retry_after_s == 0
        with pytest.raises(ApiError) as caught:
            await client.poll("mail")
        assert (caught.value.status, caught.value.retryable) == (400, False)


async def test_what_is_no_podium_is_an_error_too() -> None:
    async with serving() as (server, client):
        server.script = [(200, "<html>", {}), (502, ["<html>"], {})]
        with pytest.raises(Unreachable):
            await client.poll("mail")
        with pytest.raises(ApiError) as caught:
            await client.poll("mail")
        assert (caught.value.status, caught.value.retryable) == (502, True)


# -- workers


async def test_functions_become_results() -> None:
    task = Task("t", "w", "mail", {"n": 4})

    async def result(function: Any) -> TaskResult:
        return await result_of(quick_worker(function), task, worker_id="w1", threads=None)

    async def fails(_: Task) -> Json:
        raise KeyError("oops")

    async def fails_for_good(_: Task) -> Json:
        raise TaskFailed("never", terminal=True, output={"why": 1})

    async def later(_: Task) -> InProgress:
        return InProgress(30, {"so": "far"})

    async def wrong(_: Task) -> Any:
        return [1]

    async def unfit(_: Task) -> Json:
        return {"x": object()}

    async def nothing(_: Task) -> None:
        return None

    done = await result(double)
    assert (done.status, done.worker_id) == ("COMPLETED", "w1")
    assert msgspec.json.decode(msgspec.json.encode(done.output_data)) == {"twice": 8}
    failed = await result(fails)
    assert (failed.status, failed.reason_for_incompletion) == ("FAILED", "KeyError: 'oops'")
    terminal = await result(fails_for_good)
    assert terminal.status == "FAILED_WITH_TERMINAL_ERROR"
    assert terminal.output_data == {"why": 1}
    waiting = await result(later)
    assert (waiting.status, waiting.callback_after_seconds) == ("IN_PROGRESS", 30)
    assert (await result(wrong)).status == "FAILED_WITH_TERMINAL_ERROR"
    assert (await result(unfit)).status == "FAILED"
    assert (await result(nothing)).status == "COMPLETED"


async def test_a_fleet_does_all_there_is_within_its_bounds() -> None:
    busy, most = 0, 0

    async def slow(task: Task) -> Json:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.02)
        busy -= 1
        return {"n": task.task_id}

    async with serving() as (server, client):
        server.delay_s = 0.003
        server.offer(*(f"t{number}" for number in range(300)))
        async with working(client, quick_worker(slow, concurrency=7, batch=3)):
            await until(lambda: len(server.done) == 300)
        assert most == 7
        polls = [sent["poll"] for _, sent in server.asked if sent.get("poll")]
        assert max(poll["count"] for poll in polls) == 3
        assert {poll["workerId"] for poll in polls} == {"w1"}
        assert len(server.asked) < 300, "results and tasks travel together"


async def test_a_plain_function_runs_in_a_thread() -> None:
    threads: set[str] = set()

    def plain(task: Task) -> Json:
        threads.add(threading.current_thread().name)
        return {"n": 1}

    async with serving() as (server, client):
        server.offer("a", "b")
        async with working(client, quick_worker(plain, concurrency=2)):
            await until(lambda: len(server.done) == 2)
        assert all(name.startswith("worker-mail") for name in threads)


@pytest.mark.parametrize("fault", [BUSY, GONE, HANG_UP, (500, {"message": "?"}, {})])
async def test_a_result_is_reported_until_it_is_taken(fault: Answer) -> None:
    release = asyncio.Event()

    async def held(task: Task) -> Json:
        await release.wait()
        return {}

    async with serving() as (server, client):
        server.offer("a", "b")
        async with working(client, quick_worker(held, concurrency=2)) as stop:
            await until(lambda: not server.tasks)
            stop.set()
            if fault[0] == 500:
                # Refused as a whole for good, it is sent one by one, and told as a failure.
                server.script = [fault]
            else:
                server.script = [fault] * 3
            release.set()
            await until(lambda: len(server.done) == 2)


async def test_items_that_the_server_was_too_busy_for_are_sent_again() -> None:
    async with serving() as (server, client):
        refusals = iter([429, 503, 500])
        server.item_status = lambda _: next(refusals, 200)
        server.offer("a", "b")
        async with working(client, quick_worker(double)):
            await until(lambda: len(server.done) == 2)


async def test_an_output_that_is_refused_fails_its_task() -> None:
    async with serving() as (server, client):
        server.item_status = lambda item: 400 if item["status"] == "COMPLETED" else 200
        server.offer("a")
        async with working(client, quick_worker(double)):
            await until(lambda: "a" in server.done)
        assert server.done["a"]["status"] == "FAILED_WITH_TERMINAL_ERROR"
        assert "as told" in server.done["a"]["reasonForIncompletion"]


async def test_a_result_that_comes_too_late_is_let_go() -> None:
    async with serving() as (server, client):
        server.item_status = lambda item: 404 if item["taskId"] == "a" else 200
        server.offer("a")
        async with working(client, quick_worker(double, concurrency=1)):
            await until(lambda: any(sent["results"] for _, sent in server.asked))
            server.offer("b")
            await until(lambda: "b" in server.done)
        assert set(server.done) == {"b"}


async def test_one_long_poll_at_a_time() -> None:
    async with serving() as (server, client):
        async with working(client, quick_worker(double, concurrency=10)):
            for number in range(20):
                server.offer(f"t{number}")
                await asyncio.sleep(0.02)
            await until(lambda: len(server.done) == 20)
        # A report may ask for more meanwhile, without waiting.
        assert server.most_polls <= 2
        long = [sent for _, sent in server.asked if not sent["results"]]
        assert all(sent["poll"]["timeout"] == 100 for sent in long)


async def test_large_outputs_travel_in_more_requests() -> None:
    together = asyncio.Barrier(4)

    async def large(_: Task) -> Json:
        await together.wait()
        return {"x": "y" * 1_500_000}

    async with serving() as (server, client):
        server.offer("a", "b", "c", "d")
        async with working(client, quick_worker(large, concurrency=4)):
            await until(lambda: len(server.done) == 4)
        assert max(len(sent["results"]) for _, sent in server.asked) <= 2


async def test_a_fleet_that_stops_finishes_what_it_holds() -> None:
    async def slow(_: Task) -> Json:
        await asyncio.sleep(0.1)
        return {}

    async with serving() as (server, client):
        server.offer(*(f"t{number}" for number in range(50)))
        async with working(client, quick_worker(slow, concurrency=5)) as stop:
            await until(lambda: len(server.done) >= 5)
            stop.set()
        held = 50 - len(server.tasks)
        assert held < 50
        assert len(server.done) == held, "a task was taken and not reported"


async def test_what_a_poll_under_way_brings_is_done_before_a_fleet_stops() -> None:
    async with serving() as (server, client):
        async with working(client, quick_worker(double, poll_timeout_ms=500)) as stop:
            await until(lambda: server.polls == 1)
            stop.set()
            await asyncio.sleep(0.05)
            server.offer("late")
        assert "late" in server.done


async def test_a_fleet_that_cannot_finish_gives_up() -> None:
    async def stuck(_: Task) -> Json:
        await asyncio.sleep(3600)
        return {}

    async with serving() as (server, client):
        server.offer("a")
        stop = asyncio.Event()
        fleet = Fleet(client, [quick_worker(stuck)])
        running = asyncio.ensure_future(fleet.run(stop, grace_s=0.2))
        await until(lambda: not server.tasks)
        stop.set()
        async with asyncio.timeout(3):
            await running
        assert server.done == {}


async def test_a_long_task_keeps_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(_: Task) -> Json:
        await asyncio.sleep(1.3)
        return {}

    async with serving() as (server, client):
        server.offer("a", responseTimeoutSeconds=1)
        async with working(client, quick_worker(long)):
            await until(lambda: "a" in server.done)
            leases = len(server.leases)
            await asyncio.sleep(0.6)
        assert leases == len(server.leases) == 2


async def test_a_server_that_is_away_is_not_hammered() -> None:
    async with serving() as (server, client):
        server.script = [(503, {"message": "away"}, {})] * 10_000
        async with working(client, quick_worker(double)):
            await asyncio.sleep(0.5)
            asked = len(server.asked)
            server.script = []
            server.offer("a")
            await until(lambda: "a" in server.done)
        assert asked < 60
