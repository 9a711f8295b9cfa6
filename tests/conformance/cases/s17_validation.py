"""Section 17: which definitions are refused, and with which words (rules 277-285)."""

from __future__ import annotations

from tests.conformance.harness import (
    Answer,
    Json,
    Server,
    ok,
    pick,
    rule,
    simple,
    step,
    task_def,
    workflow,
)


def errors(answer: Answer) -> Json:
    """What a 400 of the bean validation says; its shape is checked here."""
    assert answer.status == 400, answer
    body = answer.body
    assert sorted(body) == ["message", "retryable", "status", "validationErrors"]
    assert body["message"] == "Validation failed, check below errors for detail."
    assert [body["status"], body["retryable"]] == [400, False]
    # The real server names them in the order of a hash set.
    return sorted(body["validationErrors"], key=str)


def refused(server: Server, definitions: dict[str, Json], *accepted: str) -> Json:
    """What is said about each of these workflow definitions: all bad, but for those named."""
    said = {}
    for name, definition in definitions.items():
        answer = server.post("/metadata/workflow/validate", definition)
        said[name] = [] if answer.status == 200 else errors(answer)
    assert [name for name, found in said.items() if not found] == list(accepted)
    return said


def steps(**made: Json) -> dict[str, Json]:
    """Definitions of one step each, by name."""
    return {
        name: workflow(found if isinstance(found, list) else [found])
        for name, found in made.items()
    }


@rule(277)
def fields_that_a_workflow_needs(server: Server) -> Json:
    good = workflow([simple("a")])
    without_name = {key: value for key, value in good.items() if key != "name"}
    return refused(
        server,
        {
            "no name": without_name,
            "null name": {**good, "name": None},
            "empty name": {**good, "name": ""},
            "no tasks": {"name": "~w"},
            "empty tasks": {**good, "tasks": []},
            "nothing": {},
            "schema 1": {**good, "schemaVersion": 1},
            "schema 3": {**good, "schemaVersion": 3},
        },
    )


@rule(277, 284)
def what_a_workflow_may_be(server: Server) -> Json:
    definitions = {
        "no owner": workflow([simple("a")]),
        "an odd name": workflow([simple("a")], "~ with blank/and:more"),
        "tasks that nobody defined": workflow([simple("a", name="~nobody"), step("~odd", "b")]),
        "no version": {"name": "~v", "tasks": [simple("a")]},
        "unknown fields": workflow([simple("a", nothing=1)], unheard={"of": 1}),
    }
    answers = {
        name: server.post("/metadata/workflow/validate", definition)
        for name, definition in definitions.items()
    }
    assert all(answer.status == 200 for answer in answers.values())
    return answers


@rule(278)
def reference_names_are_unique_at_every_depth(server: Server) -> Json:
    case = step("SWITCH", "s", {"v": 1}, evaluatorType="value-param", expression="v")
    loop = step("DO_WHILE", "l", loopCondition="false")
    fork = [step("FORK_JOIN", "f"), step("JOIN", "j", joinOn=["b"])]
    return refused(
        server,
        steps(
            twice=[simple("a"), simple("a")],
            thrice=[simple("a"), simple("a"), simple("a")],
            two=[simple("a"), simple("a"), simple("b"), simple("b")],
            case=[simple("a"), {**case, "decisionCases": {"x": [simple("a")]}}],
            default=[
                simple("a"),
                {**case, "decisionCases": {"x": [simple("b")]}, "defaultCase": [simple("a")]},
            ],
            loop=[simple("a"), {**loop, "loopOver": [simple("a")]}],
            itself=[{**loop, "loopOver": [simple("l")]}],
            fork=[simple("a"), {**fork[0], "forkTasks": [[simple("b")], [simple("a")]]}, fork[1]],
            branches=[{**fork[0], "forkTasks": [[simple("a")], [simple("a")]]}, fork[1]],
            deep=[
                simple("a"),
                {
                    **fork[0],
                    "forkTasks": [
                        [{**loop, "loopOver": [{**case, "defaultCase": [simple("a")]}]}],
                        [simple("b")],
                    ],
                },
                fork[1],
            ],
        ),
    )


@rule(279)
def inputs_name_known_steps_only(server: Server) -> Json:
    return refused(
        server,
        steps(
            unknown=simple("a", {"x": "${nothing.output.y}"}),
            two=simple("a", {"x": "${nothing.output.y} and ${neither.input.z}"}),
            nested=simple("a", {"x": {"y": [{"z": "${nothing.output.y}"}]}}),
            later=[simple("a", {"x": "${c.output.y}"}), simple("b")],
            blank=simple("a", {"x": "${}"}),
            path=simple("a", {"x": "${a.output.y[?(}"}),
        ),
    )


