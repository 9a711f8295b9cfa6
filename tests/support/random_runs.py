"""Random definitions, and random things that happen to their runs: what property tests share.

Answers from outside (scripts, definitions, continuations) wait until they are picked, so they come
in any order, late, twice, or, after a crash, not at all.
"""

from random import Random
from typing import Any

import orjson

from cluster.engine.effects import (
    ContinueLater,
    Effect,
    FreezeTaskDefs,
    LaunchWorkflow,
    ResolveFailureWorkflow,
    ResolveSubWorkflow,
    RunScript,
)
from cluster.engine.events import (
    CallbacksReset,
    Event,
    LeaseExtended,
    Paused,
    Recovered,
    Rerun,
    Restarted,
    Resumed,
    Retried,
    TaskHandedBack,
    TaskPolled,
    TaskSkipped,
    TasksRequeued,
    TaskUpdated,
    Terminated,
    TimerFired,
    VariablesUpdated,
)
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Node, Plan
from cluster.engine.retries import rebuild_timers
from cluster.engine.rows import load
from cluster.engine.step import Surroundings
from cluster.engine.tasks import TASK_TYPES
from cluster.engine.transitions import OPEN_TASK, TaskStatus, WorkflowStatus
from cluster.engine.views import joined_refs
from cluster.errors import ClusterError
from tests.support.engine import Json, Runs, assert_same, plan_of, step

ASKING = (
    RunScript,
    ResolveSubWorkflow,
    ResolveFailureWorkflow,
    FreezeTaskDefs,
    LaunchWorkflow,
    ContinueLater,
)
"""Effects whose answers come when they come."""

COMMANDS = (Paused, Resumed, Terminated, Retried, Rerun, Restarted)
SCRIPT = "(function () { return $.v })()"
"""A script that is not simple, so that it goes outside."""


