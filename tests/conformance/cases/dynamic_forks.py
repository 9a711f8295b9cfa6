"""FORK_JOIN_DYNAMIC in all its forms (rules 145-154)."""

from __future__ import annotations

from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    rule,
    simple,
    statuses,
    step,
    task_def,
    workflow,
)
from tests.conformance.steps import (
    dynamic_fork,
    fork,
    inline,
    listed_fork,
    loop,
    names,
    outcome,
    rounds,
    settled,
    shown,
    sub_workflow,
    switch,
    task_named,
)

LAST = inline("z", "9")


def branch(reference: str, **fields: Json) -> Json:
    """A worker branch of form A."""
    return {"name": "~x", "taskReferenceName": reference, "type": "SIMPLE", **fields}


def work_all(server: Server, count: int, task_type: str = "~x") -> None:
    """Complete so many tasks of a type, each with its reference name as output."""
    for _ in range(count):
        task = server.take(task_type)
        server.update(task, "COMPLETED", {"was": task["referenceTaskName"]})


# --- form A ---


@rule(145, 151)
def a_list_of_steps_becomes_branches(server: Server) -> Json:
    steps = [branch("x1", inputParameters={"own": "${workflow.input.q}", "n": 0}), branch("x2")]
    tasks = [*listed_fork(), simple("z", {"all": "${j.output}"})]
    run_id = server.launch(tasks, {"t": steps, "i": {"x1": {"n": 1}, "x2": {"n": 2}}, "q": 9})
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "x1", "x2", "j"]
    assert task_named(seen, "x1")["inputData"] == {"own": 9, "n": 1}
    assert task_named(seen, "j")["inputData"] == {"joinOn": ["x1", "x2"]}
    work_all(server, 2)
    server.work("~z")
    run = shown(server.ended(run_id))
    assert task_named(run, "j")["outputData"] == {"x1": {"was": "x1"}, "x2": {"was": "x2"}}
    return [seen, run]


@rule(151)
def the_fork_task_shows_the_steps_it_made(server: Server) -> Json:
    steps = [
        {"name": "i", "taskReferenceName": "i1", "type": "INLINE"},
        {"name": "n", "taskReferenceName": "n1", "type": "NOOP", "optional": True},
    ]
    run_id = server.launch(listed_fork(), {"t": steps, "i": {"i1": {"expression": "1"}}})
    given = last_task(server.ended(run_id), "f")["inputData"]
    assert given["forkedTasks"] == ["i1", "n1"]
    assert given["forkedTaskDefs"][0]["inputParameters"] == {"expression": "1"}
    return given


@rule(145)
def branches_may_be_of_any_type(server: Server) -> Json:
    server.register(workflow([inline("k", "5")], "~c"), task_def("~n"))
    steps = [
        sub_workflow("s1", name="~c"),
        switch({"y": [inline("i1", "3")]}, reference="s2", input={"v": "y"}),
        step("INLINE", "i2"),
        step("~TYPE", "u1", name="~n"),
        {"name": "~w2", "taskReferenceName": "u2"},
    ]
    run_id = server.launch(listed_fork(), {"t": steps, "i": {"i2": {"expression": "$.n", "n": 4}}})
    server.work("~TYPE", {"a": 1})
    server.work("~w2", {"a": 2})
    run = shown(server.ended(run_id))
    join = task_named(run, "j")
    assert join["inputData"] == {"joinOn": ["s1", "i1", "i2", "u1", "u2"]}
    assert join["outputData"]["i1"] == {"result": 3}
    return run


@rule(
    154,
    difference="a SWITCH branch runs all its steps and is joined at its end; the real server joins "
    "its first step and never schedules the rest",
)
def a_switch_branch_runs_to_its_end(server: Server) -> Json:
    chosen = switch({"y": [simple("a"), simple("b")]}, reference="s1", input={"v": "y"})
    run_id = server.launch([*listed_fork(), simple("z")], {"t": [chosen], "i": {}})
    server.work("~a", {"ra": 1})
    if server.is_ours:
        join = server.task(run_id, "j")
        assert (join["status"], join["inputData"]["joinOn"]) == ("IN_PROGRESS", ["b"])
        server.work("~b", {"rb": 1})
    server.work("~z")
    run = server.run(run_id)
    if server.is_ours:
        assert run["status"] == "COMPLETED"
    assert ("b" in statuses(run)) == server.is_ours
    return statuses(run)


