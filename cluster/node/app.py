"""Puts a node together and runs it: the only place that names an implementation of a port."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvloop
from aiohttp import web

from cluster import __version__
from cluster.clock import Clock, Random, SystemClock, SystemRandom
from cluster.engine.model import Execution
from cluster.engine.step import Surroundings
from cluster.errors import ClusterError, Fenced
from cluster.ids import WorkflowId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node import wire
from cluster.node.api import bulk, health, later, metadata, tasks, workflow
from cluster.node.api.services import Services
from cluster.node.audit import Audit, Parts
from cluster.node.executors.scripts import ScriptPool, check_javascript
from cluster.node.limits import TaskLimits
from cluster.node.metadata import Metadata
from cluster.node.middleware import Edge
from cluster.node.outside import OutsideWorld, PooledScripts, Scripts
from cluster.node.poll import PollDesk
from cluster.node.router import Router
from cluster.node.summaries import describe
from cluster.settings import Settings
from cluster.sharding.checkpoint import Checkpoint
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.dispatch import Dispatcher
from cluster.sharding.idempotency import Keys
from cluster.sharding.plans import Plans
from cluster.sharding.recovery import Recovery
from cluster.sharding.residents import Residents
from cluster.sharding.shard import Sent, Shards
from cluster.sharding.takeover import restart
from cluster.sharding.timers import Timers
from cluster.store.memory import open_memory
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.ports import LogId, PollData, ShardRow, Stores
from cluster.store.queue_ports import QueueItem, TaskQueues, task_type_of
from cluster.store.sql import open_sqlite
from cluster.urls import MemoryUrl, SqliteUrl, parse_store_url

log = get_log(__name__)

ACTIVE_WORKER_MS = 10_000
"""A domain counts as served for this long after a poll (rule 120)."""

_DAY_MS = 24 * 3600 * 1000
_POLL_DATA_EVERY_S = 5
_LAG_EVERY_S = 0.1
_LAST_WRITES_S = 30
_BACKLOG = 1024
# A transition leaves few cycles behind; with the defaults of Python the collector ran for a tenth
# of the time through executions that were all alive.
_GC_THRESHOLDS = (50_000, 20, 100)


def serve(settings: Settings) -> None:
    """Run a node until SIGTERM or SIGINT, then stop in order.

    OSError: the port or the data folder cannot be used. ClusterError: the stores cannot.
    """
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as node:
        sys.stdout.write(f"Podium {__version__} listening on {node.url}\n")
        sys.stdout.flush()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        await node.until(stop)


@asynccontextmanager
async def running(
    settings: Settings, *, clock: Clock | None = None, random: Random | None = None
) -> AsyncIterator["Node"]:
    """A node that serves; leaving the context stops it in order."""
    clock, random = clock or SystemClock(), random or SystemRandom()
    # First the port: who cannot have it must not touch the stores.
    with _listen(settings.host, settings.port) as listening:
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(open_stores(settings))
            own = LogId(f"{settings.node_id}/{random.bits(64):016x}")
            rows = await restart(
                stores,
                own,
                # The stores are locked for this process: whoever wrote before is gone.
                is_predecessor=lambda _: True,
                takes_unowned=True,
                describe=describe,
                clock=clock,
            )
            node = Node(
                settings,
                stores,
                MemoryTaskQueues(),
                own,
                rows,
                scripts=await stack.enter_async_context(_scripts(settings)),
                check_javascript=check_javascript,
                clock=clock,
                random=random,
            )
            await stack.enter_async_context(node.serving(listening))
            yield node


@asynccontextmanager
async def _scripts(settings: Settings) -> AsyncIterator[Scripts]:
    """The processes that run users' scripts; they outlive the node, whose effects use them."""
    pool = ScriptPool(
        workers=settings.script_workers,
        time_limit_ms=settings.script_time_limit_ms,
        memory_bytes=settings.script_memory_bytes,
    )
    await pool.start()
    try:
        yield PooledScripts(pool)
    finally:
        await pool.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """The stores that `store_url` names."""
    match parse_store_url(settings.store_url):
        case SqliteUrl(path):
            async with open_sqlite(Path(path), shard_count=settings.shard_count) as stores:
                yield stores
        case MemoryUrl():
            stores = open_memory(shard_count=settings.shard_count)
            await stores.shards.create(settings.shard_count)
            yield stores
        case url:
            raise NotImplementedError(f"{type(url).__name__} is refused by the command line")


