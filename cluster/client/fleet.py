"""Runs workers: takes tasks in batches, reports in batches, both in one round trip."""

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cluster.client.api import BYTES_MAX, ITEMS_MAX, Client
from cluster.client.backoff import Backoff
from cluster.client.errors import ApiError
from cluster.client.models import ItemResult, Task, TaskResult
from cluster.client.worker import Worker, fail, result_of

log = logging.getLogger(__name__)

_GRACE_S = 60.0
_TAKEN = 200
_REPEATED = (429, 500, 502, 503, 504)
_UNFIT = (400, 413)
_EXTEND_AT = 0.5
"""The part of its response timeout after which a task says that it is still worked on."""
_EXTEND_S_MIN = 0.2


class Fleet:
    """Workers that share a client."""

    def __init__(
        self, client: Client, workers: Sequence[Worker], *, worker_id: str | None = None
    ) -> None:
        """`worker_id` is how the server names this process; by default host and process id."""
        self._client = client
        self._workers = workers
        self._worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}"

    async def run(self, stop: asyncio.Event | None = None, *, grace_s: float = _GRACE_S) -> None:
        """Work until `stop` is set; then finish what is in hand, report it, and return.

        What is not done or not reported `grace_s` later is given up: the server hands it out
        again when its response timeout is over. The same holds if this is cancelled.
        """
        stop = stop or asyncio.Event()
        lines = [_Line(self._client, one, self._worker_id, stop) for one in self._workers]
        working = asyncio.ensure_future(_run_all(lines))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            for line in lines:
                line.changed.set()
            async with asyncio.timeout(grace_s):
                await working
        except TimeoutError:
            log.warning("workers did not finish in %s s; their tasks are given up", grace_s)
        finally:
            stopping.cancel()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            for line in lines:
                line.close()


async def _run_all(lines: "Sequence[_Line]") -> None:
    await asyncio.gather(*(line.run() for line in lines))


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, for `Fleet.run`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


