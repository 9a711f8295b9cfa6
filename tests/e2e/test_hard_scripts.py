"""Hostile and endless scripts: the task fails within its limit, and nobody else notices."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.client import Client, Json, bystander, connected, inline, loop, simple
from tests.support.served import Server, serving

pytestmark = pytest.mark.asyncio
TIME_LIMIT_MS = 1000
FAILS_S = 10.0
"""When a script that is stopped must have failed its task: its limit, and room for a busy machine;
some are tried again among the suspects."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = os.environ | {"PODIUM_SCRIPT_TIME_LIMIT_MS": str(TIME_LIMIT_MS), "SECRET_THING": "hidden"}
    with serving(tmp_path_factory.mktemp("scripts"), env=env) as running:
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connected(server.url) as client:
        yield client


def jq(ref: str, query: str) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "JSON_JQ_TRANSFORM",
        "inputParameters": {"queryExpression": query, "value": 1},
    }


def switch(ref: str, expression: str) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "SWITCH",
        "evaluatorType": "javascript",
        "expression": expression,
        "decisionCases": {"x": [simple("never", "never")]},
        "defaultCase": [],
    }


ENDLESS: dict[str, Json] = {
    "javascript": inline("s", "while (true) {}"),
    "javascript that catches": inline("s", "while (true) { try { while (true) {} } catch (e) {} }"),
    "regular expression": inline("s", "/^(a+)+$/.test('a'.repeat(64) + 'b')"),
    "one long call": inline("s", "new Array(1e9).fill(1).sort().join('').length"),
    "memory of objects": inline("s", "let a = []; while (true) a.push(new Array(1e5).fill({}))"),
    "memory of text": inline("s", "let a = 'x'; while (true) a += a; a"),
    "a huge result": inline("s", "'x'.repeat(20e6)"),
    "deep recursion": inline("s", "function f() { return f() + 1 }; f()"),
    "promises": inline("s", "function f() { Promise.resolve().then(f) }; f(); while (true) {}"),
    "lambda": {
        "name": "s",
        "taskReferenceName": "s",
        "type": "LAMBDA",
        "inputParameters": {"scriptExpression": "while (true) {}"},
    },
    "switch": switch("s", "while (true) {}"),
    "loop condition": loop("s", "while (true) {}", inline("i", "1")),
    "jq": jq("s", "def f: f; f"),
    "jq that yields": jq("s", "last(range(infinite))"),
    "jq of memory": jq("s", "[range(1e9)]"),
    "jq of text": jq("s", '"x" * 1e9'),
    "jq that recurses": jq("s", "def f: [f]; f"),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_it_fails_its_task_within_the_limit(client: Client, kind: str) -> None:
    name = f"endless_{kind}"
    await client.register(name, ENDLESS[kind])
    began = time.perf_counter()
    workflow_id = await client.start(name)
    run = await client.ended(workflow_id, deadline_s=20)
    took_s = time.perf_counter() - began
    assert run["status"] == "FAILED"
    [task, *_] = run["tasks"]
    assert task["referenceTaskName"] == "s"
    assert task["status"] in ("FAILED", "FAILED_WITH_TERMINAL_ERROR")
    assert task["reasonForIncompletion"]
    assert took_s < FAILS_S, took_s


async def test_nobody_else_notices(client: Client) -> None:
    """Twenty endless scripts at once, all kinds, new ones all the time."""
    for kind, task in ENDLESS.items():
        await client.register(f"endless_{kind}", task)
    kinds = list(ENDLESS)
    async with bystander(client) as seen:
        ids = []
        for number in range(20):
            starting = client.start(f"endless_{kinds[number % len(kinds)]}")
            ids.append(asyncio.create_task(starting))
            await asyncio.sleep(0.1)
        workflow_ids = await asyncio.gather(*ids)
        runs = [await client.ended(workflow_id, deadline_s=60) for workflow_id in workflow_ids]
    assert {run["status"] for run in runs} == {"FAILED"}
    assert len(seen.took_ms) > 10, seen
    seen.check()


async def test_a_flood_of_endless_scripts_leaves_the_quick_ones_alone(client: Client) -> None:
    """Each of them unlike all others, so that none is known to be slow."""
    await client.register("flood", inline("s", "${workflow.input.script}"))
    async with bystander(client) as seen:
        began = time.perf_counter()
        starts = [
            client.start("flood", {"script": f"let i = {number}; while (true) i++"})
            for number in range(12)
        ]
        ids = await asyncio.gather(*starts)
        assert time.perf_counter() - began < 10, "a start waits 5 s for scripts, no longer"
    for workflow_id in ids:
        assert (await client.ended(workflow_id))["status"] == "FAILED"
    seen.check()


async def test_an_endless_script_in_a_branch_does_not_hold_its_siblings(client: Client) -> None:
    fork: Json = {
        "name": "f",
        "taskReferenceName": "f",
        "type": "FORK_JOIN",
        "forkTasks": [
            [inline("s", "while (true) {}") | {"optional": True}],
            [simple("a", "sibling")],
        ],
    }
    joined: Json = {"name": "j", "taskReferenceName": "j", "type": "JOIN", "joinOn": ["s", "a"]}
    await client.register("siblings", fork, joined)
    starting = asyncio.create_task(client.start("siblings"))
    began = time.perf_counter()
    [task] = await client.poll("sibling")
    assert time.perf_counter() - began < TIME_LIMIT_MS / 2000
    await client.report(task)
    run = await client.ended(await starting)
    statuses = {task["referenceTaskName"]: task["status"] for task in run["tasks"]}
    assert run["status"] == "COMPLETED"
    assert statuses["s"] == "COMPLETED_WITH_ERRORS"


async def test_scripts_see_nothing_of_the_process_they_run_in(client: Client) -> None:
    sees: dict[str, Any] = {
        "js": "[typeof process, typeof require, typeof std, typeof os, typeof fetch]",
        "import": "typeof globalThis.scriptArgs",
    }
    for name, script in sees.items():
        await client.register(f"sees_{name}", inline("s", script))
        run = await client.ended(await client.start(f"sees_{name}"))
        result = run["output"]["result"]
        assert set(result if isinstance(result, list) else [result]) == {"undefined"}
    await client.register("sees_jq", jq("s", "[env, $ENV] | tostring"))
    run = await client.ended(await client.start("sees_jq"))
    assert "SECRET_THING" not in str(run)
    assert "hidden" not in str(run)
    await client.register("sees_import", inline("s", "import('/etc/passwd').then(x => x)"))
    run = await client.ended(await client.start("sees_import"))
    assert "root:" not in str(run)


async def test_one_script_leaves_nothing_behind_for_the_next(client: Client) -> None:
    await client.register(
        "leaves", inline("a", "globalThis.left = 'x'; Array.prototype.left = 'y'; 1")
    )
    await client.register("finds", inline("b", "[typeof left, typeof [].left]"))
    for _ in range(5):
        await client.start("leaves")
    run = await client.ended(await client.start("finds"))
    assert run["output"]["result"] == ["undefined", "undefined"]