class Node:
    """One process: it owns the shards of `rows` under the log `own`."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        queues: TaskQueues,
        own: LogId,
        rows: Sequence[ShardRow],
        *,
        scripts: Scripts,
        check_javascript: Callable[[str], str | None],
        clock: Clock,
        random: Random,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._queues = queues
        self._clock = clock
        self.metrics = Metrics()
        self.lost: Fenced | None = None
        self.url = ""
        self._is_ready = False
        self._stopped = asyncio.Event()

        self._metadata = Metadata(
            stores.metadata,
            clock,
            check_javascript=check_javascript,
            owner_email_required=settings.owner_email_mandatory,
        )
        self._limits = TaskLimits(self._metadata)
        self._outside = OutsideWorld(
            scripts, self._metadata, input_bytes_max=settings.workflow_payload_bytes_max
        )
        self._items = wire.QueueItems()
        plans = Plans(self._metadata.snapshot_body)
        keys = Keys(stores.executions, ttl_ms=settings.idempotency_ttl_days * _DAY_MS)
        self._timers = Timers(stores.open_set, clock, self.metrics)
        self._dispatcher = Dispatcher(
            queues=queues,
            outside=self._outside,
            timers=self._timers,
            clock=clock,
            ended=self._ended,
        )
        self._checkpoint = Checkpoint(
            stores,
            own,
            describe,
            clock=clock,
            metrics=self.metrics,
            on_written=self._written,
            on_lost=self._lose,
            interval_ms=settings.checkpoint_interval_ms,
            bytes_max=settings.checkpoint_bytes,
        )
        self._log: CommitLog[Sent] = CommitLog(
            stores.logs,
            own,
            clock=clock,
            metrics=self.metrics,
            send=self._dispatcher.send,
            on_committed=self._checkpoint.add,
            on_lost=self._lose,
            entry_bytes_max=settings.log_entry_bytes,
        )
        self._residents = Residents(
            stores.executions,
            plans,
            bytes_max=settings.execution_cache_bytes,
            settle=lambda position: asyncio.ensure_future(self._settle(position)),
        )
        self._keys = keys
        self._shards = Shards(
            {row.shard: row.epoch for row in rows},
            shard_count=settings.shard_count,
            commit_log=self._log,
            residents=self._residents,
            plans=plans,
            definitions=self._metadata,
            surroundings=self._surroundings(),
            clock=clock,
            metrics=self.metrics,
            send=self._dispatcher.send,
            queue_item=self._queue_item,
            run_json=wire.failed_run_json,
        )
        self._dispatcher.shards = self._shards
        self._timers.shards = tuple(self._shards.epochs)
        self._timers.fire = self._shards.deliver
        self._router = Router(
            self._shards,
            metadata=self._metadata,
            plans=plans,
            keys=keys,
            open_set=stores.open_set,
            clock=clock,
            random=random,
            removed=stores.records.remove_task_logs,
        )
        self._outside.router = self._router
        self._recovery = Recovery(
            self._shards,
            residents=self._residents,
            open_set=stores.open_set,
            executions=stores.executions,
            clock=clock,
            on_page=self._relieve,
        )
        self.audit = Audit(
            Parts(
                shards=self._shards,
                residents=self._residents,
                open_set=stores.open_set,
                queues=queues,
                timers=self._timers,
                dispatcher=self._dispatcher,
                recovery=self._recovery,
                commit_log=self._log,
            ),
            clock=clock,
            metrics=self.metrics,
            interval_ms=settings.audit_interval_ms,
            workflows_per_s=settings.audit_workflows_per_s,
            grace_ms=settings.audit_grace_ms,
            on_page=self._relieve,
        )
        self._desk = PollDesk(
            queues=queues,
            owner=self._router,
            clock=clock,
            metrics=self.metrics,
            limits_of=self._limits.of,
            fragment_of=self._items.fragment,
            complete=self._complete,
            counts_holds=False,
        )
        self._edge = Edge(self.metrics, body_bytes_max=settings.body_bytes_max)
        self.services = Services(
            router=self._router,
            metadata=self._metadata,
            limits=self._limits,
            desk=self._desk,
            queues=queues,
            search=stores.search,
            records=stores.records,
            clock=clock,
            random=random,
            metrics=self.metrics,
            settings=settings,
            catch_up=self._checkpoint.flush,
            save_poll_data=self._save_poll_data,
            measure=self._measure,
            is_ready=lambda: self._is_ready,
        )
        for resource in (tasks, bulk, workflow, metadata, health):
            self._edge.add(resource.routes(self.services))
        self._edge.add(later.routes())

    # -- life

    @asynccontextmanager
    async def serving(self, listening: socket.socket) -> AsyncIterator[None]:
        """Serve requests that come in on a socket until the context is left."""
        await self._limits.load()
        await self._metadata.read_task_defs()
        runner = web.ServerRunner(
            self._edge.server(), shutdown_timeout=self._settings.shutdown_timeout_ms / 1000
        )
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(loop)
                for loop in (
                    self._log.run(),
                    self._checkpoint.run(),
                    self._dispatcher.run(),
                    self._timers.run(),
                    self._keep_poll_data(),
                    self._watch_lag(),
                    self._recover(),
                )
            ]
            try:
                await runner.setup()
                await web.SockSite(runner, listening, backlog=_BACKLOG).start()
                host, port = listening.getsockname()[:2]
                self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                yield
            finally:
                await self._stop(runner)
                for loop in loops:
                    loop.cancel()

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`. Fenced: the log was lost, this process may not go on."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._stopped)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.lost is not None:
            raise self.lost

    async def _stop(self, runner: web.ServerRunner) -> None:
        """Take nothing more, answer what is under way, write down what is committed."""
        self._is_ready = False
        self._edge.closing = True
        self._desk.close()
        await runner.cleanup()
        if self.lost is not None:
            return
        try:
            async with asyncio.timeout(_LAST_WRITES_S):
                await self._log.drain()
                await self._checkpoint.flush()
                await self._save_poll_data()
        except (ClusterError, TimeoutError) as error:
            # All of it is in the log: the next process replays it.
            log.warning("stopped before the last checkpoint was written", error=str(error))

    def _lose(self, lost: Fenced) -> None:
        log.error("the commit log is lost, this process stops", error=lost.message)
        self.lost = lost
        self._is_ready = False
        self._stopped.set()

    async def _recover(self) -> None:
        """Have every open workflow issue again what its last process may not have done; then see
        to it, for good, that each of them goes on."""
        try:
            await self._recovery.run()
            await self._log.drain()
        except Fenced:
            return  # Whoever waits for the end of this process has been told.
        await self._dispatcher.all_out()
        self._desk.holds_are_counted()
        self._is_ready = self.lost is None
        await self.audit.run()

    # -- callbacks of the parts

    def _written(self, workflow_ids: Sequence[WorkflowId], position: int) -> None:
        self._residents.written(workflow_ids, position)
        self._keys.written(workflow_ids, position)
        self._relieve()

    def _relieve(self) -> None:
        # The checkpoint under way has written a part only: what the last one wrote may go.
        self._residents.relieve(self._checkpoint.written)

    async def _settle(self, position: int) -> None:
        await self._log.committed(position)
        if self._checkpoint.written < position:
            await self._checkpoint.flush()

    def _queue_item(self, execution: Execution, number: int) -> tuple[str, QueueItem]:
        task = execution.tasks[number]
        self._limits.note_copy(task.type, execution.node_of(task).definition)
        return self._items.item(execution, number)

    def _complete(self, item: QueueItem) -> bytes:
        return wire.complete_payload(
            item.payload, secrets=self._settings.secrets, environment=self._settings.environment
        )

    def _surroundings(self) -> Surroundings:
        settings = self._settings
        return Surroundings(
            environment=settings.environment,
            is_polled=self._is_polled,
            task_definitions=self._metadata.task_defs_at_hand,
            open_tasks_max=settings.open_tasks_max,
            payload_bytes_max=settings.workflow_payload_bytes_max,
            task_output_bytes_max=settings.task_output_bytes_max,
        )

    def _is_polled(self, task_type: str, domain: str, at_ms: int) -> bool:
        poll = self._desk.last_poll(task_type, domain)
        return poll is not None and poll.last_poll_ms >= at_ms - ACTIVE_WORKER_MS

    def _ended(self, workflow_id: WorkflowId) -> None:
        execution = self._residents.executions.get(workflow_id)
        if execution is None or not execution.is_terminal:
            return
        header, metrics = execution.header, self.metrics
        status, name = header.status.value, header.name
        metrics.workflow_execution.of(name, "").observe((header.end_ms - header.create_ms) / 1000)
        metrics.tasks_in_workflow.of(name, str(header.version)).observe(len(execution.tasks))
        if status != "COMPLETED":
            metrics.workflow_failure.of(name, status, "").inc()

    # -- background

    async def _keep_poll_data(self) -> None:
        while True:
            await asyncio.sleep(_POLL_DATA_EVERY_S)
            try:
                await self._save_poll_data()
            except ClusterError as error:
                log.warning("poll data was not saved", error=error.message)

    async def _save_poll_data(self) -> None:
        polls = [
            PollData(poll.task_type, poll.domain or "", poll.worker_id or "", poll.last_poll_ms)
            for poll in self._desk.drain_poll_data()
        ]
        if polls:
            await self._stores.records.put_poll_data(polls)

    async def _watch_lag(self) -> None:
        loop, observe = asyncio.get_running_loop(), self.metrics.event_loop_lag.of().observe
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            observe(max(0.0, loop.time() - due))

    async def _measure(self) -> None:
        """Set the gauges that nobody keeps up to date."""
        metrics, now_ms = self.metrics, self._clock.now_ms()
        waiting: Counter[tuple[str, ...]] = Counter()
        held: Counter[tuple[str, ...]] = Counter()
        ages: dict[tuple[str, ...], float] = {}
        for queue, size in (await self._queues.sizes()).items():
            task_type = task_type_of(queue)
            waiting[task_type, ""] += size.waiting
            held[task_type, ""] += size.held
            if size.oldest_due_ms is not None:
                age = max(0.0, (now_ms - size.oldest_due_ms) / 1000)
                ages[task_type,] = max(age, ages.get((task_type,), 0.0))
        metrics.task_queue_depth.replace(waiting)
        metrics.task_in_progress.replace(held)
        metrics.oldest_pending_age.replace(ages)
        metrics.shard_owned.of().set(len(self._shards.epochs))
        metrics.commit_log_pending_bytes.of().set(
            self._checkpoint.pending_bytes + self._log.pending_bytes
        )
