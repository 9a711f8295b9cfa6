"""DO_WHILE (rules 165-176)."""

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
    fork,
    inline,
    loop,
    names,
    outcome,
    refused,
    rounds,
    settled,
    shown,
    sub_workflow,
    switch,
    task_named,
)

LAST = inline("z", "9")


def no_retries(server: Server, *types: str) -> None:
    server.register(*[task_def(name, retryCount=0) for name in types])


@rule(165, 166, 167)
def a_loop_of_workers_shows_every_round(server: Server) -> Json:
    body = [
        simple("a", {"round": "${l.output.iteration}", "before": "${a.output.n}"}),
        simple("b", {"a": "${a.output.n}", "k": "${workflow.input.k}"}),
    ]
    after = simple("z", {"a": "${a.output.n}", "l": "${l.output}"})
    run_id = server.launch([loop(body, rounds(3), {"k": "${workflow.input.k}"}), after], {"k": 5})
    seen = [shown(server.run(run_id))]
    for n in (1, 2, 3):
        server.work("~a", {"n": n})
        server.work("~b", {"m": n})
        seen.append(shown(server.run(run_id)))
    server.work("~z")
    assert names(seen[0]) == ["l", "a__1"]
    assert task_named(seen[1], "l")["outputData"] == {
        "1": {"a": {"n": 1}, "b": {"m": 1}},
        "iteration": 2,
    }
    assert [task["iteration"] for task in seen[3]["tasks"]] == [3, 1, 1, 2, 2, 3, 3, 0]
    return [seen, shown(server.ended(run_id))]


@rule(165)
def tasks_of_a_loop_say_so(server: Server) -> Json:
    run_id = server.launch([loop([simple("a")], rounds(2))])
    seen = []
    for _ in (1, 2):
        task = server.work("~a")
        seen.append([task["referenceTaskName"], task["iteration"], task["loopOverTask"]])
    assert seen == [["a__1", 1, True], ["a__2", 2, True]]
    run = server.ended(run_id)
    return [seen, [[task["iteration"], task["loopOverTask"]] for task in run["tasks"]]]


@rule(165, 167, 125)
def a_loop_of_system_tasks_runs_through(server: Server) -> Json:
    body = [
        inline("i", "$.n + 1", n="${l.output.iteration}"),
        step("SET_VARIABLE", "v", {"x": "${i.output.result}"}),
        step("NOOP", "n"),
    ]
    seen = outcome(
        server, [loop(body, rounds(3))], outputParameters={"x": "${workflow.variables.x}"}
    )
    assert seen["output"] == {"x": 4}
    assert len(seen["tasks"]) == 10
    return seen


@rule(168)
def the_condition_is_asked_after_the_first_round(server: Server) -> Json:
    seen = outcome(server, [loop([step("NOOP", "n")], "false"), LAST])
    assert names(seen) == ["l", "n__1", "z"]
    return seen


@rule(168)
def the_condition_sees_inputs_and_outputs(server: Server) -> Json:
    condition = "if ($.a['n'] < $.max && $.l['iteration'] < 10) { true; } else { false; }"
    run_id = server.launch(
        [loop([simple("a")], condition, {"max": "${workflow.input.max}"})], {"max": 3}
    )
    for n in (1, 2, 3):
        server.work("~a", {"n": n})
    run = shown(server.ended(run_id))
    assert task_named(run, "l")["iteration"] == 3
    return run


@rule(168)
def the_condition_sees_inputs_as_they_are_now(server: Server) -> Json:
    condition = "$.n < 3 && $.l['iteration'] < 5"
    body = [step("SET_VARIABLE", "v", {"n": "${l.output.iteration}"})]
    given = {"n": "${workflow.variables.n}"}
    seen = outcome(server, [loop(body, condition, given)], variables={"n": 0})
    assert task_named(seen, "l")["iteration"] == 3
    assert task_named(seen, "l")["inputData"] == {"n": 0}
    return seen


