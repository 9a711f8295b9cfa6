"""Runs the decider alone: a run in memory, effects answered by hand or by a script, rows kept.

After every decision the saved rows are loaded again and compared with the execution in memory, so
each test is also a test of the rows, and of the indexes that are built from them.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

from cluster.engine.decider import decide
from cluster.engine.definitions import make_snapshot, parse_task_def, parse_workflow_def
from cluster.engine.effects import (
    AcknowledgeTask,
    ArmTimer,
    ContinueLater,
    Effect,
    FreezeTaskDefs,
    HoldTask,
    LaunchWorkflow,
    PushTask,
    ResolveFailureWorkflow,
    ResolveSubWorkflow,
    RunScript,
    StartChild,
    Tell,
    WorkflowEnded,
)
from cluster.engine.events import (
    Continued,
    Event,
    FailureWorkflowResolved,
    Recovered,
    ScriptEvaluated,
    SubWorkflowResolved,
    TaskDefsFrozen,
    TaskPolled,
    TaskUpdated,
    TimerFired,
    WorkflowLaunched,
    WorkflowStarted,
)
from cluster.engine.model import Execution, Header, Task
from cluster.engine.plan import Plan
from cluster.engine.rows import changed_rows, load
from cluster.engine.step import Surroundings
from cluster.engine.transitions import OPEN_TASK, TaskStatus, WorkflowStatus
from cluster.ids import WorkflowId, derived_workflow_id

Json = dict[str, Any]


def step(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    """One WorkflowTask; its name is its reference name unless given."""
    return {"name": ref, "taskReferenceName": ref, "type": type, **fields}


def plan_of(tasks: list[Json], *, task_defs: list[Json] | None = None, **fields: Any) -> Plan:
    """The plan of a definition of these tasks, with some registered task definitions."""
    _, wire = parse_workflow_def({"name": "w", "version": 1, "tasks": tasks, **fields})
    known = {body["name"]: parse_task_def(body)[1] for body in task_defs or []}
    snapshot = make_snapshot(wire, known, {})
    return Plan(snapshot.hash, snapshot.body)


class Runs:
    """Executions that can reach each other, a clock, and what they asked for."""

    def __init__(
        self,
        *,
        surroundings: Surroundings | None = None,
        definitions: dict[str, Plan] | None = None,
        task_defs: dict[str, Json] | None = None,
        scripts: Callable[[str, str, Any], Any] | None = None,
    ) -> None:
        self.now_ms = 1_000_000
        self.surroundings = surroundings or Surroundings()
        self.definitions = definitions or {}
        self.task_defs = task_defs or {}
        self.scripts = scripts
        """(language, source, input) → value; raises ValueError for a script error."""
        self.executions: dict[str, Execution] = {}
        self.rows: dict[str, dict[int, bytes]] = {}
        self.queue: dict[str, dict[int, int]] = {}
        """Workflow id → task number → delivery, of what waits for workers."""
        self.launched: list[LaunchWorkflow] = []
        self.ended: list[str] = []
        self.transitions = 0
        self._waiting: deque[tuple[str, Effect]] = deque()
        self._count = 0

    # -- what a test does

    def start(self, plan: Plan, value: Any = None, **header: Any) -> Execution:
        """Start a run and let everything happen that needs no worker and no time."""
        self._count += 1
        run_id = derived_workflow_id(at_ms=self.now_ms, slot=7, origin=str(self._count))
        return self._create(
            run_id,
            plan,
            orjson.dumps(value if value is not None else {}),
            Header(
                snapshot=plan.hash,
                name=plan.definition.name,
                version=plan.definition.version,
                status=WorkflowStatus.RUNNING,
                create_ms=self.now_ms,
                **header,
            ),
        )

    def apply(self, execution: Execution, event: Event) -> None:
        """Decide an event, then all that follows from it."""
        self._decide(execution, event)
        self.settle()

    def poll(self, execution: Execution, ref: str, worker: str = "w") -> Task:
        """Hand the open attempt of a task to a worker."""
        task = execution.by_ref[ref]
        waiting = self.queue.get(execution.id, {})
        assert task.number in waiting, f"{ref} is not in its queue"
        assert task.visible_ms <= self.now_ms, f"{ref} is visible in {task.visible_ms} only"
        self.apply(execution, TaskPolled(self.now_ms, task.number, worker, waiting[task.number]))
        return task

    def update(
        self,
        execution: Execution,
        ref: str,
        status: str = "COMPLETED",
        output: Any = None,
        **fields: Any,
    ) -> None:
        """Report about the latest attempt of a task, as a worker does."""
        task = execution.by_ref[ref]
        encoded = orjson.dumps(output if output is not None else {})
        self.apply(
            execution,
            TaskUpdated(self.now_ms, task.number, TaskStatus(status), output=encoded, **fields),
        )

    def work(
        self,
        execution: Execution,
        ref: str,
        status: str = "COMPLETED",
        output: Any = None,
        **fields: Any,
    ) -> None:
        """Poll and report."""
        self.poll(execution, ref)
        self.update(execution, ref, status, output, **fields)

    def work_all(self, answer: Callable[[Execution, Task], Json] | None = None) -> int:
        """Complete whatever is visible in any queue until nothing is; returns how many tasks."""
        count = 0
        while True:
            found = [
                (run_id, number)
                for run_id, numbers in self.queue.items()
                for number in numbers
                if self.executions[run_id].tasks[number].visible_ms <= self.now_ms
            ]
            if not found:
                return count
            for run_id, number in found:
                execution = self.executions[run_id]
                if number not in self.queue.get(run_id, {}):
                    continue
                task = execution.tasks[number]
                output = answer(execution, task) if answer is not None else {"n": number}
                self.work(execution, task.ref, output=output)
                count += 1

    def advance(self, ms: int) -> None:
        """Let time pass, firing timers exactly when they are due."""
        end_ms = self.now_ms + ms
        while True:
            due = [
                (run.header.due_ms, run.id)
                for run in self.executions.values()
                if run.header.due_ms and run.header.due_ms <= end_ms and not run.is_terminal
            ]
            if not due:
                break
            due_ms, run_id = min(due)
            self.now_ms = max(self.now_ms, due_ms)
            self.apply(self.executions[run_id], TimerFired(self.now_ms))
        self.now_ms = end_ms

    def child_of(self, execution: Execution, ref: str) -> Execution:
        """The child that a SUB_WORKFLOW task has started."""
        return self.executions[execution.by_ref[ref].sub_workflow_id]

    # -- the way of effects

    def settle(self) -> None:
        """Carry out effects until none is left."""
        while self._waiting:
            run_id, effect = self._waiting.popleft()
            self._carry_out(self.executions[run_id], effect)

    def _create(self, run_id: str, plan: Plan, value: bytes, header: Header) -> Execution:
        execution = Execution(WorkflowId(run_id), header, plan)
        execution.input = value
        if plan.definition.variables:
            execution.variables = orjson.dumps(plan.definition.variables)
        self.executions[run_id] = execution
        self.apply(execution, WorkflowStarted(self.now_ms))
        return execution

    def _decide(self, execution: Execution, event: Event) -> None:
        before = execution.header.next_number
        effects = decide(execution, event, self.surroundings)
        self.transitions += 1
        created = execution.header.next_number - before
        assert created <= self.surroundings.tasks_per_step_max + 3, "a transition is too large"
        rows = self.rows.setdefault(execution.id, {})
        changed = execution.changed or execution.parts or execution.removed
        if changed or (effects and not isinstance(event, Recovered)):
            # As the shard does it: what is not noted as a change is not written.
            rows.update(changed_rows(execution))
        assert_same(execution, load(execution.id, rows.items(), lambda _: execution.plan))
        assert_not_stuck(execution, effects)
        self._waiting.extend((execution.id, effect) for effect in effects)

    def _carry_out(self, execution: Execution, effect: Effect) -> None:
        now_ms = self.now_ms
        match effect:
            case PushTask(number):
                task = execution.tasks.get(number)
                if task is not None and task.is_open:
                    self.queue.setdefault(execution.id, {})[number] = task.delivery
            case AcknowledgeTask(_, number):
                self.queue.get(execution.id, {}).pop(number, None)
            case ContinueLater():
                self._decide(execution, Continued(now_ms))
            case RunScript():
                self._decide(execution, self._evaluated(effect))
            case ResolveSubWorkflow():
                self._decide(execution, self._resolved(effect))
            case ResolveFailureWorkflow(name):
                plan = self.definitions.get(name)
                event = FailureWorkflowResolved(
                    now_ms,
                    snapshot=plan.hash if plan else None,
                    name=name,
                    version=plan.definition.version if plan else 0,
                    error=None if plan else f"No such workflow defined. name={name}, version=null",
                )
                self._decide(execution, event)
            case FreezeTaskDefs(number, token, names):
                found = {name: self.task_defs[name] for name in names if name in self.task_defs}
                self._decide(execution, TaskDefsFrozen(now_ms, number, token, found))
            case StartChild():
                self._start_child(execution, effect)
            case Tell(run_id, event):
                if run_id in self.executions:
                    self._decide(self.executions[run_id], event)
            case LaunchWorkflow(number, token, run_id):
                self.launched.append(effect)
                launched = WorkflowLaunched(now_ms, number, token, workflow_id=run_id)
                self._decide(execution, launched)
            case HoldTask():
                pass  # Its worker still has it.
            case WorkflowEnded():
                self.ended.append(execution.id)
            case ArmTimer(due_ms):
                assert due_ms > 0
            case _:
                raise AssertionError(effect)

    def _evaluated(self, effect: RunScript) -> ScriptEvaluated:
        assert self.scripts is not None, f"nobody evaluates {effect.source}"
        result = error = None
        timed_out = False
        try:
            value = self.scripts(effect.language, effect.source, orjson.loads(effect.input))
            result = orjson.dumps(value)
        except TimeoutError as e:
            error, timed_out = str(e), True
        except ValueError as e:
            error = str(e)
        return ScriptEvaluated(
            self.now_ms, effect.number, effect.token, result, error, timed_out=timed_out
        )

    def _resolved(self, effect: ResolveSubWorkflow) -> SubWorkflowResolved:
        plan = self.definitions.get(effect.name)
        if effect.definition is not None:
            _, wire = parse_workflow_def(effect.definition)
            snapshot = make_snapshot(wire, {}, {})
            plan = self.definitions[snapshot.hash] = Plan(snapshot.hash, snapshot.body)
        if plan is None:
            version = "null" if effect.version is None else effect.version
            return SubWorkflowResolved(
                self.now_ms,
                effect.number,
                effect.token,
                name=effect.name,
                error=f"No such workflow defined. name={effect.name}, version={version}",
            )
        return SubWorkflowResolved(
            self.now_ms,
            effect.number,
            effect.token,
            snapshot=plan.hash,
            name=plan.definition.name,
            version=plan.definition.version,
        )

    def _start_child(self, parent: Execution, effect: StartChild) -> None:
        plan = next(p for p in self.definitions.values() if p.hash == effect.snapshot)
        header = Header(
            snapshot=plan.hash,
            name=effect.name,
            version=effect.version,
            status=WorkflowStatus.RUNNING,
            create_ms=self.now_ms,
            priority=effect.priority,
            correlation_id=effect.correlation_id,
            task_to_domain=effect.task_to_domain,
        )
        if effect.parent_number:
            header.parent_id, header.parent_number = parent.id, effect.parent_number
        self._create(effect.workflow_id, plan, effect.input, header)


def assert_same(execution: Execution, loaded: Execution) -> None:
    """What is loaded from the rows is what was saved, indexes included."""
    assert loaded.header == execution.header, (loaded.header, execution.header)
    assert list(loaded.tasks) == sorted(execution.tasks)
    for number, task in execution.tasks.items():
        assert loaded.tasks[number] == task
    for name in ("input", "output", "variables", "task_defs"):
        assert getattr(loaded, name) == getattr(execution, name), name
    assert sorted(loaded.open) == sorted(execution.open)
    assert {ref: task.number for ref, task in loaded.by_ref.items()} == {
        ref: task.number for ref, task in execution.by_ref.items()
    }
    if not execution.is_terminal:
        counts = {scope: n for scope, n in execution.pending.items() if n}
        assert {scope: n for scope, n in loaded.pending.items() if n} == counts
        waiting = {n: left for n, left in execution.waiting.items() if n in execution.open}
        assert loaded.waiting == waiting
        assert sorted(loaded.pulling) == sorted(execution.pulling)
    assert loaded.messages == execution.messages


def assert_not_stuck(execution: Execution, effects: list[Effect]) -> None:
    """An open run has something open to wait for, or is to go on at once."""
    if execution.is_terminal:
        assert not execution.open or execution.header.work
        return
    if execution.header.status is WorkflowStatus.PAUSED:
        return
    if execution.header.work:
        assert any(isinstance(effect, ContinueLater) for effect in effects)
        return
    assert execution.open, "a run is open and nothing in it is"
    assert all(execution.tasks[number].status in OPEN_TASK for number in execution.open)


def statuses(execution: Execution) -> dict[str, str]:
    """Reference name → status of the latest attempt."""
    return {ref: task.status.value for ref, task in execution.by_ref.items()}


def output_of(execution: Execution, ref: str) -> Any:
    return orjson.loads(execution.by_ref[ref].output)


def input_of(execution: Execution, ref: str) -> Any:
    return orjson.loads(execution.by_ref[ref].input)
