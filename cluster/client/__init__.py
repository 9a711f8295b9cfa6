"""A client for producers and worker fleets; docs/extensions.md shows how to use it."""

from cluster.client.api import Client, Exchanged
from cluster.client.errors import ApiError, TaskFailed, Unreachable
from cluster.client.fleet import Fleet, stop_on_signals
from cluster.client.models import InProgress, ItemResult, Start, Task, TaskResult
from cluster.client.worker import Worker, worker

__all__ = [
    "ApiError",
    "Client",
    "Exchanged",
    "Fleet",
    "InProgress",
    "ItemResult",
    "Start",
    "Task",
    "TaskFailed",
    "TaskResult",
    "Unreachable",
    "Worker",
    "stop_on_signals",
    "worker",
]
