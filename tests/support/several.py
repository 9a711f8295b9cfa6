"""Several nodes in this process, on stores they share, with HTTP and links over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, cast

import aiohttp

from cluster.clock import SystemClock, SystemRandom
from cluster.errors import Fenced
from cluster.ids import WorkflowId, shard_of
from cluster.node.app import Node
from cluster.node.executors.scripts import check_javascript
from cluster.settings import Settings
from cluster.store.memory import open_memory
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.ports import Stores
from cluster.system_tasks import SystemTask
from tests.support.client import Client
from tests.support.lives import Death, Scripts, _Port

SHARDS = 8
TOKEN = "open sesame".replace(" ", "-")
CLOCK, RANDOM = SystemClock(), SystemRandom()
QUICK = {
    "lease_ttl_ms": 900,
    "lease_renew_ms": 150,
    "heartbeat_ms": 100,
    "shard_poll_ms": 200,
    "stable_ms": 300,
}


class Several:
    """A cluster: its stores, and the nodes that are up."""

    def __init__(self, session: aiohttp.ClientSession, settings: dict[str, Any]) -> None:
        self.system_tasks: dict[str, SystemTask] = settings.pop("system_tasks", {})
        """Carried out by all nodes, by task type."""
        self._session = session
        self._settings = QUICK | settings
        self.stores = open_memory(shard_count=SHARDS)
        self.queues = MemoryTaskQueues()
        self.leases = MemoryLeases()
        self.membership = MemoryMembership(CLOCK)
        self.scripts = Scripts()
        self.nodes: dict[str, Life] = {}

    async def start(self, *names: str) -> None:
        """Add nodes; returns when all shards are served, and spread over all nodes."""
        for name in names:
            life = Life(self, name, self._settings)
            self.nodes[name] = life
            await life.begin()
        await self.settled()

    async def stop(self, name: str) -> None:
        """As SIGTERM does."""
        await self.nodes.pop(name).stop()

    async def kill(self, name: str) -> None:
        """As SIGKILL does."""
        await self.nodes.pop(name).kill()

    async def settled(self) -> None:
        """Wait until every shard is served, and every node serves its share."""

        def is_settled() -> bool:
            shares = [len(life.shards) for life in self.nodes.values()]
            even = SHARDS // len(shares)
            homes = [life.node.home.incarnation for life in self.nodes.values()]
            ready = all(home is not None and home.is_recovered for home in homes)
            return ready and sum(shares) == SHARDS and min(shares) >= even - 1

        await until(is_settled)

    def client(self, name: str) -> Client:
        return Client(self.nodes[name].node.url, self._session)

    def owner_of(self, workflow_id: str) -> str:
        shard = shard_of(WorkflowId(workflow_id), shard_count=SHARDS)
        return next(name for name, life in self.nodes.items() if shard in life.shards)

    def other_than(self, name: str) -> str:
        return next(other for other in self.nodes if other != name)


class _Death(Death):
    def __init__(self) -> None:
        super().__init__()
        self.unheard: set[str] = set()
        """Methods of a store that are carried out, but nobody hears of it."""

    async def call(self, name: str, method: Callable[[], Awaitable[object]]) -> object:
        answer = await super().call(name, method)
        if name in self.unheard:
            await asyncio.get_running_loop().create_future()
        return answer


class Life:
    """One process of a node."""

    def __init__(self, cluster: Several, name: str, settings: dict[str, Any]) -> None:
        self._death = _Death()
        ports = {field.name: getattr(cluster.stores, field.name) for field in fields(Stores)}
        mortal = Stores(**{one: cast(Any, _Port(port, self._death)) for one, port in ports.items()})
        self.node = Node(
            Settings(
                port=0,
                node_id=name,
                store_url="memory://",
                shard_count=SHARDS,
                link_token=TOKEN,
                **settings,
            ),
            mortal,
            cluster.queues,
            cast(Any, _Port(cluster.leases, self._death)),
            cast(Any, _Port(cluster.membership, self._death)),
            is_alone=False,
            scripts=cluster.scripts,
            system_tasks=cluster.system_tasks,
            check_javascript=check_javascript,
            clock=CLOCK,
            random=RANDOM,
        )
        self._up = asyncio.Event()
        self._stop = asyncio.Event()
        self._served: asyncio.Task[None]

    @property
    def shards(self) -> set[int]:
        incarnation = self.node.home.incarnation
        return set() if incarnation is None else set(incarnation.shards.epochs)

    async def begin(self) -> None:
        self._served = asyncio.create_task(self._serve())
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait((self._served, up), return_when=asyncio.FIRST_COMPLETED)
        if self._served.done():
            self._served.result()

    async def _serve(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with self.node.serving(listening):
                self._up.set()
                await self.node.succession.until(self._stop)

    def hold(self, name: str) -> None:
        """From now on this call of the stores hangs."""
        self._death.hold(name)

    def hold_after(self, name: str) -> None:
        """From now on this call of the stores is carried out, and then hangs."""
        self._death.unheard.add(name)

    async def stop(self) -> None:
        self._stop.set()
        await self._served

    async def kill(self) -> None:
        # No store hears of it any more, and then it is gone.
        self._death.come()
        self.node.succession.lost = Fenced("killed")
        self.node.home.incarnation = None
        self._served.cancel()
        await asyncio.gather(self._served, return_exceptions=True)


async def until(condition: Callable[[], bool], *, timeout_s: float = 30) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def several(*names: str, **settings: Any) -> AsyncIterator[Several]:
    """A cluster of these nodes for as long as the context."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        cluster = Several(session, settings)
        await cluster.stores.shards.create(SHARDS)
        try:
            await cluster.start(*names)
            yield cluster
        finally:
            for name in list(cluster.nodes):
                await cluster.kill(name)
