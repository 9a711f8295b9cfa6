"""A million workflows open at once, a cluster injured under them, every single one accounted for.

Starts Cassandra, Redis and two nodes (or takes the cluster at --url); opens the workflows in bulk;
holds them while other workflows come and go, and kills, drains and adds nodes; ends them all;
then reads every one of them and compares it with the ledger of what was acknowledged. The last
line says how many were lost and how many are there twice; exit status 0 only if none.

    python -m bench.million [--count 1000000] [--injuries kill drain add draining:kill | none]
    python -m bench.million --resume DIR     goes on after Ctrl-C or a crash, in any phase
    python -m bench.million --stop DIR       stops what an interrupted run has left

An injury comes while the workflows are held, or in the middle of another phase if that stands
before it: `opening:kill`. The figures go to build/million.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any

import uvloop

from bench.footprint import Meter, Stretch, disk_mib, memory_mib
from bench.injuries import NAMES, Injuries
from bench.ledger import Ledger
from bench.measuring import ROOT, Cluster, cluster, discard
from bench.progress import Progress
from bench.traffic import Nodes, Traffic, percentiles_ms
from bench.verdict import Account, count

PHASES = ("opening", "holding", "draining")
_OPEN_SHARE = 0.9
"""Of the workflows, open at the same instant."""
_MEMORY_MIB_MAX = 1024
_CALM_S = 5.0
"""Live traffic before, between and after injuries."""
_COUNT_S_MAX = 600.0
_LOOK_S = 0.2
_LIVE_WORKERS = 2


def main() -> int:
    options = read_options()
    if options.stop is not None:
        discard(options.stop.resolve() / "stack")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder: Path = options.folder
    stack = cluster(options.nodes, folder=folder / "stack", settings=dict(options.settings))
    with nullcontext() if options.url else stack as running:
        try:
            report = uvloop.run(execute(options, running))
        except BaseException:
            print(f"\nInterrupted. What runs goes on; go on with it: --resume {folder}", flush=True)
            raise
        if running is not None and not report["good"]:
            for node in running.nodes:
                shutil.copy(node.log, folder)
    return conclude(report, folder)


def conclude(report: dict[str, Any], folder: Path) -> int:
    path = ROOT / "build" / "million.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))
    for fault in report["faults"]:
        print(fault)
    if report["good"]:
        shutil.rmtree(folder)
    else:
        print(f"the ledger and the logs of the nodes are in {folder}")
    print(f"{report['lost']} lost, {report['duplicated']} duplicated")
    return 0 if report["good"] else 1


async def execute(options: argparse.Namespace, running: Cluster | None) -> dict[str, Any]:
    """All phases on a cluster that runs; returns the report."""
    options.folder.mkdir(parents=True, exist_ok=True)
    return await Run(options, running).all()


class Run:
    """One run, perhaps gone on with: what was done stands in the folder."""

    def __init__(self, options: argparse.Namespace, running: Cluster | None) -> None:
        self._options = options
        self._running = running
        self._folder: Path = options.folder
        self._notes_path = self._folder / "run.json"
        self._notes = self._read_notes()
        name = self._notes["name"]
        self._count: int = self._notes["count"]
        self._nodes = Nodes(self._urls)
        self._held = Traffic(self._nodes, Ledger(self._folder / "held.ledger"), f"held_{name}")
        self._live = Traffic(self._nodes, Ledger(self._folder / "live.ledger"), f"live_{name}")
        self._injuries = None if running is None else Injuries(running)
        self._meter = Meter(self._processes)

    def _read_notes(self) -> dict[str, Any]:
        if self._notes_path.exists():
            found: dict[str, Any] = json.loads(self._notes_path.read_text())
            return found
        return {
            "name": f"{time.time_ns() // 1_000_000:x}",
            "count": self._options.count,
            "done": [],
            "injured": [],
            "phases": [],
        }

    def _note(self) -> None:
        fresh = self._notes_path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(self._notes, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._notes_path)

    def _urls(self) -> list[str]:
        if self._running is None:
            return [f"{url.rstrip('/').removesuffix('/api')}/api" for url in self._options.url]
        return [f"{node.address}/api" for node in self._running.nodes if node.pid]

    def _processes(self) -> dict[str, int]:
        if self._running is None:
            return dict(self._options.watch)
        return self._running.server.processes

    # -- the run

    async def all(self) -> dict[str, Any]:
        """All phases that are not done yet; returns the report."""
        self._note()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._nodes.close)
            watching = asyncio.ensure_future(self._meter.run())
            stack.callback(watching.cancel)
            await self._held.register()
            await self._live.register()
            for name, phase in zip(PHASES, (self._open, self._hold, self._drain), strict=True):
                if name not in self._notes["done"]:
                    await self._phase(name, phase)
                    self._notes["done"].append(name)
                    self._note()
            return await self._account()

    async def _phase(self, name: str, phase: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        before = self._held.ledger.count + self._held.ledger.done
        stretch = Stretch(self._meter)
        injuring = asyncio.ensure_future(self._injure_in(name))
        try:
            more = await phase()
            await injuring
        finally:
            injuring.cancel()
        done = self._held.ledger.count + self._held.ledger.done - before
        figures = {"phase": name, **stretch.figures(done), **more, **await self._footprint()}
        self._notes["phases"].append(figures)

    async def _open(self) -> dict[str, Any]:
        bar = Progress("opening", self._count, done=self._held.ledger.count)
        await self._held.open(
            self._count,
            requests=self._options.requests,
            on_progress=lambda done: bar.at(done, self._memory()),
        )
        bar.end(self._held.ledger.count)
        return {"troubles": dict(self._held.troubles)}

    async def _hold(self) -> dict[str, Any]:
        """Live traffic, injuries, and a look at how many are open at this instant."""
        bar = Progress("holding", 0)
        living = asyncio.ensure_future(
            self._live.live(per_s=self._options.live, workers=_LIVE_WORKERS)
        )
        try:
            stretch = Stretch(self._meter)
            began = self._live.ledger.done
            await self._calm(bar, "live traffic beside them")
            calm = stretch.figures(self._live.ledger.done - began)
            latencies = percentiles_ms(self._live.latencies_s)
            for injury in self._due_injuries("holding"):
                first = len(self._live.latencies_s)
                bar.end(0, f"injury: {injury}")
                found = await self._injure("holding", injury)
                await self._calm(bar, json.dumps(found))
                found["live_ms"] = percentiles_ms(self._live.latencies_s[first:])
                self._note()
            self._live.stop()
            await living
        finally:
            living.cancel()
        bar.end(0, "counting what is open")
        opened = await self._count_open()
        return {
            "live": {
                **calm,
                "ms": latencies,
                "started": self._live.ledger.count,
                "ended": self._live.ledger.done,
                "troubles": dict(self._live.troubles),
            },
            "open_at_once": opened,
        }

    async def _count_open(self) -> dict[str, Any]:
        """As the server sees it and as the ledger does: nobody ends one meanwhile."""
        name = self._held.name
        began_s = time.monotonic()
        by_search = await count(self._nodes, name, ended=False, limit_s=_COUNT_S_MAX)
        took_s = time.monotonic() - began_s
        sizes = await self._nodes.insist("GET", f"/tasks/queue/sizes?taskType={name}")
        ledger = self._held.ledger
        return {
            "by_search": by_search,
            "tasks_in_queue": sizes[name],
            "by_ledger": ledger.count - ledger.done,
            "counted_in_s": round(took_s, 1),
        }

    async def _calm(self, bar: Progress, note: str) -> None:
        until_s = time.monotonic() + _CALM_S
        while time.monotonic() < until_s:
            ledger = self._live.ledger
            bar.at(0, f"{ledger.done:,} of {ledger.count:,} live ones ended; {note}")
            await asyncio.sleep(0.5)

    async def _drain(self) -> dict[str, Any]:
        bar = Progress("draining", self._count, done=self._held.ledger.done)
        await self._held.drain(
            workers=self._options.requests,
            on_progress=lambda done: bar.at(done, self._memory()),
        )
        bar.end(self._held.ledger.done)
        return {
            "troubles": dict(self._held.troubles),
            "handed_out_again": self._held.handed_out_again,
        }

    async def _account(self) -> dict[str, Any]:
        """Read every workflow, and compare."""
        found: dict[str, Any] = {}
        lost = duplicated = 0
        for what, traffic in (("held", self._held), ("live", self._live)):
            account = Account(traffic.ledger)
            bar = Progress("reading", traffic.ledger.count)
            stretch = Stretch(self._meter)
            await account.take(self._urls(), connections=self._options.readers, on_progress=bar.at)
            bar.end(account.read, f"{sum(account.sums)} faults; {what} ones; counting")
            both = [
                await count(self._nodes, traffic.name, ended=ended, limit_s=_COUNT_S_MAX)
                for ended in (False, True)
            ]
            account.strays(sorted(traffic.strays), sum(both))
            found[what] = {
                **account.figures(),
                "counted_open": both[0],
                "counted_ended": both[1],
                **stretch.figures(account.read),
            }
            lost += account.sums[0]
            duplicated += account.sums[1]
        faults = self._faults(found)
        return {
            "count": self._count,
            "options": {key: str(value) for key, value in vars(self._options).items()},
            "phases": self._notes["phases"],
            "injuries": self._notes["injured"],
            "account": found,
            "client": {
                "ledger_bytes_per_workflow": self._held.ledger.bytes_per_workflow,
                "peak_mib": self._meter.peak_mib["client"],
            },
            "peak_mib": dict(self._meter.peak_mib),
            "faults": faults,
            "lost": lost,
            "duplicated": duplicated,
            "good": not (lost or duplicated or faults),
        }

    def _faults(self, account: dict[str, Any]) -> list[str]:
        """What is not as it should be, beside workflows lost or there twice."""
        faults = []
        holding = next(one for one in self._notes["phases"] if one["phase"] == "holding")
        opened = min(
            holding["open_at_once"][how] for how in ("by_search", "tasks_in_queue", "by_ledger")
        )
        if opened < _OPEN_SHARE * self._count:
            faults.append(f"only {opened} of {self._count} were open at the same instant")
        faults += [
            f"{found['counted_open']} {what} ones are still open"
            for what, found in account.items()
            if found["counted_open"]
        ]
        if self._held.ledger.count < self._count:
            faults.append(f"only {self._held.ledger.count} of {self._count} were started")
        for name, peak_mib in self._meter.peak_mib.items():
            if name.startswith("node-") and peak_mib > self._options.memory_mib:
                faults.append(f"{name} took {peak_mib} MiB, more than {self._options.memory_mib}")
        return faults

    # -- injuries

    def _due_injuries(self, phase: str) -> list[str]:
        wanted = [
            one.rpartition(":")[2]
            for one in self._options.injuries
            if (one.rpartition(":")[0] or "holding") == phase
        ]
        return wanted[sum(one["phase"] == phase for one in self._notes["injured"]) :]

    async def _injure_in(self, phase: str) -> None:
        """In the middle of a phase that is measured by what was done in it."""
        injuries = [] if phase == "holding" else self._due_injuries(phase)
        ledger = self._held.ledger
        for place, injury in enumerate(injuries, 1):
            due = place * self._count // (len(injuries) + 1)
            while True:
                if (ledger.count if phase == "opening" else ledger.done) >= due:
                    break
                await asyncio.sleep(_LOOK_S)
            print(f"\ninjury: {injury}", flush=True)
            print(json.dumps(await self._injure(phase, injury)), flush=True)

    async def _injure(self, phase: str, injury: str) -> dict[str, Any]:
        assert self._injuries is not None
        self._meter.look()
        found = {"phase": phase, **await self._injuries.inflict(injury)}
        self._notes["injured"].append(found)
        self._note()
        return found

    # -- figures

    def _memory(self) -> str:
        return ", ".join(f"{name} {memory_mib(pid)}" for name, pid in self._processes().items())

    async def _footprint(self) -> dict[str, Any]:
        if self._running is None:
            return {}
        disk = await asyncio.to_thread(disk_mib, self._running.folder / "cassandra")
        return {
            "mib": {name: memory_mib(pid) for name, pid in self._processes().items()},
            "peak_mib": dict(self._meter.peak_mib),
            "cassandra_disk_mib": disk,
        }


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--injuries", nargs="+", default=["kill", "drain", "add", "draining:kill"])
    parser.add_argument("--live", type=float, default=50, help="single starts per s, while holding")
    parser.add_argument("--url", nargs="+", help="nodes of a cluster that runs; no injuries then")
    parser.add_argument(
        "--watch",
        nargs="+",
        default=[],
        metavar="NAME=PID",
        type=lambda text: (text.partition("=")[0], int(text.partition("=")[2])),
        help="its processes, for the figures, if they are on this machine",
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=_MEMORY_MIB_MAX, help="of a node")
    parser.add_argument("--requests", type=int, default=6, help="of 500 workflows, at a time")
    parser.add_argument("--readers", type=int, default=64, help="connections of the account")
    parser.add_argument("--folder", type=Path, help="ledger, data and logs; default: in build/")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run")
    parser.add_argument("--stop", type=Path, metavar="DIR", help="stop what a run has left")
    parser.add_argument(
        "--setting",
        dest="settings",
        action="append",
        default=[],
        metavar="PODIUM_X=Y",
        type=lambda text: tuple(text.split("=", 1)),
        help="of the nodes",
    )
    options = parser.parse_args(arguments)
    for one in options.injuries:
        phase, _, name = one.rpartition(":")
        if one != "none" and (name not in NAMES or phase not in ("", *PHASES)):
            parser.error(f"{one} is no injury; there are {', '.join(NAMES)}, none")
    if options.url or "none" in options.injuries:
        options.injuries = []
    if options.resume is not None and not (options.resume / "run.json").exists():
        parser.error(f"there is no run in {options.resume}")
    options.folder = (
        options.resume or options.folder or ROOT / "build" / f"million-{os.getpid()}"
    ).resolve()
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
