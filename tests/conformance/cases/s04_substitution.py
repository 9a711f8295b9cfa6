"""Section 4: ${...} expressions, templates, secrets and environment (rules 50-69)."""

from __future__ import annotations

from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    ok,
    pick,
    rule,
    simple,
    step,
    task_def,
    workflow,
)

DATA = {
    "s": "text",
    "n": 5,
    "f": 1.50,
    "big": 12345678901234,
    "t": True,
    "null": None,
    "list": [1, "two", 3.5],
    "map": {"a": 1, "b": {"c": "deep"}},
    "key": "s",
    "items": [
        {"id": 1, "price": 10, "tag": "x"},
        {"id": 2, "price": 20, "tag": "y"},
        {"id": 3, "price": 30.5, "tag": "x"},
    ],
    "numbers": [3, 1, 2.5],
    "odd key": "spaced",
    "dotted.key": "dotted",
    "braces": "a}b{c",
}


def resolved(server: Server, expressions: Json) -> Json:
    """What these become over DATA.

    They are output parameters because registration looks for errors in those of steps.
    """
    server.register(workflow([step("NOOP", "n")], outputParameters=expressions))
    return server.ended(server.start(input=DATA))["output"]


@rule(50)
def expressions_are_resolved_at_any_depth(server: Server) -> Json:
    parameters = {
        "plain": "${workflow.input.s}",
        "list": ["${workflow.input.n}", ["${workflow.input.s}"], {"x": "${workflow.input.t}"}],
        "map": {"x": {"y": "${workflow.input.list}"}},
        "${workflow.input.key}": "key stays",
        "number": 7,
        "none": None,
        "text": "no expression",
    }
    run_id = server.launch([simple("a", parameters)], DATA)
    seen = server.task(run_id, "a")["inputData"]
    assert seen == resolved(server, parameters)
    assert seen["list"] == [5, ["text"], {"x": True}]
    assert "${workflow.input.key}" in seen
    return seen


@rule(50)
def expressions_in_output_and_sub_workflow_parameters(server: Server) -> Json:
    server.register({**workflow([simple("c")], "~child"), "version": 2})
    sub = {"name": "${workflow.input.child}", "version": 2}
    server.register(
        workflow(
            [
                step("SUB_WORKFLOW", "s", {"x": "${workflow.input.n}"}, subWorkflowParam=sub),
            ],
            outputParameters={
                "whole": "${s.output}",
                "text": "n is ${s.output.n}",
                "nested": {"l": ["${workflow.input.n}"]},
                "missing": "${s.output.nothing}",
            },
        )
    )
    run_id = server.start(input={"child": "~child", "n": 4})
    child = server.work("~c", {"n": 9})
    run = server.ended(run_id)
    assert run["output"]["text"] == "n is 9"
    return [run["output"], server.run(child["workflowInstanceId"])["input"]]


@rule(51, 62)
def a_whole_expression_keeps_its_type(server: Server) -> Json:
    seen = resolved(
        server, {name: f"${{workflow.input.{name}}}" for name in DATA if "." not in name}
    )
    assert seen["map"] == DATA["map"]
    assert seen["t"] is True
    return seen


@rule(52, 53, 54, 62)
def an_embedded_expression_becomes_text(server: Server) -> Json:
    names = ("s", "n", "f", "big", "t", "null", "list", "map", "items", "nothing")
    parameters: dict[str, Json] = {name: f"<${{workflow.input.{name}}}>" for name in names}
    parameters["several"] = "${workflow.input.s}-${workflow.input.n}, ${workflow.input.t}"
    parameters["adjacent"] = "${workflow.input.s}${workflow.input.n}"
    parameters["leading space"] = " ${workflow.input.n}"
    seen = resolved(server, parameters)
    assert seen["several"] == "text-5, true"
    assert seen["map"] == "<{a=1, b={c=deep}}>"
    assert seen["nothing"] == "<null>"
    return seen


