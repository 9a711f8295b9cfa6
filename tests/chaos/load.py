"""The client: producers and workers that go on whatever becomes of the server, and note it all."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import aiohttp
import orjson

from tests.chaos.definitions import (
    ENDED,
    KINDS,
    TASK_TYPES,
    Json,
    answer,
    task_definitions,
    workflow_definitions,
)
from tests.chaos.ledger import Ledger

PRODUCERS = 40
POLLERS = 2
"""Per task type."""
TIMEOUT_S = 15.0
"""Of a request."""

GIVE_UP_S = 5.0
"""From hand-over to the last attempt to report: well within the response timeout."""

_WORK_S = (0.05, 1.5)
_FORGET_MS = 10_000
_POLL_COUNT = 20
_POLL_MS = 1_000
_PAUSE_S = 0.05
_KEYED = 0.3
"""Share of the starts that carry an idempotency key."""

_LOST = (aiohttp.ClientError, TimeoutError, ConnectionError)
"""No answer: what was asked for may have happened or not."""


class Asked(NamedTuple):
    """One request, and what became of it."""

    what: str
    url: str
    sent_s: float
    """By the loop's clock."""
    took_s: float
    status: int
    """0: it never got an answer."""


class Load:
    """Keeps about `open_target` workflows open. `seed` decides what is started, in which order."""

    def __init__(
        self, pick: Callable[[], str], ledger: Ledger, *, seed: int, open_target: int
    ) -> None:
        """`pick` chooses where the next request goes: the address of a node."""
        self._pick = pick
        self.asked: list[Asked] = []
        self.open_target = open_target
        self.in_flight: Counter[str] = Counter()
        """Requests sent and not answered: start, update, poll, terminate."""
        self.lost: Counter[str] = Counter()
        """Requests that never got an answer."""
        self.takes_unavailable = False
        """Whether 503 is no surprise: the store is away. It says as little as no answer."""
        self.unexpected: list[str] = []
        """Answers that no client should see."""
        self._ledger = ledger
        self._random = Random(seed)
        self._session: aiohttp.ClientSession
        self._producing = True
        self._count = 0
        self.name = f"{now_ms():x}-"
        """What its intents begin with: another load on the same stores has others."""
        self._missing: dict[str, tuple[int, int]] = {}
        """Intent → results it still needs, start in Unix ms; oldest first. Only to steer by: that
        enough was open is proven by the server's own times."""

    @property
    def open(self) -> int:
        """About how many workflows are open; old ones may have ended unnoticed and do not count."""
        while self._missing:
            intent, (_, start_ms) = next(iter(self._missing.items()))
            if start_ms > now_ms() - _FORGET_MS:
                break
            del self._missing[intent]
        return len(self._missing)

    @property
    def writes_in_flight(self) -> int:
        return self.in_flight.total() - self.in_flight["poll"]

    async def register(self) -> None:
        """Register all definitions."""
        url = self._pick()
        async with aiohttp.ClientSession() as session:
            for method, path, body in (
                ("POST", "/api/metadata/taskdefs", task_definitions()),
                # They may be there: of an earlier load on the same stores.
                ("PUT", "/api/metadata/workflow", workflow_definitions()),
            ):
                async with session.request(method, url + path, json=body) as response:
                    assert response.status == 200, await response.text()

    async def run(self) -> None:
        """Start and work off workflows until cancelled."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=5)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session,
            asyncio.TaskGroup() as self._group,
        ):
            for _ in range(PRODUCERS):
                self._group.create_task(self._produce())
            for task_type in TASK_TYPES:
                for number in range(POLLERS):
                    self._group.create_task(self._poll(task_type, f"{task_type}-{number}"))

    def stop_producing(self) -> None:
        self._producing = False

    # -- producers

    async def _produce(self) -> None:
        kinds = [kind for kind in KINDS.values() if kind.is_started]
        weights = [kind.weight for kind in kinds]
        while self._producing:
            if self.open >= self.open_target:
                await asyncio.sleep(_PAUSE_S)
                continue
            self._count += 1
            (kind,) = self._random.choices(kinds, weights)
            # Whose id nobody knows nobody can terminate: such a start is repeated.
            is_keyed = kind.name == ENDED or self._random.random() < _KEYED
            await self._start(
                f"{self.name}{self._count}", kind.name, self._random.randrange(1000), is_keyed
            )

    async def _start(self, intent: str, kind: str, value: int, is_keyed: bool) -> None:
        body: Json = {
            "name": kind,
            "version": 1,
            "correlationId": intent,
            "input": {"intent": intent, "value": value},
        }
        if is_keyed:
            body["idempotencyKey"] = intent
        self._ledger.jot("intent", intent=intent, name=kind, value=value, is_keyed=is_keyed)
        while True:
            status, text = await self._call("start", "POST", "/api/workflow", body)
            if status == 429:  # Nothing was done, and the node says so.
                await asyncio.sleep(_PAUSE_S)
                continue
            if status:
                break
            if not is_keyed:
                # It may have happened. To repeat it could start a second one.
                return
            await asyncio.sleep(_PAUSE_S)
        if status != 200:
            self.unexpected.append(f"start: {status} {text[:200]!r}")
            return
        workflow_id = text.decode()
        await self._ledger.note("started", intent=intent, workflow_id=workflow_id)
        self._missing[intent] = (max(1, KINDS[kind].results), now_ms())
        if kind == ENDED:
            self._group.create_task(self._terminate(intent, workflow_id))

    async def _terminate(self, intent: str, workflow_id: str) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 2.0))
        path = f"/api/workflow/{workflow_id}?reason=enough"
        while True:
            status, text = await self._call("terminate", "DELETE", path)
            if status == 200:
                await self._ledger.note("terminated", workflow_id=workflow_id)
                self._missing.pop(intent, None)
                return
            if status:
                self.unexpected.append(f"terminate: {status} {text[:200]!r}")
                return
            await asyncio.sleep(_PAUSE_S)

    # -- workers

    async def _poll(self, task_type: str, worker_id: str) -> None:
        path = (
            f"/api/tasks/poll/batch/{task_type}"
            f"?workerid={worker_id}&count={_POLL_COUNT}&timeout={_POLL_MS}"
        )
        while True:
            status, text = await self._call("poll", "GET", path)
            if not status:
                await asyncio.sleep(_PAUSE_S)
                continue
            if status != 200:
                self.unexpected.append(f"poll: {status} {text[:200]!r}")
                await asyncio.sleep(_PAUSE_S)
                continue
            for task in orjson.loads(text):
                self._group.create_task(self._work(task, worker_id))

    async def _work(self, task: Json, worker_id: str) -> None:
        intent = task["inputData"]["intent"]
        if not intent.startswith(self.name):
            return  # What an earlier load has left.
        deadline = asyncio.get_running_loop().time() + GIVE_UP_S
        await asyncio.sleep(self._random.uniform(*_WORK_S))
        result, output = answer(task)
        body = {
            "workflowInstanceId": task["workflowInstanceId"],
            "taskId": task["taskId"],
            "workerId": worker_id,
            "status": result,
            "outputData": output,
        }
        # Half of the workers ask for the next task in the same request.
        path = "/api/tasks" if self._random.random() < 0.5 else "/api/tasks/update-v2"
        while asyncio.get_running_loop().time() < deadline:
            status, text = await self._call("update", "POST", path, body)
            answered_ms = now_ms()
            if not status:
                await asyncio.sleep(_PAUSE_S)
                continue
            if status not in (200, 204):
                self.unexpected.append(f"update: {status} {text[:200]!r}")
                return
            await self._ledger.note(
                "result",
                workflow_id=task["workflowInstanceId"],
                task_id=task["taskId"],
                status=result,
                output=output,
                answered_ms=answered_ms,
            )
            self._count_result(intent)
            if path.endswith("v2") and status == 200:
                self._group.create_task(self._work(orjson.loads(text), worker_id))
            return

    def _count_result(self, intent: str) -> None:
        left, start_ms = self._missing.get(intent, (0, 0))
        if left > 1:
            self._missing[intent] = (left - 1, start_ms)
        elif left == 1:
            del self._missing[intent]

    # -- requests

    async def _call(self, what: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """(HTTP status, body) of an answer that came whole; (0, b"") for one that did not."""
        self.in_flight[what] += 1
        url = self._pick()
        time_s = asyncio.get_running_loop().time
        sent_s, status, text = time_s(), 0, b""
        try:
            async with self._session.request(
                method,
                url + path,
                data=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"},
            ) as response:
                text = await response.read()
                status = response.status
        except _LOST:
            self.lost[what] += 1
        finally:
            self.in_flight[what] -= 1
        self.asked.append(Asked(what, url, sent_s, time_s() - sent_s, status))
        if status == 503 and self.takes_unavailable:
            status = 0
        return status, text if status else b""


def now_ms() -> int:
    """Unix time, on the clock that the server has too."""
    return time.time_ns() // 1_000_000
