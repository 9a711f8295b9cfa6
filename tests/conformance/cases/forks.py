"""FORK_JOIN, JOIN and EXCLUSIVE_JOIN (rules 143, 144, 155-160, 163, 164)."""

from __future__ import annotations

from tests.conformance.harness import Json, Server, ok, rule, simple, statuses, step, task_def
from tests.conformance.steps import (
    LIVE,
    fork,
    inline,
    names,
    outcome,
    settled,
    shown,
    switch,
    task_named,
)


def no_retries(server: Server, *types: str) -> None:
    server.register(*[task_def(name, retryCount=0) for name in types])


def join_done(server: Server, run_id: str, reference: str = "j") -> Json:
    return server.task_when(run_id, reference, "COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED")


@rule(143, 155, 156, 157)
def a_fork_starts_all_branches_and_joins_their_outputs(server: Server) -> Json:
    branches = [[simple("a", {"x": "${workflow.input.q}"})], [simple("b"), simple("c")]]
    tasks = fork(branches, ["a", "c"])
    tasks[0]["inputParameters"] = {"p": "${workflow.input.q}"}
    run_id = server.launch([*tasks, simple("z", {"all": "${j.output}"})], {"q": 1})
    seen = [shown(server.run(run_id))]
    assert names(seen[0]) == ["f", "a", "b", "j"]
    assert [task["status"] for task in seen[0]["tasks"]][::3] == ["COMPLETED", "IN_PROGRESS"]
    server.work("~a", {"ra": 1})
    server.work("~b", {"rb": 2})
    server.work("~c", {"rc": 3})
    assert join_done(server, run_id)["outputData"] == {"a": {"ra": 1}, "c": {"rc": 3}}
    server.work("~z")
    return [*seen, shown(server.ended(run_id))]


@rule(143)
def forks_nest(server: Server) -> Json:
    inner = [
        step("FORK_JOIN", "g", forkTasks=[[simple("a")], [simple("b")]]),
        step("JOIN", "k", joinOn=["a", "b"]),
    ]
    run_id = server.launch(fork([inner, [simple("c")]], ["k", "c"]))
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "g", "a", "b", "k", "c", "j"]
    for name in "abc":
        server.work(f"~{name}", {name: 1})
    run = shown(server.ended(run_id))
    assert run["output"] == {"c": {"c": 1}, "k": {"a": {"a": 1}, "b": {"b": 1}}}
    return [seen, run]


@rule(143)
def a_branch_may_hold_a_switch(server: Server) -> Json:
    branches = [[simple("a")], [switch({"k": [simple("o")]}), simple("b")]]
    run_id = server.launch(fork(branches, ["a", "b"]), {"v": "k"})
    seen = shown(server.run(run_id))
    assert names(seen) == ["f", "a", "s", "o", "j"]
    for name in "aob":
        server.work(f"~{name}", {name: 1})
    return [seen, shown(server.ended(run_id))]


@rule(143)
def terminate_first_in_a_branch_still_starts_the_others(server: Server) -> Json:
    end = step("TERMINATE", "t", {"terminationStatus": "TERMINATED", "terminationReason": "why"})
    seen = outcome(
        server, [*fork([[simple("a")], [end], [inline("i", "1")]], ["a", "t", "i"]), simple("z")]
    )
    assert seen["status"] == "TERMINATED"
    assert [task["status"] for task in seen["tasks"]] == [
        "COMPLETED",
        "CANCELED",
        "COMPLETED",
        "COMPLETED",
        "CANCELED",
    ]
    return seen


@rule(210)
def terminate_in_a_branch_ends_the_run_with_each_status(server: Server) -> Json:
    seen = {}
    for status in ("COMPLETED", "FAILED", "TERMINATED"):
        end = step("TERMINATE", "t", {"terminationStatus": status, "workflowOutput": {"x": 1}})
        branches = [[simple("a"), end, simple("a2")], [simple("b"), simple("c")]]
        run_id = server.launch([*fork(branches, ["a2", "c"]), simple("z")])
        server.take("~b")
        server.work("~a")
        seen[status] = {**shown(settled(server, run_id)), "output": server.run(run_id)["output"]}
        assert seen[status]["status"] == status
        assert seen[status]["output"] == {"x": 1}
        assert task_named(seen[status], "b")["status"] == "CANCELED"
    return seen


