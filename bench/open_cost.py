"""What open workflows cost those that run: one process with SQLite beside a second one, empty.

Opens the workflows in one of the two, half of them with a task in its queue and half in a WAIT of a
day, then measures each scenario on both in turns. Issue 5: CPU per workflow changes by no more than
10 %, median of 7 pairs. The figures go to build/open_cost.json.

    python -m bench.open_cost [--count 100000] [--pairs 7] [--seconds 8] [--scenario simple1 ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.footprint import memory_mib
from bench.ledger import Ledger
from bench.measuring import ROOT, Server, podium
from bench.pairs import measure_pairs
from bench.progress import Progress
from bench.traffic import KINDS, Nodes, Traffic

SCENARIOS = ("simple1", "chain5", "fork10")
_RATIO_MAX = 1.10
_REQUESTS = 4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8, help="of each measured window")
    parser.add_argument("--warmup", type=float, default=2, help="before each window")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    options = parser.parse_args()
    with podium() as empty, podium() as full:
        before_mib = memory_mib(full.processes["podium"])
        uvloop.run(open_them(full, options.count))
        after_mib = memory_mib(full.processes["podium"])
        rows = [
            measure_pairs(
                *(empty, full, scenario),
                pairs=options.pairs,
                seconds=options.seconds,
                warmup=options.warmup,
            )
            for scenario in options.scenario
        ]
    report = {
        "count": options.count,
        "memory_before_mib": before_mib,
        "memory_opened_mib": after_mib,
        "scenarios": rows,
    }
    path = ROOT / "build" / "open_cost.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    return conclude(rows, options.count)


async def open_them(server: Server, count: int) -> None:
    """An equal part of each kind."""
    nodes = Nodes(lambda: [server.base_url])
    with tempfile.TemporaryDirectory(prefix="podium-bench-") as folder:
        for kind in KINDS:
            held = Traffic(nodes, Ledger(Path(folder) / kind), f"open_{kind}", kind=kind)
            await held.register()
            bar = Progress(kind, count // len(KINDS))
            await held.open(count // len(KINDS), requests=_REQUESTS, on_progress=bar.at)
            bar.end(held.ledger.count)
    await nodes.close()


def conclude(rows: Sequence[dict[str, Any]], count: int) -> int:
    print(f"\nCPU of the server per workflow, beside {count:,} open ones (medians):")
    print(f"{'scenario':<10} {'empty':>9} {'full':>9} {'full / empty':>13}")
    for row in rows:
        print(
            f"{row['scenario']:<10} {row['empty']['cpu_ms_median']:>6.3f} ms "
            f"{row['full']['cpu_ms_median']:>6.3f} ms {row['cpu_ratio']:>13.3f}"
            f"{'' if row['sound'] else '  NOT SOUND'}"
        )
    good = all(row["sound"] and row["cpu_ratio"] <= _RATIO_MAX for row in rows)
    print("within 10 %" if good else "NOT within 10 %, or not sound")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
