"""One process of a node as the stores see it: commit log and checkpoint, with toy headers.

A header is `b"open <due or ->"` or `b"ended"`, so that the stores' hints can be told from it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.clock import SystemClock
from cluster.errors import Fenced
from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.metrics import Metrics
from cluster.sharding.checkpoint import Checkpoint, Described
from cluster.sharding.commit_log import CommitLog
from cluster.store.ports import LogId, OpenEntry, Row, ShardRow, Stores, Summary

SHARD_COUNT = 4
CLOCK = SystemClock()


def describe(workflow_id: WorkflowId, header: bytes) -> Described:
    words = header.decode().split()
    is_open = words[0] == "open"
    due_ms = int(words[1]) if is_open and words[1] != "-" else None
    return Described(
        open=OpenEntry(workflow_id, due_ms, False) if is_open else None,
        summary=Summary(
            workflow_id=workflow_id,
            name="toy",
            version=1,
            status="RUNNING" if is_open else "COMPLETED",
            start_ms=1,
            update_ms=1,
        ),
    )


class Process:
    """Serves the shards of `rows` under the log `own`, which exists."""

    def __init__(self, stores: Stores, own: LogId, rows: Sequence[ShardRow]) -> None:
        self.own = own
        self.stores = stores
        self.epochs = {row.shard: row.epoch for row in rows}
        self.lost: list[Fenced] = []
        self.written: list[tuple[list[WorkflowId], int]] = []
        self.checkpoint = Checkpoint(
            stores,
            own,
            describe,
            clock=CLOCK,
            metrics=Metrics(),
            on_written=lambda ids, position: self.written.append((list(ids), position)),
            on_lost=self.lost.append,
            interval_ms=3_600_000,
        )
        self.log: CommitLog[str] = CommitLog(
            stores.logs,
            own,
            clock=CLOCK,
            metrics=Metrics(),
            send=lambda _: None,
            on_committed=self.checkpoint.add,
            on_lost=self.lost.append,
        )
        self._run = asyncio.create_task(self.log.run())

    def put(self, workflow_id: WorkflowId, rows: dict[int, bytes]) -> int:
        shard = shard_of(workflow_id, shard_count=SHARD_COUNT)
        changed = [Row(workflow_id, number, data) for number, data in rows.items()]
        return self.log.put(shard, self.epochs[shard], changed)

    async def commit(self, workflow_id: WorkflowId, rows: dict[int, bytes]) -> None:
        await self.log.committed(self.put(workflow_id, rows))

    async def kill(self) -> None:
        self._run.cancel()
        await asyncio.gather(self._run, return_exceptions=True)


@dataclass
class Contents:
    """What the stores say: rows and hints by workflow; open = next due time, search = status."""

    rows: dict[WorkflowId, dict[int, bytes]]
    open: dict[WorkflowId, int | None]
    search: dict[WorkflowId, str]


async def contents(stores: Stores, workflow_ids: Sequence[WorkflowId]) -> Contents:
    """All that the stores hold of these workflows, and all hints."""
    rows = {one: await stores.executions.read(one) for one in workflow_ids}
    scans = [
        await stores.open_set.scan(ShardId(shard), after=None, limit=10_000)
        for shard in range(SHARD_COUNT)
    ]
    summaries = await stores.search.by_definition(
        "toy", version=None, statuses=(), start_ms=0, end_ms=9, after=None, limit=10_000
    )
    return Contents(
        rows={one: {row.number: row.data for row in found} for one, found in rows.items()},
        open={entry.workflow_id: entry.next_due_ms for scan in scans for entry in scan},
        search={summary.workflow_id: summary.status for summary in summaries},
    )


def expected(model: Mapping[WorkflowId, Mapping[int, bytes]]) -> Contents:
    """What `contents` must say: `model` holds all rows, an empty header for a removed one."""
    kept = {one: rows for one, rows in model.items() if rows.get(0)}
    described = {one: describe(one, rows[0]) for one, rows in kept.items()}
    return Contents(
        rows={
            one: {number: data for number, data in rows.items() if data} if one in kept else {}
            for one, rows in model.items()
        },
        open={
            one: told.open.next_due_ms for one, told in described.items() if told.open is not None
        },
        search={one: told.summary.status for one, told in described.items() if told.summary},
    )