@rule(144)
def a_fork_needs_a_join_behind_it(server: Server) -> Json:
    alone = step("FORK_JOIN", "f", forkTasks=[[simple("a")]])
    seen = [outcome(server, [alone, simple("z")]), outcome(server, [alone])]
    for run in seen:
        assert run["status"] == "FAILED"
        assert "not followed by a join task" in run["reasonForIncompletion"]
        assert run["tasks"] == []
    return seen


@rule(157)
def optional_failures_make_the_join_complete_with_errors(server: Server) -> Json:
    no_retries(server, "~a", "~b", "~c")
    branches = [
        [simple("a", optional=True)],
        [simple("b", optional=True, permissive=True)],
        [simple("c")],
    ]
    run_id = server.launch([*fork(branches, ["a", "b", "c"]), simple("z")])
    server.work("~a", {"ra": 1}, "FAILED", reasonForIncompletion="one")
    server.work("~b", {"rb": 2}, "FAILED_WITH_TERMINAL_ERROR", reasonForIncompletion="two")
    server.work("~c", {"rc": 3})
    server.work("~z")
    run = shown(server.ended(run_id))
    join = task_named(run, "j")
    assert run["status"] == "COMPLETED"
    assert join["status"] == "COMPLETED_WITH_ERRORS"
    assert join["outputData"] == {"a": {"ra": 1}, "b": {"rb": 2}, "c": {"rc": 3}}
    return run


@rule(158)
def a_failed_branch_ends_the_run_and_cancels_its_siblings(server: Server) -> Json:
    no_retries(server, "~a", "~b", "~c", "~d")
    seen = {}
    for status in ("FAILED", "FAILED_WITH_TERMINAL_ERROR"):
        branches = [[simple("a")], [simple("b"), simple("d")], [simple("c")]]
        run_id = server.launch(fork(branches, ["a", "d", "c"]))
        server.work("~c", {"rc": 1})
        held = server.take("~b")
        server.work("~a", {"ra": 1}, status, reasonForIncompletion="boom")
        run = shown(settled(server, run_id))
        assert run["status"] == "FAILED"
        assert run["failed"] == [["a"], ["~a"]]
        assert task_named(run, "j")["status"] == task_named(run, "b")["status"] == "CANCELED"
        late = server.update(held, "COMPLETED", {"late": 1})
        assert shown(server.run(run_id)) == run
        seen[status] = [run, late.status]
    return seen


@rule(158)
def a_failure_in_a_branch_that_is_not_joined_ends_the_run(server: Server) -> Json:
    no_retries(server, "~b")
    run_id = server.launch(fork([[simple("a")], [simple("b"), simple("c")]], ["a", "c"]))
    server.work("~b", {"rb": 1}, "FAILED", reasonForIncompletion="mid")
    run = shown(settled(server, run_id))
    assert run["status"] == "FAILED"
    assert names(run) == ["f", "a", "b", "j"]
    return run


@rule(158)
def the_first_of_two_failures_is_the_reason(server: Server) -> Json:
    no_retries(server, "~a", "~b")
    run_id = server.launch(fork([[simple("a")], [simple("b")]], ["a", "b"]))
    first, second = server.take("~b"), server.take("~a")
    server.update(first, "FAILED", reasonForIncompletion="one")
    server.update(second, "FAILED", reasonForIncompletion="two")
    run = shown(settled(server, run_id))
    assert run["failed"] == [["b"], ["~b"]]
    assert "'one'" in run["reasonForIncompletion"]
    return run


@rule(158)
def permissive_failures_fail_the_join_when_all_have_ended(server: Server) -> Json:
    no_retries(server, "~a", "~b", "~c")
    branches = [[simple("a", permissive=True)], [simple("b", permissive=True)], [simple("c")]]
    run_id = server.launch([*fork(branches, ["a", "b", "c"]), simple("z")])
    server.work("~c", {"rc": 3})
    server.work("~a", {"ra": 1}, "FAILED", reasonForIncompletion="one")
    waiting = server.run(run_id)
    assert statuses(waiting)["j"] == "IN_PROGRESS"
    server.work("~b", {"rb": 2}, "FAILED", reasonForIncompletion="two")
    run = shown(settled(server, run_id))
    join = task_named(run, "j")
    # Which outputs it holds by then depends on when the real server looked.
    join.pop("outputData")
    run.pop("output")
    assert [run["status"], join["status"]] == ["FAILED", "FAILED"]
    assert join["reasonForIncompletion"] == "one two"
    assert run["failed"] == [["a", "b", "j"], ["JOIN", "~a", "~b"]]
    return [statuses(waiting), run]


