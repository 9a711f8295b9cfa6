"""A client for many requests at once, and a watch on how long others wait meanwhile."""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

Json = dict[str, Any]
MEDIAN_MS, SLOW_MS, WORST_MS = 400, 1200, 6000
"""How long somebody else's workflow may take while a large or a hostile one runs. It takes a few
milliseconds; a step that held the node's loop to its end would take many seconds. Slow machines are
slower than their load says."""
ENOUGH = 60
"""Runs of which one in twenty says something that the worst does not."""
ENDED = ("COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED")


class Client:
    """Conductor's API over as many connections as it takes."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = f"{url}/api"
        self._session = session

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        """Status and decoded body; text that is no JSON stays text."""
        async with self._session.request(
            method,
            self.url + path,
            data=None if body is None else orjson.dumps(body),
            headers={"Content-Type": "application/json"},
            params={key: str(value) for key, value in query.items() if value is not None},
        ) as response:
            content = await response.read()
            if not content:
                return response.status, None
            if response.content_type == "text/plain":
                return response.status, content.decode()
            return response.status, orjson.loads(content)

    async def ok(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The answer of a success. What a busy node refuses is asked again, as it says."""
        status, answer = await self.call(method, path, body, **query)
        while status == 429:
            await asyncio.sleep(answer["retryAfterMs"] / 1000)
            status, answer = await self.call(method, path, body, **query)
        assert status in (200, 204), (status, answer)
        return answer

    async def register(self, name: str, *tasks: Json, **fields: Any) -> None:
        definition = {"name": name, "version": 1, "schemaVersion": 2, "tasks": tasks} | fields
        await self.ok("PUT", "/metadata/workflow", [definition])

    async def task_def(self, name: str, **fields: Any) -> None:
        definition = {"name": name, "ownerEmail": "tests@example.com", "retryCount": 0} | fields
        await self.ok("POST", "/metadata/taskdefs", [definition])

    async def start(self, name: str, input: Json | None = None, **fields: Any) -> str:
        request = {"name": name, "input": input or {}} | fields
        return str(await self.ok("POST", "/workflow", request))

    async def poll(
        self, task_type: str, *, count: int = 1, timeout_ms: int = 5000, domain: str | None = None
    ) -> list[Json]:
        path = f"/tasks/poll/batch/{task_type}"
        found = await self.ok("GET", path, count=count, timeout=timeout_ms, domain=domain)
        assert isinstance(found, list)
        return found

    async def report(self, task: Json, status: str = "COMPLETED", **fields: Any) -> None:
        result = {
            "workflowInstanceId": task["workflowInstanceId"],
            "taskId": task["taskId"],
            "status": status,
        }
        await self.ok("POST", "/tasks", result | fields)

    async def status(self, workflow_id: str) -> str:
        return str((await self.ok("GET", f"/workflow/{workflow_id}/status"))["status"])

    async def run(self, workflow_id: str) -> Json:
        """The whole run with its tasks."""
        run = await self.ok("GET", f"/workflow/{workflow_id}")
        assert isinstance(run, dict)
        return run

    async def ended(self, workflow_id: str, *, deadline_s: float = 60) -> Json:
        """The run, once it has ended."""

        async def has_ended() -> bool:
            return await self.status(workflow_id) in ENDED

        await until(has_ended, deadline_s=deadline_s)
        return await self.run(workflow_id)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(url, session)


async def until(is_true: Callable[[], Awaitable[bool]], *, deadline_s: float = 60) -> None:
    """Wait for a condition; asks at intervals that grow with the time it takes."""
    began = time.monotonic()
    while not await is_true():
        waited_s = time.monotonic() - began
        assert waited_s < deadline_s, "this did not come true in time"
        await asyncio.sleep(min(0.01 + waited_s / 20, 0.5))


class Bystander:
    """Somebody else's workflows, started one after the other: how long each of them took."""

    NAME = "bystander"

    def __init__(self) -> None:
        self.took_ms: list[float] = []

    @property
    def median_ms(self) -> float:
        return statistics.median(self.took_ms)

    @property
    def slow_ms(self) -> float:
        """What one in twenty exceeds."""
        return sorted(self.took_ms)[int(len(self.took_ms) * 0.95)]

    @property
    def worst_ms(self) -> float:
        return max(self.took_ms)

    def check(self) -> None:
        """Nobody held the node's loop: as a whole they took next to nothing, hardly one was slow,
        and none waited for long. A machine that others keep busy gets more time for it."""
        shared_by = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert self.median_ms < MEDIAN_MS * shared_by, self
        if len(self.took_ms) >= ENOUGH:
            # Of a few runs one in twenty is the worst of them, which has a bound of its own.
            assert self.slow_ms < SLOW_MS * shared_by, self
        assert self.worst_ms < WORST_MS * shared_by, self

    def __repr__(self) -> str:
        return (
            f"{len(self.took_ms)} runs, median {self.median_ms:.0f} ms, one in twenty above "
            f"{self.slow_ms:.0f} ms, worst {self.worst_ms:.0f} ms"
        )


@asynccontextmanager
async def bystander(client: Client, *tasks: Json) -> AsyncIterator[Bystander]:
    """Runs `tasks`, by default a step that a script engine is needed for, for as long as the
    context; each start answers when its run has ended."""
    await client.register(Bystander.NAME, *(tasks or (inline("i", "[$.n].map(n => n + 1)[0]"),)))
    seen = Bystander()
    stop = asyncio.Event()

    async def look() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            workflow_id = await client.start(Bystander.NAME, {"n": 1})
            seen.took_ms.append((time.perf_counter() - began) * 1000)
            assert await client.status(workflow_id) == "COMPLETED"
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        stop.set()
        await looking


def simple(ref: str, task_type: str, **fields: Any) -> Json:
    return {"name": task_type, "taskReferenceName": ref, "type": "SIMPLE"} | fields


def inline(ref: str, expression: str, **inputs: Any) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "INLINE",
        "inputParameters": {
            "evaluatorType": "graaljs",
            "expression": expression,
            "n": "${workflow.input.n}",
        }
        | inputs,
    }


def join(ref: str, *on: str) -> Json:
    return {"name": ref, "taskReferenceName": ref, "type": "JOIN", "joinOn": on}


def loop(ref: str, condition: str, *tasks: Json, **fields: Any) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "DO_WHILE",
        "loopCondition": condition,
        "loopOver": tasks,
        "inputParameters": {"n": "${workflow.input.n}"},
    } | fields


def dynamic_fork(ref: str) -> Json:
    """Branches in the input: `tasks`, a list of steps, and `inputs`, by reference name."""
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "FORK_JOIN_DYNAMIC",
        "dynamicForkTasksParam": "tasks",
        "dynamicForkTasksInputParamName": "inputs",
        "inputParameters": {
            "tasks": "${workflow.input.tasks}",
            "inputs": "${workflow.input.inputs}",
        },
    }


def overlapping_max(spans: Sequence[tuple[int, int]]) -> int:
    """How many of these (begin, end) held at once, at most; an end frees its place at once."""
    events = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most
