"""SWITCH and DECISION (rules 136-142)."""

from __future__ import annotations

from tests.conformance.harness import Json, Server, rule, simple, statuses, step, task_def
from tests.conformance.steps import inline, names, outcome, shown, switch, task_named

LAST = inline("z", "9")
CASES = {
    "k": [inline("k1", "1"), inline("k2", "2")],
    "1": [inline("one", "1")],
    "1.0": [inline("dot", "1")],
    "1.5": [inline("half", "1")],
    "true": [inline("yes", "1")],
    "null": [inline("none", "1")],
    "{a=1}": [inline("map", "1")],
    "[1, 2]": [inline("list", "1")],
    "": [inline("blank", "1")],
    "empty": [],
}
DEFAULT = [inline("d", "0")]


def branch_of(server: Server, value: Json) -> Json:
    return outcome(server, [switch(CASES, DEFAULT), LAST], {"v": value})


@rule(136, 139, 140)
def a_switch_shows_its_case_in_input_and_output(server: Server) -> Json:
    seen = branch_of(server, "k")
    task = task_named(seen, "s")
    assert task["inputData"] == {"v": "k", "case": "k", "hasChildren": "true"}
    assert task["outputData"] == {"evaluationResult": ["k"], "selectedCase": "k"}
    assert names(seen) == ["s", "k1", "k2", "z"]
    return seen


def chain(server: Server, chosen: list[Json], input: Json = None) -> tuple[Json, list[str]]:
    """Run switches one after the other; the run, and for each the branch it took ("" = none)."""
    seen = outcome(
        server, [*(own_names(task, f"{n}") for n, task in enumerate(chosen)), LAST], input
    )
    assert seen["status"] == "COMPLETED", seen
    taken = {name.partition("-")[0]: name.partition("-")[2] for name in names(seen)}
    return seen, [taken[f"{n}"].removeprefix("s") for n in range(len(chosen))]


def own_names(task: Json, prefix: str) -> Json:
    """The switch with the reference names of all its steps made unique."""
    renamed = [{**step, "taskReferenceName": f"{prefix}-{step['name']}"} for step in DEFAULT]
    return {
        **task,
        "taskReferenceName": f"{prefix}-s",
        "defaultCase": renamed,
        "decisionCases": {
            key: [{**step, "taskReferenceName": f"{prefix}-{step['name']}"} for step in steps[:1]]
            for key, steps in CASES.items()
        },
    }


@rule(137, 139, 141)
def the_case_is_the_text_of_the_value(server: Server) -> Json:
    taken = {
        "K": "d",
        " k": "d",
        1: "one",
        1.5: "half",
        "1": "one",
        "1.0": "dot",
        False: "d",
        "": "blank",
        10000000000: "d",
    }
    values = [*taken, 1.0, True, None, {"a": 1}, [1, 2]]
    expected = [*taken.values(), "dot", "yes", "none", "map", "list"]
    seen, branches = chain(server, [switch({}, input={"v": value}) for value in values])
    assert branches == expected
    return seen


@rule(137)
def a_missing_parameter_is_the_text_null(server: Server) -> Json:
    missing = outcome(server, [switch(CASES, DEFAULT), LAST])
    unknown = outcome(server, [switch(CASES, DEFAULT, expression="nosuch"), LAST])
    assert names(missing)[1] == names(unknown)[1] == "none"
    return [missing, unknown]


@rule(137, 141)
def a_script_chooses_the_case(server: Server) -> Json:
    scripts = {
        "'k'": "k1",
        "$.v": "k1",
        "(function () { return $.v })()": "k1",
        "if ($.v == 'k') { 'k' } else { 'x' }": "k1",
        "10 / 10": "one",
        "3 / 2": "half",
        "true": "yes",
        "null": "none",
        "undefined": "none",
        "({a: 1})": "map",
        "[1, 2]": "list",
        "''": "blank",
        "0 / 0": "d",
    }
    chosen = [
        switch({}, evaluatorType="javascript", expression=script, input={"v": "k"})
        for script in scripts
    ]
    seen, branches = chain(server, chosen)
    assert branches == list(scripts.values())
    return seen


@rule(137)
def graaljs_is_javascript(server: Server) -> Json:
    chosen = switch(CASES, DEFAULT, evaluatorType="graaljs", expression="$.v + ''")
    seen = outcome(server, [chosen, LAST], {"v": "k"})
    assert names(seen) == ["s", "k1", "k2", "z"]
    return seen


@rule(138)
def an_unknown_evaluator_fails_the_run(server: Server) -> Json:
    seen = outcome(server, [switch(CASES, DEFAULT, evaluatorType="nosuch"), LAST], {"v": "k"})
    assert seen["status"] == "FAILED"
    assert seen["reasonForIncompletion"] == "No evaluator registered for type: nosuch"
    return seen


