"""Schedules: workflows that the clock starts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from cluster.engine import payloads
from cluster.engine.events import ScheduleDeleted, SchedulePaused, ScheduleResumed
from cluster.engine.schedules import next_of, shown
from cluster.errors import ClusterError, InvalidRequest, NotFound, Violation
from cluster.node import wire
from cluster.node.api.bodies import invalid, json_body, read, reader
from cluster.node.api.schedule_body import ScheduleBody, checked, read_crons
from cluster.node.api.services import Services
from cluster.node.middleware import EMPTY, NO_CONTENT, Answer, Call, Route

_NEXT_MAX = 5
_BULK_MAX = 1_000
_SCHEDULE = reader(ScheduleBody)
_NAMES = reader(list[str])

Json = dict[str, Any]


def routes(services: Services) -> list[Route]:
    api = SchedulerApi(services)
    base = "/api/scheduler"
    schedules = f"{base}/schedules"
    both = ("GET", "PUT")  # Conductor takes PUT, Orkes GET; clients use either.
    return [
        Route("POST", schedules, api.save),
        Route("GET", schedules, api.all),
        Route("GET", f"{schedules}/{{name}}", api.get),
        Route("DELETE", f"{schedules}/{{name}}", api.remove),
        *(Route(method, f"{schedules}/{{name}}/pause", api.pause) for method in both),
        *(Route(method, f"{schedules}/{{name}}/resume", api.resume) for method in both),
        Route("PUT", f"{base}/bulk/pause", api.bulk_pause),
        Route("PUT", f"{base}/bulk/resume", api.bulk_resume),
        Route("GET", f"{base}/nextFewSchedules", api.next_few),
    ]


class SchedulerApi:
    def __init__(self, services: Services) -> None:
        self._router = services.router
        self._book = services.schedule_book
        self._clock = services.clock
        self._input_bytes_max = services.settings.workflow_payload_bytes_max

    async def save(self, call: Call) -> Answer:
        json_body(call.body)
        saved = checked(
            read(_SCHEDULE, call.body), self._clock.now_ms(), input_bytes_max=self._input_bytes_max
        )
        execution = await self._router.save_schedule(saved["name"], payloads.dump(saved))
        return Answer(payloads.dump(shown(execution)))

    async def get(self, call: Call) -> Answer:
        return Answer(payloads.dump(shown(await self._router.schedule(call.path["name"]))))

    async def all(self, call: Call) -> Answer:
        wanted = call.text("workflowName")
        found = [
            self._with_next(schedule)
            for schedule in await self._book.schedules()
            if not wanted or schedule["startWorkflowRequest"]["name"] == wanted
        ]
        return Answer(payloads.dump(found))

    async def remove(self, call: Call) -> Answer:
        try:
            await self._router.change_schedule(
                call.path["name"], ScheduleDeleted(self._clock.now_ms())
            )
        except NotFound:
            pass
        return NO_CONTENT

    async def pause(self, call: Call) -> Answer:
        await self._pause(call.path["name"], call.text("reason"))
        return EMPTY

    async def resume(self, call: Call) -> Answer:
        await self._resume(call.path["name"])
        return EMPTY

    async def bulk_pause(self, call: Call) -> Answer:
        return await self._for_each(call, lambda name: self._pause(name, None))

    async def bulk_resume(self, call: Call) -> Answer:
        return await self._for_each(call, self._resume)

    async def next_few(self, call: Call) -> Answer:
        expression = call.required("cronExpression")
        zone_id = call.text("zoneId") or "UTC"
        violations = read_crons([("cronExpression", expression, "zoneId", zone_id)])
        if violations:
            raise InvalidRequest(violations[0].message)
        schedule = {
            "cronExpression": expression,
            "zoneId": zone_id,
            "scheduleStartTime": call.optional_integer("scheduleStartTime"),
            "scheduleEndTime": call.optional_integer("scheduleEndTime"),
        }
        instants: list[int] = []
        after_ms = self._clock.now_ms()
        for _ in range(min(_NEXT_MAX, call.integer("limit", _NEXT_MAX))):
            found = next_of(schedule, after_ms)
            if found is None:
                break
            after_ms = found.instant_ms
            instants.append(after_ms)
        return Answer(orjson.dumps(instants))

    async def _pause(self, name: str, reason: str | None) -> None:
        await self._router.change_schedule(name, SchedulePaused(self._clock.now_ms(), reason))

    async def _resume(self, name: str) -> None:
        await self._router.change_schedule(name, ScheduleResumed(self._clock.now_ms()))

    def _with_next(self, schedule: Json) -> Json:
        """What the list holds, as it stands now."""
        schedule.pop("nextRunTime", None)
        if not schedule["paused"]:
            found = next_of(schedule, self._clock.now_ms())
            if found is not None:
                schedule["nextRunTime"] = found.instant_ms
        return schedule

    async def _for_each(self, call: Call, operate: Callable[[str], Awaitable[None]]) -> Answer:
        given = read(_NAMES, call.body)
        names = list(dict.fromkeys(given))
        if not 0 < len(names) <= _BULK_MAX:
            raise invalid(Violation("arg0", f"Between 1 and {_BULK_MAX} names are taken"))
        errors: dict[str, str] = {}

        async def attempt(name: str) -> None:
            try:
                await operate(name)
            except ClusterError as error:
                errors[name] = error.message

        await asyncio.gather(*map(attempt, names))
        return Answer(wire.bulk_json([name for name in names if name not in errors], errors))