@rule(53, 55)
def missing_and_blank_expressions(server: Server) -> Json:
    parameters = {
        "missing": "${workflow.input.nothing.at.all}",
        "missing task": "${other.output.x}",
        "missing root": "${nothing}",
        "missing field": "${workflow.nothing}",
        "index out of range": "${workflow.input.list[9]}",
        "empty": "${}",
        "blank": "${  }",
        "blank inside": "<${  }>",
        "spaces": "${ workflow.input.s }",
    }
    seen = resolved(server, parameters)
    assert seen["missing"] is None
    assert (seen["empty"], seen["blank"]) == ("", "")
    return seen


@rule(56, 57)
def nested_and_escaped_expressions(server: Server) -> Json:
    parameters = {
        "inner": "${workflow.input.${workflow.input.key}}",
        "inner text": "<${workflow.input.${workflow.input.key}}>",
        "escaped": "$${workflow.input.s}",
        "escaped inside": "a $${workflow.input.s} b ${workflow.input.s}",
        "escaped with inner": "$${${workflow.input.key}}",
        "unterminated": "${workflow.input.s",
        "unterminated later": "${workflow.input.s} and ${workflow",
        "stray close": "a } b",
        "stray open": "a { b",
        "dollar": "costs $5 $ $$",
        "braces around": "{${workflow.input.n}}",
        "quoted brace": "${workflow.input.items[?(@.tag == '}')]}",
        "value with braces": "${workflow.input.braces}!",
    }
    seen = resolved(server, parameters)
    assert seen["inner"] == "text"
    assert seen["escaped"] == "${workflow.input.s}"
    assert seen["unterminated"] == "${workflow.input.s"
    return seen


@rule(58)
def paths_are_json_paths(server: Server) -> Json:
    paths = {
        "index": "list[0]",
        "last": "list[-1]",
        "slice": "list[0:2]",
        "several": "list[0,2]",
        "wildcard": "items[*].id",
        "map wildcard": "map.*",
        "deep": "items..price",
        "bracket": "['odd key']",
        "bracket dotted": "['dotted.key']",
        "double quotes": '["odd key"]',
        "filter equal": "items[?(@.tag == 'x')].id",
        "filter less": "items[?(@.price < 25)].id",
        "filter and": "items[?(@.price > 5 && @.tag == 'x')].id",
        "filter in": "items[?(@.tag in ['y'])].id",
        "filter regex": "items[?(@.tag =~ /X/i)].id",
        "filter exists": "items[?(@.nothing)].id",
        "length": "items.length()",
        "min": "numbers.min()",
        "max": "numbers.max()",
        "sum": "numbers.sum()",
        "avg": "numbers.avg()",
        "stddev": "numbers.stddev()",
        "first": "numbers.first()",
        "last function": "numbers.last()",
        "index function": "numbers.index(1)",
        "min over several": "items[*].price.min()",
        "length over several": "items[*].price.length()",
        "length of text": "s.length()",
        "length of a map": "map.length()",
        "keys": "map.keys()",
        "no index": "items.id",
        "error": "list[?(",
        "text index": "s[0]",
    }
    parameters = {
        name: "${workflow.input" + ("" if path.startswith("[") else ".") + path + "}"
        for name, path in paths.items()
    }
    seen = resolved(server, parameters)
    assert seen["wildcard"] == [1, 2, 3]
    assert seen["filter equal"] == [1, 3]
    assert seen["error"] is None
    return seen


