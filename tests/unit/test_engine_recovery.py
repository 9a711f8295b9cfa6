"""A new owner reads a run from its rows and asks again for what was under way."""

from typing import Any

from cluster.engine.decider import decide
from cluster.engine.effects import (
    AcknowledgeTask,
    ArmTimer,
    ContinueLater,
    Effect,
    FreezeTaskDefs,
    HoldTask,
    PushTask,
    ResolveFailureWorkflow,
    ResolveSubWorkflow,
    RunScript,
)
from cluster.engine.events import (
    Continued,
    Event,
    Paused,
    Recovered,
    ScriptEvaluated,
    TaskPolled,
    TaskUnheard,
    TaskUpdated,
    Terminated,
    WorkflowStarted,
)
from cluster.engine.model import Execution, Header
from cluster.engine.plan import Plan
from cluster.engine.recovery import for_queues
from cluster.engine.retries import rebuild_timers
from cluster.engine.rows import changed_rows, load
from cluster.engine.step import Surroundings
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.ids import derived_workflow_id
from tests.support.engine import Json, plan_of, statuses, step

SMALL = Surroundings(tasks_per_step_max=10)


class Owner:
    """Decides the events of one run, keeps its rows, and carries out no effects."""

    def __init__(
        self, tasks: list[Json], *, surroundings: Surroundings = SMALL, **fields: Any
    ) -> None:
        self.surroundings = surroundings
        self.plan: Plan = plan_of(tasks, **fields)
        definition = self.plan.definition
        header = Header(
            snapshot=self.plan.hash,
            name=definition.name,
            version=definition.version,
            status=WorkflowStatus.RUNNING,
            create_ms=1_000,
        )
        run_id = derived_workflow_id(at_ms=1_000, slot=1, origin="x")
        self.run = Execution(run_id, header, self.plan)
        self.rows: dict[int, bytes] = {}
        self.decide(WorkflowStarted(1_000))

    def decide(self, event: Event) -> list[Effect]:
        effects = decide(self.run, event, self.surroundings)
        self.rows.update(changed_rows(self.run))
        return effects

    def take_over(self, at_ms: int = 2_000) -> list[Effect]:
        """What a new owner asks for."""
        self.run = load(self.run.id, self.rows.items(), lambda _: self.plan)
        rebuild_timers(self.run)
        return self.decide(Recovered(at_ms))


def test_work_for_workers_is_pushed_or_held() -> None:
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step("a")], [step("b")]]),
        step("j", "JOIN", joinOn=["a", "b"]),
    ]
    owner = Owner(fork, task_defs=[{"name": "a", "responseTimeoutSeconds": 5}])
    run = owner.run
    owner.decide(TaskPolled(1_500, run.by_ref["a"].number, "w", 1))
    assert owner.take_over() == [ArmTimer(6_500), HoldTask("a", 2, 1), PushTask(3)]
    # Nothing has changed, nothing is to be written.
    assert not owner.run.changed


def test_the_queues_are_told_what_waits_and_what_workers_have() -> None:
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step("a")], [step("b")], [step("w", "WAIT")]]),
        step("j", "JOIN", joinOn=["a", "b", "w"]),
    ]
    owner = Owner(fork)
    owner.decide(TaskPolled(1_500, 2, "w", 1))
    assert for_queues(owner.run) == [HoldTask("a", 2, 1), PushTask(3)]
    owner.decide(Terminated(2_000, "enough"))
    assert for_queues(owner.run) == []


def test_what_a_later_turn_begins_is_not_told_to_the_queues_yet() -> None:
    branches = [[step(f"t{n}")] for n in range(50)]
    owner = Owner([step("f", "FORK_JOIN", forkTasks=branches), step("j", "JOIN")])
    begun = {effect.number for effect in for_queues(owner.run)}
    in_work = {number for kind, number, _ in owner.run.header.work if kind == "begin"}
    assert begun
    assert not begun & in_work


