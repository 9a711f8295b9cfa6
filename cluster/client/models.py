"""What goes over the wire, in Conductor's words."""

from typing import Any

import msgspec


class Start(msgspec.Struct, rename="camel", omit_defaults=True):
    """One workflow to be started."""

    name: str
    input: dict[str, Any] = {}
    version: int | None = None
    correlation_id: str | None = None
    priority: int = 0
    task_to_domain: dict[str, str] | None = None
    idempotency_key: str | None = None
    """With a key a start may be repeated: it happens once."""
    idempotency_strategy: str | None = None


class Task(msgspec.Struct, rename="camel"):
    """A task in this worker's hands."""

    task_id: str
    workflow_instance_id: str
    task_type: str
    input_data: dict[str, Any] = {}
    reference_task_name: str = ""
    task_def_name: str = ""
    workflow_type: str = ""
    correlation_id: str | None = None
    domain: str | None = None
    retry_count: int = 0
    poll_count: int = 0
    iteration: int = 0
    response_timeout_seconds: int = 0
    scheduled_time: int = 0
    output_data: dict[str, Any] = {}
    """What earlier hand-overs of this attempt have reported."""


class TaskResult(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a worker reports of a task."""

    workflow_instance_id: str
    task_id: str
    status: str
    """COMPLETED, FAILED, FAILED_WITH_TERMINAL_ERROR, IN_PROGRESS or CANCELED."""
    output_data: dict[str, Any] | msgspec.Raw = {}
    reason_for_incompletion: str | None = None
    worker_id: str | None = None
    callback_after_seconds: int = 0
    extend_lease: bool = False


class InProgress(msgspec.Struct, frozen=True):
    """Returned by a worker's function: not done yet, hand it out again in a while."""

    callback_after_s: int
    output: dict[str, Any] = {}


class ItemResult(msgspec.Struct):
    """What became of one item of a request; `status` is that of HTTP, 0 if no answer came."""

    index: int
    status: int
    id: str | None = None
    message: str | None = None

    @property
    def is_taken(self) -> bool:
        return self.status == 200
