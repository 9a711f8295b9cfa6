"""Whatever is asked of a node that does not own the workflow is answered as its owner would."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.support.client import Client, Json, simple, until
from tests.support.several import Several, several

pytestmark = pytest.mark.asyncio(loop_scope="module")

Scenario = Callable[[Client, Client], Awaitable[Any]]
"""Prepares a workflow on the first node, which owns it, and asks the second for something."""

SCENARIOS: dict[str, Scenario] = {}
UNKNOWN = "01a1fe63-a122-8d7a-9166-42790c300000"


def scenario(run: Scenario) -> Scenario:
    SCENARIOS[run.__name__] = run
    return run


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[Several]:
    async with several("a", "b") as cluster:
        a = cluster.client("a")
        await a.register("one", simple("t", "work"), outputParameters={"r": "${t.output.r}"})
        await a.register("two", simple("t", "work"), simple("u", "work"))
        await a.register("waits", {"name": "w", "taskReferenceName": "w", "type": "WAIT"})
        await a.register(
            "parent", sub_workflow("s", "waits"), failureWorkflow="one", inputParameters=["x"]
        )
        await a.register("fails", sub_workflow("s", "one"))
        await a.register("far", sub_workflow("s", "waits", placement="spread"), simple("t", "work"))
        yield cluster


def sub_workflow(ref: str, name: str, **param: Any) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "SUB_WORKFLOW",
        "subWorkflowParam": {"name": name, "version": 1} | param,
    }


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Plain:
    """Answers with ids by their order and without times, so that two runs can be compared."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def of(self, value: Any, key: str = "") -> Any:
        match value:
            case dict():
                return {self.of(one): self.of(inner, one) for one, inner in value.items()}
            case list() | tuple():
                return [self.of(inner) for inner in value]
            case str():
                return _ID.sub(lambda found: self._name(found[0]), value)
            case bool():
                return value
            case int() if value > 10**12 or key == "queueWaitTime":
                return "time"
        return value

    def _name(self, found: str) -> str:
        return self._ids.setdefault(found, f"id {len(self._ids)}")


async def polled(client: Client, workflow_id: str, task_type: str = "work") -> Json:
    """The task of that very workflow; others go back."""
    found: list[Json] = []

    async def is_found() -> bool:
        for task in await client.poll(task_type, count=20, timeout_ms=200):
            if task["workflowInstanceId"] == workflow_id:
                found.append(task)
            else:
                await client.report(task, "FAILED_WITH_TERMINAL_ERROR")
        return bool(found)

    await until(is_found)
    return found[0]


async def both(owner: Client, sent: Client, workflow_id: str) -> Any:
    """The run as both nodes show it, which must be the same."""
    mine, theirs = await owner.run(workflow_id), await sent.run(workflow_id)
    assert mine == theirs
    return mine


# -- reads


