"""`make bench`: throughput, and CPU per workflow, of one process with SQLite.

Starts `podium serve` on a temporary folder, lets rest_load.py drive each scenario (starts one by
one, batch polls, all ids verified at the end), and prints a table. Load generator and server share
the machine, so let nothing else run. The whole figures go to build/bench.jsonl.

    python -m bench.embedded [--seconds 20] [--warmup 5] [--scenario simple1 ...] [--store URL]
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench.measuring import ROOT, cpu_ms_of, is_sound, load, podium

# CPU of the server per workflow, in ms, that issue 3 asks for.
LIMITS_MS = {"simple1": 0.6, "chain5": 1.8, "fork10": 3.0}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures one Podium process with SQLite.")
    parser.add_argument("--seconds", type=float, default=20, help="measured, per scenario")
    parser.add_argument("--warmup", type=float, default=5, help="before, with the same load")
    parser.add_argument("--scenario", nargs="+", default=list(LIMITS_MS), choices=list(LIMITS_MS))
    parser.add_argument("--store", help="store URL instead of SQLite in a temporary folder")
    options = parser.parse_args()
    figures = [measure(scenario, options) for scenario in options.scenario]
    report = ROOT / "build" / "bench.jsonl"
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(json.dumps(row) + "\n" for row in figures))
    print(
        f"\n{'scenario':<10} {'workflows/s':>11} {'CPU ms/wf':>10} {'limit':>6} "
        f"{'start p50':>10} {'start p99':>10} {'whole p50':>10} {'memory':>8}  verified"
    )
    for row in figures:
        print_row(row)
    return 0 if all(is_sound(row) for row in figures) else 1


def measure(scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    """A fresh server for each scenario."""
    with podium(*(["--store", options.store] if options.store else [])) as server:
        return load(server, scenario, seconds=options.seconds, warmup=options.warmup)


def print_row(row: dict[str, Any]) -> None:
    checked = f"{row['verify']['checked']} ended"
    verified = checked if is_sound(row) else f"NOT SOUND: {row['verify']} {row['errors']}"
    print(
        f"{row['scenario']:<10} {row['wf_per_s']:>11.0f} {cpu_ms_of(row, ['podium']):>10.3f} "
        f"{LIMITS_MS[row['scenario']]:>6.1f} "
        f"{row['start_ms']['p50']:>10.2f} {row['start_ms']['p99']:>10.2f} "
        f"{row['e2e_ms']['p50']:>10.2f} {row['mem_mib']['podium']:>4.0f} MiB  {verified}"
    )


if __name__ == "__main__":
    sys.exit(main())
