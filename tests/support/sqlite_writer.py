"""A process to be killed: commits to SQLite as fast as it can and tells what was acknowledged.

Usage: sqlite_writer.py DATABASE. Each line on stdout is `workflow id, header, task number` of one
acknowledged commit, written after the acknowledgement.
"""

import asyncio
import os
import sys
from pathlib import Path

from cluster.logs import set_up_logs
from cluster.metrics import Metrics
from cluster.sharding.checkpoint import Checkpoint
from cluster.sharding.commit_log import CommitLog
from cluster.sharding.takeover import restart
from cluster.store.ports import Row
from cluster.store.sql import open_sqlite
from tests.support.process import CLOCK, SHARD_COUNT, describe
from tests.support.rows import log_id, workflow_id

WRITERS = 20


async def main(path: Path) -> None:
    async with open_sqlite(path, shard_count=SHARD_COUNT) as stores:
        own = log_id()
        rows = await restart(
            stores,
            own,
            is_predecessor=lambda _: True,
            takes_unowned=True,
            describe=describe,
            clock=CLOCK,
        )
        checkpoint = Checkpoint(
            stores,
            own,
            describe,
            clock=CLOCK,
            metrics=Metrics(),
            on_written=lambda *_: None,
            on_lost=lambda lost: os.abort(),
            interval_ms=15,
        )
        log: CommitLog[None] = CommitLog(
            stores.logs,
            own,
            clock=CLOCK,
            metrics=Metrics(),
            send=lambda _: None,
            on_committed=checkpoint.add,
            on_lost=lambda lost: os.abort(),
        )
        epochs = {row.shard: row.epoch for row in rows}

        async def write(slot: int) -> None:
            while True:
                one = workflow_id(slot=slot << 14, at_ms=CLOCK.now_ms())
                for number in range(1, 6):
                    header = b"open %d" % number if number < 5 else b"ended"
                    task = Row(one, number, bytes([number]) * 300)
                    shard = rows[slot].shard
                    position = log.put(shard, epochs[shard], [Row(one, 0, header), task])
                    await log.committed(position)
                    os.write(1, f"{one},{header.decode()},{number}\n".encode())

        async with asyncio.TaskGroup() as group:
            group.create_task(log.run())
            group.create_task(checkpoint.run())
            for number in range(WRITERS):
                group.create_task(write(number % SHARD_COUNT))


if __name__ == "__main__":
    # Log lines must not mix with what is told on standard output.
    set_up_logs(node_id="writer", level="warning")
    asyncio.run(main(Path(sys.argv[1])))
