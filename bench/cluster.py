"""What a workflow costs in a cluster of 1, 2, 4 node processes, and which process pays it.

One Cassandra node (RF 1) and one Redis without AOF, the load spread over all nodes, all of it on
this machine, so let nothing else run. For each number of nodes a fresh cluster is warmed up (a cold
JVM takes several times the CPU), then each scenario is measured three ways: `full`, as fast as it
goes, one request per start and result; `paced`, at --share of what the first cluster made in
`full`, so that numbers of nodes compare at the same load; and `bulk`, by bulk starts and exchanges,
all of them sent to the first node. CPU is that of the window, from /proc; requests, rows and bytes
come from the nodes' own metrics, over the whole run with its verification.

    python -m bench.cluster [--nodes 1 2 4] [--seconds 15] [--warmup 90] [--rounds 1]
        [--scenario simple1 chain5 fork10] [--ways full paced bulk] [--share 0.4]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from collections import defaultdict
from statistics import median
from typing import Any

import uvloop

from bench.bulk import BulkLoad
from bench.measuring import ROOT, Server, cluster, cpu_ms_of, is_sound, load

SCENARIOS = ("simple1", "chain5", "fork10")
WAYS = ("full", "paced", "bulk")
_COUNTED = ("store_", "commit_log_", "checkpoint_", "link_")
_SAMPLE = re.compile(r"(\w+(?:_total|_count|_sum))(\{.*\})? ([0-9.e+-]+)$")
_BATCH = 200
_BULK_WORKERS = 3

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures a cluster on this machine.")
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=15, help="measured, per run")
    parser.add_argument("--warmup", type=float, default=90, help="before, once per cluster")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; medians are shown")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--share", type=float, default=0.4, help="of the full rate, when paced")
    options = parser.parse_args()
    rows: list[Row] = []
    report = ROOT / "build" / "cluster.json"
    report.parent.mkdir(exist_ok=True)
    for nodes in options.nodes:
        with cluster(nodes) as running:
            warm_up(running.server, options)
            for _ in range(options.rounds):
                for scenario in options.scenario:
                    for way in options.ways:
                        rate = options.share * full_rate(rows, scenario) if way == "paced" else 0
                        row = measure(running.server, scenario, way, rate, nodes, options)
                        rows.append(row)
                        print_row(row)
                        # After each run: an interrupted one has left what it found.
                        report.write_text(json.dumps({"runs": rows, "summary": summary(rows)}))
    print_summary(summary(rows))
    return 0 if all(row["sound"] for row in rows) else 1


def warm_up(server: Server, options: argparse.Namespace) -> None:
    """Until the JVM has compiled what the load runs."""
    print(f"warming up for {options.warmup:.0f} s", flush=True)
    for scenario in options.scenario:
        load(server, scenario, seconds=options.warmup / len(options.scenario), warmup=0)


def full_rate(rows: list[Row], scenario: str) -> float:
    """What the first cluster made of it; 0, no limit, if that was not measured."""
    rates = [row["rate"] for row in rows if (row["scenario"], row["way"]) == (scenario, "full")]
    return float(rates[0]) if rates else 0


def measure(
    server: Server, scenario: str, way: str, rate: float, nodes: int, options: argparse.Namespace
) -> Row:
    before = counts(server)
    if way == "bulk":
        found = measure_bulk(server, scenario, options)
    else:
        found = load(server, scenario, seconds=options.seconds, warmup=5, rate=rate)
    ended = found["verify"]["checked"] or 1
    grown = {name: value - before.get(name, 0) for name, value in counts(server).items()}
    own = [name for name in server.processes if name.startswith("node-")]
    return {
        "nodes": nodes,
        "scenario": scenario,
        "way": way,
        "offered": rate,
        "rate": found["wf_per_s"],
        "sound": is_sound(found),
        "verify": found["verify"],
        "errors": found["errors"],
        "start_ms": found.get("start_ms"),
        "cpu_ms": {
            "all": cpu_ms_of(found, list(server.processes)),
            "nodes": cpu_ms_of(found, own),
            "cassandra": cpu_ms_of(found, ["cassandra"]),
            "redis": cpu_ms_of(found, ["redis"]),
        },
        "totals": totals(grown, ended),
        "per_workflow": {name: round(value / ended, 4) for name, value in grown.items() if value},
    }


def measure_bulk(server: Server, scenario: str, options: argparse.Namespace) -> Row:
    """The same figures, by the bulk endpoints of the first node."""
    first = Server(server.base_url.split(",")[0], server.processes)

    async def run() -> Row:
        bulk = BulkLoad(first, scenario, _BATCH)
        return await bulk.run(seconds=options.seconds, warmup=5, workers=_BULK_WORKERS)

    found = uvloop.run(run())
    return {
        "wf_per_s": found["wf_per_s"],
        "cpu_cores": found["cpu_cores"],
        "errors": found["errors"],
        "unacked_at_end": 0,
        "verify": {"checked": found["started"], "not_ok": found["not_completed"]},
    }


def counts(server: Server) -> dict[str, float]:
    """Sums over all nodes of the counters that grow with the work."""
    sums: dict[str, float] = defaultdict(float)
    for url in server.base_url.split(","):
        page = urllib.request.urlopen(url.removesuffix("/api") + "/metrics", timeout=10)
        for line in page.read().decode().splitlines():
            found = _SAMPLE.match(line)
            if found and found[1].startswith(_COUNTED):
                sums[found[1] + (found[2] or "")] += float(found[3])
    return dict(sums)


def totals(grown: dict[str, float], ended: int) -> dict[str, float]:
    """Per workflow what the targets speak of, without the reads of the verification."""

    def of(name: str, server: str) -> float:
        return sum(
            value
            for key, value in grown.items()
            if key.startswith(name + "{") and f'server="{server}"' in key
            # At the end every workflow is read, most of them from their rows.
            if 'kind="select executions"' not in key
        )

    entries = grown.get("commit_log_entries_total", 0)
    transitions = grown.get("commit_log_transitions_per_entry_sum", 0)
    per_workflow = {
        "transitions": transitions,
        "log_entries": entries,
        "log_bytes": grown.get("commit_log_bytes_total", 0),
        "cassandra_requests": of("store_requests_total", "cassandra"),
        "cassandra_rows": of("store_items_total", "cassandra"),
        "cassandra_bytes": of("store_sent_bytes_total", "cassandra"),
        "redis_calls": of("store_requests_total", "redis"),
        "redis_operations": of("store_items_total", "redis"),
        "redis_bytes": of("store_sent_bytes_total", "redis"),
        "link_frames": grown.get("link_frames_total", 0),
        "link_bytes": grown.get("link_bytes_total", 0),
    }
    found = {name: round(value / ended, 3) for name, value in per_workflow.items()}
    found["transitions_per_entry"] = round(transitions / entries, 1) if entries else 0
    return found


def summary(rows: list[Row]) -> list[Row]:
    """Medians over the rounds, and CPU beside the first cluster's in the same way."""
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["scenario"], row["way"], row["nodes"]].append(row)
    first: dict[tuple[str, str], float] = {}
    found = []
    for (scenario, way, nodes), runs in groups.items():
        cpu = {name: median(run["cpu_ms"][name] for run in runs) for name in runs[0]["cpu_ms"]}
        base = first.setdefault((scenario, way), cpu["all"])
        found.append(
            {
                "scenario": scenario,
                "way": way,
                "nodes": nodes,
                "runs": len(runs),
                "sound": all(run["sound"] for run in runs),
                "rate": median(run["rate"] for run in runs),
                "cpu_ms": cpu,
                "cpu_ms_spread": [
                    min(run["cpu_ms"]["all"] for run in runs),
                    max(run["cpu_ms"]["all"] for run in runs),
                ],
                "times_first": cpu["all"] / base if base else 0,
                **{name: median(run["totals"][name] for run in runs) for name in runs[0]["totals"]},
            }
        )
    return found


