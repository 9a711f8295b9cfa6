"""Puts a node together and runs it."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import uvloop
from aiohttp import web

from cluster import __version__
from cluster.clock import Clock, Random, SystemClock, SystemRandom
from cluster.errors import ClusterError, Fenced
from cluster.logs import get_log
from cluster.metrics import MEMBER_STATES, Metrics
from cluster.node import wire
from cluster.node.api import (
    bulk,
    bulk_start,
    cluster,
    exchange,
    health,
    jobs,
    later,
    metadata,
    tasks,
    workflow,
)
from cluster.node.api.services import Services
from cluster.node.elsewhere import Elsewhere
from cluster.node.executors.scripts import ScriptPool, check_javascript
from cluster.node.fragments import StoredFragments
from cluster.node.ground import open_ground
from cluster.node.hand_outs import HandOuts
from cluster.node.incarnation import Front, Home, Incarnation
from cluster.node.jobs import BulkJobs
from cluster.node.limits import TaskLimits
from cluster.node.link import Links, WebSocketLinks
from cluster.node.link_server import LinkServer, is_link
from cluster.node.metadata import Changes, Metadata
from cluster.node.middleware import Edge
from cluster.node.outside import OutsideWorld, PooledScripts, Scripts
from cluster.node.overview import Overview
from cluster.node.poll import PollDesk
from cluster.node.poll_book import PollBook
from cluster.node.router import Router
from cluster.node.summaries import describe_replayed
from cluster.settings import Settings
from cluster.sharding.membership import Presence
from cluster.sharding.plans import Plans
from cluster.sharding.routes import Routes
from cluster.sharding.takeover import restart
from cluster.store.lease_ports import Leases, Member, Membership
from cluster.store.ports import LogId, Stores
from cluster.store.queue_ports import QueueItem, Queues, task_type_of

log = get_log(__name__)

_LAG_EVERY_S = 0.1
_LAST_WRITES_S = 30
_LAST_LINKS_S = 1
_PAUSE_S = 1
"""Before a new log is tried again."""
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
    with _listen(settings.host, settings.port, is_shared=settings.processes > 1) as listening:
        async with AsyncExitStack() as stack:
            ground = await stack.enter_async_context(open_ground(settings, clock, random))
            node = Node(
                settings,
                ground.stores,
                ground.queues,
                ground.leases,
                ground.membership,
                is_alone=ground.is_alone,
                holds_folder=not ground.is_alone,
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


def _listen(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=is_shared
        )
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error


class Node:
    """One process: the HTTP front, and behind it one incarnation after the other."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        queues: Queues,
        leases: Leases,
        membership: Membership,
        *,
        is_alone: bool,
        scripts: Scripts,
        check_javascript: Callable[[str], str | None],
        clock: Clock,
        random: Random,
        holds_folder: bool = False,
        links: Links | None = None,
    ) -> None:
        """`is_alone`: the stores are locked for this process, so whoever wrote before is gone.
        `holds_folder`: no other process of this node is there, so its logs are nobody's.
        `links` to other nodes: websockets if they are not given."""
        self._settings = settings
        self._stores = stores
        self._queues = queues
        self._leases = leases
        self._is_alone = is_alone
        self._holds_folder = holds_folder
        self._clock = clock
        self._random = random
        self._began_ms = clock.now_ms()
        self._past: set[LogId] = set()
        """The logs that this process has had."""
        self.metrics = Metrics()
        self.lost: Fenced | None = None
        """Why this process cannot go on."""
        self.url = ""
        self.link = ""
        """Where other nodes reach this one: `host:port`."""
        self.home = Home()
        self._routes = Routes(stores.shards, membership)
        self.presence = Presence(
            membership,
            self._routes,
            self._member,
            clock=clock,
            heartbeat_ms=settings.heartbeat_ms,
            ttl_ms=settings.lease_ttl_ms,
        )
        self._is_closing = False
        self._draining: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()

        self._metadata = Metadata(
            stores.metadata,
            clock,
            check_javascript=check_javascript,
            owner_email_required=settings.owner_email_mandatory,
            changes=None if is_alone else Changes(stores.metadata),
        )
        self._limits = TaskLimits(self._metadata)
        self._metadata.on_change = self._limits.load
        items = wire.QueueItems()
        plans = Plans(self._metadata.snapshot_body)
        self._links = links or WebSocketLinks(
            node_id=settings.node_id,
            token=settings.link_token,
            clock=clock,
            metrics=self.metrics,
        )
        self._router = Router(
            self.home,
            None if is_alone else Elsewhere(self._routes, self._links, node_id=settings.node_id),
            metadata=self._metadata,
            plans=plans,
            open_set=stores.open_set,
            clock=clock,
            random=random,
            metrics=self.metrics,
            removed=stores.records.remove_task_logs,
            shard_count=settings.shard_count,
            timeout_ms=settings.route_timeout_ms,
        )
        self._hand_outs = HandOuts(
            queues, submit=self._router.submit, clock=clock, metrics=self.metrics
        )
        self._desk = PollDesk(
            queues=queues,
            owner=self._router,
            clock=clock,
            metrics=self.metrics,
            limits_of=self._limits.of,
            fragment_of=items.fragment,
            complete=self._complete,
            fragments=None if is_alone else StoredFragments(items, plans, self._limits),
            counts_holds=False,
        )
        self._poll_book = PollBook(self._desk, stores.records, clock, is_shared=not is_alone)
        self._front = Front(
            settings=settings,
            stores=stores,
            queues=queues,
            leases=leases,
            routes=self._routes,
            presence=self.presence,
            metadata=self._metadata,
            limits=self._limits,
            plans=plans,
            outside=OutsideWorld(
                scripts,
                self._metadata,
                self._router,
                input_bytes_max=settings.workflow_payload_bytes_max,
            ),
            desk=self._desk,
            items=items,
            clock=clock,
            metrics=self.metrics,
        )
        self._edge = Edge(self.metrics, body_bytes_max=settings.body_bytes_max)
        self._router.drains_by(self.drain)
        overview = Overview(
            stores.shards,
            self._routes,
            self._router,
            clock,
            own=self._member,
            own_address=lambda: self.url.removeprefix("http://"),
            drain=self.drain,
        )
        self._jobs = BulkJobs(
            records=stores.records,
            search=stores.search,
            router=self._router,
            clock=clock,
            random=random,
            metrics=self.metrics,
            node_id=settings.node_id,
            members=lambda: [member.node_id for member in self.presence.members.values()],
        )
        self.services = Services(
            router=self._router,
            metadata=self._metadata,
            limits=self._limits,
            desk=self._desk,
            jobs=self._jobs,
            queues=queues,
            search=stores.search,
            records=stores.records,
            clock=clock,
            random=random,
            metrics=self.metrics,
            settings=settings,
            catch_up=self._router.catch_up,
            save_poll_data=self._poll_book.save,
            measure=self._measure,
            overview=overview,
            is_ready=self._is_ready,
        )
        operations = (tasks, exchange, workflow, bulk, bulk_start, jobs)
        for resource in (*operations, metadata, health, cluster):
            self._edge.add(resource.routes(self.services))
        self._edge.add(later.routes())

    # -- life

    @asynccontextmanager
    async def serving(self, listening: socket.socket) -> AsyncIterator[None]:
        """Serve requests that come in on a socket until the context is left.

        ClusterError: the stores do not let this node begin.
        """
        runner = web.ServerRunner(
            self._edge.server(), shutdown_timeout=self._settings.shutdown_timeout_ms / 1000
        )
        async with self._linked(), self.living():
            try:
                await runner.setup()
                await web.SockSite(runner, listening, backlog=_BACKLOG).start()
                host, port = listening.getsockname()[:2]
                self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                yield
            finally:
                # Whoever comes is sent elsewhere, but served while the shards are handed over.
                self._edge.closing = True
                await self.hand_over()
                await runner.cleanup()

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[None]:
        """Take links of other nodes, and answer what only machines of the cluster ask."""
        if self._is_alone:
            yield
            return
        settings = self._settings
        edge = Edge(self.metrics, body_bytes_max=settings.body_bytes_max)
        edge.add(health.routes(self.services))
        edge.add(cluster.routes(self.services))
        server = LinkServer(self._router.serve, token=settings.link_token, metrics=self.metrics)

        async def handle(request: web.BaseRequest) -> Any:
            return await (server.accept if is_link(request) else edge.handle)(request)

        runner = web.ServerRunner(edge.server(handle), shutdown_timeout=_LAST_LINKS_S)
        with _listen(settings.link_host, settings.link_port) as listening:
            await runner.setup()
            await web.SockSite(runner, listening, backlog=_BACKLOG).start()
            here = f"{settings.link_host}:{listening.getsockname()[1]}"
            self.link = settings.link_advertise or here
            try:
                yield
            finally:
                await self._links.close()
                await server.close()
                await runner.cleanup()

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Be a node without the HTTP front until the context is left. ClusterError as above."""
        await self._limits.load()
        await self._metadata.read_task_defs()
        incarnation = await self._begin()
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(loop)
                for loop in (
                    self._live(incarnation),
                    self._hand_outs.run(),
                    self.presence.run(),
                    self._router.run(),
                    self._metadata.run(),
                    self._poll_book.run(),
                    self._jobs.run(),
                    self._watch_lag(),
                )
            ]
            try:
                yield
            finally:
                await self._finish()
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

    async def _begin(self) -> Incarnation:
        """Open a log of this node's own, and take over what its earlier logs held."""
        own = LogId(f"{self._settings.node_id}/{self._random.bits(64):016x}")
        rows = await restart(
            self._stores,
            own,
            is_predecessor=self._is_predecessor,
            takes_unowned=self._is_alone,
            describe=describe_replayed,
            clock=self._clock,
        )
        incarnation = Incarnation(own, self._front, on_lost=self._lose)
        incarnation.serve(rows)
        if self._is_closing:
            incarnation.controller.drain()
        self._past.add(own)
        self.home.incarnation = incarnation
        return incarnation

    def _is_predecessor(self, earlier: LogId) -> bool:
        """Whether nobody writes that log any more: this process did, or none but this one can."""
        if self._is_alone or earlier in self._past:
            return True
        # Only when the process begins: two that are called the same by mistake would go on
        # sealing each other's logs for ever.
        is_first = not self._past
        return is_first and self._holds_folder and earlier.startswith(f"{self._settings.node_id}/")

    async def _live(self, incarnation: Incarnation) -> None:
        """Be one incarnation after the other; alone, the first one that is lost is the last."""
        while True:
            await incarnation.run()
            if self._is_alone:
                # Somebody wrote here in spite of the lock: there is nothing to go on with.
                self.lost = incarnation.lost
                self._stopped.set()
                return
            incarnation = await self._begin_again()

    async def _begin_again(self) -> Incarnation:
        while True:
            try:
                return await self._begin()
            except ClusterError as failure:
                log.warning("no new log can be opened yet", error=failure.message)
                await asyncio.sleep(_PAUSE_S)

    def _lose(self, lost: Fenced) -> None:
        log.error("the commit log is lost", error=lost.message)
        self.metrics.lease_lost.of().inc()
        self.home.incarnation = None

    async def hand_over(self) -> None:
        """Answer polls with nothing; in a cluster, have the other nodes take the shards, while
        this one answers still."""
        self._is_closing = True
        self._desk.close()
        incarnation = self.home.incarnation
        if self._is_alone or incarnation is None:
            return
        await self.presence.beat()
        # The others look for released shards often once they have heard of it.
        await asyncio.sleep(self._settings.heartbeat_ms / 1000)
        incarnation.controller.drain()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                await incarnation.until_empty()
        except TimeoutError:
            log.warning("not all shards were handed over, the others take them over")

    async def drain(self) -> None:
        """Begin to hand the shards over; the process stays, and takes no new ones."""
        if not self._is_closing:
            self._is_closing = True
            self._draining = asyncio.ensure_future(self.hand_over())

    async def _leave(self, incarnation: Incarnation) -> None:
        """Take this node's log and name out of the cluster, as far as nothing needs them."""
        await self.presence.leave()
        if incarnation.controller.is_empty.is_set():
            await self._leases.drop(incarnation.own)
            await self._stores.logs.seal(incarnation.own)
            await self._stores.logs.delete(incarnation.own)

    async def _finish(self) -> None:
        """Write down what is committed."""
        incarnation = self.home.incarnation
        if self.lost is not None or incarnation is None:
            return
        try:
            async with asyncio.timeout(_LAST_WRITES_S):
                await incarnation.finish()
                await self._poll_book.save()
                if not self._is_alone:
                    await self._leave(incarnation)
        except (ClusterError, TimeoutError) as error:
            # All of it is in the log: the next process replays it.
            log.warning("stopped before the last checkpoint was written", error=str(error))

    # -- callbacks of the parts

    def _is_ready(self) -> bool:
        incarnation = self.home.incarnation
        if incarnation is None or self._is_closing:
            return False
        return incarnation.is_recovered and (
            self._is_alone or (self.presence.clock_is_right and incarnation.controller.has_looked)
        )

    def _member(self) -> Member:
        """What the other nodes are told."""
        incarnation = self.home.incarnation
        state: Literal["joining", "serving", "draining"] = "serving"
        if self._is_closing:
            state = "draining"
        elif incarnation is None or not self.presence.clock_is_right:
            state = "joining"
        return Member(
            node_id=self._settings.node_id,
            log=LogId("") if incarnation is None else incarnation.own,
            link=self.link,
            state=state,
            shard_count=self._settings.shard_count,
            version=__version__,
            started_ms=self._began_ms,
        )

    def _complete(self, item: QueueItem) -> bytes:
        return wire.complete_payload(
            item.payload, secrets=self._settings.secrets, environment=self._settings.environment
        )

    # -- background

    async def _watch_lag(self) -> None:
        loop, observe = asyncio.get_running_loop(), self.metrics.event_loop_lag.of().observe
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            observe(max(0.0, loop.time() - due))

    async def _measure(self) -> None:
        """Set the gauges that nobody keeps up to date."""
        await self._measure_queues()
        metrics, incarnation = self.metrics, self.home.incarnation
        metrics.node_ready.of().set(self._is_ready())
        metrics.shard_count.of().set(self._settings.shard_count)
        states: list[str] = [self._member().state]
        if not self._is_alone:
            states = [member.state for member in self.presence.members.values()]
        for state in MEMBER_STATES:
            metrics.cluster_members.of(state).set(states.count(state))
        metrics.clock_offset.of().set(self.presence.clock_off_ms / 1000)
        if incarnation is None:
            metrics.shard_owned.of().set(0)
            return
        metrics.shard_owned.of().set(len(incarnation.shards.epochs))
        metrics.lease_age.of().set(incarnation.lease.age_ms / 1000)
        metrics.commit_log_pending_bytes.of().set(
            incarnation.checkpoint.pending_bytes + incarnation.commit_log.pending_bytes
        )

    async def _measure_queues(self) -> None:
        metrics, now_ms = self.metrics, self._clock.now_ms()
        try:
            sizes = await self._queues.sizes()
        except ClusterError:
            # The rest of the page is needed most when the queues are away.
            sizes = {}
        waiting: Counter[tuple[str, ...]] = Counter()
        held: Counter[tuple[str, ...]] = Counter()
        ages: dict[tuple[str, ...], float] = {}
        for queue, size in sizes.items():
            task_type = task_type_of(queue)
            waiting[task_type, ""] += size.waiting
            held[task_type, ""] += size.held
            if size.oldest_due_ms is not None:
                age = max(0.0, (now_ms - size.oldest_due_ms) / 1000)
                ages[task_type,] = max(age, ages.get((task_type,), 0.0))
        metrics.task_queue_depth.replace(waiting)
        metrics.task_in_progress.replace(held)
        metrics.oldest_pending_age.replace(ages)
