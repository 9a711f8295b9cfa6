"""FORK_JOIN_DYNAMIC: branches out of the input, in its three forms (rules 145-154)."""

from typing import Any

import pytest

from cluster.engine.rows import load
from cluster.engine.step import Surroundings
from tests.support.engine import Json, Runs, input_of, output_of, plan_of, statuses, step

KNOWN = {"w": {"name": "w", "retryCount": 0}, "v": {"name": "v", "retryCount": 0}}
SMALL = Surroundings(tasks_per_step_max=5)


def listed(tasks: Any, inputs: Any, **join: Any) -> list[Json]:
    """Form A."""
    return [
        step(
            "f",
            "FORK_JOIN_DYNAMIC",
            dynamicForkTasksParam="t",
            dynamicForkTasksInputParamName="i",
            inputParameters={"t": tasks, "i": inputs},
        ),
        step("j", "JOIN", **join),
    ]


def legacy(value: Any) -> list[Json]:
    """Form B."""
    return [
        step(
            "f",
            "FORK_JOIN_DYNAMIC",
            dynamicForkJoinTasksParam="d",
            inputParameters={"d": value},
        ),
        step("j", "JOIN"),
    ]


def same(inputs: Any, ref: str = "f", **fields: Any) -> list[Json]:
    """Form C."""
    optional = fields.pop("optional", False)
    return [
        step(
            ref,
            "FORK_JOIN_DYNAMIC",
            dynamicForkTasksParam="t",
            dynamicForkTasksInputParamName="i",
            optional=optional,
            inputParameters={"forkTaskInputs": inputs, **fields},
        ),
        step(f"{ref}_j", "JOIN"),
    ]