@scenario
async def get(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("two", {"n": 1}, correlationId="c", priority=3)
    answers = [await sent.call("GET", f"/workflow/{workflow_id}")]
    answers.append(await sent.call("GET", f"/workflow/{workflow_id}", includeTasks="false"))
    answers.append(await sent.call("GET", f"/workflow/{workflow_id}/status", includeOutput="true"))
    answers.append(await sent.call("GET", f"/workflow/{workflow_id}/tasks", status="SCHEDULED"))
    return answers


@scenario
async def get_what_is_not_there(owner: Client, sent: Client) -> Any:
    paths = [f"/workflow/{UNKNOWN}", f"/workflow/{UNKNOWN}/status", f"/tasks/{UNKNOWN[:-1]}1"]
    return [await sent.call("GET", path) for path in paths]


@scenario
async def get_a_task(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one", {"n": 1})
    task_id = (await owner.run(workflow_id))["tasks"][0]["taskId"]
    answers = [await sent.call("GET", f"/tasks/{task_id}")]
    answers.append(await sent.call("POST", f"/tasks/{task_id}/log", "a line"))
    answers.append(await sent.call("GET", f"/tasks/{task_id}/log"))
    answers.append(await owner.call("GET", f"/tasks/{task_id}/log"))
    answers.append(await sent.call("POST", f"/tasks/{task_id[:-1]}9/log", "a line"))
    return answers


@scenario
async def find_by_correlation(owner: Client, sent: Client) -> Any:
    correlation = owner.url + sent.url
    ids = [await owner.start("one", {}, correlationId=correlation)]
    # Answers are in the order of the ids, which are random within a millisecond.
    await asyncio.sleep(0.01)
    ids.append(await owner.start("one", {}, correlationId=correlation))
    await owner.ok("DELETE", f"/workflow/{ids[1]}")
    answers = [
        await sent.call("GET", f"/workflow/one/correlated/{correlation.replace('/', '%2F')}"),
        await sent.call("POST", "/workflow/one/correlated", [correlation], includeClosed="true"),
    ]
    running = await sent.ok("GET", "/workflow/running/one")
    assert ids[0] in running
    assert ids[1] not in running
    return Plain().of(answers, "").__repr__().replace(correlation, "c")


# -- commands


def command(method: str, path: str, body: Any = None, **query: Any) -> Scenario:
    async def run(owner: Client, sent: Client) -> Any:
        workflow_id = await owner.start("two", {"n": 1})
        answer = await sent.call(method, path.format(id=workflow_id), body, **query)
        return answer, await both(owner, sent, workflow_id)

    return run


SCENARIOS |= {
    "pause": command("PUT", "/workflow/{id}/pause"),
    "resume_what_is_not_paused": command("PUT", "/workflow/{id}/resume"),
    "decide": command("PUT", "/workflow/decide/{id}"),
    "skip": command("PUT", "/workflow/{id}/skiptask/u", {"taskOutput": {"r": 1}}),
    "skip_what_is_not_there": command("PUT", "/workflow/{id}/skiptask/nobody"),
    "terminate": command("DELETE", "/workflow/{id}", reason="enough"),
    "reset_callbacks": command("POST", "/workflow/{id}/resetcallbacks"),
    "restart_what_runs": command("POST", "/workflow/{id}/restart"),
    "retry_what_runs": command("POST", "/workflow/{id}/retry"),
    "rerun_what_runs": command("POST", "/workflow/{id}/rerun", {}),
    "archive_what_runs": command("DELETE", "/workflow/{id}/remove"),
    "update_by_ref": command("POST", "/tasks/{id}/t/COMPLETED", {"r": 1}, workerid="w"),
    "update_by_ref_sync": command("POST", "/tasks/{id}/t/COMPLETED/sync", {"r": 1}),
    "update_by_ref_of_nobody": command("POST", "/tasks/{id}/x/COMPLETED/sync", {}),
    "signal_where_nothing_waits": command("POST", "/tasks/{id}/COMPLETED/signal/sync", {}),
}


@scenario
async def pause_and_resume(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one")
    answers = []
    for what in ("pause", "pause", "resume", "resume"):
        answers.append(await sent.call("PUT", f"/workflow/{workflow_id}/{what}"))
        answers.append((200, await both(owner, sent, workflow_id)))
    return answers


@scenario
async def remove(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one")
    path = f"/workflow/{workflow_id}"
    answers = [await sent.call("DELETE", f"{path}/remove", archiveWorkflow="false")]
    answers += [await client.call("GET", path) for client in (owner, sent)]
    answers.append(await sent.call("DELETE", f"{path}/remove", archiveWorkflow="false"))
    return answers


@scenario
async def terminate_and_remove(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one")
    path = f"/workflow/{workflow_id}"
    query = {"archiveWorkflow": "false", "reason": "enough"}
    answers = [await sent.call("DELETE", f"{path}/terminate-remove", **query)]
    return answers + [await client.call("GET", path) for client in (owner, sent)]


@scenario
async def restart(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one")
    await owner.ok("DELETE", f"/workflow/{workflow_id}")
    answers = [await sent.call("POST", f"/workflow/{workflow_id}/restart")]
    await owner.ok("DELETE", f"/workflow/{workflow_id}")
    path = f"/workflow/{workflow_id}/restart"
    answers.append(await sent.call("POST", path, useLatestDefinitions="true"))
    return answers, await both(owner, sent, workflow_id)


@scenario
async def rerun(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("two", {"n": 1})
    await owner.report(await polled(owner, workflow_id), outputData={"r": 1})
    second = await polled(owner, workflow_id)
    await owner.report(second, "FAILED_WITH_TERMINAL_ERROR", reasonForIncompletion="no")
    body = {"reRunFromTaskId": second["taskId"], "taskInput": {"again": True}}
    answers = [await sent.call("POST", f"/workflow/{workflow_id}/rerun", body)]
    middle = await both(owner, sent, workflow_id)
    await owner.ok("DELETE", f"/workflow/{workflow_id}")
    answers.append(
        await sent.call("POST", f"/workflow/{workflow_id}/rerun", {"workflowInput": {"n": 2}})
    )
    answers.append(
        await sent.call("POST", f"/workflow/{workflow_id}/rerun", {"reRunFromTaskId": UNKNOWN})
    )
    return answers, middle, await both(owner, sent, workflow_id)


@scenario
async def retry(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one")
    await owner.report(await polled(owner, workflow_id), "FAILED_WITH_TERMINAL_ERROR")
    assert await sent.status(workflow_id) == "FAILED"
    answer = await sent.call("POST", f"/workflow/{workflow_id}/retry")
    return answer, await both(owner, sent, workflow_id)


@scenario
async def retry_in_a_child(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("fails")
    child_id = (await owner.run(workflow_id))["tasks"][0]["subWorkflowId"]
    await owner.report(await polled(owner, child_id), "FAILED_WITH_TERMINAL_ERROR")
    assert await sent.status(workflow_id) == "FAILED"
    path = f"/workflow/{workflow_id}/retry"
    answer = await sent.call("POST", path, resumeSubworkflowTasks="true")
    return answer, await both(owner, sent, workflow_id), await both(owner, sent, child_id)


@scenario
async def rerun_of_a_child(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("fails")
    child_id = (await owner.run(workflow_id))["tasks"][0]["subWorkflowId"]
    task = await polled(owner, child_id)
    await owner.report(task, "FAILED_WITH_TERMINAL_ERROR")
    body = {"reRunFromTaskId": task["taskId"]}
    answer = await sent.call("POST", f"/workflow/{workflow_id}/rerun", body)
    return answer, await both(owner, sent, workflow_id), await both(owner, sent, child_id)


@scenario
async def bulk(owner: Client, sent: Client) -> Any:
    answers: list[Any] = []
    ids = [await owner.start("one") for _ in range(2)] + [await sent.start("one"), UNKNOWN]
    for method, path, query in (
        ("PUT", "pause", {}),
        ("PUT", "resume", {}),
        ("POST", "terminate", {"reason": "enough"}),
        ("POST", "restart", {}),
        ("POST", "terminate", {}),
        ("POST", "retry", {}),
        ("DELETE", "remove", {"archiveWorkflow": "true"}),
        ("DELETE", "terminate-remove", {"archiveWorkflow": "false"}),
    ):
        answers.append(await sent.call(method, f"/workflow/bulk/{path}", ids, **query))
        states = [
            await client.call("GET", f"/workflow/{one}") for one in ids for client in (owner, sent)
        ]
        answers.append([(status, run.get("status")) for status, run in states])
    return answers


# -- tasks


@scenario
async def poll_and_report(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("two", {"n": 1})
    first = await polled(sent, workflow_id)
    await sent.report(first, outputData={"r": 1}, logs=[{"log": "done"}])
    second = await polled(sent, workflow_id)
    result = {"workflowInstanceId": workflow_id, "taskId": second["taskId"]}
    answers = [
        await sent.call("POST", "/tasks", result | {"status": "IN_PROGRESS", "extendLease": True}),
        await sent.call("POST", "/tasks/update-v2", result | {"status": "COMPLETED"}),
        # The same again changes nothing.
        await sent.call("POST", "/tasks", result | {"status": "FAILED"}),
        await sent.call("POST", "/tasks", result | {"status": "NO SUCH"}),
    ]
    return first, second, answers, await both(owner, sent, workflow_id)


@scenario
async def postponed(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one", {"n": 1})
    task = await polled(sent, workflow_id)
    await sent.report(task, "IN_PROGRESS", callbackAfterSeconds=3600, outputData={"half": 1})
    before = await both(owner, sent, workflow_id)
    answer = await sent.call("POST", f"/workflow/{workflow_id}/resetcallbacks")
    again = await polled(sent, workflow_id)
    # A node that does not own the task counts its deliveries.
    del again["pollCount"]
    return before, answer, again


@scenario
async def requeue(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("one")
    await polled(sent, workflow_id)
    count = int(await sent.ok("POST", "/tasks/queue/requeue/work"))
    assert count >= 1
    await polled(sent, workflow_id)
    return await both(owner, sent, workflow_id)


@scenario
async def signals(owner: Client, sent: Client) -> Any:
    runs = []
    for path in ("signal", "signal/sync"):
        workflow_id = await owner.start("parent", {"x": 1})
        path = f"/tasks/{workflow_id}/COMPLETED/{path}"
        answer = await sent.call("POST", path, {"said": 1})
        await sent.ended(workflow_id)
        runs.append((answer, await both(owner, sent, workflow_id)))
    for _status, body in (run[0] for run in runs):
        if isinstance(body, dict):
            body.pop("requestId", None)
    return runs


@scenario
async def signal_of_a_child_elsewhere(owner: Client, sent: Client) -> Any:
    workflow_id = await owner.start("far")

    async def waits() -> bool:
        tasks = (await owner.run(workflow_id))["tasks"]
        child = tasks[0].get("subWorkflowId")
        return bool(child) and (await owner.call("GET", f"/workflow/{child}"))[0] == 200

    await until(waits)
    answer = await sent.call("POST", f"/tasks/{workflow_id}/COMPLETED/signal", {})

    async def goes_on() -> bool:
        return len((await sent.run(workflow_id))["tasks"]) == 2

    await until(goes_on)
    await sent.ok("DELETE", f"/workflow/{workflow_id}")
    return answer, await both(owner, sent, workflow_id)


# -- starts


@scenario
async def start_with_a_key(owner: Client, sent: Client) -> Any:
    # Some of these keys belong to the one node, some to the other.
    for n in range(6):
        fields = {"idempotencyKey": f"{owner.url}{sent.url}{n}"}
        first = await sent.start("one", {}, **fields)
        assert await owner.start("one", {}, **fields) == first
        refused = {"name": "one", "idempotencyStrategy": "FAIL"} | fields
        status, body = await sent.call("POST", "/workflow", refused)
        assert (status, body["retryable"]) == (409, False), body
    return [
        await sent.call("POST", "/workflow", {"name": "no such", "idempotencyKey": key})
        for key in ("a", "b", "c", "d")
    ]


@scenario
async def execute_and_wait(owner: Client, sent: Client) -> Any:
    answers = []
    for n in range(4):
        fields = {"idempotencyKey": f"execute{owner.url}{sent.url}{n}", "name": "waits"}
        status, body = await sent.call("POST", "/workflow/execute/waits/1", fields)
        body.pop("requestId", None)
        answers.append((status, body))
        workflow_id = body["targetWorkflowId"]
        path = f"/tasks/{workflow_id}/COMPLETED/signal/sync"
        status, body = await sent.call("POST", path, {}, returnStrategy="BLOCKING_WORKFLOW")
        body.pop("requestId", None)
        answers.append((status, body))
        assert await sent.status(workflow_id) == "COMPLETED"
    return answers


@scenario
async def parked_polls_are_woken_by_starts_elsewhere(owner: Client, sent: Client) -> Any:
    await owner.register("parked", simple("p", "parked_work"))
    parked = asyncio.ensure_future(sent.poll("parked_work", timeout_ms=5_000))
    await asyncio.sleep(0.05)
    workflow_id = await owner.start("parked", {"n": 1})
    (task,) = await parked
    assert task["workflowInstanceId"] == workflow_id
    # What is constant in an answer was made on the other node.
    assert task["workflowTask"]["taskReferenceName"] == "p"
    await sent.report(task)
    return task, await both(owner, sent, workflow_id)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_any_node_answers_as_the_owner_does(cluster: Several, name: str) -> None:
    run, a, b = SCENARIOS[name], cluster.client("a"), cluster.client("b")
    expected = Plain().of(await run(a, a))
    assert Plain().of(await run(a, b)) == expected
    assert Plain().of(await run(b, a)) == expected
