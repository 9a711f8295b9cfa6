"""A node that dies at each append in turn: what was acknowledged is there, all of it ends once.

The runs and the judge are those of tests/chaos; here no window is too short to be hit.
"""

import asyncio
from typing import Any

import pytest

from cluster.store.ports import Stores
from tests.chaos.definitions import (
    ENDED,
    KINDS,
    TASK_TYPES,
    Json,
    answer,
    task_definitions,
    workflow_definitions,
)
from tests.chaos.verdict import judge
from tests.support.lives import Death, Life, Scripts, new_stores
from tests.support.virtual_time import VirtualClock, run_virtual

INTENTS = ("i1", "i2")
_ROUNDS_MAX = 400
_NAMES = list(KINDS)


class Client:
    """One producer and one worker that note what was acknowledged, and go on after a crash."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ledger: list[dict[str, Any]] = [
            {"kind": "intent", "intent": intent, "name": kind, "value": 7, "is_keyed": True}
            for intent in INTENTS
        ]
        self.started: dict[str, str] = {}
        self.terminated: set[str] = set()

    async def work(self, life: Life) -> None:
        """Start what is not started, work until all of it has ended."""
        for intent in INTENTS:
            if intent not in self.started:
                workflow_id = await life.start(
                    self.kind,
                    {"intent": intent, "value": 7},
                    correlation_id=intent,
                    idempotency_key=intent,
                )
                self.started[intent] = workflow_id
                self.ledger.append(
                    {"kind": "started", "intent": intent, "workflow_id": workflow_id}
                )
        for _ in range(_ROUNDS_MAX):
            await self._round(life)
            if await self._all_ended(life):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"still open: {[await life.show(i) for i in self.started.values()]}")

    async def _round(self, life: Life) -> None:
        for task_type in TASK_TYPES:
            for task in await life.poll(task_type):
                await self._report(life, task)
        if self.kind == ENDED:
            for workflow_id in self.started.values():
                if workflow_id not in self.terminated:
                    await life.terminate(workflow_id)
                    self.terminated.add(workflow_id)

    async def _report(self, life: Life, task: Json) -> None:
        status, output = answer(task)
        await life.report(task, status, output)
        self.ledger.append(
            {
                "kind": "result",
                "workflow_id": task["workflowInstanceId"],
                "task_id": task["taskId"],
                "status": status,
                "output": output,
                "answered_ms": VirtualClock().now_ms(),
            }
        )

    async def _all_ended(self, life: Life) -> bool:
        runs = [await life.show(workflow_id) for workflow_id in await life.ids(_NAMES)]
        return all(run["status"] not in ("RUNNING", "PAUSED") for run in runs)


async def die_and_live_again(stores: Stores, kind: str, death: Death) -> tuple[bool, Client]:
    """Work until `death` comes, then to the end in another life; False if it never came."""
    client = Client(kind)
    async with Life(stores, death=death, scripts=scripts()) as life:
        working = asyncio.create_task(client.work(life))
        dying = asyncio.create_task(death.has_come.wait())
        await asyncio.wait((working, dying), return_when=asyncio.FIRST_COMPLETED)
        has_died = not working.done()
        working.cancel()
        dying.cancel()
        if not has_died:
            await working
    async with Life(stores, scripts=scripts()) as life:
        await client.work(life)
        present: dict[str, Json] = {one: await life.show(one) for one in await life.ids(_NAMES)}
        assert await life.audit.walk() == 0
    verdict = judge(client.ledger, present)
    assert (verdict.lost, verdict.duplicated, verdict.wrong) == ([], [], [])
    assert verdict.late == 0
    assert verdict.starts == len(INTENTS)
    return has_died, client


def scripts() -> Scripts:
    """What the scripts of the definitions come to."""
    found = Scripts()
    found.answers = {
        KINDS["chaos_inline"].tasks[1]["inputParameters"]["expression"]: (
            lambda value: value["value"] * 2
        ),
        KINDS["chaos_loop"].tasks[0]["loopCondition"]: (
            lambda value: value["loop"]["iteration"] < 3
        ),
    }
    return found


async def registered() -> Stores:
    stores = await new_stores()
    async with Life(stores) as life:
        await life.register(workflow_definitions(), task_definitions())
    return stores


@pytest.mark.parametrize("applied", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("kind", [kind.name for kind in KINDS.values() if kind.is_started])
def test_a_crash_at_any_append_loses_and_repeats_nothing(kind: str, applied: bool) -> None:
    async def sweep() -> int:
        for number in range(1, 200):
            stores = await registered()
            death = Death(appends=number, applied=applied)
            has_died, _ = await die_and_live_again(stores, kind, death)
            if not has_died:
                return number
        raise AssertionError("it never ends")

    assert run_virtual(sweep()) > 3
