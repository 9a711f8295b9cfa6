"""A cluster of nodes in one process, on virtual time, over memory stores that they share."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

import orjson

from cluster.clock import Clock, SystemRandom
from cluster.errors import Fenced, StoreFault, Unreached
from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.node.app import Node
from cluster.node.incarnation import Incarnation
from cluster.node.router import StartWorkflow
from cluster.settings import Settings
from cluster.store.memory import open_memory
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.ports import ShardRow, Stores
from tests.support.lives import Scripts
from tests.support.virtual_time import VirtualClock

SHARD_COUNT = 16
_RANDOM = SystemRandom()


class Line:
    """The way from a node to some ports: it can be cut, and hold calls up."""

    def __init__(self) -> None:
        self._is_cut = False
        self._is_free = asyncio.Event()
        self._is_free.set()

    def cut(self) -> None:
        """Every call fails at once."""
        self._is_cut = True

    def hold(self) -> None:
        """Calls wait until the line is mended, and come through then: late, perhaps too late."""
        self._is_free.clear()

    def mend(self) -> None:
        self._is_cut = False
        self._is_free.set()

    def port(self, port: object) -> Any:
        """A port at the end of this line."""
        return _Far(port, self)

    async def call(
        self, method: Callable[..., Awaitable[object]], *args: object, **options: object
    ) -> object:
        await self._is_free.wait()
        if self._is_cut:
            raise StoreFault("not reached")
        return await method(*args, **options)


class _Far:
    def __init__(self, port: object, line: Line) -> None:
        self._port = port
        self._line = line

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        return partial(self._line.call, method) if iscoroutinefunction(method) else method


class NoLinks:
    """Nodes that do not reach each other: a test asks the owner itself."""

    async def call(self, address: str, operation: str, arguments: bytes, **_: Any) -> bytes:
        raise Unreached(f"{address} is not reached in this test")

    async def close(self) -> None:
        pass


class Ground:
    """What all nodes share: it outlives each of them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.stores = open_memory(shard_count=SHARD_COUNT)
        self.queues = MemoryTaskQueues()
        self.leases = MemoryLeases()
        self.membership = MemoryMembership(self.clock)

    async def rows(self) -> Sequence[ShardRow]:
        return await self.stores.shards.rows()


class Peer:
    """One node. `kill` ends it without a word, `drain` in order."""

    def __init__(
        self,
        ground: Ground,
        node_id: str,
        *,
        clock: Clock | None = None,
        holds_folder: bool = False,
        **settings: Any,
    ) -> None:
        self.ground = ground
        self.node_id = node_id
        self.store_line = Line()
        self.lease_line = Line()
        """To leases and membership."""
        self.queue_line = Line()
        stores = {
            field.name: self.store_line.port(getattr(ground.stores, field.name))
            for field in fields(Stores)
        }
        self.node = Node(
            Settings(
                port=0,
                node_id=node_id,
                store_url="memory://",
                shard_count=SHARD_COUNT,
                route_timeout_ms=1_000,
                **settings,
            ),
            Stores(**stores),
            self.queue_line.port(ground.queues),
            self.lease_line.port(ground.leases),
            self.lease_line.port(ground.membership),
            is_alone=False,
            holds_folder=holds_folder,
            scripts=Scripts(),
            check_javascript=lambda _: None,
            clock=clock or ground.clock,
            random=_RANDOM,
            links=NoLinks(),
        )
        self._up = asyncio.Event()
        self._stop = asyncio.Event()
        self._served: asyncio.Task[None]

    async def begin(self) -> "Peer":
        """Come up; shards come later."""
        self._served = asyncio.create_task(self._serve())
        await self._up.wait()
        return self

    def kill(self) -> None:
        """From now on nothing that it does has any effect."""
        self.hold()

    def hold(self) -> None:
        """Stand still, as far as anybody else can tell."""
        self.store_line.hold()
        self.lease_line.hold()

    def go_on(self) -> None:
        """What was about to be done is done now."""
        self.store_line.mend()
        self.lease_line.mend()

    async def bury(self) -> None:
        """Take away what is left of it after a `kill`."""
        self.kill()
        self.node.succession.lost = Fenced("killed")
        self._served.cancel()
        await asyncio.gather(self._served, return_exceptions=True)

    async def drain(self) -> None:
        """Stop as SIGTERM has it stop; returns when it is gone."""
        self._stop.set()
        await self._served

    async def _serve(self) -> None:
        async with self.node.living():
            self._up.set()
            await self._stop.wait()
            await self.node.succession.hand_over()

    @property
    def incarnation(self) -> Incarnation:
        incarnation = self.node.home.incarnation
        assert incarnation is not None, f"{self.node_id} has no log just now"
        return incarnation

    @property
    def served(self) -> dict[ShardId, int]:
        """Shard → epoch, of what it serves."""
        incarnation = self.node.home.incarnation
        return {} if incarnation is None else dict(incarnation.shards.epochs)

    async def start(self, name: str = "one") -> WorkflowId:
        return await self.node.services.router.start(StartWorkflow(name, 1, input=b"{}"))

    async def status(self, workflow_id: WorkflowId) -> str:
        """The status of a run that this node owns."""
        execution = await self.incarnation.shards.view(workflow_id)
        return execution.header.status.value

    async def poll(self, task_type: str, count: int = 1_000) -> list[dict[str, Any]]:
        polled = await self.node.services.desk.poll(
            task_type=task_type, domain=None, worker_id="w", count=count, timeout_ms=0
        )
        return [orjson.loads(body) for body in polled.bodies]


async def new_ground(names: Sequence[str] = ("one",)) -> Ground:
    """An empty cluster with definitions of one SIMPLE task."""
    ground = Ground()
    await ground.stores.shards.create(SHARD_COUNT)
    for name in names:
        body = {
            "name": name,
            "version": 1,
            "tasks": [{"name": f"t_{name}", "taskReferenceName": "a", "type": "SIMPLE"}],
        }
        await ground.stores.metadata.put(
            "workflow", name, 1, orjson.dumps(body), at_ms=1, expected_revision=None
        )
    return ground


async def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> float:
    """Wait for a condition; returns how long that took. TimeoutError when too long."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                break
            await asyncio.sleep(0.01)
    return loop.time() - began


def owner_of(workflow_id: WorkflowId, peers: Sequence[Peer]) -> Peer:
    """The one among some nodes that serves a run's shard."""
    shard = shard_of(workflow_id, shard_count=SHARD_COUNT)
    [owner] = [peer for peer in peers if shard in peer.served]
    return owner


def are_all_served(peers: Sequence[Peer]) -> bool:
    """Whether each shard is served by exactly one of some nodes."""
    return sorted(shard for peer in peers for shard in peer.served) == list(range(SHARD_COUNT))
