"""For system tasks of your own: a small async interface (docs/system-tasks.md).

An installed package names its system tasks in the entry point group `podium.system_tasks`: the
name of an entry is the task type, its value a SystemTask or anything else that makes one when it
is called without arguments.
"""

from abc import ABC, abstractmethod
from typing import Any

import msgspec

ENTRY_POINTS = "podium.system_tasks"


class Work(msgspec.Struct, frozen=True, rename="camel"):
    """One attempt of a task, as an executor gets it. Times are Unix ms."""

    task_id: str
    """The same when the work is repeated because a node died, another one for each retry."""
    task_type: str
    workflow_instance_id: str
    workflow_type: str
    reference_task_name: str
    task_def_name: str = ""
    input_data: dict[str, Any] = {}
    """The resolved input, secrets included."""
    retry_count: int = 0
    poll_count: int = 1
    """How often this attempt has been begun: after a crash, or because it asked for it (Again)."""
    scheduled_time: int = 0
    start_time: int = 0
    """When this attempt was begun first."""
    correlation_id: str | None = None


class Done(msgspec.Struct, frozen=True):
    """The work is done: the task is COMPLETED, or with `asyncComplete` waits for somebody."""

    output: dict[str, Any] = {}


class Again(msgspec.Struct, frozen=True):
    """Not done yet: the same attempt comes back after a pause, on this node or another one."""

    after_s: int
    output: dict[str, Any] = {}
    """What the task shows meanwhile."""


class WorkFailed(Exception):
    """The attempt FAILED and is retried as its task definition says; `is_final`: it is not."""

    def __init__(
        self, reason: str, *, output: dict[str, Any] | None = None, is_final: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.output = output or {}
        self.is_final = is_final


class SystemTask(ABC):
    """Carries out the tasks of one type, many at a time, in the event loop of a node.

    The work is done at least once: a node may die behind the call and before the commit of its
    result. Whatever must not happen twice is recognised by `Work.task_id`.
    """

    async def open(self) -> None:  # noqa: B027
        """Called once, before any work: pools, sessions."""

    @abstractmethod
    async def execute(self, work: Work) -> Done | Again:
        """Do the work. WorkFailed, and any other exception, fails the attempt.

        It is cancelled when the workflow has ended, when the time limit of the node is over and
        when the node stops; it must not block the event loop.
        """

    async def close(self) -> None:  # noqa: B027
        """Called once, behind all work."""
