"""What runs under the kills: definitions of every kind, and what each must have come to.

Every worker adds 1 to `value`. The input of a run is {"intent": its name in the ledger,
"value": n}; the outputs follow from n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

LIMITED_MAX = 6
ROUNDS = 3
RESPONSE_TIMEOUT_S = 8
"""A worker that reports later than this is too late: see `load.GIVE_UP_S`."""

FAILS_ONCE = "chaos_fails_once"
FAILS = "chaos_fails"
LIMITED = "chaos_limited"
NOBODY = "chaos_nobody"
"""A type that nobody polls for."""

TASK_TYPES = ("chaos_a", "chaos_b", "chaos_c", FAILS_ONCE, FAILS, LIMITED)


@dataclass(frozen=True)
class Kind:
    """A definition, and the end of its runs. Attempts beyond the first of a step are allowed."""

    name: str
    weight: int
    """How often it is started."""
    tasks: list[Json]
    results: int
    """Results of workers that one run takes, in its children too."""
    completed: frozenset[str]
    """The steps that have exactly one COMPLETED attempt at the end; no others do."""
    output_parameters: Json
    output: Callable[[int], Json] = lambda value: {}
    status: str = "COMPLETED"
    is_started: bool = True
    """False: only other runs start it."""
    fields: Json | None = None


def worker(ref: str, type: str = "chaos_a", value: str = "${workflow.input.value}") -> Json:
    parameters = {"value": value, "intent": "${workflow.input.intent}"}
    return {"name": type, "taskReferenceName": ref, "type": "SIMPLE", "inputParameters": parameters}


def _out(ref: str) -> str:
    return f"${{{ref}.output.value}}"


def _child(ref: str, name: str, value: str, **placement: str) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "SUB_WORKFLOW",
        "subWorkflowParam": {"name": name, "version": 1, **placement},
        "inputParameters": {"intent": "${workflow.input.intent}", "value": value},
    }


_CHAIN = [worker("a"), worker("b", "chaos_b", _out("a")), worker("c", "chaos_c", _out("b"))]
_FORK = {
    "name": "fork",
    "taskReferenceName": "fork",
    "type": "FORK_JOIN",
    "forkTasks": [
        [worker("x", "chaos_a"), worker("x2", "chaos_b", _out("x"))],
        [worker("y", "chaos_b")],
        [worker("z", "chaos_c")],
    ],
}
_WAIT = {
    "name": "wait",
    "taskReferenceName": "wait",
    "type": "WAIT",
    "inputParameters": {"duration": "1 seconds"},
}
_INLINE = {
    "name": "inline",
    "taskReferenceName": "inline",
    "type": "INLINE",
    "inputParameters": {
        "evaluatorType": "javascript",
        "value": _out("a"),
        "expression": "(function () { var n = 0; for (;n < $.value * 2;) n++; return n })()",
    },
}
_LOOP = {
    "name": "loop",
    "taskReferenceName": "loop",
    "type": "DO_WHILE",
    "loopCondition": f"(function () {{ return $.loop['iteration'] < {ROUNDS} }})()",
    "loopOver": [worker("r", "chaos_b")],
}
_START = {
    "name": "start",
    "taskReferenceName": "start",
    "type": "START_WORKFLOW",
    "inputParameters": {
        "startWorkflow": {
            "name": "chaos_launched",
            "version": 1,
            "input": {"intent": "${workflow.input.intent}", "value": _out("a")},
        }
    },
}
_JOIN = {"name": "join", "taskReferenceName": "join", "type": "JOIN"}


def _kind(
    name: str,
    weight: int,
    tasks: list[Json],
    *,
    results: int,
    completed: str,
    output_parameters: Json | None = None,
    **fields: Any,
) -> Kind:
    return Kind(
        f"chaos_{name}",
        weight,
        tasks,
        results,
        frozenset(completed.split()),
        output_parameters or {},
        **fields,
    )


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind(
            "simple1",
            5,
            [worker("a")],
            results=1,
            completed="a",
            output_parameters={"value": _out("a")},
            output=lambda value: {"value": value + 1},
        ),
        _kind(
            "chain3",
            3,
            _CHAIN,
            results=3,
            completed="a b c",
            output_parameters={"value": _out("c")},
            output=lambda value: {"value": value + 3},
        ),
        _kind(
            "fork",
            3,
            [_FORK, {**_JOIN, "joinOn": ["x2", "y", "z"]}, worker("end", "chaos_a", _out("x2"))],
            results=5,
            completed="fork x x2 y z join end",
            output_parameters={"value": _out("end"), "z": "${join.output.z.value}"},
            output=lambda value: {"value": value + 3, "z": value + 1},
        ),
        _kind(
            "sub",
            3,
            [
                worker("a"),
                _child("child", "chaos_child", _out("a")),
                worker("b", value=_out("child")),
            ],
            results=4,
            completed="a child b",
            output_parameters={"value": _out("b")},
            output=lambda value: {"value": value + 4},
        ),
        _kind(
            "spread",
            0,
            [
                worker("a"),
                _child("child", "chaos_child", _out("a"), placement="spread"),
                worker("b", value=_out("child")),
            ],
            results=4,
            completed="a child b",
            output_parameters={"value": _out("b")},
            output=lambda value: {"value": value + 4},
        ),
        _kind(
            "child",
            0,
            [worker("c1", "chaos_c"), worker("c2", "chaos_b", _out("c1"))],
            results=0,
            completed="c1 c2",
            output_parameters={"value": _out("c2")},
            output=lambda value: {"value": value + 2},
            is_started=False,
        ),
        _kind(
            "retry",
            2,
            [worker("a", FAILS_ONCE), worker("b", "chaos_b", _out("a"))],
            results=3,
            completed="a b",
            output_parameters={"value": _out("b")},
            output=lambda value: {"value": value + 2},
        ),
        _kind(
            "wait",
            3,
            [worker("a"), _WAIT, worker("b", "chaos_b", _out("a"))],
            results=2,
            completed="a wait b",
            output_parameters={"value": _out("b")},
            output=lambda value: {"value": value + 2},
        ),
        _kind(
            "inline",
            3,
            [worker("a"), _INLINE, worker("b", "chaos_b", "${inline.output.result}")],
            results=2,
            completed="a inline b",
            output_parameters={"value": _out("b")},
            output=lambda value: {"value": 2 * (value + 1) + 1},
        ),
        _kind(
            "loop",
            2,
            [_LOOP, worker("a", value=_out("r"))],
            results=ROUNDS + 1,
            completed="loop r__1 r__2 r__3 a",
            output_parameters={"value": _out("a"), "rounds": "${loop.output.iteration}"},
            output=lambda value: {"value": value + 2, "rounds": ROUNDS},
        ),
        _kind(
            "limit",
            1,
            [worker("a", LIMITED)],
            results=1,
            completed="a",
            output_parameters={"value": _out("a")},
            output=lambda value: {"value": value + 1},
        ),
        _kind(
            "launch",
            2,
            [worker("a"), _START, worker("b", "chaos_b", _out("a"))],
            results=3,
            completed="a start b",
            output_parameters={"value": _out("b"), "launched": "${start.output.workflowId}"},
            output=lambda value: {"value": value + 2},
        ),
        _kind(
            "launched",
            0,
            [worker("l", "chaos_c")],
            results=0,
            completed="l",
            output_parameters={"value": _out("l")},
            output=lambda value: {"value": value + 1},
            is_started=False,
        ),
        _kind(
            "fails",
            2,
            [worker("a"), worker("f", FAILS, _out("a"))],
            results=3,
            completed="a",
            status="FAILED",
            fields={"failureWorkflow": "chaos_compensation"},
        ),
        _kind(
            "compensation",
            0,
            [worker("undo", "chaos_c", "${workflow.input.value}")],
            results=0,
            completed="undo",
            output_parameters={"value": _out("undo"), "failed": "${workflow.input.workflowId}"},
            output=lambda value: {"value": value + 1},
            is_started=False,
        ),
        _kind(
            "ended",
            1,
            [
                {
                    **_FORK,
                    "forkTasks": [
                        [_child("child", "chaos_endless", "${workflow.input.value}")],
                        [worker("y", NOBODY)],
                    ],
                },
                {**_JOIN, "joinOn": ["child", "y"]},
            ],
            results=0,
            completed="fork",
            status="TERMINATED",
        ),
        _kind(
            "endless",
            0,
            [worker("e", NOBODY)],
            results=0,
            completed="",
            status="TERMINATED",
            is_started=False,
        ),
    )
}
ENDED = "chaos_ended"
"""Runs of this kind go on until the client terminates them."""


def workflow_definitions() -> list[Json]:
    return [
        {
            "name": kind.name,
            "version": 1,
            "tasks": kind.tasks,
            "outputParameters": kind.output_parameters,
            **(kind.fields or {}),
        }
        for kind in KINDS.values()
    ]


def task_definitions() -> list[Json]:
    # Many retries: what a worker never got because the server died comes back by the timeout.
    common = {
        "retryCount": 40,
        "retryDelaySeconds": 0,
        "responseTimeoutSeconds": RESPONSE_TIMEOUT_S,
        "timeoutSeconds": 0,
    }
    definitions: list[Json] = [{"name": name, **common} for name in (*TASK_TYPES, NOBODY)]
    for definition in definitions:
        if definition["name"] == LIMITED:
            definition["concurrentExecLimit"] = LIMITED_MAX
    return definitions


def answer(task: Json) -> tuple[str, Json]:
    """What a worker makes of a polled task: the same whoever asks again."""
    value = task["inputData"]["value"]
    of = task["taskId"]
    if task["taskType"] == FAILS:
        return "FAILED_WITH_TERMINAL_ERROR", {"of": of, "value": value}
    if task["taskType"] == FAILS_ONCE and task["retryCount"] == 0:
        return "FAILED", {"of": of, "value": value}
    return "COMPLETED", {"of": of, "value": value + 1}
