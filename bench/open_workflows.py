"""Many open workflows on one node: does it take them, go on at its rate, and come back in time?

Starts two clusters of one node each, one of which stays empty. Opens the workflows in the other,
each with one task in its queue (`queued`) or in a WAIT of a day (`waiting`); measures `simple1` on
both in turns; kills the node with -9, starts it again, and takes the time until a workflow runs
through it; then looks at the workflows one by one. Memory and disk of all parts are printed; the
figures go to build/open_workflows.json.

    python -m bench.open_workflows [--count 1000000] [--kind queued waiting] [--check 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.footprint import Meter, Stretch, disk_mib, memory_mib
from bench.ledger import Ledger
from bench.measuring import ROOT, Cluster, cluster
from bench.pairs import measure_pairs
from bench.progress import Progress
from bench.traffic import KINDS, Nodes, Traffic
from bench.verdict import Account

_MEMORY_MIB_MAX = 1024
_BACK_S_MAX = 15
_RATE_KEPT = 0.8
_START_S_MAX = 600
"""How long a node may take at all; whether that was soon enough is judged afterwards."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--pairs", type=int, default=5, help="windows on each of the two")
    parser.add_argument("--seconds", type=float, default=8, help="of each window")
    parser.add_argument("--warmup", type=float, default=2, help="before each window")
    parser.add_argument("--check", type=int, default=10_000, help="ids looked at in the end")
    parser.add_argument("--requests", type=int, default=4, help="of 500 starts, at a time")
    parser.add_argument("--memory-mib", type=int, default=_MEMORY_MIB_MAX, help="of the node")
    options = parser.parse_args()
    reports = []
    for kind in options.kind:
        with cluster(1) as empty, cluster(1) as full:
            try:
                report = uvloop.run(measure(empty, full, kind, options))
            except BaseException:
                kept = ROOT / "build" / f"open_workflows_{kind}.log"
                shutil.copy(full.nodes[0].log, kept)
                print(f"The log of the node is {kept}.", file=sys.stderr, flush=True)
                raise
        report["faults"] = faults_of(report, options.memory_mib)
        reports.append(report)
        print(json.dumps(report, indent=1), flush=True)
    path = ROOT / "build" / "open_workflows.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(reports, indent=1))
    for report in reports:
        print(f"{report['kind']}: {'; '.join(report['faults']) or 'good'}")
    return 1 if any(report["faults"] for report in reports) else 0


async def measure(
    empty: Cluster, full: Cluster, kind: str, options: argparse.Namespace
) -> dict[str, Any]:
    node = full.nodes[0]
    nodes = Nodes(lambda: [node.address])
    with tempfile.TemporaryDirectory(prefix="podium-bench-") as name:
        held = Traffic(nodes, Ledger(Path(name) / "held"), f"open_{kind}", kind=kind)
        probe = Traffic(nodes, Ledger(Path(name) / "probe"), "probe")
        await held.register()
        await probe.register()
        at_first = footprint(full)
        opening = await open_all(held, full, options)
        opened = footprint(full)
        beside = await asyncio.to_thread(
            measure_pairs,
            *(empty.server, full.server, "simple1"),
            pairs=options.pairs,
            seconds=options.seconds,
            warmup=options.warmup,
        )
        measured = footprint(full)
        node.kill()
        print("the node was killed; it starts again", flush=True)
        began_s = time.monotonic()
        await asyncio.to_thread(node.start, limit_s=_START_S_MAX)
        ready_s = time.monotonic() - began_s
        print(f"it is ready after {ready_s:.1f} s", flush=True)
        await probe.open(1, requests=1, on_progress=lambda _: None)
        await probe.drain(workers=1, on_progress=lambda _: None)
        back_s = time.monotonic() - began_s
        print(f"a workflow has run through it after {back_s:.1f} s", flush=True)
        account = await look_at_some(held, node.address, options.check)
        await nodes.close()
    return {
        "kind": kind,
        "count": held.ledger.count,
        "opening": opening,
        "simple1": beside,
        "ready_again_s": round(ready_s, 1),
        "runs_again_s": round(back_s, 1),
        "looked_at": account.read,
        "missing": dict(account.lost),
        "footprint": {
            "at_first": at_first,
            "opened": opened,
            "measured": measured,
            "restarted": footprint(full),
        },
    }


async def open_all(held: Traffic, full: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    meter = Meter(lambda: full.server.processes)
    stretch = Stretch(meter)
    bar = Progress("opening", options.count)
    await held.open(
        options.count,
        requests=options.requests,
        on_progress=lambda done: bar.at(done, f"node {memory_mib(full.nodes[0].pid)} MiB"),
    )
    bar.end(held.ledger.count)
    return {**stretch.figures(held.ledger.count), "troubles": dict(held.troubles)}


async def look_at_some(held: Traffic, address: str, count: int) -> Account:
    """Whether they are there, and open."""
    account = Account(held.ledger, open_still=True)
    some = random.sample(range(len(held.ledger)), min(count, len(held.ledger)))
    bar = Progress("reading", len(some))
    await account.take([f"{address}/api"], connections=32, on_progress=bar.at, only=some)
    bar.end(account.read)
    return account


def faults_of(report: dict[str, Any], memory_mib_max: int) -> list[str]:
    """What is not as issues 4 and 5 ask for."""
    faults = []
    if report["missing"]:
        faults.append(f"missing: {report['missing']}")
    if report["runs_again_s"] > _BACK_S_MAX:
        faults.append(f"{report['runs_again_s']} s until it ran again, at most {_BACK_S_MAX}")
    if report["simple1"]["rate_ratio"] < _RATE_KEPT:
        faults.append(f"{report['simple1']['rate_ratio']} of the rate is left, not {_RATE_KEPT}")
    if not report["simple1"]["sound"]:
        faults.append("simple1 was not sound")
    peak_mib = max(one["node_peak_mib"] for one in report["footprint"].values())
    if peak_mib > memory_mib_max:
        faults.append(f"the node took {peak_mib} MiB, at most {memory_mib_max}")
    return faults


def footprint(running: Cluster) -> dict[str, int]:
    """MiB of memory and disk."""
    redis = running.redis.data[0].command("INFO", "memory")
    used = next(line for line in redis.splitlines() if line.startswith("used_memory:"))
    return {
        "node_mib": memory_mib(running.nodes[0].pid),
        "node_peak_mib": memory_mib(running.nodes[0].pid, "VmHWM"),
        "redis_mib": int(used.split(":")[1]) >> 20,
        "cassandra_mib": memory_mib(running.cassandra.nodes[0].pid),
        "cassandra_disk_mib": disk_mib(running.folder / "cassandra"),
    }


if __name__ == "__main__":
    sys.exit(main())
