"""One seed, from the first start of a node to the verdict."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import structlog

from cluster.sharding import controller
from cluster.store import ports
from tests.simulation.checkers import History, judge_run, read_history
from tests.simulation.cluster import SHARD_COUNT, Cluster
from tests.simulation.faults import Faults
from tests.simulation.ledger import Ledger
from tests.simulation.schedules import SCHEDULES, Stage
from tests.simulation.workload import Workload, register
from tests.simulation.world import World

# In a simulated minute logs are removed all the same.
controller._TIDY_MS = 4_000

FAULTS_S = 14.0
"""How long clients start workflows and faults begin."""
_CALM_AFTER_S = 4.0
_SCHEDULE_S = 30.0
_PATIENCE_S = 90.0
"""After the last fault; what has not ended by then is stuck."""
_QUIET_S = 2.5
"""A checkpoint, and some time for clients who have missed an answer."""


@dataclass
class Outcome:
    """What came of a seed."""

    seed: int
    nodes: int
    workflows: int
    faults: list[str]
    counts: dict[str, int]
    digest: int
    cpu_s: float
    lines: list[str] = field(default_factory=list)
    schedule: str | None = None

    @property
    def name(self) -> str:
        """Which run this was, as the command line wants to be told."""
        schedule = "" if self.schedule is None else f" --schedule {self.schedule!r}"
        return f"--seeds {self.seed}{schedule}"


def simulate(seed: int, schedule: str | None = None, *, trace: bool = False) -> Outcome:
    """Run one seed, with faults by chance or by a schedule."""
    began_s = time.process_time()
    draw = Random(seed)
    nodes, workflows = draw.choice((3, 3, 4, 5, 7)), draw.randint(30, 36)
    # Some logs are cut, some stand as they were from the beginning.
    ports.SEGMENT_POSITIONS = draw.choice((8, 16, 256))
    world = World(seed)
    if trace:
        world.lines = []
    try:
        if schedule is None:
            found = _run(world, draw, nodes, workflows)
        else:
            nodes, found = 3, _run_schedule(world, schedule, workflows)
    except Exception:
        found = [f"the simulation broke: {traceback.format_exc()}"]
    finally:
        world.end()
    cpu_s = time.process_time() - began_s
    lines = world.lines or []
    return Outcome(
        seed, nodes, workflows, found, world.counts, world.digest, cpu_s, lines, schedule
    )


def _run(world: World, draw: Random, nodes: int, workflows: int) -> list[str]:
    ledger, cluster = _new_cluster(world, nodes)
    workload = Workload(cluster, ledger, workflows=workflows, over_s=FAULTS_S)
    workload.begin()
    faults = Faults(cluster)
    faults.schedule(draw.randint(3, 7), over_s=FAULTS_S)
    world.run(lambda: False, until_s=world.now + FAULTS_S + _CALM_AFTER_S)
    faults.heal()
    return _end(world, cluster, ledger, workload)


def _run_schedule(world: World, name: str, workflows: int) -> list[str]:
    schedule = SCHEDULES[name]
    ledger, cluster = _new_cluster(world, 3, schedule.before)
    workload = Workload(cluster, ledger, workflows=workflows, over_s=FAULTS_S)
    workload.begin()
    faults = Faults(cluster)
    schedule.begin(Stage(world, cluster, faults))
    world.run(lambda: False, until_s=world.now + _SCHEDULE_S)
    faults.heal()
    cluster.store.service.go_well()
    found = _end(world, cluster, ledger, workload)
    # Chance has its part in it: not every seed makes it happen, but most do.
    came_about = schedule.has_come_about(world.counts)
    world.count(f"schedule: {name}" if came_about else "schedule: came to nothing")
    return found


def _new_cluster(
    world: World, nodes: int, before: Callable[[Cluster], None] = lambda _: None
) -> tuple[Ledger, Cluster]:
    """A cluster that is up and knows the definitions."""
    _set_up_logs(world)
    ledger = Ledger(world)
    world.on_error = ledger.accuse
    cluster = Cluster(world, ledger, [f"n{number}" for number in range(1, nodes + 1)])
    before(cluster)
    for name in cluster.names:
        cluster.start(name)
    first = cluster.nodes["n1"]
    world.run(lambda: first.is_up, until_s=30)
    registering = first.process.spawn(register(first.node))
    world.run(registering.done, until_s=60)
    registering.result()
    return ledger, cluster


def _end(world: World, cluster: Cluster, ledger: Ledger, workload: Workload) -> list[str]:
    """Let everything come to its end without faults, and judge it."""
    workload.is_calm = True
    history = _wait(world, cluster, workload)
    for run in history.open_runs():
        ledger.accuse(f"workflow {run} is stuck")
    showing = cluster.clients.spawn(workload.show_all(list(history.headers)))
    world.run(showing.done, until_s=world.now + 60)
    if not showing.done():
        ledger.accuse("not every workflow can be read in the end")
    present = showing.result() if showing.done() else {}
    return judge_run(ledger, cluster.store.logs, history, present)


def _wait(world: World, cluster: Cluster, workload: Workload) -> History:
    deadline_s = world.now + _PATIENCE_S

    def seems_over() -> bool:
        return workload.producers_left == 0 and not cluster.store.open_workflows

    while True:
        world.run(seems_over, until_s=deadline_s)
        world.run(lambda: False, until_s=world.now + _QUIET_S)
        history = read_history(cluster.store.logs, SHARD_COUNT)
        if (seems_over() and not history.open_runs()) or world.now > deadline_s:
            return history


def _set_up_logs(world: World) -> None:
    """A defect that was caught and logged is a defect."""

    def keep(_: Any, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event.get("exc_info"):
            error = traceback.format_exc() if event["exc_info"] is True else repr(event["exc_info"])
            world.on_error(f"logged: {event['event']}: {error}")
        elif world.lines is not None:
            world.lines.append(f"{world.now:10.4f} log {level} {event}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[keep],
        wrapper_class=structlog.make_filtering_bound_logger(20 if world.lines is not None else 40),
        cache_logger_on_first_use=False,
    )
