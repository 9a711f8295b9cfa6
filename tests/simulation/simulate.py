"""Whole clusters by seed, each for half a minute of their time.

    python -m tests.simulation.simulate [--seeds FROM:TO] [--processes N] [--minutes M] [--trace]

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
from itertools import islice

from tests.simulation import expected
from tests.simulation.run import Outcome, simulate

_SHOWN_FAULTS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", default="0:200", help="one, or a range without its end")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="go on behind the range for that long")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("--stop", action="store_true", help="stop at the first failing seed")
    parser.add_argument("--demand-all", action="store_true")
    wanted = parser.parse_args()
    first, _, end = wanted.seeds.partition(":")
    seeds = range(int(first), int(end or int(first) + 1))
    outcomes: Iterator[Outcome]
    if wanted.trace:
        outcomes = (simulate(seed, trace=True) for seed in seeds)
    else:
        outcomes = _in_processes(seeds, wanted.processes, wanted.minutes)
    return _summarise(outcomes, demand_all=wanted.demand_all, stop=wanted.stop)


def _summarise(outcomes: Iterator[Outcome], *, demand_all: bool, stop: bool) -> int:
    began_s, cpu_s = time.monotonic(), 0.0
    counts: Counter[str] = Counter()
    failed: list[int] = []
    runs = workflows = 0
    for outcome in outcomes:
        runs += 1
        workflows += outcome.workflows
        cpu_s += outcome.cpu_s
        counts.update(outcome.counts)
        for line in outcome.lines:
            print(line)
        if outcome.faults:
            failed.append(outcome.seed)
            print(f"seed {outcome.seed} FAILED ({outcome.nodes} nodes, {outcome.digest:08x}):")
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
        f"of CPU each; failed: {failed or 'none'}"
    )
    return 1 if failed or missing else 0


def _in_processes(seeds: range, processes: int, minutes: float | None) -> Iterator[Outcome]:
    """The outcomes of seeds as they come; with `minutes`, of all that fit into that time."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def numbers() -> Iterator[int]:
        yield from seeds
        number = seeds.stop
        while deadline is not None and time.monotonic() < deadline:
            yield number
            number += 1

    with multiprocessing.get_context("fork").Pool(processes, _settle_down) as pool:
        if deadline is None:
            yield from pool.imap_unordered(_simulate, numbers(), chunksize=4)
            return
        # A pool would take all numbers at once: hand them out in rounds.
        source = numbers()
        while batch := list(islice(source, 64 * processes)):
            yield from pool.imap_unordered(_simulate, batch, chunksize=4)


def _settle_down() -> None:
    warnings.simplefilter("ignore")
    # What dead processes leave behind complains when it is freed.
    sys.unraisablehook = lambda _: None
    gc.collect()
    gc.freeze()
    gc.disable()


def _simulate(seed: int) -> Outcome:
    outcome = simulate(seed)
    gc.collect()
    return outcome


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names stand in another order in every process otherwise.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.simulate", *sys.argv[1:]])
    _settle_down()
    sys.exit(main())