@rule(158)
def a_permissive_failure_outside_the_join_fails_the_run_at_its_end(server: Server) -> Json:
    no_retries(server, "~a")
    branches = [[simple("a", permissive=True), simple("c")], [simple("b")]]
    run_id = server.launch([*fork(branches, ["c", "b"]), simple("z")])
    server.work("~a", {"ra": 1}, "FAILED", reasonForIncompletion="one")
    for name in "bcz":
        server.work(f"~{name}", {name: 1})
    run = shown(server.ended(run_id))
    assert run["status"] == "FAILED"
    assert task_named(run, "j")["status"] == task_named(run, "z")["status"] == "COMPLETED"
    return run


@rule(158)
def optional_and_permissive_branches_mix(server: Server) -> Json:
    no_retries(server, "~a", "~b", "~c")
    branches = [[simple("a", permissive=True)], [simple("b", optional=True)], [simple("c")]]
    run_id = server.launch([*fork(branches, ["a", "b", "c"]), simple("z")])
    server.work("~a", {"ra": 1}, "FAILED", reasonForIncompletion="one")
    server.work("~b", {"rb": 2}, "FAILED", reasonForIncompletion="two")
    server.work("~c", {"rc": 3})
    run = shown(settled(server, run_id))
    task_named(run, "j").pop("outputData")
    run.pop("output")
    assert task_named(run, "j")["reasonForIncompletion"] == "one"
    assert task_named(run, "b")["status"] == "COMPLETED_WITH_ERRORS"
    return run


@rule(158)
def a_normal_failure_beats_a_permissive_one(server: Server) -> Json:
    no_retries(server, "~a", "~b", "~c")
    branches = [[simple("a", permissive=True)], [simple("b")], [simple("c")]]
    run_id = server.launch([*fork(branches, ["a", "b", "c"]), simple("z")])
    server.work("~a", {"ra": 1}, "FAILED", reasonForIncompletion="one")
    server.work("~b", {"rb": 2}, "FAILED", reasonForIncompletion="two")
    run = shown(settled(server, run_id))
    assert run["failed"] == [["a", "b"], ["~a", "~b"]]
    assert task_named(run, "c")["status"] == "CANCELED"
    return run


@rule(158)
def the_join_itself_may_be_optional_or_permissive(server: Server) -> Json:
    no_retries(server, "~a")
    seen = {}
    for kind in ("optional", "permissive"):
        branches = [[simple("a", permissive=True)], [simple("b")]]
        run_id = server.launch([*fork(branches, ["a", "b"], **{kind: True}), simple("z")])
        server.work("~b")
        server.work("~a", {"ra": 1}, "FAILED", reasonForIncompletion="one")
        server.work("~z", {"rz": 1})
        seen[kind] = shown(server.ended(run_id))
        assert seen[kind]["status"] == "FAILED"
        assert names(seen[kind])[-1] == "z"
    joins = [task_named(run, "j")["status"] for run in seen.values()]
    assert joins == ["COMPLETED_WITH_ERRORS", "FAILED"]
    return seen


@rule(158)
def an_optional_join_does_not_save_the_run_from_a_failed_branch(server: Server) -> Json:
    no_retries(server, "~a")
    tasks = fork([[simple("a")], [simple("b")]], ["a", "b"], optional=True)
    run_id = server.launch([*tasks, simple("z")])
    server.work("~a", {}, "FAILED", reasonForIncompletion="one")
    run = shown(settled(server, run_id))
    assert run["status"] == "FAILED"
    return run


@rule(159)
def a_canceled_branch_terminates_the_run(server: Server) -> Json:
    run_id = server.launch(fork([[simple("a")], [simple("b")]], ["a", "b"]))
    first, second = server.take("~a"), server.take("~b")
    server.update(first, "CANCELED", reasonForIncompletion="one")
    server.update(second, "CANCELED", reasonForIncompletion="two")
    run = shown(settled(server, run_id))
    assert run["status"] == "TERMINATED"
    assert task_named(run, "j")["status"] == "CANCELED"
    return run


