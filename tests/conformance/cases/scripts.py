"""INLINE, LAMBDA and JSON_JQ_TRANSFORM (rules 203-207)."""

from __future__ import annotations

from tests.conformance.harness import Json, Server, rule, step, task_def
from tests.conformance.steps import inline, names, outcome, shown, task_named

LAST = inline("z", "9")
VALUES: Json = {"p": 1, "l": [1, 2, 3], "o": {"a": 7, "b": "t"}}


def results(server: Server, scripts: Json) -> Json:
    """The result of each script, all run in one workflow."""
    tasks = [inline(f"i{n}", script, **VALUES) for n, script in enumerate(scripts)]
    seen = outcome(server, tasks)
    assert seen["status"] == "COMPLETED", seen
    return [[script, task_named(seen, f"i{n}")["outputData"]] for n, script in enumerate(scripts)]


@rule(203, 205)
def results_of_scripts_keep_their_type(server: Server) -> Json:
    expected: Json = {
        "1 + 1": 2,
        "1.5": 1.5,
        "3.0": 3,
        "10 / 4": 2.5,
        "12345678901": 12345678901,
        "'a'": "a",
        "true": True,
        "null": None,
        "undefined": None,
        "[]": [],
        "({})": {},
        "[1, 'a', null, undefined, [2]]": [1, "a", None, None, [2]],
        "({a: 1, b: [1, {c: null}], u: undefined})": {"a": 1, "b": [1, {"c": None}], "u": None},
        "({a: 1.0, b: 2.5})": {"a": 1, "b": 2.5},
        "0 / 0": "NaN",
        "1 / 0": "Infinity",
        "new Map([['a', 1]])": {"a": 1},
        "'é✓'": "é✓",
    }
    seen = results(server, list(expected))
    for script, output in seen:
        assert output == {"result": expected[script]}, script
    return seen


@rule(203, 205)
def scripts_are_written_in_many_ways(server: Server) -> Json:
    expected: Json = {
        "(function () { return {x: $.p}; })()": {"x": 1},
        "function f() { return 5; } f()": 5,
        "((x) => x + 1)(2)": 3,
        "let a = 1; a": 1,
        "const b = 2; b + 1": 3,
        "if ($.p == 1) { 'one' } else { 'two' }": "one",
        "JSON.stringify({a: $.p})": '{"a":1}',
        "/a/.test('a')": True,
        "Math.max(1, 2)": 2,
        "typeof Date.now()": "number",
        "[[1], [2, [3]]]": [[1], [2, [3]]],
    }
    seen = results(server, list(expected))
    for script, output in seen:
        assert output == {"result": expected[script]}, script
    return seen


@rule(203, 205)
def a_script_sees_its_input_as_dollar(server: Server) -> Json:
    expected: Json = {
        "$.p": 1,
        "$.p === 1": True,
        "$.o.a": 7,
        "$.o['b']": "t",
        "$.o.nosuch": None,
        "$.l[1]": 2,
        "$.l.length": 3,
        "$.l.map(function (x) { return x * 2; })": [2, 4, 6],
        "$.l.concat([7])": [1, 2, 3, 7],
        "[...$.l]": [1, 2, 3],
        "Array.isArray($.l)": True,
        "var t = 0; for (var x of $.l) t += x; t": 6,
        "var t = ''; for (var x in $.o) t += x; t": "ab",
        "'a' + $.p + $.o.a": "a17",
        "$.expression.length": 19,
    }
    seen = results(server, list(expected))
    for script, output in seen:
        assert output == {"result": expected[script]}, script
    return seen


@rule(205)
def a_script_changes_a_copy_of_its_input(server: Server) -> Json:
    tasks = [
        inline("a", "$.o.a = 5; $.l.push(9); [$.o.a, $.l]", **VALUES),
        inline("b", "1", o="${workflow.input.o}"),
    ]
    seen = outcome(server, tasks, VALUES)
    assert task_named(seen, "a")["outputData"] == {"result": [5, [1, 2, 3, 9]]}
    assert task_named(seen, "a")["inputData"]["o"] == {"a": 7, "b": "t"}
    assert task_named(seen, "b")["inputData"]["o"] == {"a": 7, "b": "t"}
    return seen


@rule(
    205,
    difference="the input is a plain JavaScript object: `in`, hasOwnProperty, Object.keys and "
    "JSON.stringify see its keys; on the real server it is a host map that hides them",
)
def the_input_is_a_plain_object(server: Server) -> Json:
    scripts = ["JSON.stringify($.o)", "'a' in $.o", "$.o.hasOwnProperty('a')"]
    seen = results(server, scripts)
    found = [output["result"] for _, output in seen]
    if server.is_ours:
        assert found == ['{"a":7,"b":"t"}', True, True]
    else:
        assert found == ["{}", False, False]
    return seen


