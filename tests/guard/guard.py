"""The regression guard: what a workflow makes a node do, counted, beside a stored reference.

    python -m tests.guard.guard [--record] [--only cluster] [--details]

A node runs in this process on SQLite (with --only cluster one and two nodes on a real Cassandra
and Redis), and a client in the same event loop drives it in lock-step. Counted per workflow: calls
of Python functions and of built-in ones on the event loop's thread, bytes and entries of the commit
log, SQL statements, writes to Cassandra with their rows and bytes, calls over links.
A count that is more than 5 % above tests/guard/reference.json fails; one that is as much below
asks for `make guard-record`. Calls differ between minor versions of Python and are compared only
with those of the same one. CPU per workflow is that of a round that is not counted, node and
client together; it judges nothing.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from random import Random as SeededRandom
from typing import Any

import uvloop

from cluster.logs import set_up_logs
from cluster.node import admission, gauges
from cluster.node.app import Node, running
from cluster.node.ground import schema
from cluster.settings import load_settings
from cluster.sharding import requeue
from cluster.store.traffic import Traffic
from tests.guard.counting import Calls, by_module, sql_counted
from tests.guard.load import Client, Load

REFERENCE = Path(__file__).parent / "reference.json"
TOLERANCE = 0.05
SLACK = 0.05
"""Per workflow: how many appends a bulk request takes hangs on how fast the disk is."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SCENARIOS = ("simple1", "chain5", "fork10")
BY_PYTHON = ("python calls", "built-in calls")
"""Counts that are those of one minor version."""

Counts = dict[str, float]
_ROUNDS = 3
_HOUR_MS = 3_600_000
# What runs by the clock would be counted more often on a slow machine.
_SELDOM = {
    "checkpoint_interval_ms": _HOUR_MS,
    "audit_interval_ms": _HOUR_MS,
    "shard_poll_ms": _HOUR_MS,
}
# Written now and then, and the words of transactions, whose number depends on what waits together.
_BY_THE_CLOCK = {"INSERT poll_data", "BEGIN", "COMMIT", "SAVEPOINT", "RELEASE"}
_SHARDS = 16
"""Few, as a checkpoint of few workflows would otherwise have a partition for each."""
_SELDOM_ALONE = {"lease_ttl_ms": 60_000, "lease_renew_ms": 20_000, "heartbeat_ms": 10_000}


class Seeded:
    """The Random port, the same in every run: which shards workflows fall on decides much."""

    def __init__(self) -> None:
        self.bits = SeededRandom(1).getrandbits


class Stepped:
    """The Clock port, moved by hand: nothing is cut short because it took long."""

    def __init__(self) -> None:
        self._began_ms = time.time_ns() // 1_000_000
        self.passed_ms = 0

    def now_ms(self) -> int:
        return self._began_ms + self.passed_ms

    def monotonic_ms(self) -> int:
        return self.passed_ms


class Meter:
    """All counts of the nodes that run, as they are now; per statement too."""

    def __init__(self, nodes: list[Node], calls: Calls) -> None:
        self.nodes = nodes
        self.calls = calls
        self.sql: Counter[str] = Counter()
        self.workflows = 0
        """Of the last round."""

    def now(self) -> Counts:
        metrics = [node.metrics for node in self.nodes]
        counts: Counts = {
            "python calls": self.calls.python.total(),
            "built-in calls": self.calls.builtin.total(),
            "log entries": sum(one.commit_log_entries.of().value for one in metrics),
            "log bytes": sum(one.commit_log_bytes.of().value for one in metrics),
            "link calls": sum(
                child.value for one in metrics for child in one.link_calls.children.values()
            ),
            "link frames": sum(one.link_frames.of().value for one in metrics),
            "sql statements": sum(n for name, n in self.sql.items() if name not in _BY_THE_CLOCK),
        }
        for node in self.nodes:
            _add_traffic(counts, node._gauges._traffic)
        counts |= {f"sql {name}": count for name, count in self.sql.items()}
        for module, count in by_module(self.calls.python).items():
            counts[f"in {module}"] = count
        return counts


