"""WAIT and HUMAN (rules 190-194)."""

from __future__ import annotations

from tests.conformance.harness import Json, Server, ok, pick, rule, simple, statuses, step
from tests.conformance.steps import inline, outcome, settled, shown

LAST = inline("z", "9")
TIMING = ("status", "inputData", "outputData", "callbackAfterSeconds", "responseTimeoutSeconds")


@rule(190, 192)
def a_wait_of_a_second_completes_by_itself(server: Server) -> Json:
    seen = {}
    for duration in ("1s", "1 seconds", "0s"):
        run_id = server.launch([step("WAIT", "w", {"duration": duration}), LAST])
        run = server.ended(run_id)
        task = run["tasks"][0]
        waited = task["endTime"] - task["startTime"]
        assert waited >= (0 if duration == "0s" else 900), waited
        seen[duration] = [run["status"], pick(task, *TIMING)]
    return seen


@rule(190)
def the_duration_may_come_from_the_input(server: Server) -> Json:
    given = {"duration": "${workflow.input.d}"}
    seen = outcome(server, [step("WAIT", "w", given), LAST], {"d": "1s"})
    assert seen["status"] == "COMPLETED"
    return seen


@rule(190, 192)
def long_durations_are_counted_in_seconds(server: Server) -> Json:
    seconds = {
        "2 days 3 hours 5m 10s": 183910,
        "1d": 86400,
        "90m": 5400,
        "2 hours": 7200,
        "1 minutes 1 seconds": 61,
        "1 day": 86400,
        "1 hour 1 minute": 3660,
        "2hrs": 7200,
        "5 mins 3 secs": 303,
        "3H": 10800,
    }
    seen: dict[str, Json] = {}
    for duration, expected in seconds.items():
        tasks = [step("WAIT", "w", {"duration": duration}), LAST]
        answer = server.put("/metadata/workflow", [{"name": "~w", "version": 1, "tasks": tasks}])
        if answer.status != 200:
            seen[duration] = answer.status
            continue
        seen[duration] = pick(server.task(server.start(), "w"), *TIMING)
        assert seen[duration]["callbackAfterSeconds"] == expected
    return seen


@rule(190)
def a_wait_until_the_past_is_over(server: Server) -> Json:
    times = ("2020-01-01", "2020-01-01 10:00", "2020-01-01 10:00 UTC", "2020-01-01 10:00 GMT+02:00")
    seen = {}
    for until in times:
        run_id = server.launch([step("WAIT", "w", {"until": until}), LAST])
        run = server.ended(run_id)
        seen[until] = [run["status"], pick(run["tasks"][0], *TIMING)]
    return seen


@rule(190, 192)
def a_wait_until_the_future_waits(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w", {"until": "2099-01-01 10:00"}), LAST])
    task = server.task(run_id, "w")
    assert task["status"] == "IN_PROGRESS"
    assert task["callbackAfterSeconds"] > 2_000_000_000
    return pick(task, "status", "inputData", "outputData")


@rule(190)
def what_cannot_be_waited_for_is_refused(server: Server) -> Json:
    given = {
        "both": {"duration": "1s", "until": "2020-01-01"},
        "both by expression": {"duration": "${workflow.input.d}", "until": "${workflow.input.u}"},
        "duration": {"duration": "abc"},
        "order": {"duration": "10s 5m"},
        "number": {"duration": 2},
        "until": {"until": "abc"},
    }
    seen = {
        name: outcome(server, [step("WAIT", "w", input), LAST]) for name, input in given.items()
    }
    assert {answer["refused"] for answer in seen.values()} == {400}
    return seen


@rule(191)
def a_wait_without_a_time_waits_for_an_update(server: Server) -> Json:
    seen: dict[str, Json] = {}
    for label, given in {
        "none": {},
        "other": {"x": 1},
        "null": {"duration": "${workflow.input.no}"},
        "empty": {"duration": ""},
        "null until": {"until": "${workflow.input.no}"},
    }.items():
        run_id = server.launch([step("WAIT", "w", given), LAST])
        task = server.task(run_id, "w")
        seen[label] = [pick(task, *TIMING)]
        assert task["status"] == "IN_PROGRESS"
        server.update(task, "COMPLETED", {"by": "me"})
        seen[label].append(shown(server.ended(run_id)))
    return seen


@rule(191)
def an_update_may_fail_a_wait(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w"), LAST])
    task = server.task(run_id, "w")
    server.update(task, "FAILED", {"by": "me"}, reasonForIncompletion="no")
    run = shown(settled(server, run_id))
    assert run["status"] == "FAILED"
    return run


@rule(192)
def a_timed_wait_may_be_completed_before(server: Server) -> Json:
    run_id = server.launch([step("WAIT", "w", {"duration": "1 hours"}), LAST])
    server.update(server.task(run_id, "w"), "COMPLETED", {"by": "me"})
    run = shown(server.ended(run_id))
    assert run["tasks"][0]["outputData"] == {"by": "me"}
    return run


@rule(193)
def a_bad_time_from_the_input_is_a_terminal_error(server: Server) -> Json:
    run_id = server.launch(
        [step("WAIT", "w", {"until": "${workflow.input.u}"}), LAST], {"u": "abc"}
    )
    # The real server sees it at its next look only.
    ok(server.put(f"/workflow/decide/{run_id}"))
    run = shown(settled(server, run_id))
    assert run["tasks"][0]["status"] == "FAILED_WITH_TERMINAL_ERROR"
    return run


@rule(
    193,
    difference="a bad duration fails the task as a bad time does; the real server answers the "
    "call that came to it with 400",
)
def a_bad_duration_from_the_input_is_a_terminal_error(server: Server) -> Json:
    given = {"duration": "${workflow.input.d}"}
    seen = outcome(server, [step("WAIT", "w", given), LAST], {"d": "abc"})
    if server.is_ours:
        assert seen["status"] == "FAILED"
        assert seen["tasks"][0]["status"] == "FAILED_WITH_TERMINAL_ERROR"
        assert "abc" in seen["reasonForIncompletion"]
    else:
        assert seen == {"refused": 400, "texts": ["Not valid duration: abc"]}
    return seen


@rule(194)
def a_human_task_ends_by_an_update_only(server: Server) -> Json:
    run_id = server.launch(
        [step("HUMAN", "h", {"a": "${workflow.input.q}"}), simple("z")], {"q": 1}
    )
    task = server.task(run_id, "h")
    seen = [shown(server.run(run_id))]
    assert [task["status"], task["inputData"]] == ["IN_PROGRESS", {"a": 1}]
    server.update(task, "IN_PROGRESS", {"p": 1})
    seen.append(shown(server.run(run_id)))
    server.update(task, "COMPLETED", {"d": 1})
    server.work("~z")
    seen.append(shown(server.ended(run_id)))
    assert seen[2]["tasks"][0]["outputData"] == {"d": 1}
    return seen


@rule(194)
def a_human_task_may_fail_the_run(server: Server) -> Json:
    run_id = server.launch([step("HUMAN", "h"), LAST])
    server.update(server.task(run_id, "h"), "FAILED", {"e": 1}, reasonForIncompletion="no")
    run = settled(server, run_id)
    assert statuses(run) == {"h": "FAILED"}
    return shown(run)
