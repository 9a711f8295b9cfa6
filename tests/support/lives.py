"""A node that dies and lives again over the same memory stores, on virtual time.

To die is harder than to stop: from one moment on no store answers any more, so nothing becomes
durable and nobody hears of it; then the loops are taken away. The next life starts from what the
stores hold, and from nothing else.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any, cast

import orjson

from cluster.clock import SystemRandom
from cluster.engine.events import TaskUpdated, Terminated
from cluster.engine.transitions import TaskStatus
from cluster.errors import Fenced
from cluster.ids import TaskId, WorkflowId, number_of
from cluster.node import wire
from cluster.node.app import Node
from cluster.node.audit import Audit, Parts
from cluster.node.router import Router, StartWorkflow
from cluster.settings import Settings
from cluster.sharding.dispatch import ScriptFailed
from cluster.store.memory import open_memory
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.ports import Stores
from tests.support.virtual_time import VirtualClock

Json = dict[str, Any]

SHARD_COUNT = 4
_RANDOM = SystemRandom()


class Death:
    """When a life ends: after so many appends, or when told. `applied`: the last one counts."""

    def __init__(self, *, appends: int | None = None, applied: bool = True) -> None:
        self.left = appends
        self.applied = applied
        self.has_come = asyncio.Event()
        self.faults: dict[str, Exception] = {}
        """Method of a store → what its next call raises."""
        self._held: dict[str, tuple[int, asyncio.Event]] = {}

    def come(self) -> None:
        self.has_come.set()

    def hold(self, name: str, *, after: int = 0) -> None:
        """Have the calls of a method, but for the next few, wait until they are let go."""
        self._held[name] = (after, asyncio.Event())

    def let_go(self, name: str) -> None:
        """The calls of a method that was held go on."""
        self._held.pop(name)[1].set()

    async def call(self, name: str, method: Callable[[], Awaitable[object]]) -> object:
        """Let one call through, unless it comes too late; the last append brings the end."""
        if not self.has_come.is_set() and name == "append" and self.left is not None:
            self.left -= 1
            if self.left <= 0:
                if self.applied:
                    await method()
                self.come()
        if self.has_come.is_set():
            await asyncio.get_running_loop().create_future()
        if name in self._held:
            left, free = self._held[name]
            self._held[name] = (left - 1, free)
            if left <= 0:
                await free.wait()
        if name in self.faults:
            raise self.faults.pop(name)
        return await method()


class _Port:
    def __init__(self, port: object, death: Death) -> None:
        self._port = port
        self._death = death

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        method = getattr(self._port, name)

        async def call(*args: object, **options: object) -> object:
            return await self._death.call(name, lambda: method(*args, **options))

        return call


class Scripts:
    """Evaluates the few scripts that tests use; `held` ones wait until they are let go."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Json], Any]] = {}
        """Source → what it comes to."""
        self.asked = 0
        self.free = asyncio.Event()
        self.free.set()
        self.faults: list[BaseException] = []
        """Raised by the next evaluations, instead of an answer."""

    async def evaluate(self, language: str, source: str, input_json: bytes) -> bytes:
        self.asked += 1
        await self.free.wait()
        if self.faults:
            raise self.faults.pop()
        answer = self.answers.get(source)
        if answer is None:
            raise ScriptFailed(f"{source} is not among the answers")
        return orjson.dumps(answer(orjson.loads(input_json)))


