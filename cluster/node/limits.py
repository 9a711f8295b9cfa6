"""What task definitions allow their workers: kept at hand, because every poll asks."""

from collections.abc import Iterable

from cluster.engine import payloads
from cluster.engine.definitions import TaskDef, parse_task_def
from cluster.node.metadata import Metadata
from cluster.store.queue_ports import Limits


class TaskLimits:
    """Rate and concurrency limits by task type."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._registered: dict[str, Limits | None] = {}
        self._copies: dict[str, Limits] = {}

    def of(self, task_type: str) -> Limits | None:
        """The limits of the registered definition or, without one, of the latest task's copy."""
        if task_type in self._registered:
            return self._registered[task_type]
        return self._copies.get(task_type)

    def note_copy(self, task_type: str, definition: TaskDef | None) -> None:
        """A task of this type, with its own copy of a definition, goes into its queue."""
        limits = None if definition is None else _limits_of(definition)
        if limits is not None:
            self._copies[task_type] = limits
        elif self._copies:
            self._copies.pop(task_type, None)

    async def load(self) -> None:
        """Read all registered definitions."""
        bodies = await self._metadata.task_defs()
        self._registered = {}
        for body in bodies:
            self._note(payloads.load(body))

    async def refresh(self, names: Iterable[str]) -> None:
        """Read definitions that were changed or removed."""
        wanted = set(names)
        found = await self._metadata.registered_task_defs(wanted)
        for name in wanted - found.keys():
            self._registered.pop(name, None)
        for definition in found.values():
            self._note(definition)

    def _note(self, body: dict[str, object]) -> None:
        definition, _ = parse_task_def(body)
        self._registered[definition.name] = _limits_of(definition)


def _limits_of(definition: TaskDef) -> Limits | None:
    concurrent = definition.concurrent_exec_limit or 0
    rate = definition.rate_limit_per_frequency
    if concurrent <= 0 and rate <= 0:
        return None
    return Limits(
        concurrent=concurrent if concurrent > 0 else None,
        rate=max(0, rate),
        rate_window_ms=max(1, definition.rate_limit_frequency_in_seconds) * 1000,
    )