@rule(279)
def inputs_that_are_not_checked(server: Server) -> Json:
    bad = {"x": "${nothing.output.y}"}
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a", bad)], [simple("b")]])
    definitions = steps(
        later=[simple("a", {"x": "${b.output.y}"}), simple("b")],
        itself=simple("a", {"x": "${a.output.y}"}),
        field=simple("a", {"x": "${workflow.nothing}"}),
        inside=[fork, step("JOIN", "j", joinOn=["a", "b"])],
        loop=step("DO_WHILE", "l", loopCondition="false", loopOver=[simple("a", bad)]),
        text=simple("a", {"x": "$nothing {x} ${workflow.input.x"}),
    )
    definitions["output"] = workflow([simple("a")], outputParameters=bad)
    answers = {
        name: server.post("/metadata/workflow/validate", definition)
        for name, definition in definitions.items()
    }
    assert all(answer.status == 200 for answer in answers.values()), answers
    return answers


@rule(280)
def fields_that_a_step_needs(server: Server) -> Json:
    return refused(
        server,
        steps(
            nothing={},
            no_name={"taskReferenceName": "a"},
            no_reference={"name": "~a"},
            empty=simple("a", name="", taskReferenceName=""),
            delay=simple("a", startDelay=-1),
            inside=step("DO_WHILE", "l", loopCondition="false", loopOver=[{"name": "~a"}]),
            several=[{"name": "~a"}, {"taskReferenceName": "b"}],
        ),
        # Steps within steps need them as well, but nobody looks.
        "inside",
    )


@rule(281)
def fields_of_events_decisions_and_switches(server: Server) -> Json:
    value = {"evaluatorType": "value-param", "expression": "v"}
    cases = {"decisionCases": {"x": [simple("b")]}}
    return refused(
        server,
        steps(
            event=step("EVENT", "e"),
            decision=step("DECISION", "d"),
            decision_cases=step("DECISION", "d", caseValueParam="v"),
            decision_param=step("DECISION", "d", **cases),
            switch=step("SWITCH", "s"),
            switch_cases=step("SWITCH", "s", **value),
            switch_expression=step("SWITCH", "s", evaluatorType="javascript", **cases),
            switch_evaluator=step("SWITCH", "s", expression="v", **cases),
        ),
    )


@rule(281)
def fields_of_forks_and_joins(server: Server) -> Json:
    join = step("JOIN", "j")
    both = {"dynamicForkTasksParam": "t", "dynamicForkTasksInputParamName": "i"}
    return refused(
        server,
        steps(
            fork=[step("FORK_JOIN", "f"), join],
            empty=[step("FORK_JOIN", "f", forkTasks=[]), join],
            dynamic=[step("FORK_JOIN_DYNAMIC", "f"), join],
            tasks_only=[step("FORK_JOIN_DYNAMIC", "f", dynamicForkTasksParam="t"), join],
            inputs_only=[step("FORK_JOIN_DYNAMIC", "f", dynamicForkTasksInputParamName="i"), join],
            mixed=[step("FORK_JOIN_DYNAMIC", "f", dynamicForkJoinTasksParam="d", **both), join],
        ),
    )


@rule(281)
def fields_of_loops_sub_workflows_and_dynamic_tasks(server: Server) -> Json:
    return refused(
        server,
        steps(
            loop=step("DO_WHILE", "l"),
            loop_condition=step("DO_WHILE", "l", loopOver=[simple("a")]),
            loop_over=step("DO_WHILE", "l", loopCondition="true"),
            loop_empty=step("DO_WHILE", "l", loopCondition="true", loopOver=[]),
            sub=step("SUB_WORKFLOW", "s"),
            sub_nothing=step("SUB_WORKFLOW", "s", subWorkflowParam={}),
            dynamic=step("DYNAMIC", "d"),
        ),
        "sub_nothing",
    )


@rule(281)
def fields_of_system_tasks(server: Server) -> Json:
    date = "2030-01-01"
    return refused(
        server,
        steps(
            http=step("HTTP", "h"),
            http_uri=step("HTTP", "h", {"method": "GET"}),
            terminate=step("TERMINATE", "t"),
            terminate_status=step("TERMINATE", "t", {"terminationStatus": "RUNNING"}),
            terminate_optional=step(
                "TERMINATE", "t", {"terminationStatus": "COMPLETED"}, optional=True
            ),
            kafka=step("KAFKA_PUBLISH", "k"),
            jq=step("JSON_JQ_TRANSFORM", "q"),
            wait_both=step("WAIT", "w", {"duration": "1s", "until": date}),
            wait_duration=step("WAIT", "w", {"duration": "soon"}),
            wait_until=step("WAIT", "w", {"until": "soon"}),
        ),
        "http_uri",
    )


