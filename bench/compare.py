"""Podium beside the real Conductor: the same load, the same machine, the same minutes.

Conductor stays up and warm over all rounds (a cold JVM is many times slower); windows of the two
alternate, so that what else the machine does meets both. CPU is that of all processes of a server.

    python -m bench.compare [--conductor sqlite redis] [--rounds 5] [--seconds 15] [--warmup 60]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from typing import Any

from bench.measuring import ROOT, Server, conductor, cpu_ms_of, is_sound, load, podium

SCENARIOS = ("simple1", "chain5", "fork10")
_WARM_AGAIN_S = 3


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures Podium and Conductor side by side.")
    parser.add_argument("--conductor", nargs="+", default=["sqlite"], choices=["sqlite", "redis"])
    parser.add_argument("--version", default="3.32.3", help="of Conductor")
    parser.add_argument("--heap", default="3g", help="of Conductor's JVM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="measured, per window")
    parser.add_argument("--warmup", type=float, default=60, help="of each Conductor, once")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for store in options.conductor:
        with conductor(store, version=options.version, heap=options.heap) as theirs:
            rows += measure(theirs, f"Conductor, {store}", options)
    report = ROOT / "build" / "compare.jsonl"
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print_table(rows, options.scenario)
    return 0 if all(is_sound(row) for row in rows) else 1


def measure(theirs: Server, label: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for scenario in options.scenario:
        share = options.warmup / len(options.scenario)
        load(theirs, scenario, seconds=share, warmup=0)
    for _ in range(options.rounds):
        for scenario in options.scenario:
            with ExitStack() as stack:
                ours = stack.enter_context(podium())
                for server, name in ((ours, "Podium"), (theirs, label)):
                    row = load(server, scenario, seconds=options.seconds, warmup=_WARM_AGAIN_S)
                    row["server"] = name
                    row["cpu_ms"] = cpu_ms_of(row, list(server.processes))
                    rows.append(row)
                    print(f"{name:<20} {scenario:<8} {row['wf_per_s']:>6.0f}/s "
                          f"{row['cpu_ms']:>7.2f} ms", flush=True)  # fmt: skip
    return rows


def print_table(rows: list[dict[str, Any]], scenarios: list[str]) -> None:
    names = list(dict.fromkeys(row["server"] for row in rows))
    print(f"\nCPU of the server per workflow, median (least … most), and rate, median\n{'':<20}",
          *(f"{scenario:>34}" for scenario in scenarios))  # fmt: skip
    for name in names:
        cells = []
        for scenario in scenarios:
            found = [row for row in rows if (row["server"], row["scenario"]) == (name, scenario)]
            cpu = sorted(row["cpu_ms"] for row in found)
            rate = statistics.median(row["wf_per_s"] for row in found)
            cells.append(
                f"{statistics.median(cpu):.2f} ms ({cpu[0]:.2f} … {cpu[-1]:.2f}) {rate:>5.0f}/s"
            )
        print(f"{name:<20}", *(f"{cell:>34}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