def _add_traffic(counts: Counts, traffic: Traffic) -> None:
    """What was written to Cassandra for the sake of workflows. Reads of what may have changed go
    by the clock; how much goes into one call of Redis, by when answers come."""
    for (server, kind), flow in traffic.flows.items():
        if server == "cassandra" and not kind.startswith("select") and kind != "insert poll_data":
            for name, count in (
                ("cql writes", flow.requests),
                ("cql rows", flow.items),
                ("cql bytes", flow.sent_bytes),
                (f"cql {kind}", flow.items),
            ):
                counts[name] = counts.get(name, 0) + count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="store what is counted")
    parser.add_argument("--only", choices=["embedded", "cluster"], default="embedded")
    parser.add_argument("--details", action="store_true", help="print all counts")
    options = parser.parse_args()
    set_up_logs(node_id="guard", level="warning")
    counted: dict[str, Counts] = {}
    if options.only != "cluster":
        counted |= run(embedded())
    if options.only != "embedded":
        counted |= cluster()
    reference = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
    if options.details:
        print(json.dumps(counted, indent=1))
    if options.record:
        REFERENCE.write_text(json.dumps(_merged(reference, counted), indent=1) + "\n")
        print(f"recorded {len(counted)} workloads for Python {PYTHON}")
        return 0
    return compare(counted, reference)


