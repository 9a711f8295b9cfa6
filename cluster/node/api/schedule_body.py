"""A WorkflowSchedule as it comes: checked field by field, and made into what is kept."""

from collections.abc import Iterable
from typing import Any

import msgspec

from cluster.engine import payloads
from cluster.engine.cron import BadCron
from cluster.engine.zoned_cron import BadZone, zone_of, zoned_cron
from cluster.errors import TooLarge, ValidationFailed, Violation
from cluster.node.api.bodies import (
    StartBody,
    Text,
    as_text,
    invalid,
    json_object,
    read,
    reader,
)
from cluster.node.api.starts import start_request

NAME_CHARS_MAX = 255
CRONS_MAX = 100
BYTES_MAX = 256 * 1024
"""Every execution on record repeats what was to be started."""

_PATH = "createOrUpdateSchedule.arg0"
_START_PATH = "startWorkflow.arg0"
_START = reader(StartBody)
_NEVER_FROM_MS = 0

Json = dict[str, Any]


class CronBody(msgspec.Struct, rename="camel"):
    """CronSchedule."""

    cron_expression: Text = None
    zone_id: Text = None


class ScheduleBody(msgspec.Struct, rename="camel"):
    """WorkflowSchedule."""

    name: Text = None
    cron_expression: Text = None
    zone_id: Text = None
    cron_schedules: list[CronBody] | None = None
    run_catchup_schedule_instances: bool | None = None
    paused: bool | None = None
    paused_reason: Text = None
    start_workflow_request: msgspec.Raw = msgspec.Raw(b"null")
    schedule_start_time: int | None = None
    schedule_end_time: int | None = None
    created_by: Text = None
    updated_by: Text = None
    description: Text = None


def checked(body: ScheduleBody, now_ms: int, *, input_bytes_max: int) -> Json:
    """What is kept of a schedule. ValidationFailed lists every field that is wrong; TooLarge."""
    request = _request_of(body)
    violations = [*_name_faults(body), *_cron_faults(body), *_bound_faults(body)]
    violations += _start_faults(request, input_bytes_max)
    if violations:
        raise invalid(*violations)
    saved: Json = {"name": as_text(body.name)}
    if body.cron_expression is not None:
        saved["cronExpression"] = as_text(body.cron_expression)
    saved["zoneId"] = as_text(body.zone_id) or "UTC"
    saved["cronSchedules"] = [
        {
            "cronExpression": as_text(one.cron_expression),
            "zoneId": as_text(one.zone_id) or "UTC",
        }
        for one in body.cron_schedules or ()
    ]
    saved["runCatchupScheduleInstances"] = bool(body.run_catchup_schedule_instances)
    saved["paused"] = bool(body.paused)
    saved["startWorkflowRequest"] = request
    for key, value in (
        ("pausedReason", as_text(body.paused_reason)),
        ("scheduleStartTime", body.schedule_start_time),
        ("scheduleEndTime", body.schedule_end_time),
        ("createdBy", as_text(body.created_by)),
        ("updatedBy", as_text(body.updated_by)),
        ("description", as_text(body.description)),
    ):
        if value is not None:
            saved[key] = value
    size = len(payloads.dump(saved))
    if size > BYTES_MAX:
        raise TooLarge(f"The schedule has {size} bytes; at most {BYTES_MAX} are taken")
    return saved


def read_crons(crons: Iterable[tuple[str, str, str, str]]) -> list[Violation]:
    """What is wrong with (path, expression, path of the zone, zone) pairs."""
    violations = []
    for path, expression, zone_path, zone_id in crons:
        try:
            zone_of(zone_id)
        except BadZone as bad:
            violations.append(Violation(zone_path, str(bad), zone_id))
            zone_id = "UTC"
        try:
            if zoned_cron(expression, zone_id).next_after(_NEVER_FROM_MS) is None:
                violations.append(Violation(path, "It never comes", expression))
        except BadCron as bad:
            violations.append(Violation(path, str(bad), expression))
    return violations


def _name_faults(body: ScheduleBody) -> list[Violation]:
    name = as_text(body.name)
    if not name or not name.strip():
        return [Violation(f"{_PATH}.name", "Schedule name cannot be null or empty")]
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        text = f"Schedule name must be printable and have at most {NAME_CHARS_MAX} characters"
        return [Violation(f"{_PATH}.name", text, name[:NAME_CHARS_MAX])]
    return []


def _cron_faults(body: ScheduleBody) -> list[Violation]:
    several = body.cron_schedules or []
    if len(several) > CRONS_MAX:
        return [Violation(f"{_PATH}.cronSchedules", f"At most {CRONS_MAX} are taken")]
    crons = [
        (f"{_PATH}.cronSchedules[{place}]", one.cron_expression, one.zone_id)
        for place, one in enumerate(several)
    ]
    if not several or body.cron_expression:
        crons.append((_PATH, body.cron_expression, body.zone_id))
    found = []
    violations = []
    for path, expression, zone_id in crons:
        if not expression:
            violations.append(
                Violation(f"{path}.cronExpression", "cronExpression cannot be null or empty")
            )
            continue
        text = as_text(expression) or ""
        found.append((f"{path}.cronExpression", text, f"{path}.zoneId", as_text(zone_id) or "UTC"))
    return violations + read_crons(found)


def _bound_faults(body: ScheduleBody) -> list[Violation]:
    start_ms, end_ms = body.schedule_start_time, body.schedule_end_time
    for field, value in (("scheduleStartTime", start_ms), ("scheduleEndTime", end_ms)):
        if value is not None and not 0 <= value < 1 << 62:
            return [Violation(f"{_PATH}.{field}", "It is a Unix time in ms", str(value))]
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        text = "scheduleEndTime is before scheduleStartTime"
        return [Violation(f"{_PATH}.scheduleEndTime", text, str(end_ms))]
    return []


def _request_of(body: ScheduleBody) -> Json:
    """The StartWorkflowRequest; what is null in it counts as absent. InvalidRequest."""
    raw = bytes(body.start_workflow_request)
    if raw == b"null":
        raise invalid(
            Violation(f"{_PATH}.startWorkflowRequest", "startWorkflowRequest cannot be null")
        )
    request: Json = payloads.load(json_object(raw, "startWorkflowRequest"))
    return {key: value for key, value in request.items() if value is not None}


def _start_faults(request: Json, input_bytes_max: int) -> list[Violation]:
    try:
        start_request(read(_START, payloads.dump(request)), input_bytes_max=input_bytes_max)
    except ValidationFailed as failure:
        path = f"{_PATH}.startWorkflowRequest"
        return [
            Violation(fault.path.replace(_START_PATH, path), fault.message, fault.invalid_value)
            for fault in failure.violations
        ]
    return []