@rule(203)
def a_failing_script_is_a_terminal_error(server: Server) -> Json:
    server.register(task_def("~i", retryCount=2, retryDelaySeconds=0))
    seen = {}
    for script in ("nosuch", "throw 'x'", "var a = 1;\nvar b = 2;\nnosuch + a"):
        task = {**inline("i", script), "name": "~i", "retryCount": 2}
        run = seen[script] = outcome(server, [task, LAST])
        assert names(run) == ["i"]
        assert task_named(run, "i")["status"] == "FAILED_WITH_TERMINAL_ERROR"
        assert run["output"]["error"] == task_named(run, "i")["reasonForIncompletion"]
    return seen


@rule(203)
def errors_of_any_kind_are_terminal(server: Server) -> Json:
    # Their texts are those of the script engine.
    seen = {}
    for script in ("$.nosuch.a", "if (", "throw {a: 1}", "return 1", "throw new Error('boom')"):
        run = outcome(server, [inline("i", script), LAST])
        task = task_named(run, "i")
        start = "Error evaluating the script `"
        assert task["status"] == "FAILED_WITH_TERMINAL_ERROR", script
        assert task["outputData"]["error"].startswith(start), script
        assert task["reasonForIncompletion"] == task["outputData"]["error"]
        seen[script] = [run["status"], task["status"], run["failed"], start]
    return seen


@rule(203)
def a_script_is_needed(server: Server) -> Json:
    tasks = {
        "none": step("INLINE", "i", {"a": 1}),
        "empty": inline("i", ""),
        "null": inline("i", "${workflow.input.no}"),
        "on the step": {**step("INLINE", "i", {"a": 1}), "expression": "1"},
    }
    seen = {name: outcome(server, [task, LAST]) for name, task in tasks.items()}
    for run in seen.values():
        assert task_named(run, "i")["status"] == "FAILED_WITH_TERMINAL_ERROR"
    return seen


@rule(203)
def evaluators_of_inline(server: Server) -> Json:
    seen = {}
    for kind, script in (
        ("javascript", "$.p"),
        ("graaljs", "$.p"),
        ("value-param", "p"),
        ("nosuch", "1"),
    ):
        seen[kind] = outcome(server, [inline("i", script, evaluatorType=kind, p=7), LAST])
    outputs = [task_named(run, "i")["outputData"].get("result") for run in seen.values()]
    assert outputs == [7, 7, 7, None]
    assert task_named(seen["nosuch"], "i")["status"] == "FAILED_WITH_TERMINAL_ERROR"
    return seen


@rule(203)
def a_failing_script_may_be_optional_or_permissive(server: Server) -> Json:
    seen = {
        kind: outcome(server, [{**inline("i", "nosuch"), kind: True}, LAST])
        for kind in ("optional", "permissive")
    }
    assert [run["status"] for run in seen.values()] == ["COMPLETED", "FAILED"]
    assert names(seen["permissive"]) == ["i", "z"]
    return seen


@rule(203, recorded=True)
def a_script_that_does_not_end_fails(server: Server) -> Json:
    seen = outcome(server, [inline("i", "while (true) {}"), LAST])
    task = task_named(seen, "i")
    assert task["status"] == "FAILED"
    assert task["reasonForIncompletion"] == "Script not evaluated within 4 seconds, interrupted."
    return seen


@rule(203)
def the_script_may_come_from_the_input(server: Server) -> Json:
    seen = outcome(server, [inline("i", "${workflow.input.s}", p=3), LAST], {"s": "$.p + 1"})
    assert task_named(seen, "i")["outputData"] == {"result": 4}
    return seen


@rule(205, 206)
def a_script_reaches_nothing_outside(server: Server) -> Json:
    scripts = ["console.log(1)", "require('fs')", "setTimeout(function () {}, 1)", "print('x')"]
    scripts += ["Java.type('java.lang.System')", "java.lang.System.exit(0)", "load('x')"]
    seen = {}
    for script in scripts:
        run = seen[script] = outcome(server, [inline("i", script)])
        task = task_named(run, "i")
        assert task["status"] == "FAILED_WITH_TERMINAL_ERROR", script
        assert "is not defined" in task["reasonForIncompletion"]
    return seen


# --- LAMBDA ---


def lambda_step(script: Json) -> Json:
    return step("LAMBDA", "i", {"scriptExpression": script, "p": 1})


@rule(204)
def the_script_of_a_lambda_is_the_body_of_a_function(server: Server) -> Json:
    expected: Json = {
        "return 1": 1,
        "return {a: $.p, l: [1, 2]}": {"a": 1, "l": [1, 2]},
        "if ($.p == 1) return 'one'; else return 'two'": "one",
        "1 + 1": None,
        "return": None,
        "return null": None,
    }
    seen = []
    for script, value in expected.items():
        seen.append(outcome(server, [lambda_step(script), LAST]))
        assert task_named(seen[-1], "i")["outputData"] == {"result": value}, script
    return seen