@rule(138)
def a_failing_script_fails_the_switch_without_retry(server: Server) -> Json:
    server.register(task_def("~s", retryCount=2, retryDelaySeconds=0))
    seen = {}
    for script in ("throw 'bad'", "nosuch.x"):
        chosen = switch(
            CASES, evaluatorType="javascript", expression=script, retryCount=2, name="~s"
        )
        seen[script] = outcome(server, [chosen, LAST], {"v": "k"})
        assert [task["status"] for task in seen[script]["tasks"]] == ["FAILED"]
        assert seen[script]["failed"] == [["s"], ["SWITCH"]]
    return seen


@rule(138)
def a_failing_switch_may_be_optional_or_permissive(server: Server) -> Json:
    seen = {}
    for kind in ("optional", "permissive"):
        chosen = switch(CASES, evaluatorType="javascript", expression="throw 'bad'")
        seen[kind] = outcome(server, [{**chosen, kind: True}, LAST], {"v": "k"})
        assert names(seen[kind]) == ["s", "z"]
    assert [seen[kind]["status"] for kind in seen] == ["COMPLETED", "FAILED"]
    return seen


@rule(138)
def a_script_that_cannot_be_parsed_is_refused(server: Server) -> Json:
    chosen = switch(CASES, evaluatorType="javascript", expression="if (")
    seen = outcome(server, [chosen])
    assert seen["refused"] == 400
    # What comes between is the text of the script engine.
    (text,) = seen["texts"]
    assert text.startswith("Expression is not well formatted: ")
    assert text.endswith(", taskType: SWITCH taskName s")
    return [seen["refused"], text.partition(":")[0], text.rpartition(",")[2]]


@rule(139)
def an_empty_case_runs_nothing(server: Server) -> Json:
    seen = [
        branch_of(server, "empty"),
        outcome(server, [switch({"x": [simple("a")]}), LAST], {"v": "nomatch"}),
    ]
    for run in seen:
        assert names(run) == ["s", "z"]
        assert "hasChildren" not in task_named(run, "s")["inputData"]
    return seen


@rule(140, 216)
def a_switch_may_be_the_last_step(server: Server) -> Json:
    seen = [
        outcome(server, [inline("a", "1"), switch({"k": [inline("b", "2")]})], {"v": "k"}),
        outcome(server, [inline("a", "1"), switch({"k": [inline("b", "2")]})], {"v": "x"}),
    ]
    assert seen[0]["output"] == {"result": 2}
    assert seen[1]["output"] == {"evaluationResult": ["x"], "selectedCase": "x"}
    return seen


@rule(140)
def branches_go_one_by_one_also_when_nested(server: Server) -> Json:
    inner = switch({"y": [simple("a"), simple("b")]}, reference="t", input={"v": "y"})
    run_id = server.launch([switch({"k": [inner, simple("c")]}), simple("z")], {"v": "k"})
    seen = [statuses(server.run(run_id))]
    for name in "abcz":
        server.work(f"~{name}", {name: 1})
        seen.append(statuses(server.run(run_id)))
    assert list(seen[0]) == ["s", "t", "a"]
    assert list(seen[-1]) == ["s", "t", "a", "b", "c", "z"]
    return [seen, shown(server.ended(run_id))]


def decision(value: Json = "k", **fields: Json) -> Json:
    return step("DECISION", "s", {"v": value}, decisionCases=CASES, defaultCase=DEFAULT, **fields)


@rule(142)
def a_decision_takes_a_value_or_a_script(server: Server) -> Json:
    values = {"k": "k1", "nomatch": "d", "empty": "d", None: "none", 1: "one", "true": "yes"}
    scripts = {
        "$.v": "k1",
        "if ($.v == 'k') { 'k' } else { 'x' }": "k1",
        "1": "one",
        "null": "none",
        "true": "yes",
    }
    chosen = [decision(value, caseValueParam="v") for value in values]
    chosen += [decision(caseExpression=script, caseValueParam="other") for script in scripts]
    seen, branches = chain(server, chosen)
    assert branches == [*values.values(), *scripts.values()]
    first = task_named(seen, "0-s")
    assert first["inputData"] == {"case": "k", "hasChildren": "true"}
    assert first["outputData"] == {"caseOutput": ["k"]}
    return seen


@rule(142)
def a_failing_decision_script_fails_the_run(server: Server) -> Json:
    seen = outcome(server, [decision(caseExpression="nosuch.x"), LAST])
    assert seen["status"] == "FAILED"
    assert seen["reasonForIncompletion"] == "Error while evaluating script: nosuch.x"
    return seen