@rule(168)
def what_counts_as_true(server: Server) -> Json:
    values = {
        "true": 2,
        "1": 2,
        "0.5": 2,
        "-1": 1,
        "false": 1,
        "0": 1,
        "'x'": 1,
        "'true'": 1,
        "''": 1,
        "null": 1,
        "undefined": 1,
        "({})": 1,
        "[1]": 1,
        "0 / 0": 1,
    }
    loops = []
    for n, value in enumerate(values):
        condition = f"if ($.l{n}.iteration < 2) {{ {value} }} else {{ false }}"
        loops.append(loop([step("NOOP", f"n{n}")], condition, reference=f"l{n}"))
    seen = outcome(server, loops)
    counts = [task_named(seen, f"l{n}")["iteration"] for n in range(len(values))]
    assert dict(zip(values, counts, strict=True)) == values
    return counts


@rule(169, 155, 156)
def a_fork_in_a_loop(server: Server) -> Json:
    branches = [[simple("a"), simple("a2")], [simple("b")]]
    body = [*fork(branches, ["a2", "b"]), simple("c", {"j": "${j.output}"})]
    run_id = server.launch([loop(body, rounds(2)), simple("z")])
    for n in (1, 2):
        for name in ("a", "b", "a2", "c"):
            server.work(f"~{name}", {name: n})
    server.work("~z")
    run = shown(server.ended(run_id))
    join = task_named(run, "j__2")
    assert join["inputData"] == {"joinOn": ["a2", "b"]}
    assert join["outputData"] == {"a2__2": {"a2": 2}, "b__2": {"b": 2}}
    rows = [name for name in names(run) if name.endswith("__1")]
    assert rows == ["f__1", "a__1", "b__1", "j__1", "a2__1", "c__1"]
    return run


@rule(169)
def a_branch_that_is_not_joined_holds_the_round(server: Server) -> Json:
    run_id = server.launch([loop(fork([[simple("a")], [simple("b")]], ["a"]), rounds(2))])
    server.work("~a")
    server.task_when(run_id, "j__1", "COMPLETED")
    seen = [task_named(shown(server.run(run_id)), "l")]
    assert seen[0]["iteration"] == 1
    server.work("~b")
    server.work("~b")
    server.work("~a")
    return [seen, shown(server.ended(run_id))]


@rule(169, 140)
def a_switch_in_a_loop(server: Server) -> Json:
    chosen = switch(
        {"1": [simple("a"), simple("a2")]}, [simple("d")], input={"v": "${l.output.iteration}"}
    )
    run_id = server.launch([loop([chosen, simple("b")], rounds(2)), simple("z")])
    for name in ("a", "a2", "b", "d", "b", "z"):
        server.work(f"~{name}", {name: 1})
    run = shown(server.ended(run_id))
    assert task_named(run, "l")["outputData"]["2"].keys() == {"s", "d", "b"}
    return run


@rule(169)
def a_switch_in_a_fork_in_a_loop(server: Server) -> Json:
    chosen = switch({"1": [simple("a")]}, [simple("d")], input={"v": "${l.output.iteration}"})
    body = fork([[chosen, simple("c")], [simple("b")]], ["c", "b"])
    run_id = server.launch([loop(body, rounds(2)), simple("z")])
    for name in ("a", "c", "b", "d", "c", "b", "z"):
        server.work(f"~{name}", {name: 1})
    return shown(server.ended(run_id))


@rule(165, 143)
def a_loop_in_a_fork(server: Server) -> Json:
    branches = [[loop([simple("a")], rounds(2)), simple("e")], [simple("b")]]
    run_id = server.launch([*fork(branches, ["e", "b"]), simple("z")])
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "l", "b", "j", "a__1"]
    for name in ("a", "b", "a", "e", "z"):
        server.work(f"~{name}", {name: 1})
    return [seen, shown(server.ended(run_id))]


@rule(165, 156)
def a_joined_loop_gives_its_output(server: Server) -> Json:
    run_id = server.launch(fork([[loop([simple("a")], rounds(2))], [simple("b")]], ["l", "b"]))
    for name in ("a", "b", "a"):
        server.work(f"~{name}", {name: 1})
    run = shown(server.ended(run_id))
    assert task_named(run, "j")["outputData"]["l"]["iteration"] == 2
    return run


