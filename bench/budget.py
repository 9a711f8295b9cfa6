"""What a workflow costs, stage by stage: µs of CPU of the server from the socket to the answer.

    python -m bench.budget [--mode embedded cluster] [--scenario simple1 chain5 fork10]
                           [--seconds 10] [--warmup 5] [--functions 25]

A fresh server per mode, driven by rest_load.py as in the other benchmarks. First a window without
a sampler says what a workflow costs (/proc, all threads; checkpoints and search rows included).
Then py-spy looks at the node's stacks 250 times a second from outside, without stopping it, and
each sample goes to the stage of its innermost frame that belongs to one. A thread's samples share
the CPU that this thread used, so what waits does not count. A busy machine makes all figures
larger and the shares a little less sharp; let nothing else run.

The table is printed; all of it, with the hottest functions, goes to build/budget.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measuring import ROOT, Server, cluster, cpu_ms_of, is_sound, load, podium

SCENARIOS = ("simple1", "chain5", "fork10")
SAMPLES_PER_S = 250
_TICKS = os.sysconf("SC_CLK_TCK")
_SPY = Path(sys.executable).parent / "py-spy"

LOOP = "sockets and loop"
"""The event loop itself: what uvloop does in C around the callbacks (epoll, reads)."""
WRITE = "answer: write"
"""The system call that writes an answer; in Python it has no frame of its own."""
DRIVER = "Cassandra driver"

# The first line that fits the innermost frame of a sample that any line fits. `file` or
# `file:function`, the file from the package on; a line that ends in / is a folder.
_STAGES = (
    ("cluster/node/connections.py:_Connection._answer", WRITE),
    ("cluster/node/reply.py", "answer"),
    ("cluster/node/wire.py", "answer"),
    ("cluster/node/fragments.py", "answer"),
    ("cluster/node/connections.py", "HTTP parse"),
    ("cluster/node/plain_http.py", "HTTP parse"),
    ("aiohttp/", "HTTP parse"),
    ("yarl/", "HTTP parse"),
    ("multidict/", "HTTP parse"),
    ("cluster/node/api/", "decode"),
    ("cluster/engine/payloads.py", "decode"),
    ("cluster/node/poll", "queue"),
    ("cluster/node/limits.py", "queue"),
    ("cluster/node/hand_outs.py", "queue"),
    ("cluster/node/notes.py", "queue"),
    ("cluster/node/admission.py", "admission"),
    ("cluster/node/link", "links"),
    ("cluster/node/remote.py", "links"),
    ("cluster/node/summaries.py", "checkpoint"),
    ("cluster/node/outside.py", "decide"),
    ("cluster/node/", "route"),
    ("cluster/engine/rows.py", "encode"),
    ("cluster/sharding/commit_log.py:encode_entry", "encode"),
    ("cluster/engine/", "decide"),
    ("cluster/sharding/commit_log.py", "commit"),
    ("cluster/store/sql/log.py", "commit"),
    ("cluster/store/cassandra/log.py", "commit"),
    ("cluster/store/memory/queues.py", "queue"),
    ("cluster/store/redis/", "queue"),
    ("cluster/sharding/dispatch.py", "queue"),
    ("cluster/sharding/queue_lane.py", "queue"),
    ("cluster/sharding/requeue.py", "queue"),
    ("cluster/sharding/timers.py", "queue"),
    ("cluster/sharding/checkpoint.py", "checkpoint"),
    ("cluster/sharding/residents.py", "checkpoint"),
    ("cluster/store/sql/database.py:Database._submit", "commit"),
    ("cluster/store/sql/database.py:_settle", "commit"),
    ("cluster/store/sql/", "checkpoint"),
    ("cluster/store/cassandra/session.py", ""),
    ("cluster/store/cassandra/", "checkpoint"),
    ("cluster/store/", "checkpoint"),
    ("cluster/sharding/meters.py", "metrics"),
    ("cluster/metrics.py", "metrics"),
    ("cluster/sharding/insist.py", ""),
    ("cluster/sharding/", "decide"),
)
# Threads of their own do one thing.
_THREADS = (
    ("podium-log.db", "commit: SQLite thread"),
    ("podium.db", "checkpoint: SQLite thread"),
)
_ORDER = (
    *(LOOP, "HTTP parse", "admission", "route", "decode", "decide", "encode", "commit"),
    *("commit: SQLite thread", "queue", "links", "answer", WRITE, "metrics", "checkpoint"),
    *("checkpoint: SQLite thread", DRIVER, "other"),
)
_FRAME = re.compile(r"(.*) \(([^()]*?)(?::\d+)?\)$")
_THREAD = re.compile(r"thread \((\d+)\)(?:: (.*))?$")


@dataclass
class Samples:
    """What the sampler saw of one process, and the CPU its threads used meanwhile."""

    stacks: list[tuple[int, str, list[str], int]]
    """Thread, its name, frames from the outermost on, how often."""
    cpu_s: dict[int, float]

    def shares(self) -> tuple[dict[str, float], dict[str, float]]:
        """Of each stage, and of each function by itself, its part of all CPU."""
        seen: Counter[int] = Counter()
        for thread, _, _, count in self.stacks:
            seen[thread] += count
        total = sum(self.cpu_s.get(thread, 0) for thread in seen) or 1
        stages: dict[str, float] = {}
        functions: dict[str, float] = {}
        for thread, name, frames, count in self.stacks:
            part = self.cpu_s.get(thread, 0) * count / seen[thread] / total
            stage = stage_of(name, frames)
            stages[stage] = stages.get(stage, 0) + part
            innermost = f"{stage} | {frames[-1]}"
            functions[innermost] = functions.get(innermost, 0) + part
        return stages, functions


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    modes = ("embedded", "cluster")
    parser.add_argument("--mode", nargs="+", default=list(modes), choices=modes)
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, default=10, help="of each of the two windows")
    parser.add_argument("--warmup", type=float, default=5)
    parser.add_argument("--functions", type=int, default=0, help="print the hottest ones too")
    options = parser.parse_args()
    if not _SPY.exists():
        sys.exit("py-spy is not installed: it is in the extra `dev` (make setup)")
    rows = [row for mode in options.mode for row in budgets(mode, options)]
    report = ROOT / "build" / "budget.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(rows, indent=1) + "\n")
    for mode in options.mode:
        print_table([row for row in rows if row["mode"] == mode], options.functions)
    return 0 if all(row["sound"] for row in rows) else 1


def budgets(mode: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with serving(mode) as server:
        if mode == "cluster":
            # A JVM that has not compiled yet costs many times as much.
            load(server, options.scenario[0], seconds=4 * options.warmup, warmup=0)
        for scenario in options.scenario:
            yield budget(mode, server, scenario, options)


@contextmanager
def serving(mode: str) -> Iterator[Server]:
    if mode == "embedded":
        with podium() as server:
            yield server
    else:
        with cluster(1) as running:
            yield running.server


def budget(mode: str, server: Server, scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    """CPU of every process and stage, in µs per workflow."""
    node = "podium" if mode == "embedded" else "node-1"
    plain = load(server, scenario, seconds=options.seconds, warmup=options.warmup)
    samples: list[Samples] = []
    sampler = threading.Thread(
        target=lambda: samples.append(
            sample(server.processes[node], after_s=options.warmup + 1, seconds=options.seconds)
        )
    )
    sampler.start()
    spied = load(server, scenario, seconds=options.seconds + 2, warmup=options.warmup)
    sampler.join()
    stages, functions = samples[0].shares()
    cpu_us = {name: 1000 * cpu_ms_of(plain, [name]) for name in server.processes}
    own_us = cpu_us[node]
    row = {
        "mode": mode,
        "scenario": scenario,
        "wf_per_s": plain["wf_per_s"],
        "requests_per_workflow": plain["requests_per_s"] / (plain["wf_per_s"] or 1),
        "cpu_us": cpu_us,
        "stages_us": {stage: own_us * stages[stage] for stage in _ORDER if stage in stages},
        "functions_us": dict(
            sorted(
                ((name, own_us * part) for name, part in functions.items()),
                key=lambda one: -one[1],
            )[:80]
        ),
        "samples": sum(count for *_, count in samples[0].stacks),
        "sound": is_sound(plain) and is_sound(spied),
    }
    print(f"{mode} {scenario}: {sum(cpu_us.values()):.0f} us per workflow", flush=True)
    return row


def sample(pid: int, *, after_s: float, seconds: float) -> Samples:
    """Look at a process from outside, after a while, for so long."""
    time.sleep(after_s)
    with tempfile.TemporaryDirectory(prefix="podium-budget-") as folder:
        stacks = Path(folder) / "stacks"
        command = [str(_SPY), "record", "--pid", str(pid), "--threads", "--nonblocking"]
        command += ["--rate", str(SAMPLES_PER_S), "--duration", str(round(seconds))]
        command += ["--format", "raw", "--nolineno", "--output", str(stacks)]
        before = threads_cpu_s(pid)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = threads_cpu_s(pid)
        if not stacks.exists():
            raise RuntimeError(f"py-spy saw nothing: {done.stderr[-500:]}")
        lines = stacks.read_text().splitlines()
    used = {thread: cpu_s - before.get(thread, 0) for thread, cpu_s in after.items()}
    return Samples([parsed for line in lines if (parsed := _parsed(line))], used)


def threads_cpu_s(pid: int) -> dict[int, float]:
    """CPU of each thread so far; finer than the ticks of /proc/PID/stat where the kernel tells."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found[int(task.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def _parsed(line: str) -> tuple[int, str, list[str], int] | None:
    stack, _, count = line.rpartition(" ")
    first, *frames = stack.split(";")
    thread = _THREAD.match(first)
    if thread is None or not frames:
        return None
    return int(thread[1]), thread[2] or "", frames, int(count)


