"""Simulated links between nodes: the port of node/link.py on connections that break and delay.

As there, a node dials those it wants something of, keeps one connection to each, and a server that
hears of a newer connection of a node drops what the earlier one still has under way.
"""

import asyncio
from itertools import count

import msgspec

from cluster.clock import Clock
from cluster.errors import ClusterError, OutcomeUnknown, Unreached
from cluster.node.link import LinkCall, Serve
from tests.simulation.network import Network
from tests.simulation.world import Process

_SILENCE_S = 4.5
"""Two heartbeats of a websocket: then a peer that does not answer is given up."""


class Server:
    """Where a node takes links."""

    def __init__(self, process: Process, place: str, serve: Serve) -> None:
        self.process = process
        self.place = place
        self.serve = serve
        self.latest: dict[str, Connection] = {}
        """By place of the caller: what came earlier on another connection is not carried out."""


class Fabric:
    """All servers, by address."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.servers: dict[str, Server] = {}
        self.numbers = count(1)

    def listen(self, process: Process, place: str, serve: Serve) -> str:
        """Take links; returns the address."""
        address = f"{place}:{next(self.numbers)}"
        self.servers[address] = Server(process, place, serve)
        return address


class Connection:
    """One connection, from the one who dialled to the one who answers."""

    def __init__(self, fabric: Fabric, caller: Process, place: str, server: Server) -> None:
        self.number = next(fabric.numbers)
        self.fabric = fabric
        self.caller = caller
        self.place = place
        self.server = server
        self.is_broken = False
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._under_way: dict[asyncio.Task[None], None] = {}
        self._name = f"link {self.number}"
        caller.on_crash.append(self._hang_up)
        server.process.on_crash.append(self._reset)

    @property
    def is_cut(self) -> bool:
        return self.fabric.network.is_cut(self.place, self.server.place)

    async def call(self, call: LinkCall) -> bytes:
        """Send a call and wait for its answer."""
        answer: asyncio.Future[bytes] = self.caller.create_future()
        self._pending[call.id] = answer
        world = self.caller.world
        world.at(world.random.uniform(0.0001, 0.002), lambda: self._arrive(call, 0))
        world.at(_SILENCE_S, lambda: self._listen(answer))
        try:
            async with asyncio.timeout(call.left_ms / 1000):
                return await answer
        except TimeoutError:
            raise OutcomeUnknown(f"Node {self.server.place} did not answer in time") from None
        finally:
            self._pending.pop(call.id, None)

    def _arrive(self, call: LinkCall, tries: int) -> None:
        world = self.caller.world
        if self.is_cut:
            # TCP sends it again, as long as the connection stands.
            world.count("link: frame held up")
            if not self.is_broken and tries < 40:
                world.at(0.25, lambda: self._arrive(call, tries + 1))
            return
        if self.server.process.is_paused:
            world.count("link: frame to a paused node")
        self.server.process.deliver(lambda: self._take(call), self._name)

    def _take(self, call: LinkCall) -> None:
        """In the server's process."""
        latest = self.server.latest.get(self.place)
        if latest is not None and latest.number > self.number:
            self.caller.world.count("link: late frame dropped")
            return
        if latest is not self:
            self.server.latest[self.place] = self
            if latest is not None:
                latest._drop()
        if call.id not in self._pending:
            self.caller.world.count("link: late frame carried out")
            self.caller.world.note(f"late frame {call.operation} at {self.server.place}")
        task = self.server.process.spawn(self._carry_out(call))
        self._under_way[task] = None
        task.add_done_callback(lambda _: self._under_way.pop(task, None))

    async def _carry_out(self, call: LinkCall) -> None:
        value, fault = b"", None
        try:
            async with asyncio.timeout(call.left_ms / 1000):
                value = await self.server.serve(call)
        except ClusterError as error:
            fault = error
        except TimeoutError:
            fault = OutcomeUnknown("There was no time left")
        world = self.caller.world
        world.at(world.random.uniform(0.0001, 0.002), lambda: self._answer(call, value, fault, 0))

    def _answer(self, call: LinkCall, value: bytes, fault: ClusterError | None, tries: int) -> None:
        world = self.caller.world
        if self.is_cut:
            if not self.is_broken and tries < 40:
                world.at(0.25, lambda: self._answer(call, value, fault, tries + 1))
            return

        def tell() -> None:
            answer = self._pending.get(call.id)
            if answer is None or answer.done():
                return
            if fault is None:
                answer.set_result(value)
            else:
                answer.set_exception(fault)

        self.caller.deliver(tell, self._name)

    def _listen(self, answer: "asyncio.Future[bytes]") -> None:
        """Whether there was any sign of the peer."""
        if not answer.done() and (self.is_cut or self.server.process.is_stopped()):
            self.caller.deliver(self.break_off, self._name)

    def _reset(self) -> None:
        """The server's process is gone, its kernel says so."""
        self.caller.world.at(0.001, lambda: self.caller.deliver(self.break_off, self._name))

    def _hang_up(self) -> None:
        """The caller's process is gone: the server sees its end and drops what nobody waits for."""
        world = self.caller.world
        world.at(0.002, lambda: self.server.process.deliver(self._drop, self._name))

    def break_off(self) -> None:
        """In the caller's process: nothing more will come."""
        if self.is_broken:
            return
        self.is_broken = True
        self.caller.world.count("link: connection broken")
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(OutcomeUnknown(f"Node {self.server.place} broke the link"))
        self._hang_up()

    def _drop(self) -> None:
        for task in list(self._under_way):
            task.cancel()


class SimulatedLinks:
    """Links of one process."""

    def __init__(self, fabric: Fabric, process: Process, place: str, clock: Clock) -> None:
        self._fabric = fabric
        self._process = process
        self._clock = clock
        self._place = place
        self._connections: dict[str, Connection] = {}
        self._ids = count(1)

    async def call(
        self,
        address: str,
        operation: str,
        arguments: bytes,
        *,
        timeout_ms: int,
        shard: int = -1,
        epoch: int = -1,
    ) -> bytes:
        connection = self._connections.get(address)
        if connection is None or connection.is_broken:
            connection = await self._connect(address, timeout_ms)
        left_ms = max(1, timeout_ms)
        raw = msgspec.Raw(arguments)
        sent_ms = self._clock.now_ms()
        call = LinkCall(next(self._ids), operation, left_ms, shard, epoch, raw, sent_ms)
        self._process.world.count("link: calls")
        return await connection.call(call)

    async def _connect(self, address: str, timeout_ms: int) -> Connection:
        server = self._fabric.servers.get(address)
        if server is None or server.process.is_dead:
            await asyncio.sleep(0.001)
            raise Unreached(f"Node {address} cannot be reached")
        if self._fabric.network.is_cut(self._place, server.place):
            self._process.world.count("link: no connection")
            await asyncio.sleep(min(3.0, timeout_ms / 1000))
            raise Unreached(f"Node {address} cannot be reached")
        # Another call may have dialled meanwhile.
        connection = self._connections.get(address)
        if connection is None or connection.is_broken:
            connection = Connection(self._fabric, self._process, self._place, server)
            self._connections[address] = connection
        return connection

    def keep_only(self, addresses: set[str]) -> None:
        """Drop the connections to nodes that are gone."""
        for address in [one for one in self._connections if one not in addresses]:
            self._connections.pop(address).break_off()

    async def close(self) -> None:
        self.keep_only(set())
