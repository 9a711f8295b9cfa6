"""The list of schedules and their executions on record: what is asked about many of them.

Both are records of the store, written by the owners of the schedules' shards. The schedule itself
is an execution (engine/schedules.py); where the two differ for a moment, that one is right.
"""

from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Any

from cluster.clock import Clock
from cluster.engine import payloads
from cluster.engine.effects import ListSchedule, StartScheduled
from cluster.metrics import Metrics
from cluster.store.ports import RecordStore

_LISTS = 16
"""The list is kept in so many parts: stores keep the keys of a kind together."""

_PAGE = 500
_REASON_CHARS_MAX = 999
_HOUR_MS = 3_600_000
_TIME_MAX = 10**13
"""Keys count backwards from here, so that the latest execution comes first."""

HOURS_MAX = 24 * 14
"""How far back executions of all schedules are looked for, from the latest on."""

Json = dict[str, Any]


class ScheduleBook:
    """Written by effects, which may be repeated: a record is written again as it was."""

    def __init__(self, records: RecordStore, clock: Clock, metrics: Metrics) -> None:
        self._records = records
        self._clock = clock
        self._metrics = metrics

    # -- what effects write

    async def show(self, effect: ListSchedule) -> None:
        """Have the list show a schedule, or forget it with its executions."""
        await self._records.put(_list_of(effect.name), {effect.name: effect.value})
        for instant_ms in effect.forgets_ms:
            await self._forget(effect.name, instant_ms)

    async def executed(self, start: StartScheduled, workflow_id: str) -> None:
        """A start has happened."""
        await self._note(start, {"state": "EXECUTED", "workflowId": workflow_id})

    async def failed(self, start: StartScheduled, reason: str) -> None:
        """A start is not possible."""
        await self._note(start, {"state": "FAILED", "reason": reason[:_REASON_CHARS_MAX]})

    async def _note(self, start: StartScheduled, outcome: Json) -> None:
        record = {**start.record, **outcome}
        name, instant_ms = record["scheduleName"], record["scheduledTime"]
        value = payloads.dump(record)
        await self._records.put(_executions_of(name), {_backwards(instant_ms): value})
        await self._records.put(_hour_of(instant_ms), {_place(instant_ms, name): value})
        if start.forgets_ms:
            await self._forget(name, start.forgets_ms)
        self._metrics.schedule_starts.of(outcome["state"]).inc()
        late_ms = max(0, record["executionTime"] - instant_ms)
        self._metrics.schedule_lateness.of().observe(late_ms / 1000)

    async def _forget(self, name: str, instant_ms: int) -> None:
        await self._records.put(_executions_of(name), {_backwards(instant_ms): None})
        await self._records.put(_hour_of(instant_ms), {_place(instant_ms, name): None})

    # -- what clients read

    async def schedules(self) -> list[Json]:
        """Every schedule as it was listed last, by name."""
        found: list[Json] = []
        for part in range(_LISTS):
            found += [payloads.load(value) async for value in self._all(_list(part))]
        found.sort(key=lambda schedule: str(schedule["name"]))
        return found

    async def executions(self, schedule: str | None) -> AsyncIterator[Json]:
        """Executions on record, the latest instant first: of a schedule, or of all of them within
        the last `HOURS_MAX`."""
        if schedule is not None:
            async for value in self._all(_executions_of(schedule)):
                yield payloads.load(value)
            return
        now_ms = self._clock.now_ms()
        for hour in range(HOURS_MAX):
            async for value in self._all(_hour_of(now_ms - hour * _HOUR_MS)):
                yield payloads.load(value)

    async def _all(self, kind: str) -> AsyncIterator[bytes]:
        after: str | None = None
        while True:
            page = await self._records.page(kind, prefix="", after=after, limit=_PAGE)
            for _, value in page:
                yield value
            if len(page) < _PAGE:
                return
            after = page[-1][0]


def _list(part: int) -> str:
    return f"schedules/{part}"


def _list_of(name: str) -> str:
    return _list(blake2b(name.encode(), digest_size=2).digest()[0] % _LISTS)


def _executions_of(name: str) -> str:
    return f"schedule-executions/of/{name}"


def _hour_of(instant_ms: int) -> str:
    return f"schedule-executions/at/{instant_ms // _HOUR_MS}"


def _backwards(instant_ms: int) -> str:
    return f"{_TIME_MAX - instant_ms:013d}"


def _place(instant_ms: int, name: str) -> str:
    return f"{_backwards(instant_ms)}/{name}"