@rule(281)
def system_tasks_that_are_accepted(server: Server) -> Json:
    server.register(task_def("~http", inputTemplate={"http_request": {"uri": "u"}}))
    definitions = steps(
        http=step("HTTP", "h", {"http_request": {"uri": "u", "method": "GET"}}),
        http_flat=step("HTTP", "h", {"uri": "u", "method": "GET"}),
        terminate_expression=step("TERMINATE", "t", {"terminationStatus": "${workflow.input.s}"}),
        wait=step("WAIT", "w"),
        wait_expression=step("WAIT", "w", {"duration": "${workflow.input.d}"}),
        human=step("HUMAN", "h"),
        join=[
            step("FORK_JOIN", "f", forkTasks=[[simple("a")]]),
            step("JOIN", "j", joinOn=["unknown"]),
        ],
        fork_alone=step("FORK_JOIN", "f", forkTasks=[[simple("a")]]),
    )
    answers = {
        name: server.post("/metadata/workflow/validate", definition)
        for name, definition in definitions.items()
    }
    return {name: answer.body or answer.status for name, answer in answers.items()}


@rule(281, difference="the text of a syntax error in a script is our own")
def scripts_of_switches_are_parsed(server: Server) -> Json:
    def switch(expression: str) -> Json:
        cases = {"x": [simple("b")]}
        return step(
            "SWITCH",
            "s",
            {"v": 1},
            evaluatorType="javascript",
            expression=expression,
            decisionCases=cases,
        )

    ok(server.post("/metadata/workflow/validate", workflow([switch("$.v > 0 ? 'x' : 'y'")])))
    found = errors(server.post("/metadata/workflow/validate", workflow([switch("$.v >")])))
    assert len(found) == 1
    assert found[0]["path"] == "validateWorkflowDef.arg0.tasks[0]"
    assert found[0]["message"].startswith("Expression is not well formatted: ")
    assert found[0]["message"].endswith(", taskType: SWITCH taskName s")
    return found


@rule(277, 280, 281)
def every_error_of_a_definition_is_named(server: Server) -> Json:
    definition = {
        "name": "",
        "schemaVersion": 1,
        "tasks": [
            {"type": "EVENT", "startDelay": -3},
            step("HTTP", "h"),
            step("DO_WHILE", "l", loopOver=[step("KAFKA_PUBLISH", "k"), {"type": "DYNAMIC"}]),
            step("SWITCH", "s", defaultCase=[step("SUB_WORKFLOW", "h")]),
        ],
    }
    found = errors(server.post("/metadata/workflow/validate", definition))
    assert len(found) > 10
    return [len(found), found]


@rule(277, 280)
def the_path_of_an_error_says_which_call_it_was(server: Server) -> Json:
    bad = {"name": "~w", "tasks": [{"name": "~a"}]}
    good = workflow([simple("a")], "~good")
    answers = {
        "create": server.post("/metadata/workflow", bad),
        "create, overwrite": server.post("/metadata/workflow", bad, overwrite=True),
        "update": server.put("/metadata/workflow", [bad]),
        "update, second": server.put("/metadata/workflow", [good, bad]),
        "update, nothing": server.put("/metadata/workflow", []),
        "validate": server.post("/metadata/workflow/validate", bad),
        "start": server.post("/workflow", {"name": "~w", "workflowDef": bad}),
    }
    # One bad definition in a list refuses all of them.
    assert server.get("/metadata/workflow/~good").status == 404
    assert server.get("/metadata/workflow/~w").status == 404
    return answers


@rule(277)
def a_list_of_definitions_may_fail_one_by_one(server: Server) -> Json:
    definitions = [workflow([simple("a")], name) for name in ("~one", "~two", "~one")]
    answer = server.put("/metadata/workflow", definitions)
    assert answer.status == 200
    return [answer, server.get("/metadata/workflow/~two").status]


TASK_DEFS: dict[str, Json] = {
    "no name": {"name": None},
    "empty name": {"name": ""},
    "retries": {"retryCount": -1},
    "no response timeout": {"responseTimeoutSeconds": 0},
    "response over timeout": {"timeoutSeconds": 10, "responseTimeoutSeconds": 11},
    "default response over timeout": {"timeoutSeconds": 10},
    "timeout over total": {
        "timeoutSeconds": 10,
        "responseTimeoutSeconds": 5,
        "totalTimeoutSeconds": 9,
    },
    "scale": {"backoffScaleFactor": 0},
    "poll timeout": {"pollTimeoutSeconds": -1},
    "cap": {"maxRetryDelaySeconds": -1},
    "jitter": {"backoffJitterMs": -1},
    "total": {"totalTimeoutSeconds": -1},
    "several": {
        "name": "",
        "retryCount": -1,
        "responseTimeoutSeconds": -1,
        "backoffScaleFactor": -1,
        "pollTimeoutSeconds": -1,
    },
}


