"""The workflows of the suite: their definitions, and what is planned for each that is started."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.rest_load import definitions

Json = dict[str, Any]

TAG = "locust"
RESPONSE_TIMEOUT_S = 60
_PLAIN = ("simple1", "chain5", "fork10")
FLAKY, DOOMED = "flaky", "doomed"
NAMES = (*_PLAIN, FLAKY, DOOMED)
_FAILURES_MAX = 3


@dataclass(frozen=True)
class Plan:
    """How a workflow has to end."""

    status: str
    completed: frozenset[str]
    """Reference names of which exactly one attempt completes."""
    failures: Mapping[str, int]
    """Attempts that workers fail on purpose, by reference name; none unless named."""
    output: Json


def workflow_name(scenario: str) -> str:
    return f"{TAG}_{scenario}"


def input_of(scenario: str, number: int) -> Json:
    """What the start number `number` is given; workers do what it says under `failures`."""
    return {"n": number, "failures": _failures(scenario, number)}


def plan_of(scenario: str, number: int) -> Plan:
    """Follows from scenario and number alone, so that the ledger need not hold it."""
    failures = _failures(scenario, number)
    if scenario == DOOMED:
        # The output of a workflow that fails is that of the task that failed it.
        return Plan("FAILED", frozenset(), {"t1": failures}, {"v": number})
    references = {
        "simple1": ["t1"],
        "chain5": [f"t{step}" for step in range(1, 6)],
        "fork10": [f"b{branch}" for branch in range(10)],
        FLAKY: ["t1", "t2"],
    }[scenario]
    planned = {"t1": failures} if failures else {}
    return Plan("COMPLETED", frozenset(references), planned, {"v": number})


def workflow_definitions() -> list[Json]:
    return [*(_plain(scenario)[1] for scenario in _PLAIN), _flaky(), _doomed()]


def task_types() -> list[str]:
    types = [task_type for scenario in _PLAIN for task_type in _plain(scenario)[0]]
    return [*types, f"{TAG}_flaky", f"{TAG}_after", f"{TAG}_doomed"]


def task_definitions() -> list[Json]:
    return [
        {
            "name": task_type,
            # More than a plan fails on purpose: what a fault of the cluster costs is on top.
            "retryCount": 10,
            "retryLogic": "FIXED",
            "retryDelaySeconds": 1 if task_type == f"{TAG}_flaky" else 0,
            "timeoutSeconds": 0,
            "timeoutPolicy": "TIME_OUT_WF",
            "responseTimeoutSeconds": RESPONSE_TIMEOUT_S,
            "ownerEmail": "load@example.com",
        }
        for task_type in task_types()
    ]


def result_of(task: Json, worker_id: str) -> Json:
    """What a worker reports for a task, failures on purpose included."""
    given = task.get("inputData") or {}
    result = {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "workerId": worker_id,
        "status": "COMPLETED",
        "outputData": {"v": given.get("n"), "by": worker_id},
    }
    if task["taskType"] == f"{TAG}_doomed":
        result |= {"status": "FAILED_WITH_TERMINAL_ERROR", "reasonForIncompletion": "as planned"}
    elif (task.get("retryCount") or 0) < (given.get("failures") or 0):
        result |= {"status": "FAILED", "reasonForIncompletion": "as planned"}
    return result


def _failures(scenario: str, number: int) -> int:
    if scenario == DOOMED:
        return 1
    return 1 + number % _FAILURES_MAX if scenario == FLAKY else 0


def _plain(scenario: str) -> tuple[list[str], Json]:
    options = argparse.Namespace(tag=TAG, payload_bytes=0, scenario=scenario, one_type=False)
    types, definition, _ = definitions(options)
    return types, definition


def _flaky() -> Json:
    given = {"n": "${workflow.input.n}", "failures": "${workflow.input.failures}"}
    return _definition(FLAKY, [_task("t1", "flaky", given), _task("t2", "after", _from("t1"))])


def _doomed() -> Json:
    return _definition(DOOMED, [_task("t1", "doomed", {"n": "${workflow.input.n}"})])


def _from(reference: str) -> Json:
    return {"n": f"${{{reference}.output.v}}"}


def _task(reference: str, kind: str, given: Json) -> Json:
    return {
        "name": f"{TAG}_{kind}",
        "taskReferenceName": reference,
        "type": "SIMPLE",
        "inputParameters": given,
    }


def _definition(scenario: str, tasks: list[Json]) -> Json:
    last = tasks[-1]["taskReferenceName"]
    return {
        "name": workflow_name(scenario),
        "version": 1,
        "schemaVersion": 2,
        "description": "load test",
        "ownerEmail": "load@example.com",
        "timeoutSeconds": 0,
        "timeoutPolicy": "ALERT_ONLY",
        "tasks": tasks,
        "outputParameters": {"v": f"${{{last}.output.v}}"} if scenario != DOOMED else {},
    }
