"""Commit logs in dictionaries."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import Fenced
from cluster.store.ports import Fence, LogId, first_position, segment_of


@dataclass(slots=True)
class _Log:
    open: bool = True
    first_segment: int = 0
    valid_to: int | None = None
    entries: dict[int, bytes] = field(default_factory=dict)

    def contiguous_end(self) -> int:
        position = first_position(self.first_segment)
        while position in self.entries:
            position += 1
        return position - 1


class MemoryLogStore:
    """LogStore."""

    def __init__(self) -> None:
        self._logs: dict[LogId, _Log] = {}

    async def create(self, log: LogId) -> None:
        self._logs.setdefault(log, _Log())

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        held = self._open(log)
        if held.entries.setdefault(position, entry) != entry:
            raise Fenced(f"position {position} of log {log} holds other bytes")

    async def fence(self, log: LogId) -> Fence | None:
        held = self._logs.get(log)
        if held is None:
            return None
        return Fence(open=held.open, first_segment=held.first_segment, valid_to=held.valid_to)

    async def seal(self, log: LogId) -> Fence:
        held = self._logs.get(log)
        if held is None:
            return Fence(open=False, first_segment=0, valid_to=0)
        held.open = False
        if held.valid_to is None:
            held.valid_to = held.contiguous_end()
        return Fence(open=False, first_segment=held.first_segment, valid_to=held.valid_to)

    async def read(
        self, log: LogId, *, after: int, upto: int, bytes_max: int
    ) -> Sequence[tuple[int, bytes]]:
        held = self._logs.get(log)
        found: list[tuple[int, bytes]] = []
        if held is None:
            return found
        size = 0
        for position in sorted(p for p in held.entries if after < p <= upto):
            found.append((position, held.entries[position]))
            size += len(held.entries[position])
            if size >= bytes_max:
                break
        return found

    async def advance_first_segment(self, log: LogId, segment: int) -> None:
        held = self._open(log)
        held.first_segment = max(held.first_segment, segment)
        for position in [p for p in held.entries if segment_of(p) < held.first_segment]:
            del held.entries[position]

    async def delete(self, log: LogId) -> None:
        held = self._logs.get(log)
        if held is not None and not held.open:
            del self._logs[log]

    async def logs(self) -> Sequence[LogId]:
        return list(self._logs)

    def _open(self, log: LogId) -> _Log:
        held = self._logs.get(log)
        if held is None or not held.open:
            raise Fenced(f"log {log} is sealed")
        return held