class RandomDefinitions:
    """Draws definitions. Every reference name is used once, children included."""

    def __init__(self, random: Random, *, calm: bool = False) -> None:
        """`calm`: nothing that fails or ends a run by itself."""
        self.random = random
        self.calm = calm
        self.plans: dict[str, Plan] = {}
        self.task_defs: dict[str, Json] = {}
        self._count = 0

    def plan(self, *, depth: int = 3, name: str = "w") -> Plan:
        fields: Json = {}
        if self.random.random() < 0.2:
            fields["timeoutSeconds"] = self.random.choice((0, 40, 400))
            fields["timeoutPolicy"] = "ALERT_ONLY" if self.calm else "TIME_OUT_WF"
        if self.random.random() < 0.2:
            fields["failureWorkflow"] = self.random.choice(("nobody", self._child(0)))
        tasks = self.steps(depth, most=4)
        if self.random.random() < 0.3:
            fields["outputParameters"] = {"last": f"${{{tasks[-1]['taskReferenceName']}.output}}"}
        plan = plan_of(tasks, task_defs=list(self.task_defs.values()), **fields, name=name)
        self.plans[name] = plan
        return plan

    def steps(self, depth: int, *, most: int) -> list[Json]:
        return [
            one
            for _ in range(self.random.randint(1, most))
            for one in self._some(depth, self._ref())
        ]

    def _ref(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def _some(self, depth: int, ref: str) -> list[Json]:
        kinds = [*(["simple"] * 4), "inline", "noop", "set", "wait", "human", "jq", "lambda"]
        kinds += ["dynamic", "start"]
        if not self.calm:
            kinds.append("terminate")
        if depth > 0:
            kinds += ["switch", "switch", "fork", "fork", "fork", "loop", "loop", "loop"]
            kinds += ["dynamic fork", "same fork", "sub", "sub", "decision", "exclusive"]
        return self._make(self.random.choice(kinds), depth, ref)

    def _make(self, kind: str, depth: int, ref: str) -> list[Json]:
        random = self.random
        match kind:
            case "simple":
                return [self._worker(ref)]
            case "inline":
                value = {"v": 1, "expression": SCRIPT}
                return [step(ref, "INLINE", inputParameters=value, **self._forgiving())]
            case "lambda":
                value = {"v": 1, "scriptExpression": "return $.v"}
                return [step(ref, "LAMBDA", inputParameters=value, **self._forgiving())]
            case "jq":
                value = {"v": 1, "queryExpression": ".v"}
                return [step(ref, "JSON_JQ_TRANSFORM", inputParameters=value, **self._forgiving())]
            case "noop":
                return [step(ref, "NOOP")]
            case "set":
                return [step(ref, "SET_VARIABLE", inputParameters={"x": ref})]
            case "wait":
                wait = {"duration": f"{random.randint(0, 20)}s"}
                return [step(ref, "WAIT", inputParameters=wait, **self._forgiving())]
            case "human":
                return [step(ref, "HUMAN", **self._forgiving())]
            case "start":
                request = {"startWorkflow": {"name": "other", "input": {}}}
                return [step(ref, "START_WORKFLOW", inputParameters=request)]
            case "dynamic":
                name = random.choice(("d_known", "NOOP", "WAIT", "d_known"))
                self.task_defs["d_known"] = {"name": "d_known", "retryCount": 0}
                value = {"n": name, "duration": "3s"}
                return [
                    step(
                        ref,
                        "DYNAMIC",
                        dynamicTaskNameParam="n",
                        inputParameters=value,
                        **self._forgiving(),
                    )
                ]
            case "terminate":
                value = {"terminationStatus": random.choice(("COMPLETED", "FAILED", "TERMINATED"))}
                ends = step(ref, "TERMINATE", inputParameters=value)
                cases = {"yes": [ends]}
                return [
                    self._switch(self._ref(), cases, [], "no" if random.random() < 0.7 else "yes")
                ]
            case "switch" | "decision":
                cases = {
                    "a": self.steps(depth - 1, most=2),
                    "b": self.steps(depth - 1, most=2),
                    "c": [],
                }
                default = random.choice(([], self.steps(depth - 1, most=2)))
                choice = random.choice("abcd")
                if kind == "decision":
                    return [
                        step(
                            ref,
                            "DECISION",
                            caseValueParam="c",
                            inputParameters={"c": choice},
                            decisionCases=cases,
                            defaultCase=default,
                        )
                    ]
                return [self._switch(ref, cases, default, choice)]
            case "fork":
                branches = [self.steps(depth - 1, most=2) for _ in range(random.randint(1, 3))]
                joined = [branch[-1]["taskReferenceName"] for branch in branches]
                if random.random() < 0.3:
                    joined = joined[:1]
                return [
                    step(ref, "FORK_JOIN", forkTasks=branches),
                    step(self._ref(), "JOIN", joinOn=joined, **self._forgiving()),
                ]
            case "loop":
                return [self._loop(ref, depth)]
            case "dynamic fork":
                return self._dynamic_fork(ref, depth)
            case "same fork":
                inputs = [{"i": i} for i in range(random.randint(0, 4))]
                value = {"forkTaskInputs": inputs, "forkTaskName": "d_known"}
                self.task_defs["d_known"] = {"name": "d_known", "retryCount": 0}
                return [
                    step(
                        ref,
                        "FORK_JOIN_DYNAMIC",
                        inputParameters=value,
                        dynamicForkTasksParam="nothing",
                        dynamicForkTasksInputParamName="nothing",
                        **({"optional": True} if random.random() < 0.3 else {}),
                    ),
                    step(self._ref(), "JOIN", **self._forgiving()),
                ]
            case "sub":
                return [self._sub(ref, depth)]
            case "exclusive":
                first, second = self._ref(), self._ref()
                cases = {"a": [self._worker(first)], "b": [self._worker(second)]}
                return [
                    self._switch(ref, cases, [], random.choice("ab")),
                    step(self._ref(), "EXCLUSIVE_JOIN", joinOn=[first, second]),
                ]
        raise AssertionError(kind)

    def _switch(self, ref: str, cases: Json, default: list[Json], choice: str) -> Json:
        if self.random.random() < 0.5:
            how: Json = {"evaluatorType": "value-param", "expression": "v"}
        else:
            source = self.random.choice(("$.v", SCRIPT))
            how = {"evaluatorType": "javascript", "expression": source}
        return step(
            ref,
            "SWITCH",
            inputParameters={"v": choice},
            decisionCases=cases,
            defaultCase=default,
            **how,
        )

    def _loop(self, ref: str, depth: int) -> Json:
        random = self.random
        rounds = random.randint(1, 3)
        value: Json = {}
        fields: Json = {"loopCondition": f"$.{ref}['iteration'] < {rounds}"}
        if random.random() < 0.3:
            fields["loopCondition"] = (
                f"(function () {{ return $.{ref}['iteration'] < {rounds} }})()"
            )
        if random.random() < 0.3:
            value["_items"] = [{"i": i} for i in range(random.randint(0, 3))]
            if random.random() < 0.5:
                fields["loopCondition"] = ""
        if random.random() < 0.3:
            value["keepLastN"] = random.randint(1, 2)
        body = self.steps(depth - 1, most=2)
        return step(ref, "DO_WHILE", loopOver=body, inputParameters=value, **fields)

    def _dynamic_fork(self, ref: str, depth: int) -> list[Json]:
        branches = [
            self._make(self.random.choice(("simple", "inline", "noop", "sub", "loop")), 1, own)[0]
            for own in [self._ref() for _ in range(self.random.randint(0, 4))]
        ]
        value = {"tasks": branches, "inputs": {}}
        return [
            step(
                ref,
                "FORK_JOIN_DYNAMIC",
                inputParameters=value,
                dynamicForkTasksParam="tasks",
                dynamicForkTasksInputParamName="inputs",
            ),
            step(self._ref(), "JOIN", **self._forgiving()),
        ]

    def _child(self, depth: int) -> str:
        self._count += 1
        name = f"c{self._count}"
        self.plans[name] = plan_of(
            self.steps(max(0, depth - 1), most=2),
            task_defs=list(self.task_defs.values()),
            name=name,
        )
        return name

    def _sub(self, ref: str, depth: int) -> Json:
        params: Json = {"name": self._child(depth), "version": 1}
        if not self.calm and self.random.random() < 0.1:
            params["name"] = "nobody"
        if self.random.random() < 0.3:
            self.task_defs[ref] = {"name": ref, "retryCount": 1, "retryDelaySeconds": 1}
        return step(ref, "SUB_WORKFLOW", subWorkflowParam=params, **self._forgiving())

    def _forgiving(self) -> Json:
        if self.calm:
            return {}
        return self.random.choice(({}, {}, {}, {"optional": True}, {"permissive": True}))

    def _worker(self, ref: str) -> Json:
        random = self.random
        if random.random() < 0.7:
            definition: Json = {
                "name": ref,
                "retryCount": random.randint(0, 2),
                "retryDelaySeconds": random.choice((0, 1, 5)),
                "retryLogic": random.choice(("FIXED", "LINEAR_BACKOFF", "EXPONENTIAL_BACKOFF")),
                "backoffJitterMs": random.choice((0, 700)),
                "responseTimeoutSeconds": random.choice((1, 7, 60)),
                "timeoutPolicy": random.choice(("RETRY", "TIME_OUT_WF", "ALERT_ONLY")),
                "timeoutSeconds": random.choice((0, 60)),
                "pollTimeoutSeconds": random.choice((0, 0, 11)),
                "totalTimeoutSeconds": random.choice((0, 0, 100)),
            }
            if self.calm:
                definition |= {"timeoutPolicy": "ALERT_ONLY", "responseTimeoutSeconds": 100_000}
                definition |= {"timeoutSeconds": 0, "totalTimeoutSeconds": 0}
            self.task_defs[ref] = definition
        fields: Json = {}
        if random.random() < 0.2:
            fields["startDelay"] = 3
        value = {"before": f"${{t{random.randint(1, self._count)}.output}}"}
        return step(ref, inputParameters=value, **fields, **self._forgiving())


class RandomRuns(Runs):
    """Runs to which anything may happen, in any order; what has to hold is checked each time."""

    def __init__(self, random: Random, definitions: RandomDefinitions, **fields: Any) -> None:
        super().__init__(
            definitions=definitions.plans,
            task_defs=definitions.task_defs,
            scripts=self._script,
            **fields,
        )
        self.random = random
        self.calm = definitions.calm
        self.asked: list[tuple[str, Effect]] = []
        self.answered: list[tuple[str, Effect]] = []
        self.reported: list[tuple[str, TaskUpdated]] = []
        self.trace: list[str] = []
        self.reload_always = False
        """Throw every run out of memory after each decision."""

    def _script(self, language: str, source: str, value: Any) -> Any:
        if not self.calm and self.random.random() < 0.1:
            raise (ValueError if self.random.random() < 0.7 else TimeoutError)("wrong")
        if "iteration" in source:
            ref = source.split("$.")[1].split("[", maxsplit=1)[0]
            return value[ref]["iteration"] < int(source.split("<")[1].split("}", maxsplit=1)[0])
        return [value["v"]] if language == "jq" else value["v"]

    # -- the way of effects and events

    def settle(self) -> None:
        while self._waiting:
            run_id, effect = self._waiting.popleft()
            if isinstance(effect, ASKING):
                self.asked.append((run_id, effect))
            else:
                self._carry_out(self.executions[run_id], effect)
        if self.reload_always:
            for run in list(self.executions.values()):
                if not run.scripts and not (run.header.work and run.header.status != "PAUSED"):
                    self.reload(run.id)

    def tell(self, run_id: str, event: Event) -> bool:
        """Decide an event from outside; False if it was refused, having changed nothing."""
        execution = self.executions[run_id]
        self.trace.append(f"{self.now_ms} {run_id[14:23]} {event}")
        ended = execution.header.status if execution.is_terminal else None
        failure = execution.header.failure_workflow
        try:
            self._decide(execution, event)
        except ClusterError:
            plan = execution.plan
            assert_same(execution, load(execution.id, self.rows[run_id].items(), lambda _: plan))
            return False
        if ended is not None and not isinstance(event, COMMANDS):
            assert execution.header.status is ended, "what has ended came back by itself"
            assert failure in ("?", execution.header.failure_workflow)
        self.settle()
        return True

    def reload(self, run_id: str) -> None:
        """What happens to an idle run: thrown out of memory, read again from its rows."""
        plan = self.executions[run_id].plan
        execution = load(self.executions[run_id].id, self.rows[run_id].items(), lambda _: plan)
        rebuild_timers(execution)
        self.executions[run_id] = execution

    def crash(self) -> None:
        """All that was only in memory is gone; a new owner reads the rows and asks again."""
        self.trace.append("crash")
        self.asked.clear()
        self.queue.clear()
        for run_id in list(self.executions):
            self.reload(run_id)
        for run_id in list(self.executions):
            self.tell(run_id, Recovered(self.now_ms))

    def answer(self, index: int) -> None:
        """Let one of the answers from outside come."""
        run_id, effect = self.asked.pop(index)
        self.answered.append((run_id, effect))
        self._answer(run_id, effect)

    def _answer(self, run_id: str, effect: Effect) -> None:
        self.trace.append(f"{self.now_ms} {run_id[14:23]} answer {effect}")
        execution = self.executions[run_id]
        ended = execution.header.status if execution.is_terminal else None
        self._carry_out(execution, effect)
        if ended is not None:
            assert self.executions[run_id].header.status is ended
        self.settle()

    # -- random happenings

    def happen(self) -> None:
        """One random event for one random run."""
        random = self.random
        run = random.choice(list(self.executions.values()))
        pick = random.random()
        if pick < 0.2 and self.asked:
            self.answer(random.randrange(len(self.asked)))
        elif pick < 0.22 and self.answered:
            run_id, effect = random.choice(self.answered)
            self._answer(run_id, effect)
        elif pick < 0.30:
            self.pass_time(random.choice((1, 500, 1_000, 5_000, 60_000)))
        elif pick < 0.65:
            self._worker_does(run)
        elif pick < 0.68:
            self.crash()
        elif pick < 0.72:
            self.reload_idle(run)
        elif pick < 0.76 and self.reported:
            run_id, event = random.choice(self.reported)
            self.tell(run_id, event)
        else:
            self._operator_does(run)

    def reload_idle(self, run: Execution) -> None:
        if not run.scripts and not (run.header.work and run.header.status != "PAUSED"):
            self.trace.append(f"reload {run.id[14:23]}")
            self.reload(run.id)

    def pass_time(self, ms: int) -> None:
        """Let time pass; timers fire when they are due, and now and then too early."""
        self.trace.append(f"pass {ms}")
        end_ms = self.now_ms + ms
        for _ in range(200):
            due = [
                (run.header.due_ms, run.id)
                for run in self.executions.values()
                if run.header.due_ms and not run.is_terminal
            ]
            if not due or min(due)[0] > end_ms:
                break
            due_ms, run_id = min(due)
            self.now_ms = max(self.now_ms, due_ms)
            self.tell(run_id, TimerFired(self.now_ms))
        else:
            raise AssertionError("timers fire without end")
        self.now_ms = end_ms

    def _worker_does(self, run: Execution) -> None:
        random = self.random
        waiting = [
            number
            for number in self.queue.get(run.id, {})
            if run.tasks[number].visible_ms <= self.now_ms
        ]
        held = [t for t in run.open_tasks() if t.status is TaskStatus.IN_PROGRESS]
        held = [t for t in held if t.type in ("HUMAN", "WAIT") or TASK_TYPES[t.type].is_worker]
        if waiting and random.random() < 0.5:
            number = random.choice(waiting)
            delivery = self.queue[run.id][number]
            self.tell(run.id, TaskPolled(self.now_ms, number, "w", delivery))
            if random.random() < 0.1:
                self.tell(run.id, TaskHandedBack(self.now_ms, number, delivery))
                self.tell(run.id, TaskPolled(self.now_ms, number, "w", delivery))
        elif held:
            task = random.choice(held)
            pick = random.random()
            if pick < 0.1:
                self.tell(run.id, LeaseExtended(self.now_ms, task.number))
                return
            status = "COMPLETED"
            if pick < 0.4 and not self.calm:
                status = random.choice(("FAILED", "FAILED_WITH_TERMINAL_ERROR", "CANCELED"))
            elif pick < 0.5:
                status = "IN_PROGRESS"
            self.report(run, task, status, callback_after_s=random.choice((0, 4)), reason="because")

    def report(self, run: Execution, task: Task, status: str, **fields: Any) -> None:
        """Report about a task, and say it again: the second time changes nothing."""
        output = orjson.dumps({"of": task.number})
        event = TaskUpdated(self.now_ms, task.number, TaskStatus(status), output=output, **fields)
        self.tell(run.id, event)
        if status == "IN_PROGRESS":
            return
        self.reported.append((run.id, event))
        again = self.executions[run.id].tasks.get(task.number)
        if again is None or again.is_open or self.executions[run.id].header.work:
            # Any event takes the next turn of what is left to do.
            return
        rows = dict(self.rows[run.id])
        asked = len(self.asked)
        if self.tell(run.id, event):
            assert self.rows[run.id] == rows, "twice was not once"
            assert len(self.asked) == asked

    def _operator_does(self, run: Execution) -> None:
        random, now_ms = self.random, self.now_ms
        tasks = list(run.tasks.values())
        if run.is_terminal:
            event: Event = random.choice(
                (
                    Retried(now_ms),
                    Retried(now_ms),
                    Restarted(now_ms),
                    Terminated(now_ms, "again"),
                    Rerun(now_ms),
                    Rerun(now_ms, random.choice(tasks).number) if tasks else Rerun(now_ms),
                    Rerun(now_ms, random.choice(tasks).number, task_input=b'{"mine":1}')
                    if tasks
                    else Rerun(now_ms, 1),
                    Paused(now_ms),
                )
            )
        else:
            events: list[Event] = [
                Paused(now_ms),
                Resumed(now_ms),
                CallbacksReset(now_ms),
                TasksRequeued(now_ms, random.choice(tasks).type if tasks else "x"),
                VariablesUpdated(now_ms, {"x": 1}),
                self._skip(run),
                TimerFired(now_ms),
                Retried(now_ms),
            ]
            if not self.calm:
                events.append(Terminated(now_ms, "enough"))
                if tasks:
                    # Anybody may say anything about any task.
                    status = random.choice(("COMPLETED", "FAILED", "IN_PROGRESS"))
                    number = random.choice(tasks).number
                    events.append(TaskUpdated(now_ms, number, TaskStatus(status), output=b"{}"))
            event = random.choice(events)
        self.tell(run.id, event)

    def _skip(self, run: Execution) -> TaskSkipped:
        # To skip a FORK leaves its JOIN without what it waits for; Conductor does not help it.
        refs = [ref for ref, node in run.plan.nodes.items() if not is_waited_for(run.plan, node)]
        return TaskSkipped(self.now_ms, self.random.choice(refs) if refs else "none")

    # -- to the end

    def drive(self, *, turns: int = 3_000) -> None:
        """Do what is to be done until every run has ended, or that many turns are over."""
        for _ in range(turns):
            if not self._opened() and not self.asked:
                break
            if not self._drive_once():
                self._wait()
        else:
            assert turns < 3_000, "no end"
            return
        for run in self.executions.values():
            assert run.is_terminal
            assert not run.open
            assert not run.header.work
            assert run.header.failure_workflow != "?"
            assert not self.queue.get(run.id), "what ended is still offered to workers"
            self._check_ended(run)

    def _check_ended(self, run: Execution) -> None:
        for task in run.by_ref.values():
            assert not task.retried
        for task in run.tasks.values():
            if task.type == "SUB_WORKFLOW" and task.sub_workflow_id in self.executions:
                child = self.executions[task.sub_workflow_id]
                assert child.is_terminal
        if run.header.status is WorkflowStatus.COMPLETED and not run.header.terminated_output:
            for task in run.by_ref.values():
                assert task.status not in OPEN_TASK

    def _wait(self) -> None:
        """Nothing can be done now: go to the next moment at which something can."""
        opened = self._opened()
        moments = [run.header.due_ms for run in opened if run.header.due_ms]
        moments += [
            self.executions[run_id].tasks[number].visible_ms
            for run_id, numbers in self.queue.items()
            for number in numbers
        ]
        if moments:
            self.pass_time(max(0, min(moments) - self.now_ms))
        else:
            assert self._help(opened), f"stuck: {[describe(run) for run in opened]}"

    def _help(self, opened: list[Execution]) -> bool:
        """End an EXCLUSIVE_JOIN for which nothing was run; by itself it waits for ever."""
        for run in opened:
            for task in list(run.open_tasks()):
                if task.type == "EXCLUSIVE_JOIN" and not any(
                    ref in run.by_ref for ref in joined_refs(run, task)
                ):
                    self.report(run, task, "COMPLETED")
                    return True
        return False

    def _opened(self) -> list[Execution]:
        return [run for run in self.executions.values() if not run.is_terminal]

    def _drive_once(self) -> bool:
        moved = False
        while self.asked:
            self.answer(0)
            moved = True
        for run in self._opened():
            if run.header.status is WorkflowStatus.PAUSED:
                self.tell(run.id, Resumed(self.now_ms))
                moved = True
        for run_id in list(self.queue):
            for number in list(self.queue[run_id]):
                run = self.executions[run_id]
                if number in self.queue[run_id] and run.tasks[number].visible_ms <= self.now_ms:
                    delivery = self.queue[run_id][number]
                    self.tell(run_id, TaskPolled(self.now_ms, number, "w", delivery))
                    self.report(self.executions[run_id], run.tasks[number], "COMPLETED")
                    moved = True
        for run in self._opened():
            for task in list(run.open_tasks()):
                held = TASK_TYPES[task.type].is_worker or task.type == "HUMAN"
                held = held or (task.type == "WAIT" and not task.wake_ms)
                if held and task.status is TaskStatus.IN_PROGRESS and task.is_open:
                    self.report(run, task, "COMPLETED")
                    moved = True
                    break
        return moved


def is_waited_for(plan: Plan, node: Node) -> bool:
    """Whether something waits for ever if this step (or what stands in it) never runs."""
    if node.type in ("FORK_JOIN", "FORK_JOIN_DYNAMIC", "JOIN", "SWITCH", "DECISION"):
        return True
    return any(
        node.ref in other.task.join_on
        for other in plan.nodes.values()
        if other.type == "EXCLUSIVE_JOIN"
    )


def describe(run: Execution) -> str:
    tasks = ", ".join(f"{t.ref}:{t.type}:{t.status.value}" for t in run.open_tasks())
    return f"{run.header.status} work={run.header.work} open=[{tasks}] pending={run.pending}"


def new_runs(random: Random, *, calm: bool = False) -> tuple[RandomRuns, Plan]:
    """A random definition, and the world its run is to live in."""
    definitions = RandomDefinitions(random, calm=calm)
    plan = definitions.plan()
    surroundings = Surroundings(tasks_per_step_max=random.choice((3, 10, 200)))
    return RandomRuns(random, definitions, surroundings=surroundings), plan
