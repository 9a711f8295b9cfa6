"""Relatives on different shards: whatever is lost, late or said twice, each thing happens once."""

from collections import deque
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine.effects import Effect, Post, StartChild
from cluster.engine.events import (
    ChildEnded,
    ChildRevived,
    Delivered,
    Event,
    Recovered,
    Rerun,
    Retried,
    TaskUpdated,
    Terminated,
)
from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.recovery import is_unfinished
from cluster.engine.rows import load
from cluster.engine.step import Surroundings
from cluster.engine.tasks.sub_workflow import STATUS_AFTER
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.errors import ClusterError
from cluster.ids import same_slot
from tests.support.engine import Json, Runs, output_of, plan_of, statuses, step
from tests.support.random_runs import RandomDefinitions, RandomRuns

seeds = st.randoms(use_true_random=False)


class Letters(Runs):
    """Runs whose orders for other shards wait until a test delivers them."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.mail: dict[tuple[str, str], deque[Post]] = {}
        self.started: list[str] = []
        """Ids of the children started on other shards, as often as they were."""

    def _decide(self, execution: Execution, event: Event) -> None:
        super()._decide(execution, event)
        loaded = load(execution.id, self.rows[execution.id].items(), lambda _: execution.plan)
        assert list(loaded.orders.items()) == sorted(execution.orders.items())
        assert execution.header.orders == len(execution.orders)

    def _carry_out(self, execution: Execution, effect: Effect) -> None:
        if isinstance(effect, Post):
            is_near = same_slot(execution.id, effect.target)
            assert not (is_near and self.surroundings.is_in_memory(effect.target))
            queue = self.mail.setdefault((execution.id, effect.target), deque())
            if all(one.mark != effect.mark for one in queue):
                queue.append(effect)
        else:
            if isinstance(effect, StartChild):
                assert same_slot(execution.id, effect.workflow_id)
            super()._carry_out(execution, effect)

    def hand_over(self, key: tuple[str, str]) -> Delivered:
        """Bring the first order for a target there; it is not acknowledged yet."""
        sender, target = key
        order = self.mail[key][0]
        outcome: Any = "done"
        if order.start is not None:
            child = self.executions.get(target)
            if child is None:
                self._start_elsewhere(sender, order.start)
            elif child.header.parent_id != sender:
                outcome = "taken"
        elif target not in self.executions:
            outcome = "gone"
        elif order.event is not None:
            try:
                self._decide(self.executions[target], order.event)
            except ClusterError:
                pass
        self.settle()
        return Delivered(self.now_ms, order.mark, outcome)

    def acknowledge(self, key: tuple[str, str], delivered: Delivered) -> None:
        queue = self.mail.get(key)
        if queue is not None and queue[0].mark == delivered.mark:
            queue.popleft()
            if not queue:
                del self.mail[key]
        self._decide(self.executions[key[0]], delivered)
        self.settle()

    def deliver(self, key: tuple[str, str]) -> None:
        self.acknowledge(key, self.hand_over(key))

    def deliver_all(self) -> None:
        while self.mail:
            self.deliver(next(iter(self.mail)))

    def lose_everything(self) -> None:
        """Crash: what was on its way is gone; what is read from the rows asks for it again."""
        self.mail.clear()
        self._waiting.clear()
        plans = {run.header.snapshot: run.plan for run in self.executions.values()}
        for run in list(self.executions.values()):
            rows = self.rows[run.id].items()
            self.executions[run.id] = load(run.id, rows, lambda header: plans[header.snapshot])
        for run in list(self.executions.values()):
            if is_unfinished(run):
                self.apply(self.executions[run.id], Recovered(self.now_ms))

    def _start_elsewhere(self, parent_id: str, start: StartChild) -> None:
        plan = next(p for p in self.definitions.values() if p.hash == start.snapshot)
        assert plan.definition.name == start.name
        self.started.append(start.workflow_id)
        header = Header(
            snapshot=plan.hash,
            name=start.name,
            version=start.version,
            status=WorkflowStatus.RUNNING,
            create_ms=self.now_ms,
            parent_id=parent_id,
            parent_number=start.parent_number,
            heard=start.mark,
        )
        self._create(start.workflow_id, plan, start.input, header)


def sub(ref: str, name: str = "child", **fields: Any) -> Json:
    params = {"name": name, "version": 1, "placement": "spread"}
    return step(ref, "SUB_WORKFLOW", subWorkflowParam=params, **fields)


def family(*steps: Json, **fields: Any) -> tuple[Letters, Execution]:
    """A parent of the given steps, whose spread children have one worker task each."""
    child = plan_of([step("work", retryCount=0)], name="child", **fields)
    runs = Letters(definitions={"child": child})
    return runs, runs.start(plan_of(list(steps or (sub("s"), step("after")))))


def status_of(run: Execution) -> str:
    return run.header.status.value


def child_of(runs: Letters, parent: Execution, ref: str = "s") -> Execution:
    return runs.executions[runs.executions[parent.id].by_ref[ref].sub_workflow_id]


# -- starts


def test_a_child_elsewhere_is_started_once_and_its_end_ends_the_task() -> None:
    runs, parent = family()
    task = parent.by_ref["s"]
    assert task.status is TaskStatus.IN_PROGRESS
    assert output_of(parent, "s") == {"subWorkflowId": task.sub_workflow_id}
    assert not same_slot(parent.id, task.sub_workflow_id)
    assert parent.header.orders == 1
    runs.deliver_all()
    assert parent.header.orders == 0
    child = child_of(runs, parent)
    runs.work(child, "work", output={"n": 1})
    assert child.is_terminal
    assert is_unfinished(child), "the parent has not heard of it"
    assert statuses(parent) == {"s": "IN_PROGRESS"}
    runs.deliver_all()
    assert not is_unfinished(child)
    assert statuses(parent) == {"s": "COMPLETED", "after": "SCHEDULED"}
    assert runs.started == [child.id]


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_start_that_was_lost_is_repeated_and_starts_no_second_child(acknowledged: bool) -> None:
    runs, parent = family()
    runs.lose_everything()
    assert len(runs.mail) == 1
    key = next(iter(runs.mail))
    delivered = runs.hand_over(key)
    if acknowledged:
        runs.acknowledge(key, delivered)
    runs.lose_everything()
    assert len(runs.mail) == (0 if acknowledged else 1)
    if not acknowledged:
        post = runs.mail[key][0]
        assert post.repeated
        assert post.start is not None
    runs.deliver_all()
    assert runs.started == [key[1]]
    runs.work(child_of(runs, parent), "work")
    runs.deliver_all()
    assert statuses(runs.executions[parent.id])["s"] == "COMPLETED"


def test_a_start_is_repeated_with_all_it_had() -> None:
    value = {"deep": {"n": 1}}
    params = {
        "name": "child",
        "version": 1,
        "placement": "spread",
        "priority": 7,
        "taskToDomain": {"*": "d"},
    }
    steps = [step("s", "SUB_WORKFLOW", subWorkflowParam=params, inputParameters=value)]
    child = plan_of([step("work")], name="child")
    runs = Letters(definitions={"child": child})
    runs.start(plan_of(steps), correlation_id="c-1")
    first = next(iter(runs.mail.values()))[0].start
    runs.lose_everything()
    again = next(iter(runs.mail.values()))[0].start
    assert first == again
    assert first is not None
    assert (first.priority, first.task_to_domain, first.correlation_id) == (7, {"*": "d"}, "c-1")
    assert first.input == b'{"deep":{"n":1}}'


def test_an_id_that_is_taken_is_drawn_again() -> None:
    runs, parent = family()
    key = next(iter(runs.mail))
    other = runs.start(plan_of([step("x")]))
    runs.executions[key[1]] = other
    runs.deliver(key)
    del runs.executions[key[1]]
    redrawn = parent.by_ref["s"].sub_workflow_id
    assert redrawn != key[1]
    runs.deliver_all()
    assert runs.started == [redrawn]
    runs.work(child_of(runs, parent), "work")
    runs.deliver_all()
    assert statuses(parent)["s"] == "COMPLETED"


# -- ends


def test_an_end_that_was_lost_is_told_again_and_one_told_twice_counts_once() -> None:
    runs, parent = family()
    runs.deliver_all()
    child = child_of(runs, parent)
    runs.work(child, "work")
    runs.lose_everything()
    key = (child.id, parent.id)
    assert list(runs.mail) == [key]
    runs.hand_over(key)
    assert statuses(runs.executions[parent.id])["s"] == "COMPLETED"
    runs.lose_everything()
    assert list(runs.mail) == [key], "it was heard but not acknowledged"
    before = dict(runs.rows[parent.id])
    runs.deliver_all()
    changed = {row for row, data in runs.rows[parent.id].items() if before[row] != data}
    assert changed <= {0}
    assert not runs.executions[child.id].orders


def test_a_parent_that_is_gone_acknowledges() -> None:
    runs, parent = family()
    runs.deliver_all()
    child = child_of(runs, parent)
    runs.work(child, "work")
    del runs.executions[parent.id]
    runs.deliver_all()
    assert not is_unfinished(child)


# -- terminations


@pytest.mark.parametrize("crash", [False, True])
def test_a_parent_that_ends_ends_its_children_elsewhere(crash: bool) -> None:
    runs, parent = family()
    runs.deliver_all()
    runs.apply(parent, Terminated(runs.now_ms, "enough"))
    if crash:
        runs.lose_everything()
    assert is_unfinished(runs.executions[parent.id])
    runs.deliver_all()
    child = child_of(runs, parent)
    assert status_of(child) == "TERMINATED"
    assert child.header.reason == "Parent workflow has been terminated with reason: enough"
    assert not is_unfinished(runs.executions[parent.id])
    assert not is_unfinished(child)


@pytest.mark.parametrize("crash", [False, True])
def test_children_of_the_same_slot_that_are_not_in_memory_get_orders(crash: bool) -> None:
    child = plan_of([step("work", retryCount=0)], name="child")
    surroundings = Surroundings(is_in_memory=lambda _: False)
    runs = Letters(definitions={"child": child}, surroundings=surroundings)
    near = step("s", "SUB_WORKFLOW", subWorkflowParam={"name": "child", "version": 1})
    parent = runs.start(plan_of([near, step("after")]))
    runs.apply(parent, Terminated(runs.now_ms, "enough"))
    assert status_of(child_of(runs, parent)) == "RUNNING"
    assert is_unfinished(parent), "its next owner shall look at it"
    if crash:
        runs.lose_everything()
    runs.deliver_all()
    assert status_of(child_of(runs, parent)) == "TERMINATED"
    runs.apply(runs.executions[parent.id], Retried(runs.now_ms))
    if crash:
        runs.lose_everything()
    runs.deliver_all()
    runs.work(child_of(runs, parent), "work")
    assert statuses(runs.executions[parent.id]) == {"s": "COMPLETED", "after": "SCHEDULED"}


def test_a_child_whose_parent_ended_before_it_was_started_does_not_live_on() -> None:
    runs, parent = family()
    runs.apply(parent, Terminated(runs.now_ms, "enough"))
    runs.deliver_all()
    started = [run for run in runs.executions.values() if run is not parent]
    assert [run.header.status for run in started] == [WorkflowStatus.TERMINATED]
    runs, parent = family()
    runs.apply(parent, Terminated(runs.now_ms, "enough"))
    runs.lose_everything()
    runs.deliver_all()
    assert list(runs.executions) == [parent.id], "nobody started it, and nobody does now"
    assert not is_unfinished(runs.executions[parent.id])


def test_an_order_heard_twice_does_not_end_what_went_on_since() -> None:
    runs, parent = family()
    runs.deliver_all()
    runs.apply(parent, Terminated(runs.now_ms, "enough"))
    key = next(key for key in runs.mail if key[0] == parent.id)
    runs.hand_over(key)
    child = child_of(runs, parent)
    runs.apply(child, Retried(runs.now_ms))
    assert child.header.status is WorkflowStatus.RUNNING
    runs.deliver_all()
    assert child_of(runs, parent).header.status is WorkflowStatus.RUNNING
    assert runs.executions[parent.id].header.status is WorkflowStatus.RUNNING
    runs.work(child_of(runs, parent), "work")
    runs.deliver_all()
    assert statuses(runs.executions[parent.id])["s"] == "COMPLETED"


# -- runs that go on


@pytest.mark.parametrize("crash", [False, True])
def test_a_child_that_goes_on_takes_its_parent_along(crash: bool) -> None:
    runs, parent = family()
    runs.deliver_all()
    child = child_of(runs, parent)
    runs.work(child, "work", "FAILED", reason="no luck")
    runs.deliver_all()
    assert parent.header.status is WorkflowStatus.FAILED
    runs.apply(child, Retried(runs.now_ms))
    if crash:
        runs.lose_everything()
    runs.deliver_all()
    assert runs.executions[parent.id].header.status is WorkflowStatus.RUNNING
    runs.work(child_of(runs, parent), "work")
    runs.deliver_all()
    assert statuses(runs.executions[parent.id]) == {"s": "COMPLETED", "after": "SCHEDULED"}


def test_a_revival_and_an_end_on_its_heels_arrive_in_order_after_a_crash() -> None:
    runs, parent = family()
    runs.deliver_all()
    child = child_of(runs, parent)
    runs.work(child, "work", "FAILED", reason="no luck")
    runs.deliver_all()
    runs.apply(child, Retried(runs.now_ms))
    runs.work(child, "work")
    runs.lose_everything()
    runs.deliver_all()
    assert statuses(runs.executions[parent.id]) == {"s": "COMPLETED", "after": "SCHEDULED"}


def test_siblings_elsewhere_are_brought_back_and_their_old_ends_do_not_count() -> None:
    fork = step("f", "FORK_JOIN", forkTasks=[[sub("s")], [sub("t")]])
    runs, parent = family(fork, step("j", "JOIN", joinOn=["s", "t"]), step("after"))
    runs.deliver_all()
    one, other = child_of(runs, parent, "s"), child_of(runs, parent, "t")
    runs.work(one, "work", "FAILED", reason="no luck")
    runs.deliver((one.id, parent.id))
    assert status_of(parent) == "FAILED"
    # The other one hears that it is to end; its own word about that is still on its way.
    runs.deliver((parent.id, other.id))
    assert status_of(other) == "TERMINATED"
    late = runs.mail[other.id, parent.id][0]
    assert isinstance(late.event, ChildEnded)
    # An operator has the first one go on: parent and sibling go on with it.
    runs.apply(one, Retried(runs.now_ms))
    runs.deliver((one.id, parent.id))
    assert parent.by_ref["t"].status is TaskStatus.IN_PROGRESS
    runs.apply(parent, late.event)
    assert parent.by_ref["t"].status is TaskStatus.IN_PROGRESS, "an old end was taken for a new one"
    runs.deliver_all()
    assert status_of(other) == "RUNNING"
    for child in (one, other):
        runs.work(child, "work")
    runs.deliver_all()
    assert statuses(parent)["after"] == "SCHEDULED"


def test_a_sibling_that_was_removed_meanwhile_fails_its_task() -> None:
    fork = step("f", "FORK_JOIN", forkTasks=[[sub("s")], [sub("t")]])
    runs, parent = family(fork, step("j", "JOIN", joinOn=["s", "t"]))
    runs.deliver_all()
    one, other = child_of(runs, parent, "s"), child_of(runs, parent, "t")
    runs.work(one, "work", "FAILED", reason="no luck")
    runs.deliver_all()
    del runs.executions[other.id]
    runs.apply(one, Retried(runs.now_ms))
    runs.deliver_all()
    assert parent.header.status is WorkflowStatus.FAILED
    assert "not there any more" in parent.by_ref["t"].reason


def test_a_revival_heard_twice_does_not_bring_back_what_was_ended_since() -> None:
    runs, parent = family()
    runs.deliver_all()
    child = child_of(runs, parent)
    runs.work(child, "work", "FAILED", reason="no luck")
    runs.deliver_all()
    runs.apply(child, Retried(runs.now_ms))
    runs.hand_over((child.id, parent.id))
    runs.apply(parent, Terminated(runs.now_ms, "enough"))
    runs.lose_everything()
    runs.deliver((child.id, parent.id))
    assert status_of(runs.executions[parent.id]) == "TERMINATED"


def test_an_end_that_nobody_heard_is_not_told_after_the_child_went_on() -> None:
    runs, parent = family()
    runs.deliver_all()
    child = child_of(runs, parent)
    runs.work(child, "work", "FAILED", reason="no luck")
    runs.lose_everything()
    child = child_of(runs, parent)
    runs.mail.clear()
    runs.apply(child, Retried(runs.now_ms))
    runs.work(child, "work")
    runs.lose_everything()
    told = runs.mail[child.id, parent.id]
    assert [type(order.event) for order in told] == [ChildRevived, ChildEnded]
    runs.deliver_all()
    assert statuses(runs.executions[parent.id])["s"] == "COMPLETED"


def test_a_child_that_ended_and_was_removed_is_not_started_again() -> None:
    runs, parent = family()
    start = next(iter(runs.mail))
    runs.hand_over(start)
    child = child_of(runs, parent)
    runs.work(child, "work")
    runs.deliver((child.id, parent.id))
    del runs.executions[child.id]
    runs.lose_everything()
    runs.deliver_all()
    assert runs.started == [child.id]


def test_a_task_that_is_run_again_waits_for_its_new_child() -> None:
    runs, parent = family(sub("s"))
    runs.deliver_all()
    first = child_of(runs, parent)
    for outcome in ("FAILED", "COMPLETED"):
        runs.work(first, "work", outcome)
        runs.deliver_all()
        if outcome == "FAILED":
            runs.apply(first, Retried(runs.now_ms))
            runs.deliver_all()
    assert status_of(parent) == "COMPLETED"
    runs.apply(parent, Rerun(runs.now_ms, parent.by_ref["s"].number))
    runs.deliver_all()
    second = child_of(runs, parent)
    assert second is not first
    runs.work(second, "work")
    runs.deliver_all()
    assert status_of(parent) == "COMPLETED"


# -- which children are spread


@pytest.mark.parametrize(("width", "spread"), [(3, True), (2, False)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_children_of_a_wide_fork_are_spread(width: int, spread: bool, dynamic: bool) -> None:
    child = plan_of([step("work")], name="child")
    runs = Letters(definitions={"child": child}, surroundings=Surroundings(together_max=2))
    if dynamic:
        params = {"forkTaskWorkflow": "child", "forkTaskInputs": [{"n": n} for n in range(width)]}
        fork = step("f", "FORK_JOIN_DYNAMIC", inputParameters=params)
        parent = runs.start(plan_of([fork, step("j", "JOIN")]))
    else:
        refs = [f"s{n}" for n in range(width)]
        plain = {"name": "child", "version": 1}
        branches = [[step(ref, "SUB_WORKFLOW", subWorkflowParam=plain)] for ref in refs]
        fork = step("f", "FORK_JOIN", forkTasks=branches)
        parent = runs.start(plan_of([fork, step("j", "JOIN", joinOn=refs)]))
    tasks = [task for task in parent.tasks.values() if task.type == "SUB_WORKFLOW"]
    assert len(tasks) == width
    together = {same_slot(parent.id, task.sub_workflow_id) for task in tasks}
    assert together == {not spread}
    slots = {task.sub_workflow_id[27:31] for task in tasks}
    assert len(slots) == (width if spread else 1)
    runs.deliver_all()
    runs.work_all()
    runs.deliver_all()
    assert parent.header.status is WorkflowStatus.COMPLETED


# -- anything at all


class SpreadDefinitions(RandomDefinitions):
    def _sub(self, ref: str, depth: int) -> Json:
        made = super()._sub(ref, depth)
        if self.random.random() < 0.7:
            made["subWorkflowParam"]["placement"] = "spread"
        return made


class RandomLetters(RandomRuns, Letters):
    """Random runs whose relatives live on different shards, and crashes at any point."""

    def __init__(self, random: Random, definitions: RandomDefinitions, **fields: Any) -> None:
        super().__init__(random, definitions, **fields)
        self.by_hand: set[tuple[str, int]] = set()

    def tell(self, run_id: str, event: Event) -> bool:
        if isinstance(event, TaskUpdated):
            self.by_hand.add((run_id, event.number))
        return super().tell(run_id, event)

    def happen(self) -> None:
        if self.mail and self.random.random() < 0.4:
            key = self.random.choice(list(self.mail))
            delivered = self.hand_over(key)
            if self.random.random() < 0.15:
                self.crash()
            else:
                self.acknowledge(key, delivered)
        else:
            super().happen()

    def crash(self) -> None:
        self.mail.clear()
        super().crash()

    def _drive_once(self) -> bool:
        moved = bool(self.mail)
        self.deliver_all()
        return super()._drive_once() or moved

    def _opened(self) -> list[Execution]:
        return [run for run in self.executions.values() if not run.is_terminal or run.orders]

    def _check_ended(self, run: Execution) -> None:
        super()._check_ended(run)
        assert not run.orders
        for task in run.by_ref.values():
            child = self.executions.get(task.sub_workflow_id)
            if (
                child is not None
                and task.status in (TaskStatus.COMPLETED, TaskStatus.FAILED)
                and (run.id, task.number) not in self.by_hand
                # It may have gone on alone since, where the parent did not wait for it any more.
                and max(child.header.last_retried_ms, child.header.create_ms) < task.end_ms
            ):
                status = child.header.status
                # Operators may terminate what has failed.
                if status is not WorkflowStatus.TERMINATED or task.status is TaskStatus.COMPLETED:
                    assert STATUS_AFTER[status.value] is task.status


def new_letters(random: Random) -> tuple[RandomLetters, Plan]:
    definitions = SpreadDefinitions(random)
    params = {"name": definitions._child(2), "version": 1, "placement": "spread"}
    first = step("first", "SUB_WORKFLOW", subWorkflowParam=params)
    plan = plan_of(
        [first, *definitions.steps(3, most=3)],
        task_defs=list(definitions.task_defs.values()),
        name="w",
    )
    definitions.plans["w"] = plan
    surroundings = Surroundings(
        tasks_per_step_max=random.choice((3, 10, 200)), together_max=random.choice((0, 1, 100))
    )
    return RandomLetters(random, definitions, surroundings=surroundings), plan


@settings(max_examples=150)
@given(random=seeds, steps=st.integers(0, 80))
def test_whatever_happens_families_across_shards_come_to_an_end(random: Random, steps: int) -> None:
    runs, plan = new_letters(random)
    runs.start(plan, {})
    for _ in range(steps):
        runs.happen()
    runs.drive()
    assert len(runs.started) == len(set(runs.started)), "a child was started twice"
