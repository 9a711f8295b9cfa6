"""What clients know for sure, and what reached the logs: noted apart from all that is tested."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.store.ports import Fence, LogId
from tests.simulation.world import World
from tests.support.phased_log import LogTables, PhasedLogStore

Json = dict[str, Any]


class Start(NamedTuple):
    """A start that was acknowledged."""

    at_s: float
    intent: str
    workflow_id: str


class Report(NamedTuple):
    """A result that a worker has sent, and when it was first acknowledged (None: not yet)."""

    sent_s: float
    task_id: str
    workflow_id: str
    status: str
    output: Json
    token: str


class Sight(NamedTuple):
    """A workflow as somebody saw it."""

    sent_s: float
    at_s: float
    workflow_id: str
    status: str | None
    """None: it was not found."""
    ended_tasks: frozenset[str]
    place: str


@dataclass
class Ledger:
    """Times are seconds of the world."""

    world: World
    intents: dict[str, Json] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    """By token: each report is one delivery to one worker."""
    acknowledged: dict[str, float] = field(default_factory=dict)
    """Token → when its sender heard that it is taken."""
    deliveries: list[tuple[float, str]] = field(default_factory=list)
    """When a worker got a task, and which."""
    commands: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """Workflow → what operators asked for, and from when on that may show."""
    sights: list[Sight] = field(default_factory=list)
    commits: list[tuple[float, LogId, int]] = field(default_factory=list)
    """Which positions a writer took for committed, and when."""
    renewals: dict[LogId, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When the lease of a log was renewed, as its server saw it."""
    seals: list[tuple[float, str, LogId]] = field(default_factory=list)
    """Who began to seal which log, and when."""
    faults: list[str] = field(default_factory=list)
    """What must not have happened, whatever the rest looks like."""

    def accuse(self, fault: str) -> None:
        self.world.note(f"FAULT {fault}")
        if len(self.faults) < 50:
            self.faults.append(f"{self.world.now:.3f} s: {fault}")


class Archive(LogTables):
    """Log tables that remember everything that was ever inserted, and when."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.inserted: dict[LogId, dict[int, tuple[float, bytes]]] = {}
        self.ends: dict[LogId, int] = {}
        """Log → the end that was recorded when it was sealed."""
        self.sealed_s: dict[LogId, float] = {}

    def insert(self, log: LogId, position: int, entry: bytes) -> None:
        super().insert(log, position, entry)
        self.inserted.setdefault(log, {}).setdefault(position, (self._world.now, entry))

    def change_fence(self, log: LogId, *arguments: Any, **columns: Any) -> bool:
        changed = super().change_fence(log, *arguments, **columns)
        if not changed:
            return changed
        fence = self.fences[log]
        if columns.get("first_segment", 0):
            self._world.count("log: truncated")
        if not fence.open:
            if log not in self.sealed_s:
                self.sealed_s[log] = self._world.now
                self._world.count("log: sealed")
                self._world.note(f"{log} is sealed")
            if fence.valid_to is not None:
                self.ends[log] = fence.valid_to
        return changed

    def drop(self, log: LogId) -> None:
        super().drop(log)
        self._world.count("log: deleted")


class ObservedLogStore(PhasedLogStore):
    """Notes what the writer of a log takes for committed, and who seals which."""

    def __init__(self, ledger: Ledger, place: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._ledger = ledger
        self._place = place

    async def seal(self, log: LogId) -> Fence:
        self._ledger.seals.append((self._ledger.world.now, self._place, log))
        return await super().seal(log)

    async def fence(self, log: LogId) -> Fence | None:
        fence = await super().fence(log)
        is_own = log.partition("/")[0] == self._place
        if is_own and (fence is None or not fence.open):
            self._ledger.world.count("log: lost by a living process")
        return fence

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        await super().append(log, position, entry)
        self._ledger.commits.append((self._ledger.world.now, log, position))