class Life:
    """One process. Use it as a context; leaving it is a death that was not announced."""

    def __init__(
        self,
        stores: Stores,
        *,
        death: Death | None = None,
        scripts: Scripts | None = None,
        **settings: Any,
    ) -> None:
        self.death = death or Death()
        self.stores = stores
        self.queues = MemoryTaskQueues()
        self.scripts = scripts or Scripts()
        self.node: Node
        self._settings = Settings(
            port=0, store_url="memory://", shard_count=SHARD_COUNT, **settings
        )
        self._up = asyncio.Event()
        self._served: asyncio.Task[None]

    async def __aenter__(self) -> "Life":
        clock = VirtualClock()
        ports = {field.name: getattr(self.stores, field.name) for field in fields(Stores)}
        mortal = Stores(
            **{name: cast(Any, _Port(port, self.death)) for name, port in ports.items()}
        )
        self.node = Node(
            self._settings,
            mortal,
            self.queues,
            MemoryLeases(),
            MemoryMembership(clock),
            is_alone=True,
            scripts=self.scripts,
            check_javascript=lambda _: None,
            clock=clock,
            random=_RANDOM,
        )
        self._served = asyncio.create_task(self._serve())
        await self._up.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.death.come()
        self.node.succession.lost = Fenced("killed")
        self._served.cancel()
        await asyncio.gather(self._served, return_exceptions=True)

    async def _serve(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with self.node.serving(listening):
                self._up.set()
                await asyncio.get_running_loop().create_future()

    async def recovered(self) -> None:
        """Wait until every open workflow has been looked at."""
        await self.until(self.is_recovered)

    def is_recovered(self) -> bool:
        """Whether every open workflow of the present incarnation has been looked at."""
        incarnation = self.node.home.incarnation
        return incarnation is not None and incarnation.is_recovered

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
        """Wait for a condition; time passes meanwhile. TimeoutError when too much has."""
        async with asyncio.timeout(timeout_s):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.01)

    # -- what clients do, without HTTP

    @property
    def parts(self) -> Parts:
        """The insides, to be looked at and broken."""
        return self.audit.parts

    @property
    def audit(self) -> Audit:
        """The audit of the present incarnation."""
        incarnation = self.node.home.incarnation
        assert incarnation is not None
        return incarnation.audit

    @property
    def router(self) -> Router:
        return self.node.services.router

    async def register(self, workflows: list[Json], task_defs: list[Json] | None = None) -> None:
        """Register definitions."""
        metadata = self.node.services.metadata
        if task_defs:
            await metadata.register_task_defs(task_defs)
            await self.node.services.limits.load()
        for body in workflows:
            await metadata.register(body)

    async def start(self, name: str, value: Json | None = None, **fields: Any) -> WorkflowId:
        """Start a run."""
        return await self.router.start(
            StartWorkflow(name, 1, input=orjson.dumps(value or {}), **fields)
        )

    async def poll(self, task_type: str, count: int = 100, timeout_ms: int = 0) -> list[Json]:
        """Polled tasks, as workers see them."""
        polled = await self.node.services.desk.poll(
            task_type=task_type, domain=None, worker_id="w", count=count, timeout_ms=timeout_ms
        )
        return [orjson.loads(body) for body in polled.bodies]

    async def report(self, task: Json, status: str = "COMPLETED", output: Any = None) -> None:
        """A worker's result; returns when it is acknowledged."""
        event = TaskUpdated(
            VirtualClock().now_ms(),
            number_of(TaskId(task["taskId"])),
            TaskStatus(status),
            output=orjson.dumps(output if output is not None else {}),
        )
        await self.router.submit(WorkflowId(task["workflowInstanceId"]), event)

    async def terminate(self, workflow_id: str, reason: str = "enough") -> None:
        """End a run as an operator does."""
        event = Terminated(VirtualClock().now_ms(), reason)
        await self.router.submit(WorkflowId(workflow_id), event)

    async def show(self, workflow_id: str) -> Json:
        """A run with its tasks, as GET shows it."""
        execution = await self.router.view(WorkflowId(workflow_id))
        shown: Json = orjson.loads(wire.workflow_json(execution, include_tasks=True))
        return shown

    async def ids(self, names: list[str]) -> list[WorkflowId]:
        """Every run of some definitions."""
        await self.node.services.catch_up()
        found: list[WorkflowId] = []
        for name in names:
            summaries = await self.stores.search.by_definition(
                name, version=None, statuses=(), start_ms=0, end_ms=1 << 60, after=None, limit=9_999
            )
            found += [summary.workflow_id for summary in summaries]
        return found


async def new_stores() -> Stores:
    """Empty stores for a line of lives."""
    stores = open_memory(shard_count=SHARD_COUNT)
    await stores.shards.create(SHARD_COUNT)
    return stores
