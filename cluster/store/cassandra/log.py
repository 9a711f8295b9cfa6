"""Commit logs in Cassandra: append, then check that the log is still open.

Why nothing acknowledged is lost (docs/design.md section 5): whoever appended and then read `open`
had its insert at a quorum before the seal was; the sealer reads the log at a quorum after the seal;
two quorums share a replica, so it sees the insert. No append needs a compare-and-set.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from cluster.errors import Fenced, StoreFault
from cluster.store.cassandra.batches import bound, int64
from cluster.store.cassandra.session import Session
from cluster.store.cassandra.settled import Settled
from cluster.store.ports import Fence, LogId, first_position, segment_of

_PAGE_ROWS = 32
"""Entries have up to 256 KB: a page of these fits into memory on both sides."""

_TRIED_MAX = 8
_ALL_PARTS = 0
_ABSENT = Fence(open=False, first_segment=0, valid_to=0)


class CassandraLogStore:
    """LogStore. Entries carry timestamp 1 and what drops them 2, so no clock has a say in it."""

    def __init__(self, session: Session, settled: Settled) -> None:
        self._session = session
        self._settled = settled
        self._tried: OrderedDict[tuple[LogId, int], bytes] = OrderedDict()
        self._dropped: dict[LogId, int] = {}
        prepare = session.prepare
        fence = "SELECT open, first_segment, valid_to, dropped FROM fences WHERE log = ?"
        self._create = prepare(
            "INSERT INTO fences (log, open, first_segment) VALUES (?, true, 0) IF NOT EXISTS"
        )
        self._list = prepare("INSERT INTO logs (part, log) VALUES (?, ?) USING TIMESTAMP 1")
        self._unlist = prepare("DELETE FROM logs USING TIMESTAMP 2 WHERE part = ? AND log = ?")
        self._logs = prepare("SELECT log FROM logs WHERE part = ?")
        self._append = prepare(
            "INSERT INTO log_entries (log, segment, position, entry) VALUES (?, ?, ?, ?)"
            " USING TIMESTAMP 1"
        )
        self._is_open = prepare("SELECT open FROM fences WHERE log = ?")
        self._fence = prepare(fence)
        self._fence_serial = session.prepare_serial(fence)
        self._close = prepare("UPDATE fences SET open = false WHERE log = ? IF open = true")
        self._record_end = prepare(
            "UPDATE fences SET valid_to = ? WHERE log = ? IF open = false AND valid_to = null"
        )
        self._advance = prepare(
            "UPDATE fences SET first_segment = ? WHERE log = ? IF open = true AND first_segment < ?"
        )
        self._drop = prepare("UPDATE fences SET dropped = true WHERE log = ? IF open = false")
        # With the entry: what is repaired on the way is the whole row, not its key alone.
        self._read = prepare(
            "SELECT position, entry FROM log_entries"
            " WHERE log = ? AND segment = ? AND position > ? AND position <= ?"
        )
        self._any = prepare(
            "SELECT position FROM log_entries WHERE log = ? AND segment = ? LIMIT 1"
        )
        self._drop_segment = prepare(
            "DELETE FROM log_entries USING TIMESTAMP 2 WHERE log = ? AND segment = ?"
        )

    async def create(self, log: LogId) -> None:
        stands = await self._session.compare_and_set(self._create, (log,))
        if stands is None or stands["open"]:
            # After the fence: what is listed can be sealed and deleted.
            await self._session.execute(self._list.bind((_ALL_PARTS, log)))

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        self._refuse_other_bytes(log, position, entry)
        values = (log.encode(), int64(segment_of(position)), int64(position), entry)
        flow = self._append.flow
        flow.items += 1
        flow.sent_bytes += len(entry)
        await self._session.execute(bound(self._append, values))
        # Only now: a fence read before the insert was acknowledged proves nothing.
        await self.check_open(log)

    async def check_open(self, log: LogId) -> None:
        """Fenced: the log is sealed or absent."""
        found = await self._session.execute(bound(self._is_open, (log.encode(),)))
        if not found or not found[0][0]:
            raise Fenced(f"log {log} is sealed")

    async def fence(self, log: LogId) -> Fence | None:
        return _fence_of(await self._session.one(self._fence, (log,)))

    async def seal(self, log: LogId) -> Fence:
        await self._session.compare_and_set(self._close, (log,))
        # SERIAL also finishes what an earlier attempt with an unknown outcome left under way.
        fence = _fence_of(await self._session.one(self._fence_serial, (log,)))
        if fence is None:
            return _ABSENT
        # From here on every quorum read says closed: this one repaired whoever did not.
        seen = _fence_of(await self._session.one(self._fence, (log,)))
        if fence.open or (seen is not None and seen.open):
            raise StoreFault(f"the seal of log {log} is not settled yet")
        if fence.valid_to is not None:
            return fence
        end = await self._contiguous_end(log, fence.first_segment)
        stands = await self._session.compare_and_set(self._record_end, (end, log))
        if stands is None:
            return Fence(open=False, first_segment=fence.first_segment, valid_to=end)
        # Another sealer was first: what it recorded counts.
        recorded = stands.get("valid_to")
        if recorded is None:
            return _ABSENT
        return Fence(open=False, first_segment=fence.first_segment, valid_to=recorded)

    async def read(
        self, log: LogId, *, after: int, upto: int, bytes_max: int
    ) -> Sequence[tuple[int, bytes]]:
        fence = await self.fence(log)
        found: list[tuple[int, bytes]] = []
        if fence is None:
            return found
        size = 0
        segment = max(segment_of(after + 1), fence.first_segment)
        # Behind an empty segment nothing counts: the end of a log is contiguous.
        before = -1
        while segment <= segment_of(upto) and len(found) > before:
            before = len(found)
            async for page in self._session.pages(
                self._read, (log, segment, after, upto), page_rows=_PAGE_ROWS
            ):
                for position, entry in page:
                    found.append((position, _whole(log, position, entry)))
                    size += len(entry)
                    if size >= bytes_max:
                        return found
            segment += 1
        return found

    async def advance_first_segment(self, log: LogId, segment: int) -> None:
        stands = await self._session.compare_and_set(self._advance, (segment, log, segment))
        if stands is not None and not stands.get("open"):
            raise Fenced(f"log {log} is sealed")
        first = segment if stands is None else stands["first_segment"]
        self._settled.truncated(log, first)
        # This process alone appends to the log, and truncates it: it knows what it has dropped.
        for dropped in range(self._dropped.get(log, 0), first):
            await self._session.execute(self._drop_segment.bind((log, dropped)))
            self._dropped[log] = dropped + 1

    async def delete(self, log: LogId) -> None:
        fence = await self.fence(log)
        if fence is not None:
            if fence.valid_to is None:
                return
            await self._drop_from(log, fence.first_segment)
            stands = await self._session.compare_and_set(self._drop, (log,))
            if stands is not None and stands.get("open"):
                return
        await self._session.execute(self._unlist.bind((_ALL_PARTS, log)))

    async def logs(self) -> Sequence[LogId]:
        return [LogId(log) for (log,) in await self._session.all(self._logs, (_ALL_PARTS,))]

    async def _contiguous_end(self, log: LogId, first_segment: int) -> int:
        end = first_position(first_segment) - 1
        segment = first_segment
        while True:
            async for page in self._session.pages(
                self._read,
                (log, segment, end, first_position(segment + 1)),
                page_rows=_PAGE_ROWS,
            ):
                for position, _ in page:
                    if position != end + 1:
                        return end
                    end = position
            if end + 1 < first_position(segment + 1):
                return end
            segment += 1

    async def _drop_from(self, log: LogId, segment: int) -> None:
        # The segment before may be left from a truncation that did not end.
        segment = max(0, segment - 1)
        await self._session.execute(self._drop_segment.bind((log, segment)))
        segment += 1
        while await self._session.one(self._any, (log, segment)) is not None:
            await self._session.execute(self._drop_segment.bind((log, segment)))
            segment += 1

    def _refuse_other_bytes(self, log: LogId, position: int, entry: bytes) -> None:
        # A plain insert would replace them. Only the process that tried a position tries it again,
        # and soon, so a short memory will do.
        if self._tried.setdefault((log, position), entry) != entry:
            raise Fenced(f"position {position} of log {log} holds other bytes")
        if len(self._tried) > _TRIED_MAX:
            self._tried.popitem(last=False)


def _fence_of(row: Any | None) -> Fence | None:
    if row is None or row[3]:
        return None
    is_open, first_segment, valid_to, _ = row
    # A row without `open` was never created: only a compare-and-set writes here.
    return Fence(open=bool(is_open), first_segment=first_segment or 0, valid_to=valid_to)


def _whole(log: LogId, position: int, entry: bytes | None) -> bytes:
    if entry is None:
        raise StoreFault(f"position {position} of log {log} has no bytes")
    return entry
