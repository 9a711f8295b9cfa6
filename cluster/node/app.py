"""Puts a node together and runs it."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import uvloop
from aiohttp import web

from cluster import __version__
from cluster.clock import Clock, Random, SystemClock, SystemRandom
from cluster.engine.tasks import with_custom_types
from cluster.engine.tasks.outside import BUILT_IN
from cluster.metrics import Metrics
from cluster.node import wire
from cluster.node.admission import Admission
from cluster.node.api import (
    bulk,
    bulk_start,
    cluster,
    exchange,
    health,
    jobs,
    later,
    messages,
    metadata,
    scheduler,
    search,
    tasks,
    workflow,
)
from cluster.node.api.services import Services
from cluster.node.elsewhere import Elsewhere
from cluster.node.executors.installed import open_system_tasks
from cluster.node.executors.scripts import ScriptPool, check_javascript
from cluster.node.executors.system_tasks import Executors
from cluster.node.fragments import StoredFragments
from cluster.node.gauges import Gauges
from cluster.node.ground import open_ground
from cluster.node.hand_outs import HandOuts
from cluster.node.incarnation import Front, Home
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
from cluster.node.schedule_book import ScheduleBook
from cluster.node.scheduler_switch import SchedulerSwitch
from cluster.node.search import Search
from cluster.node.succession import Succession
from cluster.node.task_search import TaskSearch
from cluster.settings import Settings
from cluster.sharding.membership import Presence
from cluster.sharding.plans import Plans
from cluster.sharding.routes import Routes
from cluster.store.lease_ports import Leases, Member, Membership
from cluster.store.ports import LogId, Stores
from cluster.store.queue_ports import QueueItem, Queues
from cluster.store.traffic import Traffic
from cluster.system_tasks import SystemTask

_LAST_LINKS_S = 1
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
        await node.succession.until(stop)


@asynccontextmanager
async def running(
    settings: Settings, *, clock: Clock | None = None, random: Random | None = None
) -> AsyncIterator["Node"]:
    """A node that serves; leaving the context stops it in order."""
    clock, random = clock or SystemClock(), random or SystemRandom()
    # First the port: who cannot have it must not touch the stores.
    with _listen(settings.host, settings.port, is_shared=settings.processes > 1) as listening:
        async with AsyncExitStack() as stack:
            traffic = Traffic()
            ground = await stack.enter_async_context(open_ground(settings, clock, random, traffic))
            scripts = await stack.enter_async_context(_scripts(settings))
            system_tasks = await stack.enter_async_context(
                open_system_tasks(settings, evaluate=scripts.evaluate, clock=clock)
            )
            node = Node(
                settings,
                ground.stores,
                ground.queues,
                ground.leases,
                ground.membership,
                is_alone=ground.is_alone,
                holds_folder=not ground.is_alone,
                scripts=scripts,
                system_tasks=system_tasks,
                check_javascript=check_javascript,
                clock=clock,
                random=random,
                traffic=traffic,
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
        system_tasks: Mapping[str, SystemTask] | None = None,
        check_javascript: Callable[[str], str | None],
        clock: Clock,
        random: Random,
        holds_folder: bool = False,
        links: Links | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """`is_alone`: the stores are locked for this process, so whoever wrote before is gone.
        `holds_folder`: no other process of this node is there, so its logs are nobody's.
        `system_tasks` that it carries out, by task type.
        `links` to other nodes: websockets if they are not given. `traffic`: what the stores ask
        of servers."""
        system_tasks = system_tasks or {}
        self._settings = settings
        self._is_alone = is_alone
        self._began_ms = clock.now_ms()
        self.metrics = Metrics()
        self.url = ""
        self.link = ""
        """Where other nodes reach this one: `host:port`."""
        self.home = Home()
        routes = Routes(stores.shards, membership)
        self.presence = Presence(
            membership,
            routes,
            self._member,
            clock=clock,
            heartbeat_ms=settings.heartbeat_ms,
            ttl_ms=settings.lease_ttl_ms,
        )
        self._metadata = Metadata(
            stores.metadata,
            clock,
            check_javascript=check_javascript,
            owner_email_required=settings.owner_email_mandatory,
            changes=None if is_alone else Changes(stores.metadata, clock),
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
        admission = Admission(
            clock,
            self.metrics,
            instance=socket.gethostname(),
            delay_ms=settings.admission_delay_ms,
            starts_max=settings.admission_starts_max,
            reads_max=settings.admission_reads_max,
            has_room=self.home.has_room,
        )
        self._router = Router(
            self.home,
            None if is_alone else Elsewhere(routes, self._links, node_id=settings.node_id),
            admission=admission,
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
        desk = PollDesk(
            queues=queues,
            owner=self._router,
            clock=clock,
            metrics=self.metrics,
            limits_of=self._limits.of,
            fragment_of=items.fragment,
            complete=self._complete,
            fragments=None if is_alone else StoredFragments(items, plans, self._limits),
            # Results of what is handed out must find room too.
            may_hand_out=lambda: self.home.has_room(2),
            counts_holds=False,
            reserved=frozenset((*BUILT_IN, *system_tasks)),
        )
        self._executors = Executors(
            system_tasks,
            desk=desk,
            submit=self._router.submit,
            node_id=settings.node_id,
            at_once=settings.system_tasks_at_once,
            lease_ms=settings.system_task_lease_ms,
            time_limit_ms=settings.system_task_time_limit_ms,
            clock=clock,
            metrics=self.metrics,
        )
        self._poll_book = PollBook(desk, stores.records, clock, is_shared=not is_alone)
        schedule_book = ScheduleBook(stores.records, clock, self.metrics)
        self._switch = SchedulerSwitch(stores.records, clock, self.home.release_schedules)
        front = Front(
            settings=settings,
            stores=stores,
            queues=queues,
            leases=leases,
            routes=routes,
            presence=self.presence,
            metadata=self._metadata,
            limits=self._limits,
            plans=plans,
            outside=OutsideWorld(
                scripts,
                self._metadata,
                self._router,
                schedule_book,
                input_bytes_max=settings.workflow_payload_bytes_max,
            ),
            task_types=with_custom_types(system_tasks),
            tell_moved=self._router.tell_moved,
            desk=desk,
            scheduler_is_off=lambda: self._switch.is_off,
            items=items,
            clock=clock,
            metrics=self.metrics,
        )
        self.succession = Succession(
            self.home,
            front,
            self._poll_book,
            is_alone=is_alone,
            holds_folder=holds_folder,
            random=random,
        )
        self._edge = Edge(self.metrics, body_bytes_max=settings.body_bytes_max, admission=admission)
        self._router.drains_by(self.succession.drain)
        self._router.hears_by(self.succession.hear_of)
        overview = Overview(
            stores.shards,
            routes,
            self._router,
            clock,
            own=self._member,
            own_address=lambda: self.url.removeprefix("http://"),
            drain=self.succession.drain,
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
        self._gauges = Gauges(
            self.metrics,
            self.home,
            self.presence,
            queues,
            clock,
            traffic=traffic or Traffic(),
            shard_count=settings.shard_count,
            is_alone=is_alone,
            is_ready=self._is_ready,
            own=self._member,
        )
        searches = Search(stores.search, stores.executions, self._router.catch_up)
        self.services = Services(
            router=self._router,
            metadata=self._metadata,
            limits=self._limits,
            desk=desk,
            jobs=self._jobs,
            schedule_book=schedule_book,
            scheduler_switch=self._switch,
            queues=queues,
            search=stores.search,
            searches=searches,
            task_searches=TaskSearch(searches, stores.executions, self._router),
            records=stores.records,
            clock=clock,
            random=random,
            metrics=self.metrics,
            settings=settings,
            catch_up=self._router.catch_up,
            save_poll_data=self._poll_book.save,
            measure=self._gauges.measure,
            overview=overview,
            is_ready=self._is_ready,
        )
        operations = (tasks, exchange, workflow, messages, search, bulk, bulk_start, jobs)
        for resource in (*operations, metadata, scheduler, health, cluster):
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
                await self.succession.hand_over()
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
        await self._switch.read()
        incarnation = await self.succession.begin()
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(loop)
                for loop in (
                    self.succession.live(incarnation),
                    self._hand_outs.run(),
                    self.presence.run(),
                    self._router.run(),
                    self._metadata.run(),
                    self._poll_book.run(),
                    self._jobs.run(),
                    self._switch.run(),
                    self._executors.run(),
                    self._gauges.watch_lag(),
                )
            ]
            try:
                yield
            finally:
                # Without a log there is nobody to report to.
                is_lost = self.succession.lost is not None
                await self._executors.finish(0 if is_lost else self._settings.shutdown_timeout_ms)
                await self.succession.finish()
                for loop in loops:
                    loop.cancel()

    # -- callbacks of the parts

    def _is_ready(self) -> bool:
        incarnation = self.home.incarnation
        if incarnation is None or incarnation.lost is not None or self.succession.is_closing:
            return False
        # Its open workflows may still have to be looked at: requests are served meanwhile.
        return self._is_alone or (
            self.presence.clock_is_right and incarnation.controller.has_looked
        )

    def _member(self) -> Member:
        """What the other nodes are told."""
        incarnation = self.home.incarnation
        state: Literal["joining", "serving", "draining"] = "serving"
        if self.succession.is_closing:
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
