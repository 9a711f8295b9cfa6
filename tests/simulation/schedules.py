"""The schedules of design section 12, each of them made to happen; chance decides the rest."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from itertools import cycle

from tests.simulation.cluster import Cluster
from tests.simulation.faults import Faults
from tests.simulation.network import REDIS, STORE
from tests.simulation.world import World

TEN_MINUTES_MS = 600_000


@dataclass
class Stage:
    """A cluster, and what can be done to it."""

    world: World
    cluster: Cluster
    faults: Faults

    def at(self, seconds: float, happen: Callable[[], object]) -> None:
        """Seconds after the clients have begun, give or take a little."""
        self.world.at(seconds + self.world.random.uniform(0.0, 0.5), lambda: _ignore(happen()))

    def pause(self, name: str, seconds: float) -> None:
        """From the midst of some turn on, for that long."""
        process = self.cluster.nodes[name].process
        process.strike_in(self.world.random.randrange(40), process.pause)
        self.faults.until(seconds, process.resume)

    def crash(self, name: str, *, back_after_s: float) -> None:
        """kill -9, and a new start."""
        if name in self.cluster.nodes:
            self.cluster.crash(name)
            self.faults.until(back_after_s, lambda: self.start(name))

    def stop(self, name: str) -> None:
        """SIGTERM."""
        if name in self.cluster.nodes:
            self.cluster.stop(name)

    def start(self, name: str) -> None:
        """Begin a process, if there is none."""
        if name not in self.cluster.nodes:
            self.cluster.start(name)

    def owner(self) -> str:
        """A node that owns shards; the first one if nobody does."""
        rows = self.cluster.store.shard_rows
        names = [row.owner.partition("/")[0] for row in rows if row.owner is not None]
        nodes = self.cluster.nodes
        alive = [name for name in names if name in nodes and not nodes[name].process.is_paused]
        return self.world.random.choice(alive or self.cluster.names)


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True)
class Schedule:
    """What to do, and what must have happened in the end for it to have come about."""

    begin: Callable[[Stage], None]
    must_happen: tuple[str, ...]
    before: Callable[[Cluster], None] = lambda _: None
    """Done before the first node starts."""

    def has_come_about(self, happened: Container[str]) -> bool:
        """Whether what it is about did happen."""
        return all(what in happened for what in self.must_happen)


def _double_takeover(stage: Stage) -> None:
    """The first that claims a dead node's shards hears nothing of its claim, which is carried out
    late, and dies; another takes over from both, and then the first owner wakes."""
    victims: list[str] = []

    def script(place: str, name: str) -> str | None:
        if name != "shards.claim" or victims:
            return None
        victims.append(place)
        stage.world.at(0.3, lambda: stage.crash(place, back_after_s=7.0))
        return "late"

    def begin() -> None:
        stage.pause(stage.owner(), 16.0)
        stage.cluster.store.service.script = script

    stage.at(3.0, begin)


def _there_and_back(stage: Stage) -> None:
    """Shards go from a node to another and back, while what the first has written comes late."""
    names = cycle(stage.cluster.names)

    def script(place: str, name: str) -> str | None:
        is_late = name == "executions.write" and stage.world.random.random() < 0.3
        return "late" if is_late else None

    stage.cluster.store.service.script = script
    for seconds in (2.0, 10.0, 18.0):
        stage.at(seconds, lambda: stage.pause(next(names), 8.0))


def _moved_there_and_back(stage: Stage) -> None:
    """Shards are moved to a node and moved back, to the logs they came from; then those that have
    them die, and both times that a shard was theirs stand in one log."""
    stage.at(1.0, lambda: stage.stop("n3"))
    stage.at(4.0, lambda: stage.start("n3"))
    stage.at(11.5, lambda: stage.stop("n3"))
    stage.at(14.0, lambda: stage.crash("n1", back_after_s=1.0))
    stage.at(15.0, lambda: stage.crash("n2", back_after_s=1.0))


def _truncation_during_a_seal(stage: Stage) -> None:
    """The owner is busy cutting its log, slowly, when another seals it and looks for its end."""
    slow = ("change fence", "drop segments", "scan")

    def script(place: str, name: str) -> str | None:
        is_slow = name in slow and stage.world.random.random() < 0.5
        return "slow" if is_slow else None

    stage.cluster.store.service.script = script
    for seconds in (3.0, 16.0):
        stage.at(seconds, lambda: stage.faults.cut(stage.owner(), REDIS, 12.0))


def _awake_after_removal(stage: Stage) -> None:
    """A process stands still until its log is sealed, replayed, claimed and removed; then it goes
    on with an append that it had begun."""
    for seconds in (2.0, 6.0):
        stage.at(seconds, lambda: stage.pause(stage.owner(), 22.0))


def _unknown_outcomes(stage: Stage) -> None:
    """No compare-and-set is heard of at once: it was done, or will be, or will not."""
    kinds = cycle(("answer lost", "late", "request lost", ""))

    def script(place: str, name: str) -> str | None:
        decides = name in ("shards.claim", "shards.release", "change fence")
        return next(kinds) if decides and stage.world.random.random() < 0.7 else None

    stage.cluster.store.service.script = script
    stage.at(3.0, lambda: stage.crash(stage.owner(), back_after_s=6.0))
    stage.at(10.0, lambda: stage.pause(stage.owner(), 9.0))


def _doubled_requests(stage: Stage) -> None:
    """Clients ask two nodes for the same while appends take long."""
    stage.cluster.doubles = 0.5

    def script(place: str, name: str) -> str | None:
        return "slow" if name == "insert" and stage.world.random.random() < 0.3 else None

    stage.cluster.store.service.script = script
    stage.at(5.0, lambda: stage.crash(stage.owner(), back_after_s=1.0))


def _late_frames(stage: Stage) -> None:
    """Calls of other nodes wait at a node that stands still until its shards are not its own."""
    for seconds in (2.0, 10.0, 18.0):
        stage.at(seconds, lambda: stage.pause(stage.owner(), 8.0))


def _half_dead(stage: Stage) -> None:
    """A node reaches Redis and not the store, for longer than its lease."""
    stage.at(2.0, lambda: stage.faults.cut(stage.owner(), STORE, 11.0))


def _redis_loses_a_second(stage: Stage) -> None:
    """Redis fails over, again and again, to what it was a second ago."""
    for seconds in (2.0, 5.0, 9.0, 13.0):
        stage.at(seconds, lambda: stage.cluster.redis.fall_back(1.0))


def _clocks_apart(cluster: Cluster) -> None:
    cluster.wall_offsets_ms = {"n2": TEN_MINUTES_MS, "n3": -TEN_MINUTES_MS}


def _clocks_ten_minutes_apart(stage: Stage) -> None:
    """Two nodes have clocks that are wrong, by ten minutes each; the third one dies."""
    stage.at(4.0, lambda: stage.crash("n1", back_after_s=2.0))


def _no_room(cluster: Cluster) -> None:
    cluster.limits = {"log_backlog_transitions": 1}


def _too_little_room(stage: Stage) -> None:
    """Next to nothing may wait for the log, and appends take long: starts are refused, polls find
    nothing, what was acknowledged goes on; an owner dies in the midst of it."""

    def script(place: str, name: str) -> str | None:
        return "slow" if name == "insert" and stage.world.random.random() < 0.3 else None

    stage.cluster.store.service.script = script
    stage.at(5.0, lambda: stage.crash(stage.owner(), back_after_s=1.0))


_TAKEN = "takeover: by another node"
_LOST = "log: lost by a living process"

SCHEDULES = {
    "double takeover": Schedule(_double_takeover, (_TAKEN, _LOST, "store: late")),
    "there and back": Schedule(_there_and_back, (_TAKEN, _LOST, "store: late")),
    "moved there and back": Schedule(
        _moved_there_and_back, ("takeover: handed over", "takeover: by the same node")
    ),
    "truncation during a seal": Schedule(_truncation_during_a_seal, (_TAKEN, "log: truncated")),
    "awake after removal": Schedule(_awake_after_removal, (_TAKEN, _LOST, "log: deleted")),
    "unknown outcomes": Schedule(_unknown_outcomes, (_TAKEN, "store: answer lost", "store: late")),
    "doubled requests": Schedule(_doubled_requests, ("request: doubled",)),
    "late frames": Schedule(_late_frames, (_TAKEN, "link: frame to a paused node")),
    "half-dead node": Schedule(_half_dead, (_TAKEN, "store: cut off")),
    "Redis loses a second": Schedule(_redis_loses_a_second, ("redis: failed over",)),
    "clocks ten minutes apart": Schedule(
        _clocks_ten_minutes_apart, ("takeover: by the same node",), before=_clocks_apart
    ),
    "too little room": Schedule(
        _too_little_room, ("request: refused for want of room",), before=_no_room
    ),
}
