"""The ledger against the server's full state: every id, task by task."""

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.definitions import FAILS, KINDS, LIMITED, LIMITED_MAX, Json

_AT_ONCE = 16


@dataclass
class Verdict:
    """What was found. A line in `lost`, `duplicated` or `wrong` names the id and what is amiss."""

    starts: int = 0
    results: int = 0
    late: int = 0
    """Results that came when the server had given up on that attempt: answered, not taken."""
    unanswered: int = 0
    """Starts whose answer was lost and that did happen."""
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of every workflow by the server's own clock, in Unix ms."""

    def open_at(self, at_ms: int) -> int:
        """How many workflows were open at a moment."""
        return sum(1 for start_ms, end_ms in self.spans if start_ms < at_ms < end_ms)


async def fetch(url: str, workflow_ids: list[str]) -> dict[str, Json]:
    """Workflows by id, with all tasks; ids that the server does not know are absent."""
    slots = asyncio.Semaphore(_AT_ONCE)
    found: dict[str, Json] = {}

    async with aiohttp.ClientSession() as session:

        async def get(workflow_id: str) -> None:
            async with slots, session.get(f"{url}/api/workflow/{workflow_id}") as response:
                if response.status == 200:
                    found[workflow_id] = await response.json()
                else:
                    assert response.status == 404, await response.text()

        async with asyncio.TaskGroup() as group:
            for workflow_id in workflow_ids:
                group.create_task(get(workflow_id))
    return found


def judge(ledger: list[dict[str, Any]], present: dict[str, Json]) -> Verdict:
    """`present`: every workflow there is on the server."""
    verdict = Verdict()
    intents = {line["intent"]: line for line in ledger if line["kind"] == "intent"}
    started: dict[str, str] = {}
    for line in ledger:
        if line["kind"] == "started":
            started[line["workflow_id"]] = line["intent"]
    verdict.starts = len(started)
    for workflow_id, intent in started.items():
        if workflow_id not in present:
            verdict.lost.append(f"start {intent}: no workflow {workflow_id}")
    _judge_starts(verdict, intents, started, present)
    _judge_results(verdict, ledger, present)
    for run in present.values():
        _judge_run(verdict, run, intents)
    _judge_limit(verdict, present)
    return verdict


def _judge_starts(
    verdict: Verdict,
    intents: dict[str, dict[str, Any]],
    started: dict[str, str],
    present: dict[str, Json],
) -> None:
    """Nobody but the client started anything, and each of its starts happened once at most."""
    tops: dict[str, list[str]] = defaultdict(list)
    caused = _caused(present)
    for workflow_id, run in present.items():
        causes = caused[workflow_id]
        if KINDS[run["workflowName"]].is_started:
            tops[run["input"]["intent"]].append(workflow_id)
            if causes:
                verdict.wrong.append(f"{workflow_id} is named by {causes}")
        elif len(causes) != 1:
            what = verdict.duplicated if causes else verdict.wrong
            what.append(f"{run['workflowName']} {workflow_id} was caused by {causes or 'nobody'}")
    # A child is the child of one task, and what a task starts it starts once.
    for origin, count in _origins(present).items():
        if count > 1:
            verdict.duplicated.append(f"{origin} was started {count} times")
    answered = {intent: workflow_id for workflow_id, intent in started.items()}
    if len(answered) != len(started):
        verdict.duplicated.append("one start was answered with two ids")
    for intent, workflow_ids in tops.items():
        if intent not in intents:
            verdict.wrong.append(f"nobody started {workflow_ids}")
        elif len(workflow_ids) > 1:
            verdict.duplicated.append(f"start {intent}: {workflow_ids}")
        elif intent not in answered:
            verdict.unanswered += 1
            if intents[intent]["is_keyed"]:
                verdict.wrong.append(f"start {intent} was repeated until it was answered, but how?")
        elif workflow_ids != [answered[intent]]:
            verdict.wrong.append(f"start {intent}: {workflow_ids}, answered {answered[intent]}")


def _caused(present: dict[str, Json]) -> dict[str, list[str]]:
    """Workflow → the tasks and runs that name it as what they started."""
    caused: dict[str, list[str]] = defaultdict(list)
    for run in present.values():
        for task in run["tasks"]:
            if task["taskType"] == "SUB_WORKFLOW" and task.get("subWorkflowId"):
                caused[task["subWorkflowId"]].append(task["taskId"])
            if task["taskType"] == "START_WORKFLOW" and "workflowId" in task["outputData"]:
                caused[task["outputData"]["workflowId"]].append(task["taskId"])
        compensation = run["output"].get("conductor.failure_workflow")
        if compensation is not None:
            caused[compensation].append(run["workflowId"])
    return caused


