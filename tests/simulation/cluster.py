"""Simulated nodes: the shipped node on ports, links, clocks and randomness of a World."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

from cluster.clock import SystemClock
from cluster.errors import ClusterError
from cluster.node.app import Node
from cluster.settings import Settings
from tests.simulation.ledger import Ledger
from tests.simulation.links import Fabric, SimulatedLinks
from tests.simulation.network import Network, RedisServer, StoreServer
from tests.simulation.world import Process, World
from tests.unit.test_crashes import scripts

Result = TypeVar("Result")

SHARD_COUNT = 8
CLIENTS = "clients"


class Reset(Exception):
    """The connection broke, or no answer came: nobody knows what became of the request."""


class SimulatedNode:
    """One life of a node: one process."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.name = name
        self.process = Process(cluster.world, name)
        self.process.wall_offset_ms = cluster.wall_offsets_ms.get(name, 0)
        self.is_up = False
        self.is_stopping = asyncio.Event()
        """SIGTERM has come."""
        self.node: Node

    async def live(self, cluster: "Cluster") -> None:
        """The main function of the process."""
        process, network, name = self.process, cluster.network, self.name
        clock = SystemClock(wall_ms=process.now_ms, steady_ms=process.monotonic_ms)
        queues, leases, membership = cluster.redis.seen_by(network, process, name)
        while True:
            self.node = Node(
                Settings(
                    port=0,
                    store_url="memory://",
                    node_id=name,
                    shard_count=SHARD_COUNT,
                    audit_interval_ms=3_600_000,
                    **cluster.limits,
                ),
                cluster.store.seen_by(network, process, name),
                queues,
                leases,
                membership,
                is_alone=False,
                holds_folder=True,
                links=SimulatedLinks(cluster.fabric, process, name, clock),
                scripts=cluster.scripts,
                check_javascript=lambda _: None,
                clock=clock,
                random=process,
            )
            self.node.link = cluster.fabric.listen(process, name, self.node.services.router.serve)
            try:
                async with self.node.living():
                    self.is_up = True
                    await self.node.succession.until(self.is_stopping)
                    await self.node.succession.hand_over()
                return
            except* ClusterError:
                # As a supervisor does: start it again.
                self.is_up = False
                await asyncio.sleep(1)


class Cluster:
    """Nodes by name, the stores they share, and the way in for clients."""

    def __init__(self, world: World, ledger: Ledger, names: list[str]) -> None:
        self.world = world
        self.ledger = ledger
        self.names = names
        self.network = Network(world)
        self.fabric = Fabric(self.network)
        self.store = StoreServer(world, ledger, SHARD_COUNT)
        self.redis = RedisServer(world, ledger, SHARD_COUNT)
        self.scripts = scripts()
        self.wall_offsets_ms: dict[str, int] = {}
        self.limits: dict[str, Any] = {}
        """Settings of all nodes that are not the usual ones."""
        self.doubles = 0.02
        """Share of the requests that a client sends to two nodes at once."""
        self.nodes: dict[str, SimulatedNode] = {}
        """The present life of each node that is not dead."""
        self.clients = Process(world, CLIENTS)
        self._requests = count()
        self._waiting: dict[str, dict[int, Callable[[], None]]] = {name: {} for name in names}
        """Place → request → what its client hears if the process there dies."""

    def start(self, name: str) -> None:
        """Begin a process."""
        assert name not in self.nodes
        self.world.note(f"{name} starts")
        node = self.nodes[name] = SimulatedNode(self, name)
        main = node.process.spawn(node.live(self))
        main.add_done_callback(lambda _: self._ended(name, node, main))

    def _ended(self, name: str, node: SimulatedNode, main: "asyncio.Task[None]") -> None:
        """A process has come to its end by itself."""
        failure = main.exception()
        if failure is not None:
            self.ledger.accuse(f"{name} died: {''.join(traceback.format_exception(failure))}")
        elif not node.is_stopping.is_set():
            self.ledger.accuse(f"{name} has ended, and nobody told it to")
        self.world.note(f"{name} has ended")
        self.crash(name)

    def stop(self, name: str) -> None:
        """SIGTERM: hand everything over, then end."""
        self.world.note(f"{name} is told to stop")
        self.nodes[name].is_stopping.set()

    def crash(self, name: str) -> None:
        """kill -9."""
        self.world.note(f"{name} crashes")
        self.nodes.pop(name).process.crash()
        waiting, self._waiting[name] = self._waiting[name], {}
        for reset in list(waiting.values()):
            reset()

    async def request(
        self,
        place: str,
        work: Callable[[Node], Coroutine[Any, Any, Result]],
        *,
        timeout_s: float = 15.0,
    ) -> Result:
        """What an HTTP client does: have a node do something, and hear what came of it.

        Reset: nobody knows. Raises what the node answers otherwise.
        """
        world, clients = self.world, self.clients
        answer: asyncio.Future[Result] = clients.create_future()
        number = next(self._requests)
        waiting = self._waiting[place]

        def tell(outcome: Callable[[], None]) -> None:
            waiting.pop(number, None)
            clients.deliver(lambda: None if answer.done() else outcome(), place)

        def reset() -> None:
            tell(lambda: answer.set_exception(Reset(f"{place} is gone")))

        async def handle(node: Node) -> None:
            try:
                result = await work(node)
            except ClusterError as error:
                failure = error
                back(lambda: answer.set_exception(failure))
            else:
                back(lambda: answer.set_result(result))

        def back(outcome: Callable[[], None]) -> None:
            world.at(world.random.uniform(0.0002, 0.002), lambda: tell(outcome))

        def arrive() -> None:
            node = self.nodes.get(place)
            if node is None or (not node.process.is_paused and not node.is_up):
                reset()
            else:
                waiting[number] = reset
                node.process.deliver(
                    lambda: None if answer.done() else _spawn(node, handle), f"client {number}"
                )

        world.at(world.random.uniform(0.0002, 0.002), arrive)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise Reset(f"{place} does not answer") from None
        finally:
            waiting.pop(number, None)


def _spawn(node: SimulatedNode, handle: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
    node.process.spawn(handle(node.node))