@rule(146)
def what_is_no_list_of_steps_fails_the_run(server: Server) -> Json:
    wrong: Json = [None, "abc", {"a": 1}, ["a"], [{}], [{"name": "~x"}], branch("x1"), 5, True]
    seen = [
        [repr(value), outcome(server, [*listed_fork(), LAST], {"t": value, "i": {}})]
        for value in wrong
    ]
    for label, run in seen:
        assert run["status"] == "FAILED", label
        assert run["reasonForIncompletion"].startswith("Input 't' is invalid. Cannot deserialize")
        assert run["tasks"] == []
    return seen


@rule(146)
def inputs_that_are_no_map_fail_the_run(server: Server) -> Json:
    seen = [
        [repr(value), outcome(server, [*listed_fork(), LAST], {"t": [branch("x1")], "i": value})]
        for value in ([1], "abc", None, 5)
    ]
    for label, run in seen:
        assert run["status"] == "FAILED", label
        assert "is not a map" in run["reasonForIncompletion"]
    return seen


@rule(146)
def the_input_of_a_branch_has_to_be_a_map(server: Server) -> Json:
    given = {"t": [branch("x1")], "i": {"x1": 5}}
    seen = outcome(server, [*listed_fork(), LAST], given)
    start = "Tasks could not be dynamically forked due to invalid input"
    assert seen["status"] == "FAILED"
    assert seen["reasonForIncompletion"].startswith(start)
    # What follows is the text of a cast that failed in Java.
    return [seen["status"], start, seen["tasks"]]


@rule(145, 146)
def a_branch_without_input_gets_none(server: Server) -> Json:
    steps = [step("NOOP", "n1"), step("INLINE", "i1")]
    given = {"n1": None, "i1": {"expression": "1"}, "other": {"x": 1}}
    seen = outcome(server, [*listed_fork(), LAST], {"t": steps, "i": given})
    assert seen["status"] == "COMPLETED"
    return seen


@rule(145)
def a_branch_may_be_optional(server: Server) -> Json:
    server.register(task_def("~x", retryCount=0))
    steps = [branch("x1", optional=True), branch("x2")]
    run_id = server.launch([*listed_fork(), simple("z")], {"t": steps, "i": {}})
    tasks = {task["referenceTaskName"]: task for task in (server.take("~x"), server.take("~x"))}
    server.update(tasks["x1"], "FAILED", {"o": 1}, reasonForIncompletion="bad")
    server.update(tasks["x2"], "COMPLETED", {"o": 2})
    server.work("~z")
    run = shown(server.ended(run_id))
    assert run["status"] == "COMPLETED"
    assert task_named(run, "j")["status"] == "COMPLETED_WITH_ERRORS"
    return run


@rule(150, 158)
def optional_on_the_fork_does_not_reach_listed_steps(server: Server) -> Json:
    server.register(task_def("~x", retryCount=0))
    run_id = server.launch(listed_fork(optional=True), {"t": [branch("x1")], "i": {}})
    server.work("~x", {"o": 1}, "FAILED", reasonForIncompletion="bad")
    run = shown(settled(server, run_id))
    assert run["status"] == "FAILED"
    return run


@rule(152)
def an_empty_list_completes_the_join_at_once(server: Server) -> Json:
    forms = [
        outcome(server, [*listed_fork(), LAST], {"t": [], "i": {}}),
        outcome(server, [*dynamic_fork({"forkTaskName": "~x", "forkTaskInputs": []}), LAST]),
        outcome(
            server,
            [*dynamic_fork({"d": {"dynamicTasks": []}}, dynamicForkJoinTasksParam="d"), LAST],
        ),
        outcome(server, [*dynamic_fork({"d": {"a": 1}}, dynamicForkJoinTasksParam="d"), LAST]),
    ]
    for run in forms:
        assert run["status"] == "COMPLETED"
        assert names(run) == ["f", "j", "z"]
    return forms


@rule(153)
def a_name_that_exists_already_fails_the_run(server: Server) -> Json:
    given = {"t": [branch("n1"), branch("x2")], "i": {}}
    seen = outcome(server, [step("NOOP", "n1"), *listed_fork(), LAST], given)
    assert seen["status"] == "FAILED"
    assert (
        "attempted to create a duplicate task reference name: n1" in (seen["reasonForIncompletion"])
    )
    assert names(seen) == ["n1"]
    return seen


@rule(153)
def a_name_twice_in_one_list_is_one_task(server: Server) -> Json:
    run_id = server.launch(listed_fork(), {"t": [branch("x1"), branch("x1")], "i": {}})
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "x1", "j"]
    work_all(server, 1)
    return [seen, shown(server.ended(run_id))]


@rule(144)
def a_dynamic_fork_needs_a_join_behind_it(server: Server) -> Json:
    alone = dynamic_fork({"forkTaskName": "~x", "forkTaskInputs": [1]})[:1]
    seen = outcome(server, [*alone, LAST])
    assert seen["status"] == "FAILED"
    assert seen["tasks"] == []
    return seen


