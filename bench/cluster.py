"""What a workflow costs in a cluster of 1, 2, 4 node processes, and which process pays it.

One Cassandra node (RF 1), one Redis, the load spread over all nodes, all of it on this machine, so
let nothing else run. With more nodes every request may take a hop, and commit groups get smaller:
that is what the comparison shows. Requests per workflow come from the nodes' own metrics.

    python -m bench.cluster [--nodes 1 2 4] [--seconds 15] [--rate 0] [--scenario simple1 chain5]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from typing import Any

from bench.measuring import ROOT, Server, cluster, cpu_ms_of, is_sound, load

_COUNTED = ("cassandra", "redis", "commit_log", "checkpoint", "link")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures a cluster on this machine.")
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=15, help="measured, per scenario")
    parser.add_argument("--warmup", type=float, default=20, help="before, once per cluster")
    parser.add_argument("--scenario", nargs="+", default=["simple1", "chain5"])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for nodes in options.nodes:
        with cluster(nodes) as running:
            server = running.server
            for scenario in options.scenario:
                load(server, scenario, seconds=options.warmup / len(options.scenario), warmup=0)
            rows += [measure(server, scenario, nodes, options) for scenario in options.scenario]
    report = ROOT / "build" / "cluster.jsonl"
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0 if all(is_sound(row) for row in rows) else 1


def measure(
    server: Server, scenario: str, nodes: int, options: argparse.Namespace
) -> dict[str, Any]:
    before = counts(server)
    row = load(server, scenario, seconds=options.seconds, warmup=3)
    ended = row["verify"]["checked"] or 1
    row["nodes"] = nodes
    row["per_workflow"] = {
        name: round((after - before.get(name, 0)) / ended, 3)
        for name, after in counts(server).items()
        if after - before.get(name, 0) > 0
    }
    own = [name for name in server.processes if name.startswith("node-")]
    row["cpu_ms"] = {
        "all": cpu_ms_of(row, list(server.processes)),
        "nodes": cpu_ms_of(row, own),
        "cassandra": cpu_ms_of(row, ["cassandra"]),
        "redis": cpu_ms_of(row, ["redis"]),
    }
    cpu = "  ".join(f"{name} {ms:.2f}" for name, ms in row["cpu_ms"].items())
    print(
        f"{nodes} nodes  {scenario:<8} {row['wf_per_s']:>6.0f}/s  CPU ms/workflow: {cpu}  "
        f"start p50 {row['start_ms']['p50']:.1f} p99 {row['start_ms']['p99']:.1f} ms"
        f"{'' if is_sound(row) else '  NOT SOUND'}",
        flush=True,
    )
    return row


def counts(server: Server) -> dict[str, float]:
    """Sums over all nodes of the counters that grow with the work."""
    sums: dict[str, float] = {}
    for url in server.base_url.split(","):
        page = urllib.request.urlopen(url.removesuffix("/api") + "/metrics", timeout=10)
        for line in page.read().decode().splitlines():
            found = re.match(r"(\w+_total|\w+_count)(?:\{.*\})? ([0-9.e+]+)$", line)
            if found and any(word in found[1] for word in _COUNTED):
                sums[found[1]] = sums.get(found[1], 0) + float(found[2])
    return sums


if __name__ == "__main__":
    sys.exit(main())