@rule(59, 61)
def a_task_is_a_root_key_by_its_reference_name(server: Server) -> Json:
    fields = [
        "input",
        "output",
        "taskType",
        "status",
        "referenceTaskName",
        "retryCount",
        "correlationId",
        "pollCount",
        "taskDefName",
        "workflowInstanceId",
        "taskId",
        "reasonForIncompletion",
        "callbackAfterSeconds",
        "workerId",
        "iteration",
        "seq",
        "nothing",
    ]
    times = ("scheduledTime", "startTime", "endTime")
    parameters: dict[str, Json] = {name: f"${{a.{name}}}" for name in (*fields, *times)}
    parameters["deep"] = "${a.output.x.y[1]}"
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch(
        [simple("a", {"p": 1}), simple("b", parameters)], request={"correlationId": "~c"}
    )
    server.work("~a", {"x": {"y": [1]}}, "FAILED")
    server.work("~a", {"x": {"y": [1, 2]}}, workerId="~worker", reasonForIncompletion="why")
    seen = server.task(run_id, "b")["inputData"]
    # The newest attempt wins.
    assert (seen["retryCount"], seen["deep"]) == (1, 2)
    return seen


@rule(59)
def the_loop_suffix_is_stripped_in_references(server: Server) -> Json:
    loop = step(
        "DO_WHILE",
        "l",
        loopCondition="$.l['iteration'] < 2",
        loopOver=[
            simple("a", {"round": "${l.output.iteration}"}),
            simple("b", {"n": "${a.output.n}"}),
        ],
    )
    run_id = server.launch([loop, simple("c", {"last": "${a.output.n}", "b": "${b.iteration}"})])
    for number in (1, 2):
        server.work("~a", {"n": number})
        server.work("~b")
    seen = [last_task(server.run(run_id), ref)["inputData"] for ref in ("b__1", "b__2", "c")]
    assert seen == [{"n": 1}, {"n": 2}, {"last": 2, "b": 2}]
    return seen


@rule(60)
def fields_of_the_workflow(server: Server) -> Json:
    fields = [
        "input",
        "output",
        "status",
        "workflowId",
        "parentWorkflowId",
        "parentWorkflowTaskId",
        "workflowType",
        "version",
        "correlationId",
        "reasonForIncompletion",
        "schemaVersion",
        "variables",
        "priority",
        "createTime",
    ]
    parameters = {name: f"${{workflow.{name}}}" for name in fields}
    server.register(
        {**workflow([simple("a", parameters)], "~child", variables={"v": 1}), "version": 3}
    )
    run_id = server.start("~child", {"i": 1}, correlationId="~c")
    top = server.task(run_id, "a")["inputData"]
    assert (top["workflowId"], top["version"]) == (run_id, 3)
    parent = server.launch(
        [step("SUB_WORKFLOW", "s", {"i": 2}, subWorkflowParam={"name": "~child"})]
    )
    sub = server.until(
        lambda: next(
            (
                task
                for task in [server.poll("~a"), server.poll("~a")]
                if task and task["workflowInstanceId"] != run_id
            ),
            None,
        )
    )["inputData"]
    assert sub["parentWorkflowId"] == parent
    return [top, sub]