@rule(151)
def the_join_of_a_dynamic_fork_keeps_its_input_but_not_its_list(server: Server) -> Json:
    tasks = dynamic_fork({"forkTaskName": "n", "forkTaskType": "NOOP", "forkTaskInputs": [1]})
    tasks[1] |= {"joinOn": ["z"], "inputParameters": {"extra": 5}}
    seen = outcome(server, [*tasks, LAST])
    assert task_named(seen, "j")["inputData"] == {"extra": 5, "joinOn": ["_n_0"]}
    return seen


# --- form B ---


@rule(147)
def a_map_with_dynamic_tasks_becomes_branches(server: Server) -> Json:
    listed = [
        {"taskName": "~x", "referenceName": "x1", "input": {"n": 1}},
        {"taskName": "~y", "referenceName": "y1", "type": "SIMPLE"},
    ]
    tasks = dynamic_fork({"d": "${workflow.input.d}"}, dynamicForkJoinTasksParam="d")
    run_id = server.launch([*tasks, simple("z")], {"d": {"dynamicTasks": listed}})
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "x1", "y1", "j"]
    work_all(server, 1)
    work_all(server, 1, "~y")
    server.work("~z")
    return [seen, shown(server.ended(run_id))]


@rule(147, 146)
def dynamic_tasks_of_null_fail_the_run(server: Server) -> Json:
    tasks = dynamic_fork({"d": "${workflow.input.d}"}, dynamicForkJoinTasksParam="d")
    seen = outcome(server, [*tasks, LAST])
    assert seen["status"] == "FAILED"
    assert "has no dynamic tasks to be scheduled" in seen["reasonForIncompletion"]
    return seen


@rule(147)
def dynamic_tasks_cannot_be_sub_workflows(server: Server) -> Json:
    server.register(workflow([inline("k", "$.n", n="${workflow.input.n}")], "~c"))
    listed = [
        {
            "taskName": "any",
            "workflowName": "~c",
            "referenceName": "s1",
            "type": "SUB_WORKFLOW",
            "input": {"n": 2},
        }
    ]
    tasks = dynamic_fork({"d": {"dynamicTasks": listed}}, dynamicForkJoinTasksParam="d")
    seen = outcome(server, [*tasks, LAST])
    assert seen["status"] == "FAILED"
    return seen


# --- form C ---


def items(inputs: Json, name: str = "~x", **given: Json) -> Json:
    return {"forkTaskName": name, "forkTaskInputs": inputs, **given}


@rule(148, 149)
def each_item_of_a_list_becomes_a_branch(server: Server) -> Json:
    run_id = server.launch(
        [*dynamic_fork(items([{"n": 1, "__index": 9}, 7, "t", [1, 2], True])), simple("z")]
    )
    seen = shown(server.run(run_id))
    inputs = [task["inputData"] for task in seen["tasks"][1:6]]
    assert inputs == [
        {"n": 1, "__index": 0},
        {"input": 7, "__index": 1},
        {"input": "t", "__index": 2},
        {"input": [1, 2], "__index": 3},
        {"input": True, "__index": 4},
    ]
    assert names(seen)[1:6] == [f"_~x_{n}" for n in range(5)]
    work_all(server, 5)
    server.work("~z")
    return [seen, shown(server.ended(run_id))]


@rule(148)
def the_branches_of_a_list_have_one_type(server: Server) -> Json:
    seen = {
        "inline": outcome(
            server, dynamic_fork(items([{"expression": "1+1"}], "i", forkTaskType="INLINE"))
        ),
        "noop": outcome(server, dynamic_fork(items([1, 2], "n", forkTaskType="NOOP"))),
        "by expression": outcome(
            server,
            dynamic_fork(
                {
                    "forkTaskName": "${workflow.input.n}",
                    "forkTaskType": "${workflow.input.y}",
                    "forkTaskInputs": "${workflow.input.l}",
                }
            ),
            {"n": "i", "y": "INLINE", "l": [{"expression": "8"}]},
        ),
    }
    assert seen["inline"]["output"] == {"_i_0": {"result": 2}}
    assert seen["by expression"]["output"] == {"_i_0": {"result": 8}}
    return seen


@rule(148, 149)
def a_list_without_a_name_takes_that_of_the_fork(server: Server) -> Json:
    run_id = server.launch(dynamic_fork({"forkTaskInputs": [1]}, reference="~f"))
    seen = shown(server.run(run_id))
    assert names(seen) == ["~f", "_~f_0", "j"]
    work_all(server, 1, "~f")
    return [seen, shown(server.ended(run_id))]