def branch(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    return {"name": "w", "taskReferenceName": ref, "type": type, **fields}


def test_listed_branches_with_inputs_of_their_own() -> None:
    runs = Runs(task_defs=KNOWN)
    tasks = [branch("x", inputParameters={"a": 1, "b": "${workflow.input.n}"}), branch("y")]
    run = runs.start(plan_of(listed(tasks, {"x": {"a": 2}, "y": None})), {"n": 5})
    fork = input_of(run, "f")
    assert fork["forkedTasks"] == ["x", "y"]
    assert fork["forkedTaskDefs"][0]["taskDefinition"]["name"] == "w"
    assert input_of(run, "x") == {"a": 2, "b": 5}
    assert input_of(run, "j") == {"joinOn": ["x", "y"]}
    assert [task.ref for task in run.tasks.values()] == ["f", "x", "y", "j"]
    runs.work(run, "x", output={"n": 1})
    runs.work(run, "y", output={"n": 2})
    assert output_of(run, "j") == {"x": {"n": 1}, "y": {"n": 2}}
    assert run.header.status == "COMPLETED"


def test_a_missing_type_is_simple_and_the_join_keeps_its_inputs() -> None:
    runs = Runs(task_defs=KNOWN)
    bare = {"name": "w", "taskReferenceName": "x"}
    run = runs.start(plan_of(listed([bare], {}, inputParameters={"extra": 5})))
    assert run.by_ref["x"].type == "w"
    assert input_of(run, "j") == {"extra": 5, "joinOn": ["x"]}


@pytest.mark.parametrize("form", [listed([], {}), legacy({}), legacy([]), same([])])
def test_no_branches_are_over_at_once(form: list[Json]) -> None:
    run = Runs().start(plan_of(form))
    assert run.header.status == "COMPLETED"
    assert len(run.tasks) == 2


@pytest.mark.parametrize(
    ("tasks", "inputs", "reason"),
    [
        (None, {}, "Input 't' is invalid. Cannot deserialize a list of Workflow Tasks from 'null'"),
        ("abc", {}, "Input 't' is invalid. Cannot deserialize a list of Workflow Tasks from 'abc'"),
        (
            {"a": 1},
            {},
            "Input 't' is invalid. Cannot deserialize a list of Workflow Tasks from '{a=1}'",
        ),
        (["a"], {}, "Input 't' is invalid. Cannot deserialize a list of Workflow Tasks from '[a]'"),
        ([{}], {}, "Input 't' is invalid. Cannot deserialize a list of Workflow Tasks from '[{}]'"),
        (
            [],
            [1],
            "Input to the dynamically forked tasks is not a map -> expecting a map of K,V  but "
            "found [1]",
        ),
        ([branch("x")], {"x": 5}, "Tasks could not be dynamically forked due to invalid input: "),
        (
            [branch("x", startDelay="soon")],
            {},
            "Tasks could not be dynamically forked due to invalid input: ",
        ),
    ],
)
def test_what_is_no_list_of_branches(tasks: Any, inputs: Any, reason: str) -> None:
    run = Runs(task_defs=KNOWN).start(plan_of(listed(tasks, inputs)))
    assert run.header.status == "FAILED"
    assert run.header.reason.startswith(reason)
    assert not run.tasks


def test_a_dynamic_fork_needs_its_join() -> None:
    run = Runs().start(plan_of([listed([], {})[0], step("z")]))
    assert run.header.reason.startswith("Dynamic join definition is not followed by a join task.")


def test_a_name_that_is_taken_already_fails_the_run() -> None:
    runs = Runs(task_defs=KNOWN)
    run = runs.start(plan_of([step("x"), *listed([branch("x")], {})]))
    runs.work(run, "x")
    assert run.header.status == "FAILED"
    assert "attempted to create a duplicate task reference name: x" in run.header.reason
    assert statuses(run) == {"x": "COMPLETED"}


def test_a_name_that_comes_twice_in_the_list_runs_once() -> None:
    runs = Runs(task_defs=KNOWN)
    run = runs.start(plan_of(listed([branch("x"), branch("x")], {})))
    assert input_of(run, "j") == {"joinOn": ["x", "x"]}
    runs.work(run, "x")
    assert run.header.status == "COMPLETED"


def test_branches_of_every_kind() -> None:
    child = plan_of([step("inner")])
    runs = Runs(task_defs=KNOWN, definitions={"child": child})
    chosen = [branch("in1"), branch("in2")]
    tasks = [
        branch("n", "NOOP"),
        branch("s", "SUB_WORKFLOW", subWorkflowParam={"name": "child", "version": 1}),
        branch(
            "c",
            "SWITCH",
            evaluatorType="value-param",
            expression="v",
            inputParameters={"v": "a"},
            decisionCases={"a": chosen},
            defaultCase=[branch("in3")],
        ),
        branch(
            "e",
            "SWITCH",
            evaluatorType="value-param",
            expression="v",
            decisionCases={"a": [branch("in4")]},
        ),
        branch("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=[branch("b")]),
        branch("unknown", "OTHER"),
    ]
    run = runs.start(plan_of(listed(tasks, {})))
    assert input_of(run, "j")["joinOn"] == ["n", "s", "in2", "e", "l", "unknown"]
    loaded = load(run.id, runs.rows[run.id].items(), lambda _: run.plan)
    assert loaded.node_of(loaded.by_ref["b__1"]).loop is not None
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert {"in1", "in2", "b__1", "b__2"} <= run.by_ref.keys()


def test_a_fork_inside_a_branch() -> None:
    runs = Runs(task_defs=KNOWN)
    inner = [
        branch("g", "FORK_JOIN", forkTasks=[[branch("p")], [branch("q")]]),
        branch("k", "JOIN", joinOn=["p", "q"]),
    ]
    loop = branch("l", "DO_WHILE", loopCondition="false", loopOver=inner)
    run = runs.start(plan_of(listed([loop], {})))
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert statuses(run)["k__1"] == "COMPLETED"


def test_a_dynamic_task_in_a_branch_needs_its_definition() -> None:
    tasks = [branch("d", "DYNAMIC", dynamicTaskNameParam="n")]
    run = Runs(task_defs=KNOWN).start(plan_of(listed(tasks, {"d": {"n": "nobody"}})))
    assert run.header.reason == (
        "Invalid task specified.  Cannot find task by name nobody in the task definitions"
    )
    template = {"name": "t", "inputTemplate": {"x": 1}, "retryCount": 0}
    runs = Runs(task_defs={**KNOWN, "t": template})
    run = runs.start(plan_of(listed(tasks, {"d": {"n": "t"}})))
    assert input_of(run, "d") == {"n": "t", "x": 1}
    runs.work(run, "d")
    assert run.header.status == "COMPLETED"


def test_definitions_at_hand_are_frozen_on_the_spot() -> None:
    runs = Runs(
        surroundings=Surroundings(
            task_definitions=lambda names: {name: KNOWN[name] for name in names}
        )
    )
    run = runs.start(plan_of(listed([branch("x")], {})))
    assert run.frozen_task_defs()["w"]["retryCount"] == 0
    runs.work(run, "x", "FAILED")
    assert run.header.status == "FAILED"


def test_the_legacy_form() -> None:
    runs = Runs(task_defs=KNOWN)
    tasks = [
        {"taskName": "w", "referenceName": "x", "input": {"a": 1}},
        {"taskName": "n", "referenceName": "y", "type": "NOOP"},
    ]
    run = runs.start(plan_of(legacy({"dynamicTasks": tasks})))
    assert input_of(run, "x") == {"a": 1}
    runs.work(run, "x")
    assert run.header.status == "COMPLETED"
    run = runs.start(plan_of(legacy(None)))
    assert run.header.reason == (
        "Dynamic tasks could not be created. The value of d from task's input {d=null} has no "
        "dynamic tasks to be scheduled"
    )


def test_one_task_with_many_inputs() -> None:
    runs = Runs(task_defs=KNOWN)
    run = runs.start(plan_of(same([{"a": 1}, 5, {"__index": 9}], forkTaskName="w")))
    assert [input_of(run, f"_w_{i}") for i in range(3)] == [
        {"a": 1, "__index": 0},
        {"input": 5, "__index": 1},
        {"__index": 2},
    ]
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_second_fork_names_its_branches_otherwise() -> None:
    runs = Runs(task_defs=KNOWN)
    run = runs.start(plan_of([*same([1], forkTaskName="w"), *same([1], "g", forkTaskName="w")]))
    runs.work(run, "_w_0")
    assert "_g_w_0" in run.by_ref


def test_one_system_task_with_many_inputs() -> None:
    run = Runs().start(plan_of(same([{}, {}], forkTaskType="NOOP")))
    assert "_NOOP_1" in run.by_ref
    assert run.header.status == "COMPLETED"


def test_without_a_name_the_branches_are_called_like_the_fork() -> None:
    runs = Runs(task_defs={"f": {"name": "f"}})
    run = runs.start(plan_of(same([{}])))
    assert run.by_ref["_f_0"].type == "f"


def test_one_workflow_with_many_inputs() -> None:
    child = plan_of([step("inner")])
    runs = Runs(definitions={"c": child})
    items = [{"taskToDomain": {"*": "d"}, "n": 1}, {"n": 2}]
    run = runs.start(plan_of(same(items, forkTaskWorkflow="c", forkTaskWorkflowVersion="1")))
    ref = next(ref for ref in run.by_ref if ref.endswith("_1"))
    assert runs.child_of(run, ref).workflow_input() == {"n": 2, "__index": 1}
    assert runs.child_of(run, ref.replace("_1", "_0")).header.task_to_domain == {"*": "d"}
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_an_optional_fork_forgives_its_branches() -> None:
    runs = Runs(task_defs=KNOWN)
    run = runs.start(plan_of(same([1, 2], forkTaskName="w", optional=True)))
    runs.work(run, "_w_0", "FAILED")
    runs.work(run, "_w_1")
    assert statuses(run)["f_j"] == "COMPLETED_WITH_ERRORS"
    assert run.header.status == "COMPLETED"


def test_many_branches_come_in_steps() -> None:
    runs = Runs(task_defs=KNOWN, surroundings=SMALL)
    run = runs.start(plan_of(same(list(range(60)), forkTaskName="w")))
    assert runs.transitions >= 12
    assert len(run.tasks) == 62
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_dynamic_fork_in_each_round_of_a_loop() -> None:
    runs = Runs(task_defs=KNOWN)
    loop = step(
        "l",
        "DO_WHILE",
        loopCondition="$.l['iteration'] < 2",
        loopOver=listed([branch("x")], {}),
    )
    run = runs.start(plan_of([loop]))
    runs.work(run, "x__1", output={"n": 1})
    assert output_of(run, "j__1") == {"x__1": {"n": 1}}
    runs.work(run, "x__2", output={"n": 2})
    assert run.header.status == "COMPLETED"
    assert output_of(run, "l")["2"]["j"] == {"x__2": {"n": 2}}
