"""A LogStore in steps that can be apart: an insert, a read of the fence row, a compare-and-set.

`LogTables` is what stands in the store: every method is one request to it, answered at one moment.
`PhasedLogStore` is the client's part, which makes the promises of the port out of such requests, as
the Cassandra one does: append, then check.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from cluster.errors import Fenced
from cluster.store.ports import Fence, LogId, first_position, segment_of

Result = TypeVar("Result")


class LogTables:
    """Fence rows, and entries by log and position."""

    def __init__(self) -> None:
        self.fences: dict[LogId, Fence] = {}
        self.entries: dict[LogId, dict[int, bytes]] = {}
        self.overwritten: list[str] = []
        """Positions that got other bytes after they had been tried: nobody may do that."""

    def insert(self, log: LogId, position: int, entry: bytes) -> None:
        """Plain: it looks at nothing, least of all at the fence."""
        held = self.entries.setdefault(log, {})
        if held.get(position, entry) != entry:
            self.overwritten.append(f"{log} {position}")
        held[position] = entry

    def fence(self, log: LogId) -> Fence | None:
        return self.fences.get(log)

    def change_fence(self, log: LogId, expected: Fence | None, wanted: Fence | None) -> bool:
        """Compare and set; None: the row is absent."""
        if self.fences.get(log) != expected:
            return False
        if wanted is None:
            self.fences.pop(log, None)
        else:
            self.fences[log] = wanted
        return True

    def scan(self, log: LogId, after: int, upto: int) -> list[tuple[int, bytes]]:
        held = self.entries.get(log, {})
        return [(at, held[at]) for at in sorted(held) if after < at <= upto]

    def drop_segments(self, log: LogId, before: int) -> None:
        held = self.entries.get(log, {})
        for position in [at for at in held if segment_of(at) < before]:
            del held[position]

    def drop(self, log: LogId) -> None:
        self.entries.pop(log, None)

    def logs(self) -> list[LogId]:
        return list(self.fences)


class Requests(Protocol):
    """How requests get to the tables. StoreFault: no answer, and the outcome is unknown."""

    def __call__(
        self, name: str, request: Callable[[], Result], *, serial: object = None
    ) -> Awaitable[Result]:
        """`serial`: what the request decides about, if it is a compare-and-set."""


async def at_once(name: str, request: Callable[[], Any], *, serial: object = None) -> Any:
    """Requests to tables that are at hand."""
    return request()


class PhasedLogStore:
    """LogStore."""

    def __init__(self, tables: LogTables, ask: Requests = at_once) -> None:
        self._tables = tables
        self._ask = ask

    async def create(self, log: LogId) -> None:
        opened = Fence(open=True, first_segment=0, valid_to=None)
        await self._change(log, None, opened)

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        tables = self._tables
        await self._ask("insert", lambda: tables.insert(log, position, entry))
        # Only now: a log that is open after the insert was not sealed before it.
        fence = await self.fence(log)
        if fence is None or not fence.open:
            raise Fenced(f"log {log} is sealed")

    async def fence(self, log: LogId) -> Fence | None:
        return await self._ask("fence", lambda: self._tables.fence(log))

    async def seal(self, log: LogId) -> Fence:
        while True:
            fence = await self.fence(log)
            if fence is None:
                return Fence(open=False, first_segment=0, valid_to=0)
            if fence.open:
                closed = Fence(open=False, first_segment=fence.first_segment, valid_to=None)
                if not await self._change(log, fence, closed):
                    continue
                fence = closed
            if fence.valid_to is not None:
                return fence
            end = await self._contiguous_end(log, fence.first_segment)
            ended = Fence(open=False, first_segment=fence.first_segment, valid_to=end)
            if await self._change(log, fence, ended):
                return ended

    async def read(
        self, log: LogId, *, after: int, upto: int, bytes_max: int
    ) -> Sequence[tuple[int, bytes]]:
        entries = await self._ask("scan", lambda: self._tables.scan(log, after, upto))
        size = 0
        for count, (_, entry) in enumerate(entries, 1):
            size += len(entry)
            if size >= bytes_max:
                return entries[:count]
        return entries

    async def advance_first_segment(self, log: LogId, segment: int) -> None:
        while True:
            fence = await self.fence(log)
            if fence is None or not fence.open:
                raise Fenced(f"log {log} is sealed")
            if fence.first_segment >= segment:
                break
            advanced = Fence(open=True, first_segment=segment, valid_to=None)
            if await self._change(log, fence, advanced):
                break
        await self._ask("drop segments", lambda: self._tables.drop_segments(log, segment))

    async def delete(self, log: LogId) -> None:
        fence = await self.fence(log)
        if fence is not None and fence.valid_to is not None:
            await self._ask("drop", lambda: self._tables.drop(log))
            await self._change(log, fence, None)

    async def logs(self) -> Sequence[LogId]:
        return await self._ask("logs", self._tables.logs)

    async def _contiguous_end(self, log: LogId, first_segment: int) -> int:
        first = first_position(first_segment)
        entries = dict(await self._ask("scan", lambda: self._tables.scan(log, first - 1, 1 << 62)))
        end = first
        while end in entries:
            end += 1
        return end - 1

    async def _change(self, log: LogId, expected: Fence | None, wanted: Fence | None) -> bool:
        return await self._ask(
            "change fence",
            lambda: self._tables.change_fence(log, expected, wanted),
            serial=("fence", log),
        )