class _Line:
    """One worker: at most one long poll under way, and results as soon as there are any.

    While results travel others gather, so their number adapts to the load by itself; the answer
    brings the tasks for the slots that they have freed.
    """

    def __init__(self, client: Client, worker: Worker, worker_id: str, stop: asyncio.Event) -> None:
        self._client = client
        self._worker = worker
        self._worker_id = worker_id
        self._stop = stop
        self.changed = asyncio.Event()
        self._results: deque[TaskResult] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._parked: asyncio.Task[None] | None = None
        self._asked = 0
        """Slots that polls under way may fill."""
        self._at_once = ITEMS_MAX
        self._failures = Backoff()
        self._threads = (
            None
            if worker.is_async
            else ThreadPoolExecutor(worker.concurrency, f"worker-{worker.task_type}")
        )

    async def run(self) -> None:
        try:
            while True:
                if self._results:
                    await self._report()
                    continue
                if self._stop.is_set():
                    if not self._running and self._parked is None:
                        return
                elif self._parked is None and (room := self._room()):
                    self._asked += room
                    self._parked = asyncio.ensure_future(self._wait_for_tasks(room))
                self.changed.clear()
                await self.changed.wait()
        finally:
            left = [*self._running, *([self._parked] if self._parked else ())]
            for one in left:
                one.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _room(self) -> int:
        if self._stop.is_set():
            return 0
        taken = len(self._running) + self._asked + len(self._results)
        return max(0, min(self._worker.batch, self._worker.concurrency - taken))

    # -- polls and reports

    async def _wait_for_tasks(self, room: int) -> None:
        worker = self._worker
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            _, tasks = await self._client.exchange(
                (),
                worker.task_type,
                count=room,
                timeout_ms=worker.poll_timeout_ms,
                worker_id=self._worker_id,
                domain=worker.domain,
            )
        except ApiError as error:
            log.warning("polling for %s failed: %s", worker.task_type, error)
            await self._pause(error)
        else:
            self._begin(tasks)
            if tasks or loop.time() - began > worker.poll_timeout_ms / 2000:
                self._failures.succeeded()
            else:
                # A server that is about to stop answers at once, with nothing.
                await self._pause(None)
        finally:
            self._asked -= room
            self._parked = None
            self.changed.set()

    async def _report(self) -> None:
        """Send what has gathered, and take tasks for the slots that are free."""
        results = self._next_results()
        worker, room = self._worker, self._room()
        self._asked += room
        try:
            outcomes, tasks = await self._client.exchange(
                results,
                worker.task_type,
                count=room,
                worker_id=self._worker_id,
                domain=worker.domain,
            )
        except ApiError as error:
            log.warning("tasks of %s could not be reported: %s", worker.task_type, error)
            if error.retryable:
                self._results.extendleft(reversed(results))
                await self._pause(error)
            else:
                self._refused(results, error)
        else:
            self._at_once = ITEMS_MAX
            self._begin(tasks)
            if self._look_at(results, outcomes):
                await self._pause(None)
        finally:
            self._asked -= room

    def _next_results(self) -> list[TaskResult]:
        """As many as may travel together."""
        results: list[TaskResult] = []
        size = 0
        while self._results and len(results) < self._at_once:
            output = self._results[0].output_data
            size += len(bytes(output)) if isinstance(output, msgspec.Raw) else 0
            if results and size > BYTES_MAX:
                break
            results.append(self._results.popleft())
        return results

    def _refused(self, results: list[TaskResult], error: ApiError) -> None:
        """The request as a whole: one of them makes it so; send them one by one."""
        self._at_once = 1
        if len(results) == 1:
            self._report_unfit(results[0], error.message)
        else:
            self._results.extendleft(reversed(results))

    def _look_at(self, results: list[TaskResult], outcomes: list[ItemResult]) -> bool:
        """Whether some must be sent again."""
        is_busy = False
        for result, outcome in zip(results, outcomes, strict=True):
            if outcome.status == _TAKEN:
                continue
            if outcome.status in _REPEATED:
                self._results.append(result)
                is_busy = True
            elif outcome.status in _UNFIT:
                self._report_unfit(result, outcome.message or "")
            else:
                # It was timed out, or its workflow has ended or is gone.
                log.info("a result of task %s came too late: %s", result.task_id, outcome.message)
        if not is_busy:
            self._failures.succeeded()
        return is_busy

    def _report_unfit(self, result: TaskResult, message: str) -> None:
        if result.status != "COMPLETED":
            log.error("the server does not take task %s: %s", result.task_id, message)
            return
        fail(result, f"The result was refused: {message}", terminal=True)
        self._results.append(result)

    async def _pause(self, error: ApiError | None) -> None:
        """Back off; not for long once the fleet stops."""
        wait_s = self._failures.next_s(None if error is None else error.retry_after_s)
        if self._stop.is_set():
            await asyncio.sleep(min(wait_s, 1.0))
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            pass

    # -- tasks

    def _begin(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            working = asyncio.ensure_future(self._work(task))
            # Taken out at its own end, before anybody counts the slots again.
            self._running.add(working)

    async def _work(self, task: Task) -> None:
        lease = _Lease(self, task)
        try:
            result = await result_of(
                self._worker, task, worker_id=self._worker_id, threads=self._threads
            )
        finally:
            lease.end()
            working = asyncio.current_task()
            assert working is not None
            self._running.discard(working)
            self.changed.set()
        self._results.append(result)

    def extend(self, task: Task) -> None:
        """Tell the server that a task is still worked on."""
        self._results.append(
            TaskResult(task.workflow_instance_id, task.task_id, "IN_PROGRESS", extend_lease=True)
        )
        self.changed.set()


class _Lease:
    """Of a task with a response timeout, extended for as long as it is worked on."""

    def __init__(self, line: _Line, task: Task) -> None:
        self._line = line
        self._task = task
        self._timer: asyncio.TimerHandle | None = None
        if task.response_timeout_seconds > 0:
            self._arm()

    def _arm(self) -> None:
        wait_s = max(_EXTEND_S_MIN, _EXTEND_AT * self._task.response_timeout_seconds)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._extend)

    def _extend(self) -> None:
        self._line.extend(self._task)
        self._arm()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