def _origins(present: dict[str, Json]) -> Counter[str]:
    """How many runs there are of each definition for each intent: children are one per intent."""
    return Counter(
        f"{run['workflowName']} for {run['input'].get('intent')}"
        for run in present.values()
        if not KINDS[run["workflowName"]].is_started
    )


def _judge_results(
    verdict: Verdict, ledger: list[dict[str, Any]], present: dict[str, Json]
) -> None:
    """Each acknowledged result is in exactly its task."""
    tasks = {task["taskId"]: task for run in present.values() for task in run["tasks"]}
    acknowledged: set[str] = set()
    for line in ledger:
        if line["kind"] != "result" or line["task_id"] in acknowledged:
            continue
        task_id = line["task_id"]
        task = tasks.get(task_id)
        if task is None:
            verdict.lost.append(f"result of {task_id}: there is no such task")
        elif task["workflowInstanceId"] != line["workflow_id"]:
            verdict.wrong.append(f"task {task_id} is not in {line['workflow_id']}")
        elif task["status"] == "TIMED_OUT" and task["endTime"] <= line["answered_ms"]:
            verdict.late += 1
            continue
        elif task["status"] != line["status"] or task["outputData"] != line["output"]:
            verdict.lost.append(
                f"result of {task_id}: {line['status']} {line['output']} was acknowledged, it is "
                f"{task['status']} {task['outputData']}"
            )
        acknowledged.add(task_id)
    verdict.results = len(acknowledged)


def _judge_run(verdict: Verdict, run: Json, intents: dict[str, dict[str, Any]]) -> None:
    """It ended as it was designed to, every step once, with the output that follows."""
    kind = KINDS[run["workflowName"]]
    name = f"{kind.name} {run['workflowId']}"
    verdict.spans.append((run["startTime"], run.get("endTime") or 1 << 62))
    if run["status"] != kind.status:
        verdict.wrong.append(
            f"{name} is {run['status']} ({run.get('reasonForIncompletion')}): "
            f"{[(task['referenceTaskName'], task['status']) for task in run['tasks']]}"
        )
        return
    completed = Counter(
        task["referenceTaskName"] for task in run["tasks"] if task["status"] == "COMPLETED"
    )
    for ref, count in completed.items():
        if count > 1:
            verdict.duplicated.append(f"{name}: {ref} was completed {count} times")
    if set(completed) != kind.completed:
        verdict.wrong.append(f"{name}: completed are {sorted(completed)}")
    for task in run["tasks"]:
        if task["status"] in ("SCHEDULED", "IN_PROGRESS"):
            verdict.wrong.append(f"{name}: {task['referenceTaskName']} is {task['status']}")
        if task["taskType"] == FAILS and task["status"] not in (
            "FAILED_WITH_TERMINAL_ERROR",
            "TIMED_OUT",
        ):
            verdict.wrong.append(f"{name}: {task['referenceTaskName']} is {task['status']}")
    if kind.status != "COMPLETED":
        return
    expected = kind.output(run["input"]["value"])
    shown = {key: run["output"].get(key) for key in expected}
    if shown != expected:
        verdict.wrong.append(f"{name}: output {run['output']}, not {expected}")
    intent = intents.get(run["input"].get("intent", ""))
    if intent is not None and kind.is_started and run["input"]["value"] != intent["value"]:
        verdict.wrong.append(f"{name}: input {run['input']}")


def _judge_limit(verdict: Verdict, present: dict[str, Json]) -> None:
    """At no time were more tasks of the limited type out than its definition allows."""
    changes: list[tuple[int, int]] = []
    for run in present.values():
        for task in run["tasks"]:
            if task["taskType"] == LIMITED and task.get("startTime"):
                # An end and a start in one millisecond: the end came first.
                changes += [(task["startTime"], 1), (task["endTime"], -1)]
    out = most = 0
    for _, change in sorted(changes):
        out += change
        most = max(most, out)
    if most > LIMITED_MAX:
        verdict.wrong.append(
            f"{most} tasks of {LIMITED} were out at once, {LIMITED_MAX} are allowed"
        )