def stage_of(thread: str, frames: list[str]) -> str:
    """Where a sample belongs."""
    for prefix, stage in _THREADS:
        if thread.startswith(prefix):
            return stage
    if thread != "MainThread":
        return DRIVER if any("(cassandra/" in frame for frame in frames) else "other"
    for frame in reversed(frames):
        found = _FRAME.match(frame)
        if found is None:
            continue
        place = f"{found[2]}:{found[1]}"
        if place.startswith("asyncio/runners.py"):
            return LOOP
        for prefix, stage in _STAGES:
            if place.startswith(prefix):
                if stage:
                    return stage
                break
    return "other"


def print_table(rows: list[dict[str, Any]], functions: int) -> None:
    print(f"\nµs of CPU per workflow, {rows[0]['mode']}\n")
    print("| stage | " + " | ".join(row["scenario"] for row in rows) + " |")
    print("|---|" + "---:|" * len(rows))
    for stage in _ORDER:
        cells = [row["stages_us"].get(stage, 0.0) for row in rows]
        if any(cells):
            print(f"| {stage} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    for process in rows[0]["cpu_us"]:
        cells = [row["cpu_us"][process] for row in rows]
        print(f"| **{process}** | " + " | ".join(f"**{cell:.0f}**" for cell in cells) + " |")
    requests = " | ".join(f"{row['requests_per_workflow']:.1f}" for row in rows)
    print(f"| requests per workflow | {requests} |")
    for row in rows if functions else ():
        print(
            f"\nhottest functions, {row['mode']} {row['scenario']} (µs, without what they call)\n"
        )
        for name, cost_us in list(row["functions_us"].items())[:functions]:
            print(f"{cost_us:8.1f}  {name}")


if __name__ == "__main__":
    sys.exit(main())
