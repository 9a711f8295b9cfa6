"""Two servers measured in turns, so that what else the machine does meets both alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.measuring import Server, cpu_ms_of, is_sound, load
from bench.progress import Progress


def measure_pairs(
    empty: Server, full: Server, scenario: str, *, pairs: int, seconds: float, warmup: float
) -> dict[str, Any]:
    """Rates and CPU per workflow of both; each ratio is the median of full / empty by pairs."""
    bar = Progress(scenario, 2 * pairs)
    rows: dict[str, list[dict[str, Any]]] = {"empty": [], "full": []}
    servers = {"empty": empty, "full": full}
    for server in servers.values():
        # What comes first is slower: definitions, connections, a JVM that has yet to compile.
        load(server, scenario, seconds=max(1.0, warmup), warmup=0)
    for turn in range(pairs):
        for name in sorted(servers, reverse=turn % 2 == 1):
            row = load(servers[name], scenario, seconds=seconds, warmup=warmup)
            row["cpu_ms"] = cpu_ms_of(row, list(servers[name].processes))
            rows[name].append(row)
            bar.at(
                sum(map(len, rows.values())),
                f"{name}: {row['wf_per_s']:.0f}/s, {row['cpu_ms']:.3f} ms",
            )
    bar.end(2 * pairs)
    return {
        "scenario": scenario,
        "pairs": pairs,
        "seconds": seconds,
        "empty": _figures(rows["empty"], empty),
        "full": _figures(rows["full"], full),
        "rate_ratio": _ratio(rows, "wf_per_s"),
        "cpu_ratio": _ratio(rows, "cpu_ms"),
        "sound": all(is_sound(row) for found in rows.values() for row in found),
    }


def _figures(rows: Sequence[dict[str, Any]], server: Server) -> dict[str, Any]:
    return {
        "per_s": [round(row["wf_per_s"], 1) for row in rows],
        "per_s_median": round(statistics.median(row["wf_per_s"] for row in rows), 1),
        "cpu_ms": [round(row["cpu_ms"], 4) for row in rows],
        "cpu_ms_median": round(statistics.median(row["cpu_ms"] for row in rows), 4),
        "cpu_ms_of": {
            name: round(statistics.median(cpu_ms_of(row, [name]) for row in rows), 4)
            for name in server.processes
        },
    }


def _ratio(rows: dict[str, list[dict[str, Any]]], what: str) -> float:
    pairs = zip(rows["full"], rows["empty"], strict=True)
    return round(statistics.median(full[what] / empty[what] for full, empty in pairs), 3)
