"""What one task costs as a workflow grows: CPU per task, which must not grow with the workflow.

Runs a node in this process on SQLite in a temporary folder; a worker in the same process polls in
batches and completes what it gets through the same calls the HTTP handlers make. CPU is that of the
whole process, all threads. Per shape and size the median of --runs; the last column compares the
largest size with the smallest of at least 1,000 tasks, where fixed costs no longer show.

    python bench/cost_per_task.py [--runs 5] [--sizes 10 1000 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.engine.events import TaskUpdated
from cluster.engine.transitions import TaskStatus
from cluster.ids import number_of, workflow_of
from cluster.logs import set_up_logs
from cluster.node.app import Node, running
from cluster.node.router import StartWorkflow
from cluster.settings import load_settings

Json = dict[str, Any]
GROWTH_MAX = 1.5
BATCH = 100


def step(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    return {"name": fields.pop("name", ref), "taskReferenceName": ref, "type": type, **fields}


def dynamic_fork(size: int) -> tuple[list[Json], int]:
    fork = step(
        "fork",
        "FORK_JOIN_DYNAMIC",
        inputParameters={"forkTaskName": "work", "forkTaskInputs": [{"i": i} for i in range(size)]},
    )
    return [fork, step("join", "JOIN")], size


def loop(size: int) -> tuple[list[Json], int]:
    body = step("work", inputParameters={"round": "${loop.output.iteration}"})
    condition = f"$.loop.iteration < {size}"
    return [step("loop", "DO_WHILE", loopCondition=condition, loopOver=[body])], size


def empty_loop(size: int) -> tuple[list[Json], int]:
    condition = f"$.loop.iteration < {size}"
    body = [step("nothing", "NOOP")]
    return [step("loop", "DO_WHILE", loopCondition=condition, loopOver=body)], size


def chain(size: int) -> tuple[list[Json], int]:
    return [
        step(f"t{i}", name="work", inputParameters={"n": f"${{t{i - 1}.output.n}}" if i else 0})
        for i in range(size)
    ], size


SHAPES = {
    "FORK_JOIN_DYNAMIC": dynamic_fork,
    "DO_WHILE of a worker task": loop,
    "DO_WHILE of NOOP": empty_loop,
    "chain": chain,
}


async def measure(node: Node, shape: str, size: int) -> float:
    """CPU µs per task of one workflow from its start to its end."""
    tasks, count = SHAPES[shape](size)
    definition = {"name": f"{shape} {size}", "version": 1, "tasks": tasks}
    # Parsed and frozen once per definition, not per workflow: not part of what is measured.
    await node.services.metadata.register(definition, overwrite=True)
    await run_one(node, definition["name"])
    began = time.process_time()
    await run_one(node, definition["name"])
    await node.services.catch_up()
    return (time.process_time() - began) / count * 1e6


async def run_one(node: Node, name: str) -> None:
    router = node.services.router
    workflow_id = await router.start(StartWorkflow(name=name))
    updates: set[asyncio.Task[None]] = set()
    while True:
        polled = await node.services.desk.poll(
            task_type="work", domain=None, worker_id="bench", count=BATCH, timeout_ms=20
        )
        for item in polled.items:
            event = TaskUpdated(
                time.time_ns() // 1_000_000,
                number_of(item.task_id),
                TaskStatus.COMPLETED,
                output=b'{"n":1}',
                worker_id="bench",
            )
            update = asyncio.ensure_future(router.submit(workflow_of(item.task_id), event))
            updates.add(update)
            update.add_done_callback(updates.discard)
        if updates:
            await asyncio.gather(*updates)
        execution = await router.view(workflow_id)
        if not polled.items and execution.is_terminal:
            assert execution.header.status == "COMPLETED", execution.header.reason
            return


async def main(options: argparse.Namespace) -> int:
    set_up_logs(node_id="bench", level="warning")
    print(f"{'shape':<28}" + "".join(f"{size:>10}" for size in options.sizes) + f"{'growth':>10}")
    failed = False
    figures: dict[str, dict[int, float]] = {}
    for shape in SHAPES:
        medians: dict[int, float] = {}
        for size in options.sizes:
            with tempfile.TemporaryDirectory(prefix="podium-bench-") as data:
                settings = load_settings(flags={"data_dir": data, "port": 0})
                async with running(settings) as node:
                    runs = [await measure(node, shape, size) for _ in range(options.runs)]
            medians[size] = statistics.median(runs)
        figures[shape] = medians
        large = [size for size in options.sizes if size >= 1_000] or options.sizes
        growth = medians[max(large)] / medians[min(large)]
        failed = failed or growth > GROWTH_MAX
        row = "".join(f"{medians[size]:>10.1f}" for size in options.sizes)
        print(f"{shape:<28}{row}{growth:>10.2f}", flush=True)
    print(f"CPU µs per task, all threads, median of {options.runs}; growth at most {GROWTH_MAX}")
    print(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="CPU per task as workflows grow.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 10_000])
    sys.exit(uvloop.run(main(parser.parse_args())))