@rule(148)
def items_may_start_sub_workflows(server: Server) -> Json:
    child = [inline("k", "$.n", n="${workflow.input.n}")]
    server.register(workflow(child, "~c"), workflow([inline("k", "'new'")], "~c", version=2))
    given: Json = {
        "latest": {"forkTaskWorkflow": "~c", "forkTaskInputs": [{"n": 1}, {"n": 2}]},
        "version": {
            "forkTaskWorkflow": "~c",
            "forkTaskWorkflowVersion": "1",
            "forkTaskInputs": [{"n": 1}],
        },
        "named": items([{"n": 1}], "nm", forkTaskWorkflow="~c"),
    }
    seen = {name: outcome(server, dynamic_fork(input)) for name, input in given.items()}
    assert names(seen["latest"]) == ["f", "_f_0", "_f_1", "j"]
    assert names(seen["named"]) == ["f", "_nm_0", "j"]
    assert task_named(seen["version"], "_f_0")["outputData"]["result"] == 1
    assert task_named(seen["latest"], "_f_0")["outputData"]["result"] == "new"
    return seen


@rule(148)
def items_of_an_unknown_workflow_fail(server: Server) -> Json:
    server.register(workflow([inline("k", "1")], "~c"))
    given: Json = {
        "version": {
            "forkTaskWorkflow": "~c",
            "forkTaskWorkflowVersion": "9",
            "forkTaskInputs": [1],
        },
        "no parameters": items([1], "~c", forkTaskType="SUB_WORKFLOW"),
    }
    seen = {name: outcome(server, dynamic_fork(input)) for name, input in given.items()}
    assert {run["status"] for run in seen.values()} == {"FAILED"}
    return seen


@rule(148, difference="the fork is there, and its branch says that there is no such workflow")
def items_of_a_workflow_without_any_version_fail(server: Server) -> Json:
    input = {"forkTaskWorkflow": "~nosuch", "forkTaskInputs": [1]}
    run = outcome(server, dynamic_fork(input))
    assert run["status"] == "FAILED"
    assert "~nosuch" in run["reasonForIncompletion"]
    made = ["f", "_f_0", "j"] if server.is_ours else []
    assert names(run) == made
    return run


@rule(148)
def a_list_that_is_none_fails_the_run(server: Server) -> Json:
    seen = [
        [repr(value), outcome(server, dynamic_fork(items("${workflow.input.l}")), {"l": value})]
        for value in (None, {"a": 1}, "abc")
    ]
    for _, run in seen:
        assert run["status"] == "FAILED"
        assert "has no dynamic tasks to be scheduled" in run["reasonForIncompletion"]
    return seen


@rule(148)
def a_list_of_items_comes_before_the_other_forms(server: Server) -> Json:
    fields = {"dynamicForkTasksParam": "t", "dynamicForkTasksInputParamName": "i"}
    given = items([1], "n", forkTaskType="NOOP", t=[branch("x1")], i={})
    first = outcome(server, dynamic_fork(given, **fields))
    given = items([1], "n", forkTaskType="NOOP", d={"dynamicTasks": []})
    second = outcome(server, dynamic_fork(given, dynamicForkJoinTasksParam="d"))
    assert names(first) == names(second) == ["f", "_n_0", "j"]
    return [first, second]


@rule(148)
def a_fork_without_any_form_is_refused(server: Server) -> Json:
    seen = [
        outcome(server, dynamic_fork({"forkTaskName": "~x"})),
        outcome(server, dynamic_fork({})),
        outcome(
            server,
            dynamic_fork(
                {},
                dynamicForkJoinTasksParam="d",
                dynamicForkTasksParam="t",
                dynamicForkTasksInputParamName="i",
            ),
        ),
    ]
    assert [run["refused"] for run in seen] == [400, 400, 400]
    assert [len(run["texts"]) for run in seen] == [2, 2, 1]
    return seen


@rule(149)
def later_forks_put_their_own_name_before(server: Server) -> Json:
    tasks = [
        *dynamic_fork(items([1, 2])),
        *dynamic_fork(items([3]), "g", "k"),
        *dynamic_fork(items([4]), "h", "l"),
    ]
    run_id = server.launch(tasks)
    work_all(server, 4)
    run = shown(server.ended(run_id))
    expected = ["f", "_~x_0", "_~x_1", "j", "g", "_g_~x_0", "k", "h", "_h_~x_0", "l"]
    assert names(run) == expected
    return run


