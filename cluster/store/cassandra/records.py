"""Task logs, poll data and keyed values in Cassandra."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.clock import Clock, Random
from cluster.ids import TaskId, WorkflowId, number_of, to_bytes, workflow_of
from cluster.store.cassandra.batches import Writes, bucket_of, int32, int64
from cluster.store.cassandra.session import Session
from cluster.store.ports import TASK_LOG_LINES_MAX, PollData, TaskLog

_PARTS = 16
_WITH_DOMAIN = _PARTS
"""The partition of poll data that has the polls with a domain once more: one read finds them."""
_COUNTED_MAX = 10_000
_MARK_S = 86_400
"""How long the mark of a removed value stays, so that a slow writer's older value stays hidden."""


class CassandraRecordStore:
    """RecordStore. The keys of one kind lie in one partition: thousands, not millions."""

    def __init__(self, session: Session, clock: Clock, random: Random) -> None:
        self._session = session
        self._clock = clock
        self._writer = random.bits(31)
        self._place = 0
        self._added: Counter[TaskId] = Counter()
        prepare = session.prepare
        self._append = prepare(
            "INSERT INTO task_logs (workflow_id, task, place, writer, created_ms, line)"
            " VALUES (?, ?, ?, ?, ?, ?)"
        )
        self._lines = prepare(
            "SELECT created_ms, line FROM task_logs WHERE workflow_id = ? AND task = ?"
            f" LIMIT {TASK_LOG_LINES_MAX}"
        )
        self._places = prepare(
            "SELECT place FROM task_logs WHERE workflow_id = ? AND task = ?"
            f" LIMIT {TASK_LOG_LINES_MAX}"
        )
        self._trim = prepare(
            "DELETE FROM task_logs WHERE workflow_id = ? AND task = ? AND place < ?"
        )
        self._remove_lines = prepare("DELETE FROM task_logs WHERE workflow_id = ?")
        self._put_poll = prepare(
            "INSERT INTO poll_data (part, task_type, domain, worker_id, last_poll_ms)"
            " VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        polls = "SELECT task_type, domain, worker_id, last_poll_ms FROM poll_data WHERE part = ?"
        self._polls = prepare(polls)
        self._polls_of = prepare(f"{polls} AND task_type = ?")
        self._written = prepare(
            "SELECT writetime(removed) FROM records WHERE kind = ? AND key IN ?"
        )
        self._put = prepare(
            "INSERT INTO records (kind, key, value, removed) VALUES (?, ?, ?, false)"
            " USING TIMESTAMP ?"
        )
        self._mark = prepare(
            "INSERT INTO records (kind, key, value, removed) VALUES (?, ?, null, true)"
            f" USING TIMESTAMP ? AND TTL {_MARK_S}"
        )
        self._get = prepare("SELECT value FROM records WHERE kind = ? AND key = ?")
        self._page = prepare("SELECT key, value, removed FROM records WHERE kind = ? AND key >= ?")

    async def append_task_logs(self, lines: Sequence[TaskLog]) -> None:
        writes = Writes(self._session)
        # A place above all earlier ones of this process, near the time of other processes' ones.
        self._place = max(self._place, self._clock.now_ms() * 1_000)
        for line in lines:
            self._place += 1
            owner = to_bytes(workflow_of(line.task_id))
            text = line.line.encode()
            values = (
                owner,
                int32(number_of(line.task_id)),
                int64(self._place),
                int32(self._writer),
                int64(line.created_ms),
                text,
            )
            writes.add(owner, self._append, values, len(text))
        await writes.send()
        await self._trim_long_ones(lines)

    async def task_logs(self, task_id: TaskId) -> Sequence[TaskLog]:
        found = await self._session.all(
            self._lines, (to_bytes(workflow_of(task_id)), number_of(task_id))
        )
        return [TaskLog(task_id, created_ms, line) for created_ms, line in reversed(found)]

    async def remove_task_logs(self, workflow_id: WorkflowId) -> None:
        await self._session.execute(self._remove_lines.bind((to_bytes(workflow_id),)))

    async def put_poll_data(self, polls: Sequence[PollData]) -> None:
        writes = Writes(self._session)
        for poll in polls:
            values = (
                poll.task_type.encode(),
                poll.domain.encode(),
                poll.worker_id.encode(),
                int64(poll.last_poll_ms),
                int64(poll.last_poll_ms),
            )
            own = bucket_of(poll.task_type, _PARTS)
            for part in (own, _WITH_DOMAIN) if poll.domain else (own,):
                writes.add(part, self._put_poll, (int32(part), *values))
        await writes.send()

    async def poll_data(self, task_type: str | None) -> Sequence[PollData]:
        if task_type is None:
            reads = [self._session.all(self._polls, (part,)) for part in range(_PARTS)]
        else:
            part = bucket_of(task_type, _PARTS)
            reads = [self._session.all(self._polls_of, (part, task_type))]
        found = [PollData(*row) for rows in await asyncio.gather(*reads) for row in rows]
        return sorted(found, key=lambda poll: (poll.task_type, poll.domain))

    async def polls_with_domain(self) -> Sequence[PollData]:
        return [PollData(*row) for row in await self._session.all(self._polls, (_WITH_DOMAIN,))]

    async def put(self, kind: str, values: Mapping[str, bytes | None]) -> None:
        if not values:
            return
        # Above what stands, whatever the clocks of the writers say: the later put counts.
        standing = await self._session.all(self._written, (kind, list(values)))
        stamps = [stamp for (stamp,) in standing if stamp is not None]
        stamp = int64(max([self._clock.now_ms() * 1_000, *(one + 1 for one in stamps)]))
        writes = Writes(self._session)
        kind_key = kind.encode()
        for key, value in values.items():
            if value is None:
                writes.add(kind, self._mark, (kind_key, key.encode(), stamp))
            else:
                row = (kind_key, key.encode(), value, stamp)
                writes.add(kind, self._put, row, len(value))
        await writes.send()

    async def get(self, kind: str, key: str) -> bytes | None:
        row = await self._session.one(self._get, (kind, key))
        return None if row is None else row[0]

    async def page(
        self, kind: str, *, prefix: str, after: str | None, limit: int
    ) -> Sequence[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        start = prefix if after is None else max(prefix, after)
        async for page in self._session.pages(
            self._page, (kind, start), page_rows=max(2, min(limit + 1, 1_000))
        ):
            for key, value, is_removed in page:
                if key == after or is_removed:
                    continue
                # Keys with the prefix stand together, from the prefix itself on.
                if len(found) == limit or not key.startswith(prefix):
                    return found
                found.append((key, value))
        return found

    async def _trim_long_ones(self, lines: Sequence[TaskLog]) -> None:
        """A task that got many lines since this was looked at loses the oldest."""
        self._added.update(line.task_id for line in lines)
        for task_id in {line.task_id for line in lines}:
            if self._added[task_id] < TASK_LOG_LINES_MAX:
                continue
            del self._added[task_id]
            key = (to_bytes(workflow_of(task_id)), number_of(task_id))
            places = await self._session.all(self._places, key)
            if len(places) == TASK_LOG_LINES_MAX:
                await self._session.execute(self._trim.bind((*key, places[-1][0])))
        if len(self._added) > _COUNTED_MAX:
            self._added.clear()
