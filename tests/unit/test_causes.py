"""Whatever happens to a run, all that it needs to go on is there: the audit has nothing to find."""

from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.engine.causes import causes_of
from cluster.engine.model import Execution
from cluster.engine.transitions import TaskStatus
from tests.support.random_runs import RandomRuns, describe, new_runs

HAPPENINGS = 80


def check(runs: RandomRuns) -> None:
    asking = {run_id for run_id, _ in runs.asked}
    for run in runs.executions.values():
        causes = causes_of(run)
        assert not causes.stands, describe(run)
        assert not causes.effect or run.id in asking, f"nothing is under way: {describe(run)}"
        if causes.due_ms:
            assert 0 < run.header.due_ms <= causes.due_ms, f"no timer: {describe(run)}"
        check_queues(runs, run, causes.queued)


def check_queues(runs: RandomRuns, run: Execution, queued: dict[str, list[int]]) -> None:
    waiting = runs.queue.get(run.id, {})
    for numbers in queued.values():
        for number in numbers:
            if run.tasks[number].status is TaskStatus.SCHEDULED:
                assert number in waiting, f"{run.tasks[number].ref} is in no queue"


@given(seed=st.integers(0, 2**32 - 1))
# Histories that once lacked something: a timer of a SUB_WORKFLOW; a task whose turn was still to
# come; branches that run again though their JOIN had done with them.
@example(seed=680)
@example(seed=493)
@example(seed=989)
@example(seed=1360)
@example(seed=1959)
@settings(max_examples=100)
def test_a_run_never_lacks_a_cause(seed: int) -> None:
    runs, plan = new_runs(Random(seed))
    runs.start(plan)
    check(runs)
    for _ in range(HAPPENINGS):
        runs.happen()
        check(runs)