@rule(
    149,
    difference="two forks of the same name that start together get different names; on the real "
    "server they collide and branches get lost",
)
def forks_that_start_together_do_not_collide(server: Server) -> Json:
    scripts = [{"expression": "1"}, {"expression": "2"}, {"expression": "3"}]
    some = dynamic_fork(items(scripts[:2], "n", forkTaskType="INLINE"))
    others = dynamic_fork(items(scripts[2:], "n", forkTaskType="INLINE"), "g", "k")
    outer = [
        step("FORK_JOIN", "o", forkTasks=[some, others]),
        step("JOIN", "p", joinOn=["j", "k"]),
    ]
    run = shown(settled(server, server.launch(outer)))
    forked = [task for task in run["tasks"] if task["taskType"] == "INLINE"]
    assert len({task["referenceTaskName"] for task in forked}) == (3 if server.is_ours else 2)
    if server.is_ours:
        assert run["status"] == "COMPLETED"
        assert sorted(task["outputData"]["result"] for task in forked) == [1, 2, 3]
    return run


@rule(149, 165)
def in_a_loop_the_names_change_from_the_second_round_on(server: Server) -> Json:
    run_id = server.launch([loop([*dynamic_fork(items([{"n": 1}, 7]))], rounds(3))])
    work_all(server, 6)
    run = shown(server.ended(run_id))
    assert names(run)[1:5] == ["f__1", "_~x_0__1", "_~x_1__1", "j__1"]
    assert names(run)[5:9] == ["f__2", "_f_~x_0__2", "_f_~x_1__2", "j__2"]
    return run


@rule(145, 155, 165)
def listed_steps_in_a_loop_carry_its_round(server: Server) -> Json:
    steps = [branch("x1"), branch("x2")]
    run_id = server.launch(
        [loop(listed_fork(), rounds(2)), simple("z", {"all": "${j.output}"})],
        {"t": steps, "i": {"x1": {"n": 1}}},
    )
    work_all(server, 4)
    server.work("~z")
    run = shown(server.ended(run_id))
    assert task_named(run, "j__1")["inputData"]["joinOn"] == ["x1", "x2"]
    assert task_named(run, "j__2")["outputData"].keys() == {"x1__2", "x2__2"}
    return run


@rule(150)
def optional_on_the_fork_reaches_the_items(server: Server) -> Json:
    server.register(task_def("~x", retryCount=0))
    run_id = server.launch([*dynamic_fork(items([1, 2]), optional=True), simple("z")])
    first, second = server.take("~x"), server.take("~x")
    server.update(first, "FAILED", {"o": 1}, reasonForIncompletion="bad")
    server.update(second, "COMPLETED", {"o": 2})
    server.work("~z")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    made = last_task(run, "f")["inputData"]["forkedTaskDefs"]
    assert [made_step["optional"] for made_step in made] == [True, True]
    states = sorted(task["status"] for task in run["tasks"] if task["taskType"] == "~x")
    return [states, statuses(run)["j"], last_task(run, "j")["reasonForIncompletion"]]


@rule(150)
def permissive_on_the_fork_does_not_reach_the_items(server: Server) -> Json:
    server.register(task_def("~x", retryCount=0))
    run_id = server.launch(dynamic_fork(items([1, 2]), permissive=True))
    first = server.take("~x")
    server.update(first, "FAILED", {}, reasonForIncompletion="bad")
    run = settled(server, run_id)
    assert run["status"] == "FAILED"
    return [run["status"], sorted(task["status"] for task in run["tasks"])]


@rule(145, 158)
def a_failed_item_ends_the_run(server: Server) -> Json:
    server.register(task_def("~x", retryCount=0))
    run_id = server.launch([*dynamic_fork(items([1, 2, 3])), simple("z")])
    tasks = {task["referenceTaskName"]: task for task in (server.take("~x"), server.take("~x"))}
    for name, status in (("_~x_0", "COMPLETED"), ("_~x_1", "FAILED")):
        server.update(tasks[name], status, {"was": name}, reasonForIncompletion=name)
    run = shown(settled(server, run_id))
    assert run["status"] == "FAILED"
    assert task_named(run, "_~x_2")["status"] == "CANCELED"
    return run


@rule(145)
def a_dynamic_fork_may_stand_in_a_branch(server: Server) -> Json:
    inner = [*dynamic_fork(items([1, 2]), "g", "k"), simple("e")]
    run_id = server.launch(fork([inner, [simple("b")]], ["e", "b"]))
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "g", "_~x_0", "_~x_1", "k", "b", "j"]
    work_all(server, 2)
    server.work("~e", {"e": 1})
    server.work("~b", {"b": 1})
    return [seen, shown(server.ended(run_id))]
