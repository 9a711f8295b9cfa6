"""What clients do: producers, workers, operators and readers, each of whom tells the ledger."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, TypeVar

import orjson

from cluster.engine.events import Event, Paused, Resumed, TaskUpdated, Terminated
from cluster.engine.model import Execution
from cluster.engine.transitions import OPEN_TASK, TaskStatus
from cluster.errors import ClusterError, NotFound, Overloaded
from cluster.ids import WorkflowId, number_of, task_id
from cluster.node import wire
from cluster.node.app import Node
from cluster.node.router import StartWorkflow
from tests.chaos.definitions import (
    ENDED,
    FAILS,
    FAILS_ONCE,
    KINDS,
    answer,
    task_definitions,
    workflow_definitions,
)
from tests.simulation.cluster import Cluster, Reset
from tests.simulation.ledger import Json, Ledger, Report, Sight, Start

Result = TypeVar("Result")

TASK_TYPES = ("chaos_a", "chaos_b", "chaos_c", FAILS, FAILS_ONCE)
_LATE_S = 16.0
"""Longer than anybody waits for an answer."""

_KINDS = [kind for kind in KINDS.values() if kind.is_started and kind.name != "chaos_limit"]
_WEIGHTS = [kind.weight or 3 for kind in _KINDS]


class Workload:
    """A number of workflows, and everything that has to be done for them to end."""

    def __init__(self, cluster: Cluster, ledger: Ledger, *, workflows: int, over_s: float) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.random = Random(cluster.world.random.getrandbits(64))
        self.workflows = workflows
        self.over_s = over_s
        self.producers_left = 0
        self.is_calm = False
        """No faults any more: whatever a client asks for must come to something."""
        self._tokens = 0

    def begin(self) -> None:
        """Start all clients."""
        spawn = self.cluster.clients.spawn
        for number in range(self.workflows):
            self.producers_left += 1
            spawn(self._produce(f"i{number}", self.random.uniform(0, self.over_s)))
        for task_type in TASK_TYPES:
            for _ in range(2):
                spawn(self._work(task_type))
        for _ in range(3):
            spawn(self._read())
        spawn(self._operate())

    # -- producers

    async def _produce(self, intent: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        kind = self.random.choices(_KINDS, _WEIGHTS)[0]
        value = self.random.randrange(1000)
        is_keyed = self.random.random() < 0.5 or kind.name == ENDED
        self.ledger.intents[intent] = {"name": kind.name, "value": value, "is_keyed": is_keyed}
        start = StartWorkflow(
            kind.name,
            1,
            input=orjson.dumps({"intent": intent, "value": value}),
            correlation_id=intent,
            idempotency_key=intent if is_keyed else None,
        )
        try:
            if is_keyed:
                workflow_id = await self._insist(lambda node: node.services.router.start(start))
            else:
                workflow_id = await self._once(lambda node: node.services.router.start(start))
        except Reset:
            return  # It may have happened; nobody was told so.
        except ClusterError as error:
            if not error.retryable:
                self.ledger.accuse(f"start {intent} was refused: {error!r}")
            return
        finally:
            self.producers_left -= 1
        self.ledger.starts.append(Start(self.cluster.world.now, intent, workflow_id))
        self.cluster.world.note(f"started {intent} {kind.name} {workflow_id}")
        if kind.name == ENDED:
            await asyncio.sleep(self.random.uniform(0.0, 3.0))
            await self._command(workflow_id, "terminate")

    # -- workers

    async def _work(self, task_type: str) -> None:
        name = f"{task_type}/{self.random.getrandbits(16)}"
        while True:
            try:
                polled: list[Json] = await self._once(
                    lambda node: _poll(node, task_type, name, self.random.randint(500, 4000))
                )
            except (Reset, ClusterError):
                await asyncio.sleep(0.3)
                continue
            for task in polled:
                self.ledger.deliveries.append((self.cluster.world.now, task["taskId"]))
                self.cluster.clients.spawn(self._report(task))

    async def _report(self, task: Json) -> None:
        if self.random.random() < 0.02:
            return  # A worker that died.
        await asyncio.sleep(self.random.expovariate(10))
        status, output = answer(task)
        self._tokens += 1
        token = f"r{self._tokens}"
        run, of = task["workflowInstanceId"], task["taskId"]
        report = Report(self.cluster.world.now, of, run, status, output, token)
        self.ledger.reports[token] = report
        encoded = orjson.dumps({**output, "token": token})

        def update(node: Node) -> Coroutine[Any, Any, None]:
            event = TaskUpdated(
                node.services.clock.now_ms(), number_of(of), TaskStatus(status), output=encoded
            )
            return node.services.router.submit(run, event)

        try:
            await self._insist(update)
        except ClusterError as error:
            self.ledger.accuse(f"the result of {of} was refused: {error!r}")
            return
        self.ledger.acknowledged[token] = self.cluster.world.now
        self.cluster.world.note(f"result {token} of {of}")

    # -- operators

    async def _operate(self) -> None:
        """Pause a workflow now and then, and let it go on."""
        while not self.is_calm:
            await asyncio.sleep(self.random.expovariate(0.5))
            if not self.ledger.starts:
                continue
            run = self.random.choice(self.ledger.starts).workflow_id
            await self._command(run, "pause")
            await asyncio.sleep(self.random.uniform(0.0, 2.0))
            await self._command(run, "resume")
        # A request to pause that nobody waited for any more may have come after the other.
        await asyncio.sleep(_LATE_S)
        for run, commands in list(self.ledger.commands.items()):
            if any(name == "pause" for _, name in commands):
                await self._command(run, "resume")

    async def _command(self, run: str, name: str) -> None:
        """Until it is done or does not fit any more."""

        def command(node: Node) -> Coroutine[Any, Any, None]:
            at_ms = node.services.clock.now_ms()
            events: dict[str, Callable[[], Event]] = {
                "pause": lambda: Paused(at_ms),
                "resume": lambda: Resumed(at_ms),
                "terminate": lambda: Terminated(at_ms, "enough"),
            }
            return node.services.router.submit(WorkflowId(run), events[name]())

        self.ledger.commands.setdefault(run, []).append((self.cluster.world.now, name))
        try:
            await self._insist(command)
        except NotFound as error:
            self.ledger.accuse(f"{name} of {run}: {error!r}")
        except ClusterError:
            pass  # It has ended, or a lost answer was the one that mattered.
        self.cluster.world.note(f"{name} {run}")

    # -- readers

    async def _read(self) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0.1, 0.6))
            if self.ledger.starts:
                recent = self.ledger.starts[-12:]
                await self._see(self.random.choice(recent).workflow_id)

    async def _see(self, run: str) -> None:
        place = self._place()
        sent_s = self.cluster.world.now
        try:
            status, ended = await self.cluster.request(
                place, lambda node: _look(node, WorkflowId(run))
            )
        except NotFound:
            status, ended = None, frozenset()
        except (Reset, ClusterError):
            return
        now = self.cluster.world.now
        self.ledger.sights.append(Sight(sent_s, now, run, status, ended, place))

    async def show_all(self, runs: list[str]) -> dict[str, Json]:
        """Every workflow as its owner shows it; those that nobody knows are absent."""
        shown: dict[str, Json] = {}
        for run in runs:
            try:
                shown[run] = await self._insist(partial(_show, run=WorkflowId(run)))
            except NotFound:
                pass
        return shown

    # -- how clients ask

    def _place(self) -> str:
        """Where a balancer sends a request: to a node that said lately that it is ready, mostly."""
        nodes = self.cluster.nodes.values()
        ready = [node.name for node in nodes if node.is_up and node.node.services.is_ready()]
        if not ready or self.random.random() < 0.1:
            return self.random.choice(self.cluster.names)
        return self.random.choice(ready)

    async def _once(self, work: Callable[[Node], Coroutine[Any, Any, Result]]) -> Result:
        try:
            return await self.cluster.request(self._place(), work)
        except Overloaded:
            self.cluster.world.count("request: refused for want of room")
            raise

    async def _try(self, work: Callable[[Node], Coroutine[Any, Any, Result]]) -> None:
        """Once, and whatever comes of it."""
        try:
            await self._once(work)
        except (Reset, ClusterError):
            pass

    async def _insist(self, work: Callable[[Node], Coroutine[Any, Any, Result]]) -> Result:
        """Until there is an answer that says more than to try again."""
        while True:
            try:
                if self.random.random() < self.cluster.doubles:
                    self.cluster.world.count("request: doubled")
                    self.cluster.clients.spawn(self._try(work))
                return await self._once(work)
            except Reset:
                pass
            except ClusterError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(self.random.uniform(0.05, 0.4))


async def _poll(node: Node, task_type: str, worker: str, timeout_ms: int) -> list[Json]:
    polled = await node.services.desk.poll(
        task_type=task_type, domain=None, worker_id=worker, count=5, timeout_ms=timeout_ms
    )
    return [orjson.loads(body) for body in polled.bodies]


async def _look(node: Node, run: WorkflowId) -> tuple[str, frozenset[str]]:
    execution: Execution = await node.services.router.view(run)
    ended = frozenset(
        task_id(run, number)
        for number, task in execution.tasks.items()
        if task.status not in OPEN_TASK
    )
    return execution.header.status.value, ended


async def _show(node: Node, run: WorkflowId) -> Json:
    execution = await node.services.router.view(run)
    shown: Json = orjson.loads(wire.workflow_json(execution, include_tasks=True))
    return shown


async def register(node: Node) -> None:
    """Register all definitions."""
    await node.services.metadata.register_task_defs(task_definitions())
    for body in workflow_definitions():
        await node.services.metadata.register(body)