@rule(282)
def task_definitions_that_are_refused(server: Server) -> Json:
    server.register(task_def("~t"))
    said = {}
    for name, fields in TASK_DEFS.items():
        definition = {"name": "~t", **fields}
        said[name] = [
            errors(server.post("/metadata/taskdefs", [definition])),
            errors(server.put("/metadata/taskdefs", definition)),
        ]
    assert len(said["several"][0]) == 5
    return said


@rule(282)
def task_definitions_that_are_accepted(server: Server) -> Json:
    definitions: dict[str, dict[str, Json]] = {
        "negative": {"timeoutSeconds": -1, "retryDelaySeconds": -1},
        "limits": {"rateLimitPerFrequency": -1, "concurrentExecLimit": -1},
        "equal": {"timeoutSeconds": 9, "responseTimeoutSeconds": 9, "totalTimeoutSeconds": 9},
        "none": {"timeoutSeconds": 0, "responseTimeoutSeconds": 1},
        "unknown fields": {"unheard": {"of": 1}},
    }
    answers = {
        name: server.post("/metadata/taskdefs", [{"name": "~t", **fields}])
        for name, fields in definitions.items()
    }
    assert all(answer.status == 200 for answer in answers.values()), answers
    return answers


@rule(282)
def one_bad_task_definition_refuses_the_list(server: Server) -> Json:
    bad = [task_def("~good"), task_def("~bad", retryCount=-1), task_def("~worse", retryCount=-2)]
    answer = server.post("/metadata/taskdefs", bad)
    assert answer.status == 400
    assert server.get("/metadata/taskdefs/~good").status == 404
    return [answer, server.post("/metadata/taskdefs", [])]


@rule(283)
def starts_that_are_refused(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    requests = {
        "no name": {},
        "null name": {"name": None},
        "empty name": {"name": ""},
        "priority below": {"name": "~w", "priority": -1},
        "priority above": {"name": "~w", "priority": 100},
        "both": {"priority": 200},
    }
    answers = {name: server.post("/workflow", request) for name, request in requests.items()}
    # Only the empty name is found out later, by whoever looks for the definition.
    assert [answer.status for answer in answers.values()] == [400] * 6
    by_path = {n: server.post("/workflow/~w", {}, priority=n) for n in (-1, 100)}
    executed = server.post("/workflow/execute/~w/1", {"name": "~w", "priority": 100})
    return [answers, by_path, executed]


def without_ids(server: Server, path: str) -> dict[str, Answer]:
    """What is said to results that lack ids; none of them has an effect."""
    run_id = server.launch([simple("a")])
    task = server.task(run_id, "a")
    results = {
        "nothing": {},
        "no task": {"workflowInstanceId": run_id, "status": "COMPLETED"},
        "no run": {"taskId": task["taskId"], "status": "COMPLETED"},
        "empty": {"taskId": "", "workflowInstanceId": "", "status": "COMPLETED"},
    }
    answers = {name: server.post(path, result) for name, result in results.items()}
    assert server.task(run_id, "a")["status"] == "SCHEDULED"
    return answers


@rule(283)
def results_without_ids_are_refused(server: Server) -> Json:
    answers = without_ids(server, "/tasks")
    return {name: errors(answer) for name, answer in answers.items()}


@rule(283, difference="update-v2 says it like POST /tasks: 400, not 500")
def results_without_ids_are_refused_by_update_v2_too(server: Server) -> Json:
    answers = without_ids(server, "/tasks/update-v2")
    if server.is_ours:
        return {name: errors(answer) for name, answer in answers.items()}
    assert all(answer.status == 500 for answer in answers.values())
    return {name: answer.status for name, answer in answers.items()}


@rule(285)
def a_task_definition_is_overwritten_and_updated(server: Server) -> Json:
    first = server.post("/metadata/taskdefs", [task_def("~t", retryCount=1, description="one")])
    read = [ok(server.get("/metadata/taskdefs/~t")).body]
    second = server.post("/metadata/taskdefs", [task_def("~t", description="two")])
    read.append(ok(server.get("/metadata/taskdefs/~t")).body)
    third = server.put("/metadata/taskdefs", task_def("~t", retryCount=7))
    read.append(ok(server.get("/metadata/taskdefs/~t")).body)
    assert [found["retryCount"] for found in read] == [1, 3, 7]
    unknown = server.put("/metadata/taskdefs", task_def("~unknown"))
    assert unknown.status == 404
    shown = [pick(found, "name", "retryCount", "description", "createTime") for found in read]
    return [first, second, third, unknown, shown]


@rule(284)
def names_of_tasks_need_no_definition(server: Server) -> Json:
    answer = server.post("/metadata/workflow", workflow([simple("a", name="~nobody knows")]))
    assert answer.status == 200
    return [answer, server.get("/metadata/taskdefs/~nobody knows").status]