def test_a_hand_out_that_came_to_no_worker_is_pushed_once_more() -> None:
    owner = Owner([step("a")])
    assert owner.decide(TaskUnheard(9_000, 1, "a", 1)) == [PushTask(1)]
    assert owner.run.tasks[1].delivery == 2
    assert owner.decide(TaskUnheard(9_000, 1, "a", 1)) == [PushTask(1)]
    assert owner.run.tasks[1].delivery == 2, "the queue has not seen the second delivery yet"
    assert owner.decide(TaskUnheard(9_000, 1, "a", 7)) == [PushTask(1)]
    assert owner.run.tasks[1].delivery == 8, "the queue knows only what is above what it has"


def test_a_hand_out_that_a_worker_has_is_held() -> None:
    owner = Owner([step("a")])
    owner.decide(TaskPolled(1_500, 1, "w", 1))
    assert owner.decide(TaskUnheard(9_000, 1, "a", 1)) == [HoldTask("a", 1, 1)]
    assert not owner.run.changed
    assert owner.run.tasks[1].update_ms == 1_500


def test_a_hand_out_of_what_has_ended_is_acknowledged() -> None:
    owner = Owner([step("a"), step("b")])
    owner.decide(TaskUpdated(2_000, 1, TaskStatus.COMPLETED))
    assert owner.decide(TaskUnheard(9_000, 1, "a", 1)) == [AcknowledgeTask("a", 1)]
    assert owner.decide(TaskUnheard(9_000, 77, "a", 1)) == [AcknowledgeTask("a", 77)]
    owner.decide(Terminated(2_000, "enough"))
    assert owner.decide(TaskUnheard(9_000, 2, "b", 1)) == [AcknowledgeTask("b", 2)]


def test_a_script_is_asked_for_again_and_the_old_answer_is_none() -> None:
    owner = Owner([step("i", "INLINE", inputParameters={"expression": "f()"})])
    (asked,) = [e for e in owner.take_over() if isinstance(e, RunScript)]
    assert asked.token == 2
    owner.decide(ScriptEvaluated(2_500, 1, 1, b"1"))
    assert statuses(owner.run)["i"] == "IN_PROGRESS"
    owner.decide(ScriptEvaluated(2_500, 1, 2, b"1"))
    assert statuses(owner.run)["i"] == "COMPLETED"


def test_the_condition_of_a_loop_is_asked_for_again() -> None:
    owner = Owner([step("l", "DO_WHILE", loopCondition="f()", loopOver=[step("n", "NOOP")])])
    assert owner.run.scripts == {1}
    (asked,) = [e for e in owner.take_over() if isinstance(e, RunScript)]
    owner.decide(ScriptEvaluated(2_500, 1, asked.token, b"false"))
    assert owner.run.header.status == "COMPLETED"


def test_a_child_is_looked_up_again() -> None:
    owner = Owner([step("s", "SUB_WORKFLOW", subWorkflowParam={"name": "c", "version": 1})])
    (asked,) = [e for e in owner.take_over() if isinstance(e, ResolveSubWorkflow)]
    assert (asked.name, asked.version, asked.token) == ("c", 1, 2)


def test_task_definitions_are_looked_up_again() -> None:
    value = {"forkTaskInputs": [1], "forkTaskName": "w"}
    owner = Owner([step("f", "FORK_JOIN_DYNAMIC", inputParameters=value), step("j", "JOIN")])
    (asked,) = [e for e in owner.take_over() if isinstance(e, FreezeTaskDefs)]
    assert (asked.names, asked.token) == (("w",), 2)


def test_waits_are_armed_again_and_people_are_left_alone() -> None:
    fork = [
        step("f", "FORK_JOIN", forkTasks=[
            [step("w", "WAIT", inputParameters={"duration": "9s"})], [step("h", "HUMAN")]]),
        step("j", "JOIN", joinOn=["w", "h"]),
    ]  # fmt: skip
    owner = Owner(fork)
    assert owner.take_over() == [ArmTimer(10_000)]


def test_a_continuation_goes_on() -> None:
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step(f"n{i}", "NOOP")] for i in range(40)]),
        step("j", "JOIN", joinOn=["n0"]),
    ]
    owner = Owner(fork)
    effects: list[Effect] = [ContinueLater()]
    turns = 0
    while ContinueLater() in effects:
        # Every turn is taken by another owner.
        effects = owner.take_over(2_000 + turns)
        turns += 1
    assert owner.run.header.status == "COMPLETED"
    assert turns >= 4


