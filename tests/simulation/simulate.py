"""Whole clusters by seed, each for half a minute of their time.

    python -m tests.simulation.simulate [--seeds FROM:TO] [--schedules K] [--minutes M] [--trace]

A failing seed is printed with what was broken; `--seeds N --trace` runs that one again, exactly as
it was, and prints all that happened. With --demand-all, a kind of fault or takeover that never
happened is a failure too.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, product
from typing import TypeAlias

from tests.simulation import expected
from tests.simulation.run import Outcome, simulate
from tests.simulation.schedules import SCHEDULES

Job: TypeAlias = tuple[str | None, int]
"""A schedule, or None for faults by chance, and a seed."""

_SHOWN_FAULTS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", default="0:200", help="one, or a range without its end")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="go on behind the range for that long")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("--stop", action="store_true", help="stop at the first failing seed")
    parser.add_argument("--schedule", choices=SCHEDULES, help="instead of faults by chance")
    parser.add_argument("--schedules", type=int, default=0, help="so many seeds of each, first")
    parser.add_argument("--demand-all", action="store_true")
    wanted = parser.parse_args()
    first, _, end = wanted.seeds.partition(":")
    seeds = range(int(first), int(end or int(first) + 1))
    jobs: Iterator[Job] = ((wanted.schedule, seed) for seed in seeds)
    if wanted.schedules:
        jobs = chain(product(SCHEDULES, range(wanted.schedules)), jobs)
    if wanted.minutes is not None:
        jobs = chain(jobs, _without_end(wanted.schedule, seeds.stop, wanted.minutes))
    outcomes: Iterator[Outcome]
    if wanted.trace:
        outcomes = (simulate(seed, schedule, trace=True) for schedule, seed in jobs)
    else:
        outcomes = _in_processes(jobs, wanted.processes)
    return _summarise(outcomes, demand_all=wanted.demand_all, stop=wanted.stop)


def _summarise(outcomes: Iterator[Outcome], *, demand_all: bool, stop: bool) -> int:
    began_s, cpu_s = time.monotonic(), 0.0
    counts: Counter[str] = Counter()
    failed: list[str] = []
    runs = workflows = 0
    for outcome in outcomes:
        runs += 1
        workflows += outcome.workflows
        cpu_s += outcome.cpu_s
        counts.update(outcome.counts)
        for line in outcome.lines:
            print(line)
        if outcome.faults:
            failed.append(outcome.name)
            print(f"{outcome.name} FAILED ({outcome.nodes} nodes, {outcome.digest:08x}):")
            for fault in outcome.faults[:_SHOWN_FAULTS]:
                print(f"    {fault}")
            if len(outcome.faults) > _SHOWN_FAULTS:
                print(f"    and {len(outcome.faults) - _SHOWN_FAULTS} more")
            sys.stdout.flush()
            if stop:
                break
    print(f"\nHow often what happened in {runs} runs with {workflows} workflows:")
    for what, times in sorted(counts.items()):
        print(f"    {what:44} {times:9,}")
    missing = [what for what in expected.KINDS if not counts[what]] if demand_all else []
    for what in missing:
        print(f"    {what:44}     NEVER")
    print(
        f"{runs} seeds in {time.monotonic() - began_s:.0f} s, {1000 * cpu_s / max(runs, 1):.0f} ms "
        f"of CPU each; failed: {', '.join(failed) or 'none'}"
    )
    return 1 if failed or missing else 0


def _without_end(schedule: str | None, number: int, minutes: float) -> Iterator[Job]:
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        yield schedule, number
        number += 1


def _in_processes(jobs: Iterator[Job], processes: int) -> Iterator[Outcome]:
    """The outcomes as they come."""
    with multiprocessing.get_context("fork").Pool(processes, _settle_down) as pool:
        # A pool would take all jobs at once: they are handed out in rounds.
        while batch := list(islice(jobs, 64 * processes)):
            yield from pool.imap_unordered(_simulate, batch)


def _settle_down() -> None:
    warnings.simplefilter("ignore")
    # What dead processes leave behind complains when it is freed.
    sys.unraisablehook = lambda _: None
    gc.collect()
    gc.freeze()
    gc.disable()


def _simulate(job: Job) -> Outcome:
    schedule, seed = job
    outcome = simulate(seed, schedule)
    gc.collect()
    return outcome


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names stand in another order in every process otherwise.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.simulate", *sys.argv[1:]])
    _settle_down()
    sys.exit(main())