@rule(165, 143)
def two_loops_in_one_fork(server: Server) -> Json:
    first = loop([simple("a")], rounds(2))
    second = loop([simple("b")], "$.m['iteration'] < 3", reference="m")
    run_id = server.launch(fork([[first], [second]], ["l", "m"]))
    for name in "abbab":
        server.work(f"~{name}", {name: 1})
    run = shown(server.ended(run_id))
    assert run["status"] == "COMPLETED"
    return run


@rule(165, 183)
def a_sub_workflow_in_a_loop(server: Server) -> Json:
    server.register(workflow([inline("k", "$.n", n="${workflow.input.n}")], "~c"))
    body = [sub_workflow("s", {"n": "${l.output.iteration}"}, name="~c")]
    run = outcome(server, [loop(body, rounds(2))])
    results = [task["outputData"]["result"] for task in run["tasks"][1:]]
    assert results == [1, 2]
    return run


@rule(165, 191)
def a_wait_in_a_loop(server: Server) -> Json:
    run_id = server.launch([loop([step("WAIT", "w")], rounds(2)), LAST])
    for n in (1, 2):
        task = server.task_when(run_id, f"w__{n}", "IN_PROGRESS")
        server.update(task, "COMPLETED", {"n": n})
    run = shown(server.ended(run_id))
    assert task_named(run, "l")["outputData"]["2"] == {"w": {"n": 2}}
    return run


@rule(165, 209)
def terminate_in_a_loop_ends_the_run(server: Server) -> Json:
    end = step(
        "TERMINATE",
        "t",
        {"terminationStatus": "COMPLETED", "workflowOutput": {"at": "${l.output.iteration}"}},
    )
    chosen = switch({"2": [end]}, input={"v": "${l.output.iteration}"})
    seen = outcome(server, [loop([inline("i", "1"), chosen], rounds(5)), LAST])
    assert seen["output"] == {"at": 2}
    assert task_named(seen, "l")["status"] == "CANCELED"
    # Whether the loop looked once more before it was canceled is not a promise.
    task_named(seen, "l")["outputData"].pop("2", None)
    return seen


@rule(170)
def a_failure_in_a_loop_ends_the_run(server: Server) -> Json:
    no_retries(server, "~a", "~b")
    seen = {}
    for status in ("FAILED", "FAILED_WITH_TERMINAL_ERROR", "CANCELED"):
        run_id = server.launch([loop([simple("a"), simple("b")], rounds(3)), simple("z")])
        server.work("~a", {"n": 1})
        server.work("~b", {"n": 1})
        server.work("~a", {"n": 2})
        server.work("~b", {"n": 2}, status, reasonForIncompletion="bad")
        run = seen[status] = shown(settled(server, run_id))
        assert task_named(run, "l")["status"] == "CANCELED"
        assert run["output"] == {"n": 2}
    assert [run["status"] for run in seen.values()] == ["FAILED", "FAILED", "TERMINATED"]
    return seen


