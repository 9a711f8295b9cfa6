"""Whatever happens to a run, in whatever order: it is never stuck, what ended stays ended, twice is
once, and what is read from the rows goes on like what was in memory.

Most of that is checked after each decision by `tests/support/random_runs.py`.
"""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine import payloads
from cluster.engine.model import ALL_PARTS, TASK_DEFS, VARIABLES
from cluster.engine.rows import changed_rows
from tests.support.engine import Runs
from tests.support.random_runs import RandomRuns, new_runs

seeds = st.randoms(use_true_random=False)


@settings(max_examples=150)
@given(random=seeds, steps=st.integers(0, 60))
def test_whatever_happens_a_run_comes_to_an_end(random: Random, steps: int) -> None:
    runs, plan = new_runs(random)
    runs.start(plan, {})
    for _ in range(steps):
        runs.happen()
    runs.drive()


@settings(max_examples=15)
@given(random=seeds)
def test_long_histories_end_too(random: Random) -> None:
    runs, plan = new_runs(random)
    runs.start(plan, {})
    for _ in range(250):
        runs.happen()
    runs.drive()


@pytest.mark.parametrize("seed", range(80))
def test_the_same_histories_each_time(seed: int) -> None:
    random = Random(seed)
    runs, plan = new_runs(random)
    runs.start(plan, {})
    for _ in range(60):
        runs.happen()
    runs.drive()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_rows_read_at_any_point_go_on_to_the_same_end(seed: int) -> None:
    assert _ends(seed, reload_always=False) == _ends(seed, reload_always=True)


def _ends(seed: int, *, reload_always: bool) -> list[Any]:
    """All rows of all runs after a calm history, with or without memory between the events."""
    random = Random(seed)
    runs, plan = new_runs(random, calm=True)
    runs.reload_always = reload_always
    runs.start(plan, {})
    runs.drive()
    return [runs.rows[run_id] for run_id in sorted(runs.rows)]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), crashes=st.lists(st.integers(0, 40), max_size=3))
def test_a_crash_at_any_point_changes_no_end(seed: int, crashes: list[int]) -> None:
    assert _outcome(seed, crashes) == _outcome(seed, [])


def _outcome(seed: int, crashes: list[int]) -> list[Any]:
    runs, plan = new_runs(Random(seed), calm=True)
    runs.start(plan, {})
    for turn in range(3_000):
        if all(run.is_terminal for run in runs.executions.values()) and not runs.asked:
            break
        if turn in crashes:
            runs.crash()
        runs.drive(turns=1)
    return sorted(_story(runs, run_id) for run_id in runs.executions)


def _story(runs: RandomRuns, run_id: str) -> Any:
    run = runs.executions[run_id]
    tasks = sorted((task.ref, task.status.value, task.retry_count) for task in run.tasks.values())
    return (run.header.name, run.header.status.value, tasks)


@settings(max_examples=40)
@given(random=seeds, steps=st.integers(0, 40))
def test_what_is_loaded_is_saved_again_as_the_same_bytes(random: Random, steps: int) -> None:
    runs, plan = new_runs(random)
    runs.start(plan, {})
    for _ in range(steps):
        runs.happen()
    for run_id in list(runs.executions):
        runs.reload(run_id)
        run = runs.executions[run_id]
        run.parts = ALL_PARTS | VARIABLES | TASK_DEFS
        run.changed = dict.fromkeys(run.tasks, ALL_PARTS)
        for number, data in changed_rows(run):
            assert runs.rows[run_id].get(number, payloads.EMPTY) == data


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_deciding_twice_gives_the_same(seed: int) -> None:
    def history() -> Runs:
        random = Random(seed)
        runs, plan = new_runs(random)
        runs.start(plan, {})
        for _ in range(30):
            runs.happen()
        return runs

    assert history().rows == history().rows
