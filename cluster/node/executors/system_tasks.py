"""Executors: what takes system tasks out of their queues, carries them out, reports."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import msgspec

from cluster.clock import Clock
from cluster.engine import payloads
from cluster.engine.events import TaskExecuted, TaskHeld
from cluster.engine.transitions import TaskStatus
from cluster.errors import ClusterError, Conflict, NotFound
from cluster.ids import WorkflowId, number_of, workflow_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node.poll import TIMEOUT_MS_MAX, PollDesk, Polled
from cluster.store.queue_ports import QueueItem
from cluster.system_tasks import Again, Done, SystemTask, Work, WorkFailed

log = get_log(__name__)

_PAUSE_S, _PAUSE_S_MAX = 0.5, 10.0
_LATE_S_MAX = 600
"""A result that nobody takes for so long is dropped: another executor has the task by then."""

Event = TaskHeld | TaskExecuted

_read_work = msgspec.json.Decoder(Work).decode


class Executors:
    """The executors of one node: for each type a loop that polls, and a bounded number of tasks
    that are being carried out."""

    def __init__(
        self,
        system_tasks: Mapping[str, SystemTask],
        *,
        desk: PollDesk,
        submit: Callable[[WorkflowId, Event], Awaitable[None]],
        node_id: str,
        at_once: Callable[[str], int],
        lease_ms: int,
        time_limit_ms: int,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`submit` takes an event to the owner of a workflow, wherever that is; `at_once` says how
        many tasks of a type are carried out here at a time; `time_limit_ms` is for one of them."""
        self._system_tasks = system_tasks
        self._desk = desk
        self._submit = submit
        self._node_id = node_id
        self._at_once = at_once
        self._lease_ms = lease_ms
        self._time_limit_ms = time_limit_ms
        self._clock = clock
        self._metrics = metrics
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Carry out system tasks until the poll desk closes or the caller cancels."""
        async with asyncio.TaskGroup() as group:
            for task_type, system_task in self._system_tasks.items():
                group.create_task(self._serve(task_type, system_task))

    async def finish(self, timeout_ms: int) -> None:
        """Wait for what is under way. What takes longer is cut short: its lease runs out, and it
        is carried out again elsewhere."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout_ms / 1000)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _serve(self, task_type: str, system_task: SystemTask) -> None:
        room = asyncio.Semaphore(self._at_once(task_type))
        under_way = self._metrics.system_tasks_under_way.of(task_type)
        while not self._desk.is_closed:
            count = await _take(room)
            polled = Polled("")
            try:
                polled = await self._desk.poll(
                    task_type=task_type,
                    domain=None,
                    worker_id=self._node_id,
                    count=count,
                    timeout_ms=TIMEOUT_MS_MAX,
                    by_executor=True,
                )
            finally:
                for _ in range(count - len(polled.bodies)):
                    room.release()
            for item, body in zip(polled.items, polled.bodies, strict=True):
                task = asyncio.create_task(self._carry_out(system_task, item, body))
                self._under_way.add(task)
                under_way.inc()

                def ended(task: asyncio.Task[None]) -> None:
                    self._under_way.discard(task)
                    under_way.inc(-1)
                    room.release()

                task.add_done_callback(ended)

    async def _carry_out(self, system_task: SystemTask, item: QueueItem, body: bytes) -> None:
        work = _read_work(body)
        began_ms = self._clock.monotonic_ms()
        working = asyncio.create_task(self._outcome(system_task, work, item))
        keeping = asyncio.create_task(self._keep_lease(item, working))
        try:
            report = await working
        except asyncio.CancelledError:
            if working.cancelled() and not _is_cancelling():
                # Its workflow has ended, or somebody else has it: there is nothing to report.
                self._count(work.task_type, "dropped", began_ms)
                return
            working.cancel()
            await asyncio.wait([working])
            raise
        finally:
            keeping.cancel()
        self._count(work.task_type, report.status.value, began_ms)
        await self._report(workflow_of(item.task_id), report)

    async def _outcome(self, system_task: SystemTask, work: Work, item: QueueItem) -> TaskExecuted:
        """What the work came to; whatever it raises is a failed attempt."""
        try:
            async with asyncio.timeout(self._time_limit_ms / 1000) as limit:
                outcome = await system_task.execute(work)
            if isinstance(outcome, Again):
                pause_s = max(1, outcome.after_s)
                return self._executed(item, TaskStatus.IN_PROGRESS, outcome, after_s=pause_s)
            return self._executed(item, TaskStatus.COMPLETED, outcome)
        except WorkFailed as failure:
            status = TaskStatus.FAILED
            if failure.is_final:
                status = TaskStatus.FAILED_WITH_TERMINAL_ERROR
            with suppress(TypeError, ValueError):
                return self._executed(item, status, Done(failure.output), reason=failure.reason)
            reason = failure.reason
        except TimeoutError as failure:
            reason = str(failure) or "A call timed out"
            if limit.expired():
                reason = f"Not done within {self._time_limit_ms} ms"
        except Exception as failure:
            log.exception("a system task failed", task_id=item.task_id, task_type=work.task_type)
            reason = f"{type(failure).__name__}: {failure}"
        return self._executed(item, TaskStatus.FAILED, Done(), reason=reason)

    def _executed(
        self,
        item: QueueItem,
        status: TaskStatus,
        outcome: Done | Again,
        *,
        reason: str | None = None,
        after_s: int = 0,
    ) -> TaskExecuted:
        return TaskExecuted(
            self._clock.now_ms(),
            number_of(item.task_id),
            self._node_id,
            item.delivery,
            status,
            output=payloads.dump_map(outcome.output),
            reason=reason,
            callback_after_s=after_s,
        )

    async def _keep_lease(self, item: QueueItem, working: asyncio.Task[TaskExecuted]) -> None:
        """Say that the task is being worked on, until it is not wanted any more."""
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            held = TaskHeld(
                self._clock.now_ms(), number_of(item.task_id), self._node_id, item.delivery
            )
            try:
                await self._submit(workflow_of(item.task_id), held)
            except (Conflict, NotFound):
                working.cancel()
                return
            except ClusterError as error:
                log.info("a lease was not renewed", task_id=item.task_id, error=error.message)

    async def _report(self, workflow_id: WorkflowId, report: TaskExecuted) -> None:
        """Have the owner take a result, however long its shard is in motion."""
        until_ms = self._clock.monotonic_ms() + _LATE_S_MAX * 1000
        pause_s = _PAUSE_S
        while True:
            try:
                await self._submit(workflow_id, report)
                return
            except NotFound:
                return  # The workflow was removed.
            except ClusterError as error:
                log.warning("a result was not taken", workflow_id=workflow_id, error=error.message)
                if self._clock.monotonic_ms() >= until_ms:
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def _count(self, task_type: str, outcome: str, began_ms: int) -> None:
        took_s = (self._clock.monotonic_ms() - began_ms) / 1000
        self._metrics.system_task_seconds.of(task_type, outcome).observe(took_s)


async def _take(room: asyncio.Semaphore) -> int:
    """Wait for one place, and take all that there are."""
    await room.acquire()
    count = 1
    while not room.locked():
        await room.acquire()
        count += 1
    return count


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
