"""What a server costs that has nothing to do: empty, with sleeping workflows, with parked polls.

CPU of all its processes over --window seconds each: the server empty; with --sleeping workflows
that wait for a day; without those, with --polls long polls of 5 s that nobody answers. A poll that
has come to its end is followed by the next one, as a worker does it.

    python -m bench.idle [--cluster] [--sleeping 100000] [--polls 1000] [--window 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

import orjson
import uvloop

from bench.measuring import ROOT, Server
from bench.overload import cpu_s, node_pids, serving
from bench.pressure import Site, Wire, now_s, register
from bench.progress import Progress

POLL_S = 5
BATCH = 500
SETTLE_S = 10
TARGETS = {False: 3.0, True: 5.0}
"""Per cent of a core for the parked polls."""
DEFINITION = {
    "name": "sleeper",
    "version": 1,
    "schemaVersion": 2,
    "ownerEmail": "load@example.com",
    "tasks": [
        {
            "name": "wait",
            "taskReferenceName": "wait",
            "type": "WAIT",
            "inputParameters": {"duration": "1 days"},
        }
    ],
}


class Cores:
    """Per cent of a core, of the nodes and of all processes, over a time."""

    def __init__(self, server: Server) -> None:
        self._nodes = node_pids(server)
        self._all = list(server.processes.values())
        self._began = cpu_s(self._nodes), cpu_s(self._all), now_s()

    def so_far(self) -> dict[str, float]:
        nodes, everything, began_s = self._began
        took_s = now_s() - began_s
        return {
            "nodes": 100 * (cpu_s(self._nodes) - nodes) / took_s,
            "all": 100 * (cpu_s(self._all) - everything) / took_s,
        }


async def quiet(server: Server, phase: str, window_s: float) -> dict[str, float]:
    cores = Cores(server)
    progress = Progress(phase, int(window_s))
    ends_s = now_s() + window_s
    while (left_s := ends_s - now_s()) > 0:
        await asyncio.sleep(min(1.0, left_s))
        progress.at(int(window_s - max(0.0, ends_s - now_s())))
    found = cores.so_far()
    progress.end(
        int(window_s), f"{found['nodes']:.2f} % of a core, {found['all']:.2f} % with stores"
    )
    return found


async def put_to_sleep(server: Server, count: int) -> None:
    site = Site(server.base_url)
    await register(site, DEFINITION, None)
    wire = await site.connect()
    progress = Progress("starting", count)
    body = orjson.dumps([{"name": "sleeper"}] * BATCH)
    started = 0
    while started < count:
        status, answer = await wire.ask(site.request("POST", "/workflow/bulk/start", body))
        if status == 429:
            await asyncio.sleep(0.5)
            continue
        results = orjson.loads(answer)["results"]
        started += sum(result["status"] == 200 for result in results)
        progress.at(started)
    progress.end(started)


async def park(server: Server, count: int, window_s: float) -> dict[str, float]:
    """Long polls, spread over their 5 s, and the CPU while they stand."""
    site = Site(server.base_url)
    polled = 0
    wires: list[Wire] = []

    async def poll(number: int) -> None:
        nonlocal polled
        path = f"/tasks/poll/batch/idle_{number % 10}?count=5&timeout={POLL_S * 1000}"
        request = site.request("GET", f"{path}&workerid=w{number}")
        await asyncio.sleep(POLL_S * number / count)
        wire = await site.connect()
        wires.append(wire)
        while True:
            status, answer = await wire.ask(request)
            if status != 200:
                raise RuntimeError(f"a poll got {status} {answer[:100]!r}")
            polled += 1

    polls = [asyncio.ensure_future(poll(number)) for number in range(count)]
    # All of them stand, and the first have come to their end.
    await asyncio.sleep(SETTLE_S)
    polled = 0
    found = await quiet(server, "parked", window_s)
    for one in polls:
        if one.done():
            one.result()
        one.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    for wire in wires:
        wire.transport.abort()
    return {**found, "polls_per_s": polled / window_s}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    async def asleep(server: Server) -> dict[str, Any]:
        await asyncio.sleep(options.rest)
        empty = await quiet(server, "empty", options.window)
        await put_to_sleep(server, options.sleeping)
        await asyncio.sleep(options.rest)
        return {"empty": empty, "sleeping": await quiet(server, "sleeping", options.window)}

    with serving(options.cluster) as server:
        found = uvloop.run(asleep(server))
    with serving(options.cluster) as server:
        time.sleep(options.rest)
        empty = uvloop.run(quiet(server, "empty", options.window))
        found["parked"] = uvloop.run(park(server, options.polls, options.window))
    found["parked_beside"] = empty
    more = found["parked"]["nodes"] - empty["nodes"]
    found["us_per_poll"] = 1e4 * more / max(found["parked"]["polls_per_s"], 1e-9)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures a server that has nothing to do.")
    parser.add_argument("--cluster", action="store_true", help="one node, Cassandra and Redis")
    parser.add_argument("--sleeping", type=int, default=100_000)
    parser.add_argument("--polls", type=int, default=1_000)
    parser.add_argument("--window", type=float, default=60, help="seconds of each measurement")
    parser.add_argument("--rest", type=float, default=15, help="seconds after the starts")
    options = parser.parse_args()
    report = measure(options)
    path = ROOT / "build" / f"idle-{'cluster' if options.cluster else 'embedded'}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    target = TARGETS[options.cluster]
    parked = report["parked"]["nodes"]
    asleep = report["sleeping"]["nodes"] - report["empty"]["nodes"]
    print(f"{options.sleeping} asleep: {asleep:+.2f} % of a core more than empty (nodes)")
    print(
        f"{options.polls} parked polls: {parked:.2f} % of a core, of {target}"
        f"{'' if parked <= target else '  MISSED'}; {report['us_per_poll']:.0f} us each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
