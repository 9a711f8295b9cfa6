"""What the bulk endpoints save: CPU of the server per workflow, beside single starts and results.

For each scenario a fresh `podium serve` on a temporary folder, measured in turns: once driven by
rest_load.py (a request per start, batch polls, a request per result), once by bulk starts and
exchanges of --batch items. Both are closed loops; CPU is that of the server's processes over the
window, checkpoints included, because the load before and in the window is the same. Every workflow
that was started is looked up at the end.

    python -m bench.bulk [--seconds 10] [--warmup 4] [--rounds 3] [--batch 200] [--scenario ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import orjson
import uvloop

from bench.measuring import ROOT, Server, cpu_ms_of, is_sound, load, podium
from bench.rest_load import _children, cpu_only, definitions

SCENARIOS = ("simple1", "chain5", "fork10")
OPEN_BATCHES = 6
POLL_MS = 100


class BulkLoad:
    """Producers of bulk starts, and workers that exchange results for tasks."""

    def __init__(self, server: Server, scenario: str, batch: int) -> None:
        self._server = server
        self._batch = batch
        self._options = argparse.Namespace(tag="bulk", payload_bytes=0, scenario=scenario)
        self._options.one_type = False
        self.types, self._definition, self._tasks_per_workflow = definitions(self._options)
        self.ids: list[str] = []
        self.tasks_done = 0
        self.errors: Counter[str] = Counter()
        self._room = asyncio.Event()
        self._is_producing = self._is_working = True
        self._session: aiohttp.ClientSession

    @property
    def workflows_done(self) -> float:
        return self.tasks_done / self._tasks_per_workflow

    async def run(self, *, seconds: float, warmup: float, workers: int) -> dict[str, Any]:
        """Rate and CPU of the window, and what became of all that was started."""
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            await self._register()
            running = [asyncio.ensure_future(self._produce()) for _ in range(2)]
            working = [asyncio.ensure_future(self._work()) for _ in range(workers)]
            await asyncio.sleep(warmup)
            began, done, cpu = time.perf_counter(), self.workflows_done, self._cpu_s()
            await asyncio.sleep(seconds)
            took = time.perf_counter() - began
            done, after = self.workflows_done - done, self._cpu_s()
            cpu_s = {name: after[name] - before for name, before in cpu.items()}
            self._is_producing = False
            self._room.set()
            await asyncio.gather(*running)
            await self._until_done()
            self._is_working = False
            await asyncio.gather(*working)
            left = await self._not_completed()
        return {
            "wf_per_s": done / took,
            "cpu_ms": 1000 * sum(cpu_s.values()) / done if done else float("nan"),
            "cpu_cores": {name: used / took for name, used in cpu_s.items()},
            "started": len(self.ids),
            "not_completed": left,
            "errors": dict(self.errors),
        }

    async def _until_done(self) -> None:
        try:
            async with asyncio.timeout(60):
                while self.workflows_done < len(self.ids):
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            self.errors["not done in time"] += 1

    def _cpu_s(self) -> dict[str, float]:
        children = _children()
        processes = self._server.processes.items()
        return {name: float(cpu_only(pid, children)) for name, pid in processes}

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(
            method,
            self._server.base_url + path,
            data=None if body is None else orjson.dumps(body),
            headers={"Content-Type": "application/json"},
        ) as response:
            answer = await response.read()
            if response.status >= 300:
                self.errors[f"{response.status} {answer[:100]!r}"] += 1
                return None
            return orjson.loads(answer) if answer else None

    async def _register(self) -> None:
        for task_type in self.types:
            body = {"name": task_type, "retryCount": 0, "ownerEmail": "load@example.com"}
            await self._call("POST", "/metadata/taskdefs", [body])
        await self._call("PUT", "/metadata/workflow", [self._definition])

    async def _produce(self) -> None:
        name = self._definition["name"]
        while self._is_producing:
            if len(self.ids) - self.workflows_done > (OPEN_BATCHES - 1) * self._batch:
                self._room.clear()
                await self._room.wait()
                continue
            first = len(self.ids)
            starts = [{"name": name, "input": {"n": first + n}} for n in range(self._batch)]
            answer = await self._call("POST", "/workflow/bulk/start", starts)
            for result in answer["results"] if answer else ():
                if result["status"] == 200:
                    self.ids.append(result["id"])
                else:
                    self.errors[str(result["status"])] += 1

    async def _work(self) -> None:
        results: list[dict[str, Any]] = []
        poll = {"types": self.types, "count": self._batch, "timeout": POLL_MS, "workerId": "w"}
        while self._is_working or results:
            answer = await self._call("POST", "/tasks/exchange", {"results": results, "poll": poll})
            if answer is None:
                await asyncio.sleep(0.1)
                continue
            for result in answer["results"]:
                if result["status"] == 200:
                    self.tasks_done += 1
                else:
                    self.errors[str(result["status"])] += 1
            self._room.set()
            results = [
                {
                    "workflowInstanceId": task["workflowInstanceId"],
                    "taskId": task["taskId"],
                    "workerId": "w",
                    "status": "COMPLETED",
                    "outputData": {"v": task["inputData"].get("n")},
                }
                for task in answer["tasks"]
            ]

    async def _not_completed(self) -> int:
        waiting = iter(self.ids)
        left = 0

        async def look() -> None:
            nonlocal left
            for workflow_id in waiting:
                run = await self._call("GET", f"/workflow/{workflow_id}?includeTasks=false")
                left += run is None or run["status"] != "COMPLETED"

        await asyncio.gather(*(look() for _ in range(8)))
        return left


def measure_bulk(scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    with podium() as server:

        async def run() -> dict[str, Any]:
            load = BulkLoad(server, scenario, options.batch)
            return await load.run(
                seconds=options.seconds, warmup=options.warmup, workers=options.workers
            )

        row = uvloop.run(run())
    row["sound"] = not row["errors"] and not row["not_completed"]
    return row


def measure_single(scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    with podium() as server:
        row = load(server, scenario, seconds=options.seconds, warmup=options.warmup)
    return {
        "wf_per_s": row["wf_per_s"],
        "cpu_ms": cpu_ms_of(row, ["podium"]),
        "sound": is_sound(row),
        "errors": row["errors"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures bulk requests beside single ones.")
    parser.add_argument("--seconds", type=float, default=10, help="measured, per run")
    parser.add_argument("--warmup", type=float, default=4, help="before, with the same load")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    parser.add_argument("--batch", type=int, default=200, help="items of a bulk request")
    parser.add_argument("--workers", type=int, default=3, help="exchanges under way at a time")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    ways = {"single": measure_single, "bulk": measure_bulk}
    for scenario in options.scenario:
        for _ in range(options.rounds):
            for way, measure in ways.items():
                rows.append({"scenario": scenario, "way": way, **measure(scenario, options)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report = ROOT / "build" / "bulk.jsonl"
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{'scenario':<10} {'way':<7} {'workflows/s':>11} {'CPU ms/wf':>10} {'least-most':>13}")
    for scenario in options.scenario:
        for way in ways:
            runs = [row for row in rows if (row["scenario"], row["way"]) == (scenario, way)]
            cpu = [row["cpu_ms"] for row in runs]
            rate = statistics.median(row["wf_per_s"] for row in runs)
            spread = f"{min(cpu):.3f}-{max(cpu):.3f}"
            print(
                f"{scenario:<10} {way:<7} {rate:>11.0f} {statistics.median(cpu):>10.3f} "
                f"{spread:>13}"
            )
    return 0 if all(row["sound"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
