"""Schedules: workflows that the clock starts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import orjson

from cluster.engine import payloads
from cluster.engine.events import ScheduleDeleted, SchedulePaused, ScheduleResumed
from cluster.engine.schedules import next_of, shown, state_of
from cluster.errors import ClusterError, InvalidRequest, NotFound, Violation
from cluster.node import wire
from cluster.node.api.bodies import invalid, json_body, read, reader
from cluster.node.api.schedule_body import ScheduleBody, checked, read_crons
from cluster.node.api.services import Services
from cluster.node.middleware import EMPTY, NO_CONTENT, Answer, Call, Route
from cluster.node.schedule_query import SCANNED_MAX, found_in, in_order, parse

_NEXT_MAX = 5
_BULK_MAX = 1_000
_SCHEDULE = reader(ScheduleBody)
_NAMES = reader(list[str])
_PAGE_MAX = 1_000
_DONE = orjson.dumps({"status": "done"})


class TagBody(msgspec.Struct):
    """Tag."""

    key: str
    value: str = ""


_TAGS = reader(list[TagBody])

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
        Route("GET", f"{schedules}/search", api.search),
        Route("GET", f"{base}/search/executions", api.executions),
        Route("GET", f"{base}/admin/requeue", api.requeue),
        *(Route(method, f"{base}/admin/pause", api.pause_all) for method in ("GET", "POST")),
        *(Route(method, f"{base}/admin/resume", api.resume_all) for method in ("GET", "POST")),
        Route("GET", f"{schedules}/{{name}}/tags", api.tags),
        Route("PUT", f"{schedules}/{{name}}/tags", api.put_tags),
        Route("DELETE", f"{schedules}/{{name}}/tags", api.remove_tags),
    ]


class SchedulerApi:
    def __init__(self, services: Services) -> None:
        self._router = services.router
        self._book = services.schedule_book
        self._switch = services.scheduler_switch
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
        found = await self._schedules(call.text("workflowName"))
        return Answer(payloads.dump([self._with_next(schedule) for schedule in found]))

    async def search(self, call: Call) -> Answer:
        """Schedules by the workflow they start, a part of their name, and whether they rest."""
        found = await self._schedules(call.text("workflowName"))
        name, text = call.text("scheduleName") or "", (call.text("freeText") or "*").lower()
        if call.text("paused"):
            paused = call.flag("paused", default=False)
            found = [schedule for schedule in found if schedule["paused"] == paused]
        found = [schedule for schedule in found if name.lower() in schedule["name"].lower()]
        if text != "*":
            found = [schedule for schedule in found if text in _text_of(schedule)]
        for one in reversed(",".join(call.all_of("sort")).split(",")):
            field, _, direction = one.strip().partition(":")
            if field:
                found.sort(key=_key_of(field), reverse=direction.strip().upper() == "DESC")
        page = [self._with_next(schedule) for schedule in found[_page_of(call)]]
        return Answer(wire.page_json(len(found), payloads.dump(page)))

    async def executions(self, call: Call) -> Answer:
        """What became of starts. `totalHits` counts those among the executions looked at."""
        query = parse(call.text("query") or "", call.text("freeText") or "*")
        if query.schedules is None:
            found = await found_in(self._book.executions(None), query, SCANNED_MAX)
        else:
            found = []
            for name in query.schedules[:_BULK_MAX]:
                found += await found_in(self._book.executions(name), query, SCANNED_MAX)
        found = in_order(found, call.all_of("sort"))
        return Answer(wire.page_json(len(found), payloads.dump(found[_page_of(call)])))

    async def requeue(self, _call: Call) -> Answer:
        """In Conductor records may wait to be archived; here none ever does."""
        return Answer(orjson.dumps({"recordIds.size": 0, "sampleIds": []}))

    async def pause_all(self, _call: Call) -> Answer:
        await self._switch.turn(off=True)
        return Answer(_DONE)

    async def resume_all(self, _call: Call) -> Answer:
        await self._switch.turn(off=False)
        return Answer(_DONE)

    async def tags(self, call: Call) -> Answer:
        execution = await self._router.schedule(call.path["name"])
        return Answer(payloads.dump(execution.workflow_input().get("tags", [])))

    async def put_tags(self, call: Call) -> Answer:
        given = read(_TAGS, call.body)
        tags = {tag.key: tag.value for tag in given}
        await self._change_tags(call.path["name"], lambda standing: {**standing, **tags})
        return EMPTY

    async def remove_tags(self, call: Call) -> Answer:
        given = read(_TAGS, call.body)
        keys = {tag.key for tag in given}
        await self._change_tags(
            call.path["name"],
            lambda standing: {key: standing[key] for key in standing if key not in keys},
        )
        return EMPTY

    async def _change_tags(
        self, name: str, change: Callable[[dict[str, str]], dict[str, str]]
    ) -> None:
        execution = await self._router.schedule(name)
        state = state_of(execution)
        saved = {**execution.workflow_input(), "paused": state.paused}
        if state.paused_reason is not None:
            saved["pausedReason"] = state.paused_reason
        tags = change({tag["key"]: tag["value"] for tag in saved.get("tags", [])})
        saved["tags"] = [{"key": key, "value": value} for key, value in tags.items()]
        await self._router.save_schedule(name, payloads.dump(saved))

    async def _schedules(self, workflow: str | None) -> list[Json]:
        return [
            schedule
            for schedule in await self._book.schedules()
            if not workflow or schedule["startWorkflowRequest"]["name"] == workflow
        ]

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


def _page_of(call: Call) -> slice:
    start, size = call.integer("start", 0), call.integer("size", 100)
    if start < 0 or not 0 <= size <= _PAGE_MAX:
        raise InvalidRequest(f"start is not below 0, and size between 0 and {_PAGE_MAX}")
    return slice(start, start + size)


def _text_of(schedule: Json) -> str:
    start = schedule["startWorkflowRequest"]["name"]
    return f"{schedule['name']} {start} {schedule.get('description', '')}".lower()


def _key_of(field: str) -> Callable[[Json], tuple[bool, Any]]:
    def key(schedule: Json) -> tuple[bool, Any]:
        value = schedule.get(field)
        return isinstance(value, str), str(value) if isinstance(value, str) else int(value or 0)

    if field not in ("name", "paused", "createTime", "updatedTime", "nextRunTime"):
        raise InvalidRequest(f"Schedules cannot be sorted by '{field[:100]}'")
    return key