@contextmanager
def seldom() -> Iterator[None]:
    """Loops that look around several times a second do so once an hour; they have no setting."""
    loops = ((gauges, "_LAG_EVERY_S"), (admission, "_INTERVAL_MS"), (requeue, "_LOOK_EVERY_S"))
    kept = [(module, name, getattr(module, name)) for module, name in loops]
    for module, name, _ in kept:
        setattr(module, name, _HOUR_MS)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def run(counting: Coroutine[Any, Any, dict[str, Counts]]) -> dict[str, Counts]:
    # Not uvloop.run: that wraps what it runs, and the wrapper would be counted at each step.
    with seldom(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(counting)


async def embedded() -> dict[str, Counts]:
    """One process with SQLite: ten workflows in lock-step by single calls, and fifty in bulk."""
    calls = Calls()
    meter = Meter([], calls)
    counted: dict[str, Counts] = {}
    with (
        tempfile.TemporaryDirectory(prefix="podium-guard-") as data,
        sql_counted(meter.sql),
        calls.counting(),
    ):
        settings = load_settings(flags={"data_dir": data, "port": 0, **_SELDOM}, environ={})
        async with running(settings, clock=Stepped(), random=Seeded()) as node:
            meter.nodes.append(node)
            for scenario in SCENARIOS:
                for width, pattern in ((10, "ten at a time"), (50, "bulk")):
                    name = f"embedded {scenario} {pattern}"
                    counted[name] = await measure(meter, scenario, width, quiet_s=0.001)
                    print_counts(name, counted[name])
    return counted


def cluster() -> dict[str, Counts]:
    """Nodes on one Cassandra and one Redis."""
    from ops.cassandra_up import Options, Ring
    from ops.redis_up import Servers

    with tempfile.TemporaryDirectory(prefix="podium-guard-") as folder, ExitStack() as stack:
        jvm = ("-XX:TieredStopAtLevel=1",)
        options = Options(heap="768m", jvm=jvm, die_with_starter=True)
        ring = Ring(Path(folder) / "cassandra", options=options)
        stack.callback(ring.stop)
        ring.start()
        queues = Servers("standalone", Path(folder) / "redis", die_with_starter=True)
        stack.callback(queues.stop)
        queues.start()
        flags = {
            "port": 0,
            "shard_count": _SHARDS,
            "store_url": f"cassandra://{ring.hosts}/guard",
            "queue_url": queues.url,
            "cassandra_replication": "1",
            "link_token": "guard-of-this-run",
        }
        counted: dict[str, Counts] = {}
        schema(load_settings(flags=flags, environ={}), "apply")
        for nodes in (1, 2):
            seldom = _SELDOM | (_SELDOM_ALONE if nodes == 1 else {})
            counted |= run(in_cluster(nodes, flags | seldom, Path(folder)))
        return counted


async def in_cluster(nodes: int, flags: dict[str, Any], folder: Path) -> dict[str, Counts]:
    """Ten workflows at a time: they start on the last node, the first has the workers."""
    calls = Calls()
    meter = Meter([], calls)
    counted: dict[str, Counts] = {}
    async with AsyncExitStack() as stack:
        stack.enter_context(calls.counting())
        for number in range(1, nodes + 1):
            own = {"node_id": f"guard-{number}", "data_dir": str(folder / f"guard-{number}")}
            settings = load_settings(flags=flags | own, environ={})
            meter.nodes.append(await stack.enter_async_context(running(settings, random=Seeded())))
        await shared_out(meter.nodes)
        for scenario in SCENARIOS:
            name = f"cluster of {nodes} {scenario}"
            counts = await measure(meter, scenario, 10, quiet_s=0.005)
            counted[name] = {key: counts[key] for key in counts if judged(key, nodes)}
            print_counts(name, counted[name])
    return counted


def judged(key: str, nodes: int) -> bool:
    """What does not depend on when things happen: in a cluster not the calls, whose number
    depends on how answers come together; with two nodes only what goes over the link."""
    if nodes == 2:
        return key == "link calls"
    return not key.startswith("in ") and key not in BY_PYTHON


async def shared_out(nodes: list[Node]) -> None:
    """Wait until every node is ready and serves its share."""
    async with asyncio.timeout(60):
        while True:
            serving = [
                len(node.home.incarnation.shards.epochs) if node.home.incarnation else 0
                for node in nodes
            ]
            fair = sum(serving) // len(nodes) - 1
            if all(node.services.is_ready() for node in nodes) and min(serving) > fair > 0:
                return
            await asyncio.sleep(0.1)


async def measure(meter: Meter, scenario: str, width: int, *, quiet_s: float) -> Counts:
    """Counts per workflow: the medians of some rounds, each of which ends with a checkpoint."""
    calls = meter.calls
    clients = [
        Client(node.url, activity=lambda: calls.total, quiet_s=quiet_s)
        for node in dict.fromkeys((meter.nodes[0], meter.nodes[-1]))
    ]
    client = clients[0]
    for one in clients:
        await one.connect(1 if width == 50 else width)
    load = Load(client, scenario, starter=clients[-1])
    await load.register()
    # The first round finds everything cold.
    await one_round(meter, client, load, width)
    rounds: list[Counts] = []
    for _ in range(_ROUNDS):
        counts = await counted_while(meter, one_round(meter, client, load, width))
        rounds.append({name: count / meter.workflows for name, count in counts.items()})
    with calls.off():
        began = time.process_time()
        await one_round(meter, client, load, width)
        cpu_ms = 1000 * (time.process_time() - began) / meter.workflows
    for one in clients:
        one.close()
    names = {name: None for counts in rounds for name in counts}
    medians = {name: statistics.median(one.get(name, 0) for one in rounds) for name in names}
    kept = {name: round(count, 3) for name, count in medians.items() if round(count, 3)}
    return kept | {"cpu ms": cpu_ms}


async def counted_while(meter: Meter, doing: Awaitable[None]) -> Counts:
    before = meter.now()
    meter.calls.is_on = True
    await doing
    meter.calls.is_on = False
    return {name: count - before.get(name, 0) for name, count in meter.now().items()}


async def one_round(meter: Meter, client: Client, load: Load, width: int) -> None:
    """Some workflows from start to end, and the checkpoint behind them."""
    waves = 1 if width == 50 else 2
    for _ in range(waves):
        await (load.bulk(width) if width == 50 else load.single(width))
    for node in meter.nodes:
        if node.home.incarnation is not None:
            await node.home.incarnation.checkpoint.flush()
    await client.quiet()
    meter.workflows = waves * width


def compare(counted: dict[str, Counts], reference: dict[str, Any]) -> int:
    """Say what grew and what shrank; 1 if anything grew too much."""
    calls = reference.get("calls", {}).get(PYTHON, {})
    if not calls:
        known = ", ".join(reference.get("calls", {})) or "none"
        print(f"no calls are stored for Python {PYTHON} (there are: {known}): not compared")
    grown, shrunk = 0, 0
    for workload, counts in counted.items():
        expected = reference.get("counts", {}).get(workload, {}) | calls.get(workload, {})
        if not expected:
            print(f"{workload}: not in the reference, run make guard-record")
            grown += 1
        for name, was in expected.items():
            if is_detail(name):
                continue
            now = counts.get(name, 0.0)
            if now > was * (1 + TOLERANCE) + SLACK:
                grown += 1
                print(f"MORE  {workload}: {name} {was:g} -> {now:g} ({now / was - 1:+.1%})")
                print_growth(name, expected, counts)
            elif now < was * (1 - TOLERANCE) - SLACK:
                shrunk += 1
                print(f"less  {workload}: {name} {was:g} -> {now:g} ({now / was - 1:+.1%})")
        for name in counts:
            if expected and name not in expected and is_judged(name):
                if name in BY_PYTHON and not calls:
                    continue
                grown += 1
                print(f"MORE  {workload}: {name} 0 -> {counts[name]:g}")
    if shrunk:
        print(f"{shrunk} counts are smaller by 5 %: store that with make guard-record")
    print(f"guard: {len(counted)} workloads, {grown} counts above the reference")
    return 1 if grown else 0


def is_detail(name: str) -> bool:
    """What only explains a sum, and hangs on how the clock cuts things."""
    return name == "cpu ms" or (name.startswith(("in ", "sql ", "cql ")) and not is_judged(name))


def is_judged(name: str) -> bool:
    return name in ("sql statements", "cql writes", "cql rows", "cql bytes") or not (
        name == "cpu ms" or name.startswith(("in ", "sql ", "cql "))
    )


def print_growth(name: str, expected: Counts, counts: Counts) -> None:
    """The parts of a sum that grew most."""
    prefix = {"python calls": "in ", "sql statements": "sql ", "cql rows": "cql "}.get(name)
    if prefix is None:
        return
    grown = {
        part: counts[part] - expected.get(part, 0.0)
        for part in counts
        if part.startswith(prefix) and part != name
    }
    for part, by in sorted(grown.items(), key=lambda one: -one[1])[:5]:
        if by > 0:
            print(f"        {by:+.2f} {part.removeprefix(prefix)} ({counts[part]:g})")


def print_counts(workload: str, counts: Counts) -> None:
    shown = ", ".join(
        f"{count:g} {name}" for name, count in counts.items() if is_judged(name) and count
    )
    print(f"{workload}: {shown}; {counts.get('cpu ms', 0):.2f} ms of CPU", flush=True)


def _merged(reference: dict[str, Any], counted: dict[str, Counts]) -> dict[str, Any]:
    """The reference with these workloads in it; those of another minor version stay."""
    counts = dict(reference.get("counts", {}))
    calls = dict(reference.get("calls", {}))
    own = dict(calls.get(PYTHON, {}))
    for workload, all_of_it in counted.items():
        kept = {name: count for name, count in all_of_it.items() if name != "cpu ms"}
        by_python = {n: c for n, c in kept.items() if n in BY_PYTHON or n.startswith("in ")}
        counts[workload] = {n: c for n, c in kept.items() if n not in by_python}
        if by_python:
            own[workload] = by_python
    calls[PYTHON] = own
    return {"counts": counts, "calls": calls}


if __name__ == "__main__":
    sys.exit(main())