@rule(160, 156)
def a_join_waits_for_a_task_that_never_comes(server: Server) -> Json:
    branches = [[simple("a")], [switch({"x": [simple("o")]})], [simple("b")]]
    run_id = server.launch([*fork(branches, ["a", "o", "b"]), simple("z")], {"v": "k"})
    server.work("~a", {"ra": 1})
    server.work("~b", {"rb": 1})
    both = {"a": {"ra": 1}, "b": {"rb": 1}}
    server.until(lambda: server.task(run_id, "j")["outputData"] == both)
    seen = shown(server.run(run_id))
    assert task_named(seen, "j")["status"] == "IN_PROGRESS"
    ok(server.delete(f"/workflow/{run_id}", reason="enough"))
    return [seen, statuses(settled(server, run_id))]


@rule(155, 157)
def a_join_on_nothing_is_done_at_once_but_the_run_waits(server: Server) -> Json:
    run_id = server.launch([*fork([[simple("a")]], []), simple("z")])
    server.work("~z")
    seen = shown(server.run_when(run_id, lambda run: statuses(run).get("z") == "COMPLETED"))
    assert [seen["status"], task_named(seen, "a")["status"]] == ["RUNNING", "SCHEDULED"]
    server.work("~a")
    return [seen, shown(server.ended(run_id))]


@rule(155)
def the_input_of_a_static_join_is_its_list_only(server: Server) -> Json:
    tasks = fork([[inline("a", "1")], [step("NOOP", "b")]], ["a", "b"])
    tasks[1]["inputParameters"] = {"extra": 5}
    seen = outcome(server, tasks)
    assert task_named(seen, "j")["inputData"] == {"joinOn": ["a", "b"]}
    assert task_named(seen, "j")["outputData"] == {"a": {"result": 1}}
    return seen


@rule(163)
def scripts_of_a_join_are_ignored(server: Server) -> Json:
    script = {"evaluatorType": "js", "expression": "true", "scriptExpression": "true"}
    run_id = server.launch([*fork([[simple("a")], [simple("b")]], ["a", "b"], **script)])
    server.work("~a", {"ra": 1})
    server.until(lambda: server.task(run_id, "j")["outputData"])
    assert server.task(run_id, "j")["status"] == "IN_PROGRESS"
    server.work("~b", {"rb": 1})
    run = shown(server.ended(run_id))
    assert task_named(run, "j")["outputData"] == {"a": {"ra": 1}, "b": {"rb": 1}}
    return run


def exclusive(**fields: Json) -> list[Json]:
    cases = {"k": [simple("o")], "l": [simple("p")]}
    join = step("EXCLUSIVE_JOIN", "e", joinOn=["o", "p"], **fields)
    return [simple("a"), switch(cases, [simple("q")]), join, simple("z")]


@rule(164)
def an_exclusive_join_takes_the_branch_that_ran(server: Server) -> Json:
    seen = {}
    for value, worker in (("k", "~o"), ("l", "~p"), ("x", "~q")):
        run_id = server.launch(exclusive(defaultExclusiveJoinTask=["a"]), {"v": value})
        server.work("~a", {"ra": 1})
        server.work(worker, {"by": worker})
        server.work("~z")
        seen[value] = shown(server.ended(run_id))
    outputs = [task_named(run, "e")["outputData"] for run in seen.values()]
    assert outputs == [{"by": "~o"}, {"by": "~p"}, {"ra": 1}]
    return seen


@rule(164)
def an_exclusive_join_waits_for_the_first_that_exists(server: Server) -> Json:
    tasks = [
        *fork([[simple("a")], [simple("b")]], ["a"]),
        step("EXCLUSIVE_JOIN", "e", joinOn=["b", "a"]),
        simple("z"),
    ]
    run_id = server.launch(tasks)
    server.work("~a", {"ra": 1})
    server.task_when(run_id, "e", "IN_PROGRESS")
    server.work("~b", {"rb": 1})
    server.work("~z")
    run = shown(server.ended(run_id))
    assert task_named(run, "e")["outputData"] == {"rb": 1}
    return run


@rule(164)
def an_exclusive_join_without_a_found_task_waits(server: Server) -> Json:
    run_id = server.launch([simple("a"), step("EXCLUSIVE_JOIN", "e", joinOn=["x"]), simple("z")])
    server.work("~a")
    seen = statuses(server.run(run_id))
    assert seen == {"a": "COMPLETED", "e": "IN_PROGRESS"}
    ok(server.put(f"/workflow/decide/{run_id}"))
    assert server.task(run_id, "e")["status"] in LIVE
    return seen
