"""What goes wrong, when, and for how long: drawn from the seed."""

from collections.abc import Callable
from functools import partial

from tests.simulation.cluster import Cluster
from tests.simulation.network import REDIS, STORE, STORM, Service


class Faults:
    """A schedule of faults. Each begins at a moment, and ends by itself or when all do."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.random = cluster.world.random
        self.happened = 0
        self._ends: list[Callable[[], None]] = []

    def schedule(self, count: int, *, over_s: float) -> None:
        """Draw `count` faults that begin in that time."""
        kinds = list(KINDS)
        for _ in range(count):
            happen = partial(self._happen, self.random.choice(kinds))
            self.world.at(self.random.uniform(0, over_s), happen)

    def _happen(self, kind: str) -> None:
        if KINDS[kind](self):
            self.happened += 1
            self.world.count(f"fault: {kind}")
            self.world.note(f"fault: {kind}")

    def heal(self) -> None:
        """From now on nothing is wrong any more."""
        ends, self._ends = self._ends, []
        for end in ends:
            end()

    def until(self, seconds: float, end: Callable[[], None]) -> None:
        """Have a fault end, once."""
        over = False

        def once() -> None:
            nonlocal over
            if not over:
                over = True
                end()

        self._ends.append(once)
        self.world.at(seconds, once)

    def _some_node(self) -> str | None:
        alive = [name for name in self.cluster.names if name in self.cluster.nodes]
        return self.random.choice(alive) if alive else None

    # -- kinds

    def crash(self) -> bool:
        """kill -9 in the midst of anything, and a start a while later."""
        name = self._some_node()
        if name is None:
            return False
        node = self.cluster.nodes[name]

        def strike() -> None:
            if self.cluster.nodes.get(name) is node:
                self.cluster.crash(name)
                self.until(self.random.choice((0.05, 1.0, 4.0, 9.0)), restart)

        def restart() -> None:
            if name not in self.cluster.nodes:
                self.cluster.start(name)

        node.process.strike_in(self.random.randrange(60), strike)
        self.until(2.0, strike)
        return True

    def stop(self) -> bool:
        """SIGTERM, and a start a while after it has ended."""
        name = self._some_node()
        if name is None or len(self.cluster.nodes) < 2:
            return False
        node = self.cluster.nodes[name]
        if not node.is_up or node.is_stopping.is_set():
            return False
        self.cluster.stop(name)

        def restart() -> None:
            if name not in self.cluster.nodes:
                self.cluster.start(name)
            elif self.cluster.nodes[name] is node:
                self.until(1.0, restart)

        self.until(self.random.choice((3.0, 8.0)), restart)
        return True

    def pause(self) -> bool:
        """SIGSTOP, often for longer than a lease, then SIGCONT."""
        name = self._some_node()
        if name is None:
            return False
        process = self.cluster.nodes[name].process
        seconds = self.random.choice((0.3, 3.0, 6.0, 8.0, 12.0)) * self.random.uniform(0.8, 1.2)

        def strike() -> None:
            process.pause()
            self.world.note(f"{name} is paused")
            self.until(seconds, resume)

        def resume() -> None:
            process.resume()
            self.world.note(f"{name} goes on")

        process.strike_in(self.random.randrange(60), strike)
        return True

    def cut(self, one: str, other: str, seconds: float) -> None:
        """Two places do not hear each other for a while."""
        pair = frozenset((one, other))
        self.cluster.network.cut.add(pair)
        self.until(seconds, lambda: self.cluster.network.cut.discard(pair))

    def half_dead(self) -> bool:
        """A node that reaches Redis and not the store."""
        name = self._some_node()
        if name is not None:
            self.cut(name, STORE, self.random.uniform(1.0, 12.0))
        return name is not None

    def without_redis(self) -> bool:
        """A node that reaches the store and not Redis."""
        name = self._some_node()
        if name is not None:
            self.cut(name, REDIS, self.random.uniform(1.0, 12.0))
        return name is not None

    def links_cut(self) -> bool:
        """Two nodes that do not hear each other."""
        if len(self.cluster.names) < 2:
            return False
        one, other = self.random.sample(self.cluster.names, 2)
        self.cut(one, other, self.random.uniform(0.5, 10.0))
        return True

    def isolated(self) -> bool:
        """A node that reaches nothing."""
        name = self._some_node()
        if name is not None:
            seconds = self.random.uniform(1.0, 10.0)
            for other in (STORE, REDIS, *(n for n in self.cluster.names if n != name)):
                self.cut(name, other, seconds)
        return name is not None

    def redis_flushed(self) -> bool:
        self.cluster.redis.flush()
        return True

    def redis_down(self) -> bool:
        self._down(self.cluster.redis.service)
        return True

    def redis_fails_over(self) -> bool:
        """It goes on with what it was a second ago."""
        self.cluster.redis.fall_back(1.0)
        return True

    def store_down(self) -> bool:
        self._down(self.cluster.store.service)
        return True

    def _down(self, service: Service) -> None:
        service.is_up = False
        self.until(self.random.uniform(0.5, 7.0), service.come_up)

    def store_storm(self) -> bool:
        """Its requests are lost, doubled, late, or their answers are."""
        self._storm(self.cluster.store.service)
        return True

    def redis_storm(self) -> bool:
        self._storm(self.cluster.redis.service)
        return True

    def _storm(self, service: Service) -> None:
        service.weather = STORM
        self.until(self.random.uniform(1.0, 8.0), service.clear_up)

    def clock_jump(self) -> bool:
        """The wall clock of a node is set, by up to ten minutes."""
        name = self._some_node()
        if name is not None:
            offset_ms = self.random.choice((-600_000, -30_000, -900, 900, 30_000, 600_000))
            self._set_clock(name, offset_ms)
            self.until(self.random.uniform(2.0, 10.0), lambda: self._set_clock(name, 0))
        return name is not None

    def _set_clock(self, name: str, offset_ms: int) -> None:
        self.cluster.wall_offsets_ms[name] = offset_ms
        node = self.cluster.nodes.get(name)
        if node is not None:
            node.process.wall_offset_ms = offset_ms


KINDS: dict[str, Callable[[Faults], bool]] = {
    "crash": Faults.crash,
    "stop and start": Faults.stop,
    "pause": Faults.pause,
    "half-dead node": Faults.half_dead,
    "node without Redis": Faults.without_redis,
    "links cut": Faults.links_cut,
    "node isolated": Faults.isolated,
    "Redis flushed": Faults.redis_flushed,
    "Redis down": Faults.redis_down,
    "Redis fails over": Faults.redis_fails_over,
    "store down": Faults.store_down,
    "store storm": Faults.store_storm,
    "Redis storm": Faults.redis_storm,
    "clock jump": Faults.clock_jump,
}
