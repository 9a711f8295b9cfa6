"""What lies between processes, and between them and the stores: it delays, loses and doubles.

A request is a closure that runs at the moment it arrives; whoever sent it hears the answer later,
or a fault of which he cannot tell whether the request was carried out, or will be.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar, cast

from cluster.errors import ClusterError, StoreFault, Unavailable
from cluster.store.lease_ports import Leases, Membership
from cluster.store.memory import open_memory
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.memory.shards import MemoryShardTable
from cluster.store.ports import LogId, ShardRow, Stores
from cluster.store.queue_ports import Queues, Wake
from tests.simulation.ledger import Archive, Ledger, ObservedLogStore
from tests.simulation.world import Process, World

Result = TypeVar("Result")

STORE = "store"
REDIS = "redis"


@dataclass(frozen=True)
class Weather:
    """How requests of one kind fare. Shares of 1."""

    slow: float = 0.01
    """Take up to a second and a half."""
    refused: float = 0.0
    """Are answered with a fault, and were not carried out."""
    request_lost: float = 0.0
    answer_lost: float = 0.0
    """Were carried out."""
    late: float = 0.0
    """Are carried out after their sender was told that there is no answer."""
    doubled: float = 0.0
    """Are carried out twice, the second time up to two seconds later."""


FAIR = Weather()
STORM = Weather(
    slow=0.15, refused=0.04, request_lost=0.04, answer_lost=0.06, late=0.06, doubled=0.06
)


class Service:
    """A store or a server of queues, as requests see it."""

    def __init__(self, name: str, fault: type[ClusterError]) -> None:
        self.name = name
        self.fault = fault
        self.is_up = True
        self.weather = FAIR
        self.decided: dict[object, int] = {}
        """How many compare-and-sets there were on what stands under a key."""
        self.script: Callable[[str, str], str | None] = _as_the_weather_has_it
        """Place and name of a request → how this one fares: a field of Weather, or "" for well."""

    def go_well(self) -> None:
        self.script = _as_the_weather_has_it

    def come_up(self) -> None:
        self.is_up = True

    def clear_up(self) -> None:
        self.weather = FAIR


class Network:
    """All connections. What is cut is cut in both directions."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cut: set[frozenset[str]] = set()
        """Pairs of places (node ids, services) that do not hear each other."""

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self.cut

    async def ask(
        self,
        process: Process,
        place: str,
        service: Service,
        name: str,
        request: Callable[[], Result],
        *,
        serial: object = None,
        is_idempotent: bool = True,
    ) -> Result:
        """Have a service carry out a request of a process that runs at a place."""
        world, random, weather = self.world, self.world.random, service.weather
        answer: asyncio.Future[Result] = process.create_future()
        chance = random.random()
        travel_s = random.uniform(0.0002, 0.002)
        give_up_s = random.uniform(0.5, 3.0)
        decided = service.decided.get(serial, 0)

        def tell(outcome: Callable[[asyncio.Future[Result]], None]) -> None:
            # A connection keeps its order, and there are several to each service.
            connection = f"{service.name}/{random.randrange(4)}"
            process.deliver(lambda: None if answer.done() else outcome(answer), connection)

        def fail(why: str) -> None:
            fault = service.fault(f"{service.name} {why}: {name}")
            tell(lambda future: future.set_exception(fault))

        def carry_out() -> Callable[[asyncio.Future[Result]], None]:
            if serial is not None:
                service.decided[serial] = service.decided.get(serial, 0) + 1
            try:
                result = request()
            except ClusterError as refusal:
                return partial(_fail, refusal)
            return lambda future: future.set_result(result)

        def arrive() -> None:
            if self.is_cut(place, service.name):
                world.count(f"{service.name}: cut off")
                world.at(give_up_s, lambda: fail("does not answer"))
                return
            if not service.is_up:
                world.count(f"{service.name}: down")
                world.at(travel_s, lambda: fail("is down"))
                return
            outcome = carry_out()
            world.at(travel_s, lambda: back(outcome))

        def back(outcome: Callable[[asyncio.Future[Result]], None]) -> None:
            if self.is_cut(place, service.name):
                world.count(f"{service.name}: answer cut off")
                world.at(give_up_s, lambda: fail("does not answer"))
            else:
                tell(outcome)

        def arrive_late() -> None:
            # What a compare-and-set that nobody heard of may still do ends with the next one.
            if service.is_up and (serial is None or service.decided.get(serial, 0) == decided):
                carry_out()

        def again() -> None:
            if service.is_up and is_idempotent and serial is None:
                carry_out()

        kind = service.script(place, name)
        if kind is None:
            kind = _kind(weather, chance)
        if kind:
            world.count(f"{service.name}: {kind}")
            world.note(f"{place} {service.name} {name}: {kind}")
        match kind:
            case "slow":
                travel_s = random.uniform(0.02, 1.5)
                world.at(travel_s, arrive)
            case "refused":
                world.at(travel_s, lambda: fail("refuses"))
            case "request lost":
                world.at(give_up_s, lambda: fail("does not answer"))
            case "answer lost":
                world.at(travel_s, lambda: None if not service.is_up else _none(carry_out()))
                world.at(give_up_s, lambda: fail("does not answer"))
            case "late":
                world.at(give_up_s, lambda: fail("does not answer"))
                world.at(give_up_s + random.uniform(0.0, 4.0), arrive_late)
            case "doubled":
                world.at(travel_s, arrive)
                world.at(travel_s + random.uniform(0.0, 2.0), again)
            case _:
                world.at(travel_s, arrive)
        return await answer


