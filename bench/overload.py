"""What becomes of a node that is offered three times what it can do.

First what a refusal costs: a node whose door is shut (its checkpoint never comes) refuses starts at
a steady rate. Then a node as it is by default, in turns: a closed loop of starts, which gives what
it can do and the CPU of a workflow, and an open loop of three times that, from processes of their
own, over many connections. A fleet of workers completes whatever was taken; at the end all of that
must have been completed.

    python -m bench.overload [--cluster] [--seconds 20] [--rounds 3] [--times 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from bench.measuring import ROOT, Server, cluster, podium
from bench.pressure import DEFINITION, NAME, Process, Site, now_s, register
from bench.rest_load import _children, cpu_only

SHUT = {
    "PODIUM_CHECKPOINT_INTERVAL_MS": "3600000",
    "PODIUM_CHECKPOINT_BYTES": str(1 << 30),
    "PODIUM_CHECKPOINT_BACKLOG_BYTES": str(1 << 20),
}
CLOSED_LOOP = 48
COMPARED = (
    *("cpu_ms_normal", "cpu_ms_overload", "cpu_change"),
    *("rate_lost", "rate_lost_to_refusals", "rate_lost_otherwise"),
)
WARM_UP_S = 3.0


@contextmanager
def serving(is_cluster: bool, settings: dict[str, str] | None = None) -> Iterator[Server]:
    if is_cluster:
        with cluster(1, settings=settings) as running:
            yield running.server
    else:
        with podium(settings=settings) as server:
            yield server


def cpu_s(pids: Sequence[int]) -> float:
    children = _children()
    return sum(float(cpu_only(pid, children)) for pid in pids)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def shut_the_door(server: Server) -> None:
    """Start workflows until the first refusal."""
    site = Site(server.base_url)
    await register(site)
    wire = await site.connect()
    body = orjson.dumps({"pad": "x" * 20_000})
    for _ in range(10_000):
        status, _ = await wire.ask(site.request("POST", f"/workflow/{NAME}", body))
        if status == 429:
            return
    raise RuntimeError("the door does not shut")


def node_pids(server: Server) -> list[int]:
    names = [name for name in server.processes if name not in ("cassandra", "redis")]
    return [server.processes[name] for name in names]


def refusal_cost(options: argparse.Namespace) -> dict[str, Any]:
    """CPU of a refusal in the nodes: with refusals, less without."""
    with serving(options.cluster, SHUT) as server:
        asyncio.run(shut_the_door(server))
        time.sleep(2)
        pids = node_pids(server)
        idle = cpu_s(pids)
        time.sleep(options.seconds)
        idle = cpu_s(pids) - idle
        begin = now_s() + 2
        load = Process(
            *("starts", server.base_url, begin, begin + options.seconds),
            rate=options.refusals,
            connections=options.connections,
        )
        time.sleep(begin - now_s())
        used = cpu_s(pids)
        time.sleep(options.seconds)
        used = cpu_s(pids) - used
        found = load.result()
    cost_us = 1e6 * (used - idle) / found["refused"] if found["refused"] else float("nan")
    return {"us": cost_us, "idle_cores": idle / options.seconds, **found}


def window(server: Server, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """One window of load; without a rate in a closed loop."""
    begin = now_s() + WARM_UP_S
    end = begin + options.seconds
    shares = options.processes if rate else 1
    connections = options.connections if rate else CLOSED_LOOP
    loads = [
        Process(
            *("starts", server.base_url, begin, end),
            rate=rate / shares,
            connections=connections // shares,
        )
        for _ in range(shares)
    ]
    fleet = Process("workers", server.base_url, begin, end, lanes=options.lanes)
    processes = [*loads, fleet]
    try:
        time.sleep(max(0.0, begin - now_s()))
        before = cpu_s(list(server.processes.values())), cpu_s([one.pid for one in processes])
        time.sleep(max(0.0, end - now_s()))
        cpu = cpu_s(list(server.processes.values())) - before[0]
        load_cpu = cpu_s([one.pid for one in processes]) - before[1]
        starts, done = [load.result() for load in loads], fleet.result()
    finally:
        for process in processes:
            process.stop()
    took_s = options.seconds
    sums = {
        name: sum(one[name] for one in starts)
        for name in ("offered_per_s", "taken_per_s", "refused_per_s", "taken", "never_sent")
    }
    return {
        "rate": rate,
        **sums,
        "done_per_s": done["done_per_s"],
        "done": done["done"],
        "cores": cpu / took_s,
        "load_cores": load_cpu / took_s,
        # Each process has its own; the slowest speaks for all.
        "start_ms": max((one["start_ms"] for one in starts), key=lambda ms: ms["p99"] or 0),
        "refusal_ms": max((one["refusal_ms"] for one in starts), key=lambda ms: ms["p99"] or 0),
        "end_to_end_ms": done["end_to_end_ms"],
        "result_ms": done["result_ms"],
        "others": [one["others"] for one in (*starts, done) if one["others"]],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    refusal = refusal_cost(options)
    say(f"a refusal costs {refusal['us']:.1f} us at {refusal['refused_per_s']:.0f}/s")
    rounds = []
    with serving(options.cluster) as server:
        asyncio.run(register(Site(server.base_url), DEFINITION))
        window(server, options, 0)
        for number in range(options.rounds):
            normal = window(server, options, 0)
            say(_line(f"{number + 1} normal", normal))
            if not normal["done_per_s"]:
                sys.exit("nothing was completed in the window: it is too short for this machine")
            over = window(server, options, options.times * normal["done_per_s"])
            say(_line(f"{number + 1} {options.times:g} times", over))
            rounds.append(compared(normal, over, refusal["us"]))
            say(f"  {json.dumps({k: v for k, v in rounds[-1].items() if type(v) is float})}")
    return {"cluster": options.cluster, "refusal": refusal, "rounds": rounds}


def compared(normal: dict[str, Any], over: dict[str, Any], refusal_us: float) -> dict[str, Any]:
    """What overload cost, and how much of that refusing explains."""
    normal_ms = 1000 * normal["cores"] / normal["done_per_s"]
    refusing = over["refused_per_s"] * refusal_us / 1e6
    over_ms = 1000 * (over["cores"] - refusing) / max(over["done_per_s"], 1e-9)
    lost = 1 - over["done_per_s"] / normal["done_per_s"]
    explained = refusing / normal["cores"]
    return {
        "normal": normal,
        "overload": over,
        "cpu_ms_normal": normal_ms,
        "cpu_ms_overload": over_ms,
        "cpu_change": over_ms / normal_ms - 1,
        "rate_lost": lost,
        "rate_lost_to_refusals": explained,
        "rate_lost_otherwise": lost - explained,
        "all_done": normal["taken"] == normal["done"] and over["taken"] == over["done"],
    }


def _line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:<10} offered {row['offered_per_s']:.0f}/s taken {row['taken_per_s']:.0f}/s "
        f"refused {row['refused_per_s']:.0f}/s done {row['done_per_s']:.0f}/s "
        f"cores {row['cores']:.2f} (load {row['load_cores']:.2f})  "
        f"start {_ms(row['start_ms'])}  end to end {_ms(row['end_to_end_ms'])}  "
        f"refusal {_ms(row['refusal_ms'])}  {row['others'] or ''}"
    )


def _ms(found: dict[str, Any]) -> str:
    return f"p50 {found['p50']} p99 {found['p99']} ms" if found["n"] else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures a node under overload.")
    parser.add_argument("--cluster", action="store_true", help="one node, Cassandra and Redis")
    parser.add_argument("--seconds", type=float, default=20, help="of each window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=float, default=3, help="offered, of what it can do")
    parser.add_argument("--connections", type=int, default=400)
    parser.add_argument("--processes", type=int, default=1, help="that offer starts")
    parser.add_argument("--lanes", type=int, default=400, help="results under way at most")
    parser.add_argument(
        "--refusals", type=float, default=4000, help="per second, when only refused"
    )
    options = parser.parse_args()
    report = measure(options)
    rounds = report["rounds"]
    summary = {name: statistics.median(one[name] for one in rounds) for name in COMPARED}
    summary["refusal_us"] = report["refusal"]["us"]
    for name in ("start_ms", "end_to_end_ms"):
        p99s = [one["overload"][name]["p99"] or float("nan") for one in rounds]
        summary[f"{name}_p99"] = statistics.median(p99s)
    summary["is_sound"] = all(one["all_done"] for one in rounds)
    report["summary"] = summary
    path = ROOT / "build" / f"overload-{'cluster' if options.cluster else 'embedded'}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    targets = {
        "refusal_us": summary["refusal_us"] <= 50,
        "start_ms_p99": summary["start_ms_p99"] < 1000,
        "cpu_change": abs(summary["cpu_change"]) <= 0.15,
        "rate_lost_otherwise": abs(summary["rate_lost_otherwise"]) <= 0.10,
    }
    for name, value in summary.items():
        mark = {True: "  holds", False: "  MISSED", None: ""}[targets.get(name)]
        print(f"{name:<24} {value:>10.3f}{mark}" if type(value) is float else f"{name}: {value}")
    return 0 if summary["is_sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