@rule(170)
def an_inner_task_is_retried_in_its_round(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([loop([simple("a")], rounds(2)), simple("z")])
    server.work("~a", {"n": 1}, "FAILED", reasonForIncompletion="bad1")
    server.work("~a", {"n": 2})
    server.work("~a", {"n": 3}, "FAILED", reasonForIncompletion="bad2")
    seen = shown(server.run(run_id))
    assert names(seen) == ["l", "a__1", "a__1", "a__2", "a__2"]
    server.work("~a", {"n": 4}, "FAILED", reasonForIncompletion="bad3")
    run = shown(settled(server, run_id))
    assert run["failed"] == [["a__1", "a__2"], ["~a"]]
    return [seen, run]


@rule(170, 158)
def a_failure_in_a_fork_in_a_loop(server: Server) -> Json:
    no_retries(server, "~a", "~b")
    body = fork([[simple("a")], [simple("b")]], ["a", "b"])
    run_id = server.launch([loop(body, rounds(3)), simple("z")])
    server.work("~a", {"n": 1})
    server.work("~b", {"n": 1})
    server.work("~b", {"n": 2}, "FAILED", reasonForIncompletion="bad")
    run = shown(settled(server, run_id))
    assert run["failed"] == [["b__2"], ["~b"]]
    expected = ["CANCELED", "COMPLETED", "CANCELED", "FAILED", "CANCELED"]
    assert [task["status"] for task in [run["tasks"][0], *run["tasks"][5:]]] == expected
    return run


@rule(170, 158)
def a_failure_in_a_loop_in_a_fork(server: Server) -> Json:
    no_retries(server, "~a")
    branches = [[loop([simple("a")], rounds(2))], [simple("b")]]
    run_id = server.launch([*fork(branches, ["l", "b"]), simple("z")])
    server.work("~a", {"n": 1})
    server.work("~a", {"n": 2}, "FAILED", reasonForIncompletion="bad")
    run = shown(settled(server, run_id))
    assert [task_named(run, name)["status"] for name in ("l", "b", "j")] == ["CANCELED"] * 3
    return run


@rule(170)
def optional_inner_tasks_do_not_stop_the_loop(server: Server) -> Json:
    no_retries(server, "~a")
    run_id = server.launch(
        [loop([simple("a", optional=True), simple("b")], rounds(2)), simple("z")]
    )
    for n in (1, 2):
        server.work("~a", {"n": n}, "FAILED", reasonForIncompletion="one")
        server.work("~b", {"m": n})
    server.work("~z")
    run = shown(server.ended(run_id))
    assert run["status"] == "COMPLETED"
    assert task_named(run, "a__2")["status"] == "COMPLETED_WITH_ERRORS"
    return run


@rule(170)
def a_permissive_inner_failure_fails_the_loop(server: Server) -> Json:
    no_retries(server, "~a", "~b")
    tasks = [loop([simple("a", permissive=True), simple("b")], rounds(2)), simple("z")]
    run_id = server.launch(tasks)
    server.work("~a", {"n": 1}, "FAILED", reasonForIncompletion="one")
    run = shown(settled(server, run_id))
    assert task_named(run, "l")["status"] == "FAILED"
    assert task_named(run, "l")["reasonForIncompletion"] == "one "
    assert task_named(run, "b__1")["status"] == "CANCELED"
    assert run["failed"] == [["a__1", "l"], ["l", "~a"]]
    return run


@rule(170)
def an_optional_loop_does_not_save_the_run_from_an_inner_failure(server: Server) -> Json:
    no_retries(server, "~a")
    seen = {}
    for kind in ("optional", "permissive"):
        run_id = server.launch([loop([simple("a")], rounds(2), **{kind: True}), simple("z")])
        server.work("~a", {"n": 1}, "FAILED", reasonForIncompletion="one")
        seen[kind] = shown(settled(server, run_id))
        assert seen[kind]["status"] == "FAILED"
        assert task_named(seen[kind], "l")["status"] == "CANCELED"
    return seen


@rule(170, 203)
def a_failing_script_in_a_loop(server: Server) -> Json:
    body = [inline("i", "if ($.n == 2) { throw 'x' } else { 1 }", n="${l.output.iteration}")]
    seen = outcome(server, [loop(body, rounds(5)), LAST])
    assert task_named(seen, "i__2")["status"] == "FAILED_WITH_TERMINAL_ERROR"
    assert task_named(seen, "l")["status"] == "CANCELED"
    task_named(seen, "l")["outputData"].pop("2", None)
    return seen


@rule(170)
def a_failed_loop_is_reopened_by_a_retry(server: Server) -> Json:
    no_retries(server, "~a")
    run_id = server.launch([loop([simple("a")], rounds(2)), simple("z")])
    server.work("~a", {"n": 1})
    server.work("~a", {"n": 2}, "FAILED", reasonForIncompletion="bad")
    settled(server, run_id)
    answer = server.post(f"/workflow/{run_id}/retry")
    seen = statuses(server.run(run_id))
    assert seen == {"l": "IN_PROGRESS", "a__1": "COMPLETED", "a__2": "SCHEDULED"}
    server.work("~a", {"n": 3})
    server.work("~z")
    run = shown(server.ended(run_id))
    assert task_named(run, "l")["outputData"]["2"] == {"a": {"n": 3}}
    return [answer.status, seen, run]


@rule(171)
def a_failing_condition_is_a_terminal_error(server: Server) -> Json:
    seen = {}
    for condition in ("nosuch.thing < 2", "throw 'x'"):
        run = seen[condition] = outcome(server, [loop([step("NOOP", "n")], condition), LAST])
        task = task_named(run, "l")
        assert task["status"] == "FAILED_WITH_TERMINAL_ERROR"
        start = f"Unable to evaluate condition {condition}, exception "
        assert task["reasonForIncompletion"].startswith(start)
    return seen


@rule(171)
def a_condition_that_cannot_be_parsed_is_a_terminal_error(server: Server) -> Json:
    seen = outcome(server, [loop([step("NOOP", "n")], "if ("), LAST])
    task = task_named(seen, "l")
    assert task["status"] == "FAILED_WITH_TERMINAL_ERROR"
    # What follows is the text of the script engine.
    start = (
        "Unable to evaluate condition if (, exception Error evaluating the script `SyntaxError: "
    )
    assert task["reasonForIncompletion"].startswith(start)
    return [seen["status"], task["status"], seen["failed"], start]


@rule(172)
def keep_last_n_removes_older_rounds(server: Server) -> Json:
    body = [simple("a"), simple("b")]
    run_id = server.launch([loop(body, rounds(5), {"keepLastN": 2}), simple("z")])
    seen = []
    for n in range(1, 6):
        server.work("~a", {"n": n})
        server.work("~b", {"m": n})
        run = server.run(run_id)
        rows = [[task["referenceTaskName"], task["seq"], task["status"]] for task in run["tasks"]]
        seen.append([last_task(run, "l")["outputData"], rows])
    assert [row[0] for row in seen[2][1]] == ["l", "a__3", "b__3", "a__4"]
    assert seen[2][0].keys() == {"2", "3", "iteration"}
    assert [row[0] for row in seen[4][1]] == ["l", "a__4", "b__4", "a__5", "b__5", "z"]
    server.work("~z")
    return [seen, shown(server.ended(run_id))]


@rule(172)
def keep_last_n_of_each_size(server: Server) -> Json:
    seen = {}
    for kept in (1, 2, 10):
        body = [inline("i", "$.n", n="${l.output.iteration}")]
        run = seen[kept] = outcome(server, [loop(body, rounds(5), {"keepLastN": kept})])
        first = max(1, 6 - kept)
        assert names(run) == ["l", *(f"i__{n}" for n in range(first, 6))]
    return seen


@rule(172)
def keep_last_n_with_forks_and_items(server: Server) -> Json:
    body = fork([[inline("a", "$.x", x="${l.output.loopItem}")], [step("NOOP", "b")]], ["a", "b"])
    tasks = [loop(body, "true", {"keepLastN": 1}, items="${workflow.input.items}")]
    seen = outcome(server, tasks, {"items": ["x", "y", "z"]})
    assert names(seen) == ["l", "f__3", "a__3", "b__3", "j__3"]
    return seen


@rule(172, difference="keepLastN that is no whole number keeps all rounds; the real one says 500")
def keep_last_n_has_to_be_a_number(server: Server) -> Json:
    seen = []
    for kept in ("2", 1.5):
        run = outcome(server, [loop([step("NOOP", "n")], rounds(3), {"keepLastN": kept})])
        if server.is_ours:
            assert names(run) == ["l", "n__1", "n__2", "n__3"]
        else:
            assert run["refused"] == 500
        seen.append(run)
    return seen


def over(items: Json, condition: str = "true", **fields: Json) -> Json:
    body = [inline("i", "$.n + ':' + $.x", n="${l.output.loopIndex}", x="${l.output.loopItem}")]
    return loop(body, condition, items=items, **fields)


@rule(173)
def a_loop_over_a_list(server: Server) -> Json:
    seen = outcome(server, [over("${workflow.input.l}"), LAST], {"l": ["x", "y", "z"]})
    results = [task["outputData"].get("result") for task in seen["tasks"][1:4]]
    assert results == ["0:x", "1:y", "2:z"]
    task = task_named(seen, "l")["outputData"]
    assert [task["loopIndex"], task["loopItem"], task["iteration"]] == [2, "z", 3]
    return seen


@rule(173)
def a_loop_over_nothing_is_done(server: Server) -> Json:
    nothing: list[Json] = [[], None]
    tasks = [over("${workflow.input.l}"), LAST]
    seen = [outcome(server, tasks, {"l": value}) for value in nothing]
    for run in seen:
        assert names(run) == ["l", "z"]
        assert task_named(run, "l")["outputData"] == {"iteration": 0}
    return seen


@rule(173)
def one_value_is_a_list_of_one(server: Server) -> Json:
    body = [step("NOOP", "n")]
    values: list[Json] = [{"a": 1}, "abc", 7]
    seen = [
        outcome(server, [loop(body, "true", items="${workflow.input.l}")], {"l": value})
        for value in values
    ]
    assert [task_named(run, "l")["outputData"]["loopItem"] for run in seen] == values
    return seen


@rule(173, 168)
def list_and_condition_have_both_to_hold(server: Server) -> Json:
    seen = {}
    for condition, count in (("true", 3), (rounds(2), 2), ("", 3)):
        tasks = [over(None, condition, input={"_items": "${workflow.input.l}"})]
        run = seen[condition] = outcome(server, tasks, {"l": ["x", "y", "z"]})
        assert task_named(run, "l")["iteration"] == count
    return seen


@rule(173)
def workers_see_the_item_of_their_round(server: Server) -> Json:
    body = [simple("a", {"n": "${l.output.loopIndex}", "x": "${l.output.loopItem}"})]
    run_id = server.launch([loop(body, "true", items="${workflow.input.l}")], {"l": [{"q": 1}, 2]})
    seen = [server.work("~a", {"n": 1})["inputData"], server.work("~a")["inputData"]]
    assert seen == [{"n": 0, "x": {"q": 1}}, {"n": 1, "x": 2}]
    return [seen, shown(server.ended(run_id))]


@rule(173, 176)
def a_loop_without_a_condition_is_refused(server: Server) -> Json:
    bare = step("DO_WHILE", "l", loopOver=[step("NOOP", "n")])
    seen = [
        outcome(server, [bare]),
        outcome(server, [{**bare, "items": "${workflow.input.l}"}]),
        refused(server.post("/workflow", {"name": "~w", "workflowDef": workflow([bare])})),
    ]
    assert [answer["refused"] for answer in seen] == [400, 400, 400]
    return seen


@rule(174)
def tasks_of_a_loop_have_their_domain(server: Server) -> Json:
    tasks = [loop([simple("a")], rounds(2))]
    run_id = server.launch(tasks, request={"taskToDomain": {"~a": "~dom"}})
    assert server.poll("~a") is None
    seen = []
    for _ in (1, 2):
        task = server.take("~a", domain="~dom")
        seen.append([task["referenceTaskName"], task["domain"]])
        server.update(task)
    return [seen, server.ended(run_id)["status"]]


@rule(174, difference="loops nest; on the real server the condition of an inner loop fails")
def loops_nest(server: Server) -> Json:
    inner = loop(
        [inline("i", "$.n", n="${m.output.iteration}")], "$.m['iteration'] < 3", reference="m"
    )
    seen = outcome(server, [loop([inner], rounds(2)), LAST])
    assert seen["status"] == ("COMPLETED" if server.is_ours else "FAILED")
    if server.is_ours:
        expected = ["l", "m__1", "i__1__1", "i__1__2", "i__1__3"]
        expected += ["m__2", "i__2__1", "i__2__2", "i__2__3", "z"]
        assert names(seen) == expected
        assert task_named(seen, "i__2__3")["outputData"] == {"result": 3}
    return seen


@rule(175)
def a_name_with_two_underscores_works_outside_loops(server: Server) -> Json:
    # Inside a loop the real server would schedule it without end: never ask it that.
    tasks = [inline("i__2", "1"), inline("k", "$.v", v="${i__2.output.result}")]
    seen = outcome(server, tasks)
    assert seen["output"] == {"result": 1}
    return seen


@rule(175, difference="a name that reads like a round of a loop is refused where there are loops")
def a_name_like_a_round_is_refused_beside_a_loop(server: Server) -> Json:
    # Only registered: the real server would go wrong with a run of it.
    tasks = [inline("i__2", "1"), loop([step("NOOP", "n")], rounds(2))]
    answer = server.put("/metadata/workflow", [workflow(tasks)])
    assert answer.status == (400 if server.is_ours else 200)
    if server.is_ours:
        assert "i__2" in answer.body["validationErrors"][0]["message"]
    return answer.status
