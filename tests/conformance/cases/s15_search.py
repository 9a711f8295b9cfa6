"""Section 15: search (rules 265-274). The real server searches by its SQL index."""

from __future__ import annotations

from tests.conformance.cases.families import report
from tests.conformance.harness import Answer, Json, Server, ok, pick, rule, simple, workflow

SHOWN = ("workflowType", "version", "status", "correlationId", "input", "output", "priority")


def some_runs(server: Server) -> list[str]:
    """Three runs of "~w" that begin one after the other; the second has completed."""
    server.register(workflow([simple("a")]), workflow([simple("b")], "~v"))
    runs = []
    for number in range(3):
        run_id = server.start(correlationId=f"~c{number % 2}", input={"n": number, "t": "x y"})
        runs.append(run_id)
        server.until(lambda: total(server, f"workflowId = '{run_id}'") == 1)  # noqa: B023
    report(server, runs[1], "a", output={"done": True})
    server.ended(runs[1])
    server.start("~v")
    server.until(lambda: total(server, "workflowType = '~w' AND status = 'COMPLETED'") == 1)
    return runs


def search(server: Server, query: str, path: str = "workflow/search", **asked: Json) -> Answer:
    return server.get(f"/{path}", query=query, **asked)


def total(server: Server, query: str, path: str = "workflow/search", **asked: Json) -> int:
    return int(ok(search(server, query, path, **asked)).body["totalHits"])


@rule(265, 266, 268, 272)
def runs_are_found_by_fields(server: Server) -> Json:
    runs = some_runs(server)
    queries = (
        "workflowType = '~w'",
        'workflowType="~w"',
        "workflowType = ~w",
        "workflowType = '~w' AND status = 'RUNNING'",
        "workflowType IN (~w,~v)",
        "workflowType = '~w' AND status IN (COMPLETED,FAILED)",
        "correlationId = '~c0'",
        f"workflowId = '{runs[0]}'",
        f"workflowId IN ({runs[0]},{runs[1]})",
        "workflowType = '~w' AND startTime > 1600000000000",
        "workflowType = '~w' AND startTime < 1600000000000",
        "workflowType = '~nobody'",
    )
    counts = {query.replace(runs[0], "1").replace(runs[1], "2"): 0 for query in queries}
    for query, key in zip(queries, counts, strict=True):
        counts[key] = total(server, query)
    assert list(counts.values()) == [3, 3, 3, 2, 4, 1, 2, 1, 2, 3, 0, 0]
    return counts


@rule(268)
def what_a_summary_shows(server: Server) -> Json:
    some_runs(server)
    answer = ok(search(server, "workflowType = '~w' AND status = 'COMPLETED'"))
    [summary] = answer.body["results"]
    assert summary["input"] in ("{n=1, t=x y}", "{t=x y, n=1}")
    assert summary["startTime"].endswith("Z")
    assert len(summary["endTime"]) == len("2026-11-21T20:00:00.000Z")
    return [pick(summary, *SHOWN), summary["inputSize"], summary["failedReferenceTaskNames"]]


@rule(271)
def results_come_sorted_and_by_pages(server: Server) -> Json:
    runs = some_runs(server)

    def found(**asked: Json) -> list[int]:
        results = ok(search(server, "workflowType = '~w'", **asked)).body["results"]
        return [runs.index(one["workflowId"]) for one in results]

    upwards = found(sort="startTime:ASC")
    downwards = found(sort="startTime:DESC")
    assert (upwards, downwards) == ([0, 1, 2], [2, 1, 0])
    middle = found(sort="startTime:ASC", start=1, size=1)
    assert middle == [1]
    too_many = search(server, "workflowType = '~w'", size=5001)
    assert too_many.status == 400
    return [upwards, downwards, middle, too_many]


@rule(267, difference="a field that does not exist is refused, not left out of the query")
def a_field_that_does_not_exist(server: Server) -> Json:
    some_runs(server)
    answer = search(server, "workflowType = '~w' AND colour = 'red'")
    if server.is_ours:
        assert answer.status == 400
        assert "colour" in answer.body["message"]
    else:
        assert answer.status == 200
    return answer.status


@rule(265, difference="OR, parentheses, != and the rest work on every store")
def all_operators(server: Server) -> Json:
    some_runs(server)
    queries = (
        "workflowType = '~w' AND (status = 'RUNNING' OR status = 'COMPLETED')",
        "workflowType = '~w' AND status != 'RUNNING'",
        "workflowType STARTS_WITH '~w'",
        "workflowType = '~w' AND startTime BETWEEN 1600000000000 AND 9600000000000",
        "workflowType = '~w' AND parentWorkflowId IS NULL",
    )
    answers = [search(server, query) for query in queries]
    said = [answer.body.get("totalHits", answer.status) for answer in answers]
    if server.is_ours:
        assert said == [3, 1, 3, 3, 3]
    return said


@rule(270)
def a_free_text_of_a_star_is_everything(server: Server) -> Json:
    some_runs(server)
    count = total(server, "workflowType = '~w'", freeText="*")
    assert count == 3
    return count


@rule(273)
def whole_runs(server: Server) -> Json:
    some_runs(server)
    answer = ok(search(server, "workflowType = '~w'", "workflow/search-v2", sort="startTime:ASC"))
    assert answer.body["totalHits"] == 3
    runs = answer.body["results"]
    assert [run["workflowDefinition"]["name"] for run in runs] == ["~w"] * 3
    return [pick(run, "status", "input", "output", "tasks") for run in runs]


@rule(274)
def only_those_at_the_top(server: Server) -> Json:
    some_runs(server)
    counts = [
        total(server, "workflowType = '~w'", **asked)
        for asked in ({"topLevelOnly": True}, {"classifier": "workflow"}, {"classifier": "agent"})
    ]
    assert counts == [3, 3, 0]
    return counts


@rule(269)
def tasks_are_found_by_fields(server: Server) -> Json:
    some_runs(server)
    done = "taskType = '~a' AND status = 'COMPLETED'"
    # Only of one that ended: whether the real server has indexed those that wait depends on chance.
    server.until(lambda: total(server, done, "tasks/search") == 1)
    counts = [
        total(server, query, "tasks/search")
        for query in (
            done,
            "taskDefName = '~a' AND status = 'COMPLETED'",
            "workflowType = '~w' AND status IN (COMPLETED)",
        )
    ]
    assert counts == [1, 1, 1]
    answer = ok(search(server, done, "tasks/search"))
    [task] = answer.body["results"]
    return [
        counts,
        pick(task, "workflowType", "status", "taskDefName", "taskType", "input", "output"),
    ]