@rule(204)
def a_failing_lambda_is_failed(server: Server) -> Json:
    seen = {
        script: outcome(server, [lambda_step(script), LAST])
        for script in ("throw 'x'", "return nosuch", "")
    }
    seen["none"] = outcome(server, [step("LAMBDA", "i", {"p": 1}), LAST])
    assert {task_named(run, "i")["status"] for run in seen.values()} == {"FAILED"}
    return seen


# --- JSON_JQ_TRANSFORM ---


def query(text: Json, **fields: Json) -> Json:
    given = {"queryExpression": text, "a": 3, "l": [1, 2, 3], "f": 1.5, "o": {"k": 1}}
    return step("JSON_JQ_TRANSFORM", "q", given, **fields)


@rule(207)
def a_query_gives_its_first_result_and_all(server: Server) -> Json:
    expected: Json = {
        ".a": [3],
        "{x: .a, y: (.l | length)}": [{"x": 3, "y": 3}],
        ".l[]": [1, 2, 3],
        ".a, .l": [3, [1, 2, 3]],
        "empty": [],
        ".zz": [None],
        "null": [None],
        "false": [False],
        "keys": [["a", "f", "l", "o", "queryExpression"]],
        ".f": [1.5],
        "10 / 4": [2.5],
        ".a + 1": [4],
        '"t\\(.a)"': ["t3"],
        ".l | map(. + 1)": [[2, 3, 4]],
        ".l | map(select(. > 1))": [[2, 3]],
        "reduce .l[] as $x (0; . + $x)": [6],
        "def f(x): x * 2; f(.a)": [6],
        ".o | to_entries": [[{"key": "k", "value": 1}]],
        '"abc" | test("b")': [True],
        'try error("x") catch .': ["x"],
        ".o | tostring": ['{"k":1}'],
        "[limit(2; .l[])]": [[1, 2]],
    }
    tasks = [{**query(text), "taskReferenceName": f"q{n}"} for n, text in enumerate(expected)]
    seen = outcome(server, [*tasks, LAST])
    for n, (text, values) in enumerate(expected.items()):
        output = task_named(seen, f"q{n}")["outputData"]
        assert output == {"result": values[0] if values else None, "resultList": values}, text
    return seen


@rule(207)
def a_failing_query_fails_its_task(server: Server) -> Json:
    seen = {}
    for text in ('error("boom")', ".o | error(.k | tostring)"):
        run = seen[text] = outcome(server, [query(text), LAST])
        task = task_named(run, "q")
        assert task["status"] == "FAILED"
        assert task["outputData"] == {"error": task["reasonForIncompletion"]}
    return seen


@rule(207)
def a_wrong_query_fails_its_task(server: Server) -> Json:
    # The texts are those of the jq library.
    seen = {}
    for text in (".a |", "nosuch(1)", "$nosuch", ".a.b", "1 / 0"):
        run = outcome(server, [query(text), LAST])
        task = task_named(run, "q")
        assert task["status"] == "FAILED"
        assert task["outputData"] == {"error": task["reasonForIncompletion"]} != {"error": None}
        seen[text] = [run["status"], task["status"], run["failed"]]
    return seen


@rule(207, difference="the environment of a query is empty; jq of the real server has none")
def the_environment_of_a_query_is_empty(server: Server) -> Json:
    seen = [outcome(server, [query(text), LAST]) for text in ("env", "$ENV")]
    for run in seen:
        task = task_named(run, "q")
        if server.is_ours:
            assert task["outputData"] == {"result": {}, "resultList": [{}]}
        else:
            assert task["status"] == "FAILED"
    return seen


@rule(207)
def a_query_is_needed(server: Server) -> Json:
    seen = [
        outcome(server, [step("JSON_JQ_TRANSFORM", "q", {"a": 3})]),
        outcome(server, [query("${workflow.input.no}"), LAST]),
    ]
    assert seen[0]["refused"] == 400
    assert task_named(seen[1], "q")["status"] == "FAILED"
    return seen


@rule(207)
def a_failing_query_is_retried_and_may_be_optional(server: Server) -> Json:
    # Without a definition of its own the retry would come after 60 s.
    server.register(task_def("~q", retryCount=1, retryDelaySeconds=0))
    seen = [
        outcome(server, [query('error("x")', name="~q"), LAST]),
        outcome(server, [query('error("x")', optional=True), LAST]),
    ]
    assert names(seen[0]) == ["q", "q"]
    assert names(seen[1]) == ["q", "z"]
    return seen


@rule(203, 207)
def scripts_and_queries_feed_each_other(server: Server) -> Json:
    tasks = [
        inline("i", "({l: [3, 1, 2], k: $.k})", k="${workflow.input.k}"),
        step(
            "JSON_JQ_TRANSFORM",
            "q",
            {"queryExpression": ".v.l | sort", "v": "${i.output.result}"},
        ),
        inline("j", "$.s[0] + $.k", s="${q.output.result}", k="${i.output.result.k}"),
    ]
    run = shown(server.ended(server.launch(tasks, {"k": 10})))
    assert run["output"] == {"result": 11}
    return run