def test_steps_that_were_about_to_begin_begin_once() -> None:
    body = [step(f"n{i}", "NOOP") for i in range(30)]
    owner = Owner([step("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=body)])
    effects: list[Effect] = [ContinueLater()]
    while ContinueLater() in effects:
        effects = owner.take_over()
    assert owner.run.header.status == "COMPLETED"
    assert owner.run.by_ref["l"].rounds == 2
    assert len(owner.run.tasks) == 61


def test_rounds_are_counted_once_whoever_takes_over_between_them() -> None:
    def loop(ref: str) -> Json:
        condition = f"$.{ref}['iteration'] < 5"
        body = [step(f"{ref}n", "NOOP"), step(f"{ref}o", "NOOP")]
        return step(ref, "DO_WHILE", loopCondition=condition, loopOver=body)

    cut_between_rounds = False
    for budget in range(1, 8):
        fork = [
            step("f", "FORK_JOIN", forkTasks=[[loop(ref)] for ref in "abc"]),
            step("j", "JOIN", joinOn=["a", "b", "c"]),
        ]
        owner = Owner(fork, surroundings=Surroundings(tasks_per_step_max=budget))
        effects: list[Effect] = [ContinueLater()]
        while ContinueLater() in effects:
            tasks = owner.run.tasks
            cut_between_rounds |= any(
                kind == "resume" and tasks[number].type == "DO_WHILE"
                for kind, number, _ in owner.run.header.work
            )
            effects = owner.take_over()
        assert owner.run.header.status == "COMPLETED"
        assert [owner.run.by_ref[ref].rounds for ref in "abc"] == [5, 5, 5]
        assert len(owner.run.tasks) == 2 + 3 * 11
        for ref in "abc":
            output = owner.run.task_output(owner.run.by_ref[ref])
            assert output.pop("iteration") == 5
            assert output == {str(i): {f"{ref}n": {}, f"{ref}o": {}} for i in range(1, 6)}
    assert cut_between_rounds


def test_a_paused_run_stays_paused() -> None:
    owner = Owner([step("a"), step("b")])
    owner.decide(Paused(1_500))
    owner.decide(TaskUpdated(1_600, 1, TaskStatus.COMPLETED))
    owner.take_over()
    assert owner.run.header.status == "PAUSED"
    assert statuses(owner.run) == {"a": "COMPLETED"}


def test_a_run_that_has_ended_still_cancels_what_is_open() -> None:
    branches = [[step(f"a{i}")] for i in range(40)]
    fork = [step("f", "FORK_JOIN", forkTasks=branches), step("j", "JOIN", joinOn=["a0"])]
    owner = Owner(fork)
    while owner.run.header.work:
        owner.decide(Continued(1_100))
    owner.decide(Terminated(1_200, "enough"))
    assert owner.run.open
    effects: list[Effect] = [ContinueLater()]
    while ContinueLater() in effects:
        effects = owner.take_over()
        assert all(isinstance(e, AcknowledgeTask | ContinueLater) for e in effects)
    assert not owner.run.open


def test_a_failure_workflow_is_looked_up_again_by_its_resolved_name() -> None:
    owner = Owner([step("a")], failureWorkflow="${workflow.variables.x}", variables={"x": "fix"})
    owner.run.set_variables(b'{"x":"fix"}')
    owner.decide(TaskUpdated(1_500, 1, TaskStatus.FAILED_WITH_TERMINAL_ERROR))
    assert owner.take_over() == [ResolveFailureWorkflow("fix", None)]


def test_a_workflow_timeout_is_armed_again() -> None:
    owner = Owner([step("h", "HUMAN")], timeoutSeconds=5, timeoutPolicy="TIME_OUT_WF")
    assert owner.take_over() == [ArmTimer(6_000)]
    # The timer lives in the rows too: what is only read again has it as well.
    assert owner.run.header.due_ms == 6_000


def test_a_delayed_retry_of_a_system_task_is_left_to_its_timer() -> None:
    plan = [step("l", "LAMBDA", inputParameters={"scriptExpression": "f()"}, retryCount=1)]
    owner = Owner(plan, task_defs=[{"name": "l", "retryDelaySeconds": 9}])
    owner.decide(ScriptEvaluated(1_500, 1, 1, None, "boom"))
    assert owner.take_over() == [ArmTimer(10_500)]