@rule(63)
def the_task_id_is_known_to_its_own_input(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a", {"id": "${CPEWF_TASK_ID}", "t": "id=${CPEWF_TASK_ID}"})])
    server.work("~a", status="FAILED")
    tasks = server.run(run_id)["tasks"]
    assert [task["inputData"]["id"] for task in tasks] == [task["taskId"] for task in tasks]
    return [[task["taskId"], task["inputData"]] for task in tasks]


@rule(63, difference="the environment of the server is not readable by definitions")
def the_servers_environment_is_not_leaked(server: Server) -> Json:
    parameters = {"env": "${PATH}", "user": "${HOME}"}
    seen = {name: value is not None for name, value in resolved(server, parameters).items()}
    assert seen == dict.fromkeys(parameters, not server.is_ours)
    return seen


@rule(64, recorded=True)
def environment_values_are_resolved(server: Server) -> Json:
    parameters = {
        "whole": "${workflow.env.CONFORMANCE}",
        "text": "<${workflow.env.CONFORMANCE}>",
        "json": "${workflow.env.CONFORMANCE_JSON}",
        "path": "${workflow.env.CONFORMANCE_JSON.a.b}",
        "missing": "${workflow.env.NOTHING}",
        "missing text": "<${workflow.env.NOTHING}>",
        "all": "${workflow.env}",
    }
    seen = resolved(server, parameters)
    assert seen["whole"] == "from-env"
    return seen


@rule(65, recorded=True)
def secrets_are_resolved_in_a_workers_hands_only(server: Server) -> Json:
    parameters = {
        "whole": "${workflow.secrets.CONFORMANCE}",
        "text": "<${workflow.secrets.CONFORMANCE}>",
        "missing": "${workflow.secrets.NOTHING}",
        "missing text": "<${workflow.secrets.NOTHING}>",
        "deep": {"l": ["${workflow.secrets.CONFORMANCE}"]},
    }
    run_id = server.launch([simple("a", parameters)])
    polled = server.take("~a")["inputData"]
    stored = server.task(run_id, "a")["inputData"]
    assert polled["whole"] == "from-secret"
    assert stored["whole"] == "${workflow.secrets.CONFORMANCE}"
    return [polled, stored]


@rule(66, recorded=True)
def runtime_metadata_is_given_to_the_worker_only(server: Server) -> Json:
    names = ["CONFORMANCE", "CONFORMANCE_JSON", "NOTHING"]
    server.register(task_def("~a", runtimeMetadata=names))
    run_id = server.launch([simple("a")])
    polled = server.take("~a")
    stored = server.task(run_id, "a")
    assert polled["runtimeMetadata"]["CONFORMANCE"] == "from-secret"
    return [polled["runtimeMetadata"], "runtimeMetadata" in stored]


@rule(66)
def runtime_metadata_that_is_unknown_is_left_out(server: Server) -> Json:
    server.register(task_def("~a", runtimeMetadata=["NOTHING"]))
    server.launch([simple("a")])
    return pick(server.take("~a"), "runtimeMetadata", "inputData")


@rule(65)
def an_unknown_secret_is_null_or_empty_text(server: Server) -> Json:
    parameters = {"whole": "${workflow.secrets.NOTHING}", "text": "<${workflow.secrets.NOTHING}>"}
    run_id = server.launch([simple("a", parameters)])
    stored = server.task(run_id, "a")["inputData"]
    polled = server.take("~a")["inputData"]
    assert stored == parameters
    return [stored, polled]


@rule(67)
def the_input_template_of_a_task_fills_absent_and_null_keys(server: Server) -> Json:
    template = {
        "absent": "t1",
        "null": "t2",
        "given": "t3",
        "expression": "${workflow.input.n}",
        "map": {"x": 1},
    }
    server.register(task_def("~a", inputTemplate=template))
    parameters = {
        "null": "${workflow.input.nothing}",
        "given": "mine",
        "map": {"y": 2},
        "extra": "${workflow.input.nothing}",
    }
    run_id = server.launch([simple("a", parameters)], {"n": 5})
    seen = server.task(run_id, "a")["inputData"]
    assert (seen["absent"], seen["null"], seen["given"]) == ("t1", "t2", "mine")
    return seen


@rule(68)
def inputs_are_computed_when_a_task_is_scheduled(server: Server) -> Json:
    branches = [
        [simple("a", {"v": "${workflow.variables.v}", "b": "${b.output.n}"})],
        [simple("b"), step("SET_VARIABLE", "v", {"v": 2})],
    ]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    join = step("JOIN", "j", joinOn=["a", "v"])
    run_id = server.launch([fork, join], variables={"v": 1})
    server.work("~b", {"n": 5})
    assert server.run(run_id)["variables"] == {"v": 2}
    seen = server.take("~a")["inputData"]
    assert seen == {"v": 1, "b": None}
    return seen


@rule(69)
def schema_version_1_is_refused(server: Server) -> Json:
    answer = server.post("/metadata/workflow", {**workflow([simple("a")]), "schemaVersion": 1})
    assert answer.status == 400
    return [answer, ok(server.post("/metadata/workflow", workflow([simple("a")]))).status]
