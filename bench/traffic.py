"""Workflows of one task, opened and ended in bulk or one by one, with a ledger of what happened."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import msgspec

from bench.ledger import Ledger
from cluster.client import ApiError, Client, ItemResult, Start, Task, TaskResult

KINDS = ("queued", "waiting")
"""Of tasks: for a worker, or a WAIT of a day."""
PER_REQUEST = 500
_BULK_PATIENCE_S = 5.0
"""After this another node is asked."""
_PAUSE_S = 0.2
_POLL_MS = 500
_SILENCE_S = 15.0
"""So long without a task: what is left is looked up, in case an answer was lost."""
_LOOK_UP_MAX = 1_000
_TRY_LATER = (0, 429, 503)
_RESPONSE_TIMEOUT_S = 60


class Nodes:
    """A client of each node that is there, in turn."""

    def __init__(self, urls: Callable[[], Sequence[str]]) -> None:
        self._urls = urls
        self._clients: dict[str, Client] = {}
        self._turn = 0

    def next(self) -> Client:
        urls = self._urls()
        self._turn += 1
        url = urls[self._turn % len(urls)]
        if url not in self._clients:
            self._clients[url] = Client(url)
        return self._clients[url]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def insist(self, method: str, path: str, body: Any = None, *, limit_s: float = 60) -> Any:
        """One request, at one node after the other until one answers it."""
        encoded = None if body is None else msgspec.json.encode(body)
        deadline_s = time.monotonic() + limit_s
        while True:
            try:
                answer = await self.next().call(method, path, encoded)
                return msgspec.json.decode(answer) if answer else None
            except ApiError as error:
                if not error.retryable or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(error.retry_after_s or _PAUSE_S)


class Traffic:
    """Workflows of one definition, numbered, each with one task whose output is its number."""

    def __init__(self, nodes: Nodes, ledger: Ledger, name: str, *, kind: str = "queued") -> None:
        self._nodes = nodes
        self.ledger = ledger
        self.name = name
        self._kind = kind
        self.strays: set[str] = set()
        """Workflows whose tasks were handed out and that the ledger does not know."""
        self.handed_out_again = 0
        self.troubles: Counter[str] = Counter()
        """Requests that failed and were repeated."""
        self.latencies_s: list[float] = []
        """Of the starts of `live`."""
        self._more_to_come = False
        self._is_stopped = False
        self._heard_s = 0.0

    async def register(self) -> None:
        definition = {
            "name": self.name,
            "version": 1,
            "schemaVersion": 2,
            "ownerEmail": "load@example.com",
            "timeoutSeconds": 0,
            "tasks": [self._task()],
            "outputParameters": {"v": "${t.output.v}"},
        }
        task = {
            "name": self.name,
            "retryCount": 3,
            "retryLogic": "FIXED",
            "retryDelaySeconds": 0,
            "timeoutSeconds": 0,
            "responseTimeoutSeconds": _RESPONSE_TIMEOUT_S,
            "ownerEmail": "load@example.com",
        }
        await self._nodes.insist("POST", "/metadata/taskdefs", [task])
        await self._nodes.insist("PUT", "/metadata/workflow", [definition])

    def _task(self) -> dict[str, Any]:
        input_parameters = {"n": "${workflow.input.n}"}
        if self._kind == "waiting":
            input_parameters["duration"] = "86400 seconds"
        return {
            "name": self.name,
            "taskReferenceName": "t",
            "type": "WAIT" if self._kind == "waiting" else "SIMPLE",
            "inputParameters": input_parameters,
        }

    # -- in bulk

    async def open(self, upto: int, *, requests: int, on_progress: Callable[[int], None]) -> None:
        """Start all numbers below `upto` that were not started yet."""
        numbers = self.ledger.unstarted(upto)

        async def producer() -> None:
            left: list[int] = []
            while left := left or list(islice(numbers, PER_REQUEST)):
                left = await self._start(left)
                on_progress(self.ledger.count)
                if left:
                    await asyncio.sleep(_PAUSE_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(producer())

    async def _start(self, numbers: list[int]) -> list[int]:
        """Returns those that have to be started again, under their old keys."""
        starts = [self._of(number) for number in numbers]
        results = await self._nodes.next().bulk_start(starts, patience_s=_BULK_PATIENCE_S)
        taken = [(numbers[one.index], one.id) for one in results if one.is_taken and one.id]
        if taken:
            await self.ledger.started(taken)
        again = [one for one in results if not one.is_taken]
        self._check(again)
        return [numbers[one.index] for one in again]

    def _of(self, number: int) -> Start:
        return Start(self.name, {"n": number}, version=1, idempotency_key=f"{self.name}-{number}")

    def _check(self, failed: Sequence[ItemResult]) -> None:
        for one in failed:
            if one.status not in _TRY_LATER:
                raise RuntimeError(f"refused for good: {one.status} {one.message}")
            self.troubles[f"{one.status} {one.message or ''}"[:80]] += 1

    async def drain(self, *, workers: int, on_progress: Callable[[int], None]) -> None:
        """Be the workers, until all that was started has ended."""
        self._heard_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(f"w{number}", on_progress))

    async def _work(self, worker_id: str, on_progress: Callable[[int], None]) -> None:
        results: list[TaskResult] = []
        numbers: list[int] = []
        while results or self._has_work():
            try:
                done, tasks = await self._nodes.next().exchange(
                    results,
                    self.name,
                    count=PER_REQUEST if len(results) <= PER_REQUEST else 0,
                    timeout_ms=0 if results else _POLL_MS,
                    worker_id=worker_id,
                )
            except ApiError as error:
                self.troubles[str(error)[:80]] += 1
                await asyncio.sleep(error.retry_after_s or _PAUSE_S)
                continue
            again = [one for one in done if not one.is_taken]
            self._check(again)
            taken = [numbers[one.index] for one in done if one.is_taken]
            if taken:
                await self.ledger.reported(taken)
                on_progress(self.ledger.done)
            results = [results[one.index] for one in again]
            numbers = [numbers[one.index] for one in again]
            for task in tasks:
                numbers.append(self._number_of(task))
                results.append(self._result_of(task, worker_id))
            if tasks:
                self._heard_s = time.monotonic()
            elif not results and time.monotonic() - self._heard_s > _SILENCE_S:
                await self._look_up()

    def _has_work(self) -> bool:
        return self._more_to_come or self.ledger.done < self.ledger.count

    def _number_of(self, task: Task) -> int:
        number = int(task.input_data["n"])
        if self.ledger.has_ended(number):
            self.handed_out_again += 1
        if not self.ledger.is_started(number):
            return number  # The answer to its start is on its way.
        if self.ledger.id_of(number) != task.workflow_instance_id:
            self.strays.add(task.workflow_instance_id)
        return number

    def _result_of(self, task: Task, worker_id: str) -> TaskResult:
        return TaskResult(
            task.workflow_instance_id,
            task.task_id,
            "COMPLETED",
            {"v": task.input_data["n"]},
            worker_id=worker_id,
        )

    async def _look_up(self) -> None:
        """Those that ended without our having heard of it, as after a crash of the client."""
        self._heard_s = time.monotonic()
        ended = []
        for number in islice(self.ledger.open(), _LOOK_UP_MAX):
            path = f"/workflow/{self.ledger.id_of(number)}?includeTasks=false"
            if (await self._nodes.insist("GET", path))["status"] == "COMPLETED":
                ended.append(number)
        if ended:
            await self.ledger.reported(ended)
            self._heard_s = 0.0

    # -- one by one

    async def live(self, *, per_s: float, workers: int) -> None:
        """Start workflows one by one at a rate, and be their workers, until `stop`; returns when
        all of them have ended."""
        self._more_to_come = True
        self._heard_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(f"live{number}", lambda _: None))
            # What an interrupted run may have started comes first.
            upto = len(self.ledger)
            starting = {
                group.create_task(self._start_one(number)) for number in self.ledger.unstarted(upto)
            }
            next_s = time.monotonic()
            while not self._is_stopped:
                starting.add(group.create_task(self._start_one(upto)))
                upto += 1
                next_s += 1 / per_s
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
                starting = {one for one in starting if not one.done()}
            await asyncio.gather(*starting)
            self._more_to_come = False

    def stop(self) -> None:
        """No more starts of `live`."""
        self._is_stopped = True

    async def _start_one(self, number: int) -> None:
        began_s = time.monotonic()
        body = msgspec.json.encode(self._of(number))
        while True:
            try:
                answer = await self._nodes.next().call("POST", "/workflow", body)
                break
            except ApiError as error:
                if not error.retryable:
                    raise
                self.troubles[str(error)[:80]] += 1
                await asyncio.sleep(error.retry_after_s or _PAUSE_S)
        await self.ledger.started([(number, answer.decode().strip('"'))])
        self.latencies_s.append(time.monotonic() - began_s)


def percentiles_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest."""
    ordered = sorted(latencies_s)
    if not ordered:
        return {}
    last = len(ordered) - 1
    found = {"p50": ordered[last // 2], "p99": ordered[last * 99 // 100], "max": ordered[-1]}
    return {name: round(value * 1000, 1) for name, value in found.items()}