def _hear_nothing(queue: str, at_ms: int) -> None:
    pass


def _none(_: object) -> None:
    return None


def _fail(refusal: ClusterError, future: "asyncio.Future[Any]") -> None:
    future.set_exception(refusal)


def _as_the_weather_has_it(place: str, name: str) -> str | None:
    return None


_KINDS = tuple(field.name for field in fields(Weather))


def _kind(weather: Weather, chance: float) -> str:
    for kind in _KINDS:
        share: float = getattr(weather, kind)
        if chance < share:
            return kind.replace("_", " ")
        chance -= share
    return ""


def run_now(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits, as those of the memory ports do."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(Result, end.value)
    raise AssertionError("a port in memory has waited for something")


class StoreServer:
    """The durable store of a cluster: it forgets nothing, ever."""

    def __init__(self, world: World, ledger: Ledger, shard_count: int) -> None:
        self.service = Service(STORE, StoreFault)
        self.stores = replace(
            open_memory(shard_count=shard_count), shards=CountedShardTable(world, self._is_open)
        )
        self.logs = Archive(world)
        self._ledger = ledger
        run_now(cast(Any, self.stores.shards.create(shard_count)))

    def _is_open(self, log: LogId) -> bool:
        fence = self.logs.fence(log)
        return fence is not None and fence.open

    @property
    def shard_rows(self) -> Sequence[ShardRow]:
        """The routing table as it stands."""
        return run_now(cast(Any, self.stores.shards.rows()))

    @property
    def open_workflows(self) -> int:
        """How many the open set lists."""
        return len(self.stores.open_set._entries)  # type: ignore[attr-defined]

    def seen_by(self, network: Network, process: Process, place: str) -> Stores:
        """The ports as a process has them."""

        def ask(
            name: str, request: Callable[[], Result], *, serial: object = None
        ) -> Awaitable[Result]:
            return network.ask(process, place, self.service, name, request, serial=serial)

        ports: dict[str, Any] = {
            field.name: RemotePort(network, process, place, self.service, field.name, port)
            for field in fields(Stores)
            if (port := getattr(self.stores, field.name))
        }
        ports["logs"] = ObservedLogStore(self._ledger, place, self.logs, ask)
        return Stores(**ports)


class CountedShardTable(MemoryShardTable):
    """Counts who takes over from whom."""

    def __init__(self, world: World, is_open: Callable[[LogId], bool]) -> None:
        super().__init__()
        self._world = world
        self._is_open = is_open

    async def claim(self, rows: Sequence[ShardRow], own: LogId) -> Sequence[ShardRow]:
        before = list(await self.rows())
        stands = await super().claim(rows, own)
        for row in stands:
            owner = before[row.shard].owner
            if before[row.shard] != row:
                self._world.note(f"{own} claims {row.shard} of {owner} in epoch {row.epoch}")
                if owner is None:
                    kind = "of nobody's shard"
                elif self._is_open(owner):
                    kind = "handed over"
                else:
                    is_same = owner.partition("/")[0] == own.partition("/")[0]
                    kind = "by the same node" if is_same else "by another node"
                self._world.count(f"takeover: {kind}")
        return stands


class NotedLeases(MemoryLeases):
    """Tells the ledger who was heard of."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    async def renew(self, log: LogId) -> None:
        self.ledger.renewals[log].append(self.ledger.world.now)
        await super().renew(log)


class RedisServer:
    """Queues, leases and members: all of it may be lost."""

    def __init__(self, world: World, ledger: Ledger, shard_count: int) -> None:
        self._world = world
        self._ledger = ledger
        clock = Process(world, REDIS)
        self.service = Service(REDIS, Unavailable)
        self.listeners: list[tuple[Process, str, Wake]] = []
        self.leases = NotedLeases(ledger)
        self._losses = 0
        self.membership = MemoryMembership(clock)
        self.queues = MemoryTaskQueues(shard_count=shard_count)
        self.queues.watch(self._wake)

    def flush(self) -> None:
        """FLUSHALL, or a restart without persistence."""
        self._losses += 1
        for part in (self.leases, self.membership, self.queues):
            part.lose()
        self._renumber()

    def fall_back(self, after_s: float) -> None:
        """Fail over, in a while, to a replica that knows only what there is now."""
        self.queues._watchers, self.queues._wake = [], _hear_nothing
        leases = NotedLeases(self._ledger)
        leases._counters = dict(self.leases._counters)
        replica = deepcopy(self.queues), leases
        self.queues.watch(self._wake)

        def promote() -> None:
            self._world.count("redis: failed over")
            self._losses += 1
            self.queues, self.leases = replica
            self.queues.watch(self._wake)
            self._renumber()

        self._world.at(after_s, promote)

    def _renumber(self) -> None:
        """A generation of its own for every loss, whatever a replica knew of earlier ones."""
        self.queues._losses = self.leases._losses = self._losses
        self.queues._counted.clear()

    def seen_by(
        self, network: Network, process: Process, place: str
    ) -> tuple[Queues, Leases, Membership]:
        """Queues, leases and membership as a process has them."""

        def port(name: str) -> Any:
            return RemotePort(
                network, process, place, self.service, name, lambda: getattr(self, name)
            )

        queues = port("queues")
        queues.watch = lambda wake: self.listeners.append((process, place, wake))
        return queues, port("leases"), port("membership")

    def _wake(self, queue: str, at_ms: int) -> None:
        for process, place, wake in self.listeners:
            if not process.is_dead:
                self._tell(process, place, partial(wake, queue, at_ms))

    def _tell(self, process: Process, place: str, wake: Callable[[], None]) -> None:
        # A message of publish and subscribe: who does not hear it has missed it.
        self._world.at(
            self._world.random.uniform(0.0002, 0.002), lambda: process.deliver(wake, "wakes")
        )


class RemotePort:
    """Every port of the memory stores, at the other end of a connection."""

    def __init__(
        self,
        network: Network,
        process: Process,
        place: str,
        service: Service,
        name: str,
        port: object,
    ) -> None:
        """`port` may be a function that tells the port: servers are replaced."""
        self._network = network
        self._process = process
        self._place = place
        self._service = service
        self._name = name
        self._port = port if callable(port) else lambda: port

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        name = f"{self._name}.{method}"
        # A compare-and-set; what stands in the routing table is decided row by row, but the rows
        # of one call travel together.
        is_serial = self._name == "shards" and method in ("claim", "release")

        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._network.ask(
                self._process,
                self._place,
                self._service,
                name,
                lambda: run_now(getattr(self._port(), method)(*arguments, **options)),
                serial="shards" if is_serial else None,
            )

        setattr(self, method, call)
        return call
