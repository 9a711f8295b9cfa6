"""A LogStore in steps that can be apart: an insert, a read of the fence row, a compare-and-set.

`LogTables` is what stands in the store: every method is one request to it, answered at one moment.
`PhasedLogStore` is the client's part, which makes the promises of the port out of such requests, as
the Cassandra one does: append, then check.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeGuard, TypeVar

from msgspec.structs import replace

from cluster.errors import Fenced
from cluster.store.ports import Fence, LogId, first_position, segment_of

Result = TypeVar("Result")

_NEW = Fence(open=False, first_segment=0, valid_to=None)
_ABSENT = Fence(open=False, first_segment=0, valid_to=0)


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

    def change_fence(
        self, log: LogId, only_if: Callable[[Fence | None], bool], **columns: Any
    ) -> bool:
        """Compare and set, by column: what the condition does not look at may have changed since
        the caller read it, and stays as it is."""
        fence = self.fences.get(log)
        if not only_if(fence):
            return False
        self.fences[log] = replace(fence or _NEW, **columns)
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

    def forget_fence(self, log: LogId) -> None:
        """Compare and set: a log that is open stays."""
        if is_closed(self.fences.get(log)):
            del self.fences[log]

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
        await self._change(log, is_absent, open=True)

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
        await self._change(log, is_open, open=False)
        fence = await self.fence(log)
        if fence is None:
            return _ABSENT
        if fence.valid_to is not None:
            return fence
        end = await self._contiguous_end(log, fence.first_segment)
        if await self._change(log, is_unfinished, valid_to=end):
            return replace(fence, valid_to=end)
        # Another sealer was first: what it recorded counts.
        return await self.fence(log) or _ABSENT

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
        def is_behind(fence: Fence | None) -> bool:
            return is_open(fence) and fence.first_segment < segment

        if not await self._change(log, is_behind, first_segment=segment):
            fence = await self.fence(log)
            if not is_open(fence):
                raise Fenced(f"log {log} is sealed")
        await self._ask("drop segments", lambda: self._tables.drop_segments(log, segment))

    async def delete(self, log: LogId) -> None:
        fence = await self.fence(log)
        if fence is not None and fence.valid_to is not None:
            await self._ask("drop", lambda: self._tables.drop(log))
            await self._ask(
                "change fence", lambda: self._tables.forget_fence(log), serial=("fence", log)
            )

    async def logs(self) -> Sequence[LogId]:
        return await self._ask("logs", self._tables.logs)

    async def _contiguous_end(self, log: LogId, first_segment: int) -> int:
        first = first_position(first_segment)
        entries = dict(await self._ask("scan", lambda: self._tables.scan(log, first - 1, 1 << 62)))
        end = first
        while end in entries:
            end += 1
        return end - 1

    async def _change(
        self, log: LogId, only_if: Callable[[Fence | None], bool], **columns: Any
    ) -> bool:
        return await self._ask(
            "change fence",
            lambda: self._tables.change_fence(log, only_if, **columns),
            serial=("fence", log),
        )


# -- what a change of a fence may depend on


def is_absent(fence: Fence | None) -> bool:
    return fence is None


def is_open(fence: Fence | None) -> TypeGuard[Fence]:
    return fence is not None and fence.open


def is_closed(fence: Fence | None) -> bool:
    return fence is not None and not fence.open


def is_unfinished(fence: Fence | None) -> bool:
    """Closed, and its end is not recorded yet."""
    return fence is not None and not fence.open and fence.valid_to is None
