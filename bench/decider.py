"""The decider alone: transitions per second, bytes and CPU per transition, by shape of workflow.

    python -m bench.decider [--seconds 2]

No store, no socket, no queue: each event is decided, the changed rows are encoded as the commit
log gets them, and the effects are answered at once by the next event. A transition is one call of
the decider with the rows it changed; bytes are those rows'. CPU is this thread's, so a busy
machine makes it larger by what its caches lose, not by waiting. Figures go to build/decider.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from bench.measuring import ROOT
from bench.rest_load import definitions
from cluster.engine.decider import decide
from cluster.engine.definitions import make_snapshot, parse_workflow_def
from cluster.engine.effects import ContinueLater, FreezeTaskDefs, PushTask
from cluster.engine.events import (
    Continued,
    Event,
    TaskDefsFrozen,
    TaskPolled,
    TaskUpdated,
    WorkflowStarted,
)
from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.rows import changed_rows
from cluster.engine.step import Surroundings
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.ids import WorkflowId, derived_workflow_id

Json = dict[str, Any]
_AT_MS = 1_800_000_000_000


def step(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    return {"name": ref, "taskReferenceName": ref, "type": type, **fields}


def of_load(scenario: str) -> Json:
    """A scenario of rest_load.py."""
    options = argparse.Namespace(tag="bench", scenario=scenario, payload_bytes=0, one_type=False)
    definition: Json = definitions(options)[1]
    return definition


def loop(rounds: int) -> Json:
    body = step("work", inputParameters={"round": "${loop.output.iteration}"})
    condition = f"$.loop.iteration < {rounds}"
    tasks = [step("loop", "DO_WHILE", loopCondition=condition, loopOver=[body])]
    return {"name": "loop", "version": 1, "tasks": tasks}


def dynamic_fork(branches: int) -> Json:
    inputs = [{"i": number} for number in range(branches)]
    fork = step(
        "fork",
        "FORK_JOIN_DYNAMIC",
        inputParameters={"forkTaskName": "work", "forkTaskInputs": inputs},
    )
    return {"name": "dynamic", "version": 1, "tasks": [fork, step("join", "JOIN")]}


SHAPES: dict[str, Callable[[], Json]] = {
    "simple1": lambda: of_load("simple1"),
    "chain5": lambda: of_load("chain5"),
    "fork10": lambda: of_load("fork10"),
    "DO_WHILE of 100": lambda: loop(100),
    "dynamic fork of 1,000": lambda: dynamic_fork(1_000),
}


@dataclass
class Work:
    """What was done so far."""

    workflows: int = 0
    transitions: int = 0
    rows: int = 0
    row_bytes: int = 0


class Runner:
    """Runs workflows of one definition, one after the other, from start to end."""

    def __init__(self, definition: Json) -> None:
        _, wire = parse_workflow_def(definition)
        snapshot = make_snapshot(wire, {}, {})
        self._plan = Plan(snapshot.hash, snapshot.body)
        self._surroundings = Surroundings()
        self.done = Work()

    def run(self) -> None:
        """One workflow: each task is polled and completed as soon as it is pushed."""
        self.done.workflows += 1
        plan = self._plan
        origin = str(self.done.workflows)
        header = Header(
            snapshot=plan.hash,
            name=plan.definition.name,
            version=plan.definition.version,
            status=WorkflowStatus.RUNNING,
            create_ms=_AT_MS,
        )
        run_id = WorkflowId(derived_workflow_id(at_ms=_AT_MS, slot=7, origin=origin))
        execution = Execution(run_id, header, plan)
        execution.input = b'{"n":1}'
        events: deque[Event] = deque([WorkflowStarted(_AT_MS)])
        while events:
            self._decide(execution, events.popleft(), events)
        if execution.header.status is not WorkflowStatus.COMPLETED:
            raise RuntimeError(f"ended {execution.header.status}: {execution.header.reason}")

    def _decide(self, execution: Execution, event: Event, events: deque[Event]) -> None:
        effects = decide(execution, event, self._surroundings)
        done = self.done
        done.transitions += 1
        for _, data in changed_rows(execution):
            done.rows += 1
            done.row_bytes += len(data)
        for effect in effects:
            if isinstance(effect, PushTask):
                task = execution.tasks[effect.number]
                events.append(TaskPolled(_AT_MS, task.number, "w", task.delivery))
                output = orjson.dumps({"v": task.number, "by": "w"})
                completed = TaskUpdated(_AT_MS, task.number, TaskStatus.COMPLETED, output=output)
                events.append(completed)
            elif isinstance(effect, ContinueLater):
                events.append(Continued(_AT_MS))
            elif isinstance(effect, FreezeTaskDefs):
                # None is registered, which is an answer too.
                events.append(TaskDefsFrozen(_AT_MS, effect.number, effect.token, {}))


def measure(shape: str, seconds: float) -> Json:
    runner = Runner(SHAPES[shape]())
    runner.run()
    runner.done = Work()
    began = time.thread_time()
    while (cpu_s := time.thread_time() - began) < seconds:
        runner.run()
    done = runner.done
    return {
        "shape": shape,
        "workflows_per_s": done.workflows / cpu_s,
        "transitions_per_s": done.transitions / cpu_s,
        "transitions_per_workflow": done.transitions / done.workflows,
        "rows_per_transition": done.rows / done.transitions,
        "bytes_per_transition": done.row_bytes / done.transitions,
        "us_per_transition": 1e6 * cpu_s / done.transitions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2, help="of CPU, per shape")
    options = parser.parse_args()
    print("| shape | transitions/s | per workflow | rows | bytes | CPU µs |")
    print("|---|---:|---:|---:|---:|---:|")
    figures = []
    for shape in SHAPES:
        one = measure(shape, options.seconds)
        figures.append(one)
        print(
            f"| {shape} | {one['transitions_per_s']:,.0f} | {one['transitions_per_workflow']:,.0f}"
            f" | {one['rows_per_transition']:.2f} | {one['bytes_per_transition']:,.0f}"
            f" | {one['us_per_transition']:.1f} |",
            flush=True,
        )
    report = ROOT / "build" / "decider.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
