"""Latencies at half load, beside those of a bare aiohttp server in the same minutes.

A closed loop finds what the server can do; then half of that comes at an even rate from processes
of their own, with workers that complete it. Meanwhile a probe of this process, which does nothing
else, takes turns: it starts a workflow whose task a long poll of its own is parked for, and asks
the bare server for an echo. What the bare server takes is what the machine and Python take from
anybody. Hand-over is the time from the answer to the start until the task is in the hands of the
poll: the answer tells that the start is durable, and the task is not handed out before. A task
that is there first counts as 0.

    python -m bench.latency [--cluster] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import uvloop

from bench.measuring import ROOT, Server
from bench.overload import WARM_UP_S, serving, window
from bench.pressure import DEFINITION, Process, Site, now_s, register, result_of
from bench.progress import Progress
from bench.rest_load import lat
from ops.children import free_port

PROBE, PROBE_TASK = "probe", "probe_step"
PROBE_DEFINITION = {
    **DEFINITION,
    "name": PROBE,
    "tasks": [{**DEFINITION["tasks"][0], "name": PROBE_TASK}],
}
PARKED = 4
TARGETS_MS = {
    # Start p50; start p99 and hand-over p99 on top of the p99 of an echo.
    False: {"start_p50": 3, "start_p99_over_echo": 15, "hand_over_p99_over_echo": 10},
    True: {"start_p50": 6, "start_p99_over_echo": 25, "hand_over_p99_over_echo": 10},
}


def echo(port: int) -> None:
    """The bare server: it answers with what it got."""
    from aiohttp import web

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.read())

    async def run() -> None:
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    uvloop.run(run())


@contextmanager
def echoing() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.latency", "--echo", str(port)])
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.kill()
        process.wait()


class Probe:
    """Takes a start, its hand-over and an echo in turns."""

    def __init__(self, server: Server, echo_url: str, rate: float) -> None:
        self._site, self._echo_site = Site(server.base_url), Site(echo_url)
        self._gap_s = 1 / rate
        self._answered: dict[int, float] = {}
        self._in_hand: dict[int, float] = {}
        self._sent = 0
        self.start_s: list[float] = []
        self.echo_s: list[float] = []
        self.hand_over_s: list[float] = []
        self.errors: list[str] = []

    async def run(self, seconds: float) -> dict[str, Any]:
        await register(self._site, PROBE_DEFINITION, PROBE_TASK)
        progress = Progress("half load", int(seconds))
        ends_s = now_s() + seconds
        polls = [asyncio.ensure_future(self._poll(ends_s)) for _ in range(PARKED)]
        starts, echoes = await self._site.connect(), await self._echo_site.connect()
        due_s = now_s()
        while due_s < ends_s:
            await asyncio.sleep(max(0.0, due_s - now_s()))
            due_s += self._gap_s
            body = b'{"n":%d}' % self._sent
            began_s = now_s()
            status, answer = await starts.ask(
                self._site.request("POST", f"/workflow/{PROBE}", body)
            )
            at_s = now_s()
            if status != 200:
                self.errors.append(f"start {status} {answer[:100]!r}")
                continue
            self.start_s.append(at_s - began_s)
            self._answered[self._sent] = at_s
            self._sent += 1
            began_s = now_s()
            await echoes.ask(self._echo_site.request("POST", "/echo", body))
            self.echo_s.append(now_s() - began_s)
            progress.at(min(int(seconds), int(seconds - (ends_s - now_s()))))
        await asyncio.gather(*polls)
        progress.end(int(seconds))
        for number, answered_s in self._answered.items():
            if number in self._in_hand:
                self.hand_over_s.append(max(0.0, self._in_hand[number] - answered_s))
        return {
            "start_ms": lat(self.start_s),
            "echo_ms": lat(self.echo_s),
            "hand_over_ms": lat(self.hand_over_s),
            "not_handed_over": self._sent - len(self.hand_over_s),
            "errors": self.errors[:10],
        }

    async def _poll(self, ends_s: float) -> None:
        polls, results = await self._site.connect(), await self._site.connect()
        path = f"/tasks/poll/batch/{PROBE_TASK}?count=1&timeout=5000&workerid=probe"
        request = self._site.request("GET", path)
        while True:
            status, answer = await polls.ask(request)
            at_s = now_s()
            tasks = orjson.loads(answer) if status == 200 else []
            if status != 200:
                self.errors.append(f"poll {status} {answer[:100]!r}")
                await asyncio.sleep(0.1)
            if not tasks and at_s > ends_s:
                return
            for task in tasks:
                self._in_hand[task["inputData"]["n"]] = at_s
                body = result_of(task, "probe")
                status, answer = await results.ask(self._site.request("POST", "/tasks", body))
                if status != 200:
                    self.errors.append(f"result {status} {answer[:100]!r}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with serving(options.cluster) as server, echoing() as echo_url:
        uvloop.run(register(Site(server.base_url), DEFINITION))
        window(server, options, 0)
        full = window(server, options, 0)["done_per_s"]
        print(f"it does {full:.0f} workflows/s; half of that now", flush=True)
        begin = now_s() + WARM_UP_S
        end = begin + options.seconds
        processes = [
            Process("starts", server.base_url, begin, end, rate=full / 2, connections=100),
            Process("workers", server.base_url, begin, end, lanes=options.lanes),
        ]
        try:
            time.sleep(WARM_UP_S)
            found = uvloop.run(Probe(server, echo_url, options.probes).run(options.seconds))
            starts, workers = (process.result() for process in processes)
        finally:
            for process in processes:
                process.stop()
    echo_p99 = found["echo_ms"]["p99"]
    summary = {
        "start_p50": found["start_ms"]["p50"],
        "start_p99_over_echo": found["start_ms"]["p99"] - echo_p99,
        "hand_over_p50": found["hand_over_ms"]["p50"],
        "hand_over_p99_over_echo": found["hand_over_ms"]["p99"] - echo_p99,
        "echo_p99": echo_p99,
    }
    is_sound = not (found["errors"] or found["not_handed_over"] or starts["others"])
    return {
        "cluster": options.cluster,
        "full_per_s": full,
        "probe": found,
        "load": {"starts": starts, "workers": workers},
        "summary": summary,
        "is_sound": is_sound and starts["taken"] == workers["done"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures latencies at half load.")
    parser.add_argument("--cluster", action="store_true", help="one node, Cassandra and Redis")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--probes", type=float, default=50, help="per second")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=100, help="results under way at most")
    parser.add_argument("--echo", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        echo(options.echo)
        return 0
    report = measure(options)
    path = ROOT / "build" / f"latency-{'cluster' if options.cluster else 'embedded'}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    targets = TARGETS_MS[options.cluster]
    for name, value in report["summary"].items():
        mark = ""
        if name in targets:
            mark = f"  of {targets[name]}{'' if value <= targets[name] else '  MISSED'}"
        print(f"{name:<24} {value:>8.2f} ms{mark}")
    print(f"sound: {report['is_sound']}")
    return 0 if report["is_sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