def print_row(row: Row) -> None:
    cpu = "  ".join(f"{name} {ms:.2f}" for name, ms in row["cpu_ms"].items())
    start = row["start_ms"]
    print(
        f"{row['nodes']} nodes  {row['scenario']:<8} {row['way']:<5} {row['rate']:>6.0f}/s"
        f"  CPU ms/workflow: {cpu}"
        + (f"  start p50 {start['p50']:.1f} ms" if start else "")
        + ("" if row["sound"] else f"  NOT SOUND {row['verify']} {row['errors']}"),
        flush=True,
    )


def print_summary(found: list[Row]) -> None:
    print(
        f"\n{'scenario':<9}{'way':<7}{'nodes':>5}{'wf/s':>7}{'CPU ms':>8}{'nodes':>7}{'cass.':>7}"
        f"{'redis':>7}{'ratio':>7}{'entries':>9}{'group':>7}{'c.req':>7}{'c.rows':>8}{'c.KB':>7}"
        f"{'r.calls':>9}{'frames':>8}"
    )
    for row in sorted(found, key=lambda row: (row["scenario"], row["way"], row["nodes"])):
        cpu = row["cpu_ms"]
        print(
            f"{row['scenario']:<9}{row['way']:<7}{row['nodes']:>5}{row['rate']:>7.0f}"
            f"{cpu['all']:>8.2f}{cpu['nodes']:>7.2f}{cpu['cassandra']:>7.2f}{cpu['redis']:>7.2f}"
            f"{row['times_first']:>7.2f}{row['log_entries']:>9.3f}"
            f"{row['transitions_per_entry']:>7.1f}{row['cassandra_requests']:>7.2f}"
            f"{row['cassandra_rows']:>8.2f}{row['cassandra_bytes'] / 1000:>7.2f}"
            f"{row['redis_calls']:>9.2f}{row['link_frames']:>8.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
