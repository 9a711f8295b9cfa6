"""Seal the logs of processes that are gone, write what only they hold, claim their shards.

The order makes every crash harmless: nothing is claimed before its tail is in the stores, and
nothing is deleted before it is claimed. Every step may be repeated, by any number of nodes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cluster.clock import Clock
from cluster.errors import StoreFault
from cluster.ids import ShardId
from cluster.logs import get_log
from cluster.sharding.checkpoint import Describe, MergedRows, write_merged
from cluster.sharding.commit_log import decode_entry
from cluster.sharding.insist import insist
from cluster.store.ports import LogId, ShardRow, Stores, first_position

# `log` means a commit log in this module.
_lines = get_log(__name__)

_READ_BYTES = 512 * 1024
"""Read and decoded in one go, about 2 ms of the event loop."""

_WRITTEN_BYTES = 8 << 20
"""Gathered before it is written."""


async def take_over(
    stores: Stores,
    wanted: Sequence[ShardRow],
    own: LogId,
    *,
    describe: Describe,
    clock: Clock,
    deadline_ms: int = 60_000,
) -> Sequence[ShardRow]:
    """Make `own` the owner of the wanted shards; returns the rows that are its own now.

    The caller read the rows, has created the log `own`, and knows that the owners they name are
    gone (or overruled): their logs get sealed. A shard that somebody else claimed meanwhile is
    not among the answers. StoreFault: the stores kept failing; call again with fresh rows.
    """
    owners = dict.fromkeys(row.owner for row in wanted)
    for log in owners:
        if log is not None and log != own:
            epochs = {row.shard: row.epoch for row in wanted if row.owner == log}
            await _replay(stores, log, epochs, describe, clock, deadline_ms)
    free = [row for row in wanted if row.owner != own]
    stands = await insist(
        lambda: stores.shards.claim(free, own), clock=clock, deadline_ms=deadline_ms
    )
    return [row for row in wanted if row.owner == own] + [
        row
        for row, seen in zip(stands, free, strict=True)
        if row.owner == own and row.epoch == seen.epoch + 1
    ]


async def restart(
    stores: Stores,
    own: LogId,
    *,
    is_predecessor: Callable[[LogId], bool],
    takes_unowned: bool,
    describe: Describe,
    clock: Clock,
    deadline_ms: int = 60_000,
) -> Sequence[ShardRow]:
    """Begin a process: create its log, take over what its earlier processes owned, tidy up.

    `is_predecessor` names logs whose processes are certainly gone: those of the same node id
    and locked data folder; all logs if the stores themselves are locked. `takes_unowned`: claim
    shards that nobody owns too, as a cluster of one does. Returns the rows that are its own now.
    """
    await insist(lambda: stores.logs.create(own), clock=clock, deadline_ms=deadline_ms)
    rows = await insist(stores.shards.rows, clock=clock, deadline_ms=deadline_ms)
    wanted = [
        row
        for row in rows
        if (takes_unowned if row.owner is None else row.owner == own or is_predecessor(row.owner))
    ]
    won = await take_over(
        stores, wanted, own, describe=describe, clock=clock, deadline_ms=deadline_ms
    )
    # A process that ended between creating its log and its first claim left it open.
    for log in await insist(stores.logs.logs, clock=clock, deadline_ms=deadline_ms):
        if log != own and is_predecessor(log):
            await _seal(stores, log, clock, deadline_ms)
    await delete_unnamed_logs(stores, clock=clock, deadline_ms=deadline_ms)
    return won


async def delete_unnamed_logs(stores: Stores, *, clock: Clock, deadline_ms: int = 60_000) -> None:
    """Delete the sealed logs that no shard row names: all they hold is in the stores.

    An open log stays: its process may be about to claim. That a process claims under a log that
    was sealed and deleted meanwhile is harmless: it cannot commit anything.
    """
    logs = await insist(stores.logs.logs, clock=clock, deadline_ms=deadline_ms)
    rows = await insist(stores.shards.rows, clock=clock, deadline_ms=deadline_ms)
    named = {row.owner for row in rows}
    for log in logs:
        if log not in named:
            await insist(partial(stores.logs.delete, log), clock=clock, deadline_ms=deadline_ms)


async def _replay(
    stores: Stores,
    log: LogId,
    epochs: Mapping[ShardId, int],
    describe: Describe,
    clock: Clock,
    deadline_ms: int,
) -> None:
    """Write what `log` holds of these shards in these epochs to the stores."""
    first_segment, valid_to = await _seal(stores, log, clock, deadline_ms)
    position = first_position(first_segment) - 1
    merged = MergedRows()
    _lines.info("replay begins", log=log, after=position, upto=valid_to)
    while position < valid_to:
        entries = await insist(
            partial(stores.logs.read, log, after=position, upto=valid_to, bytes_max=_READ_BYTES),
            clock=clock,
            deadline_ms=deadline_ms,
        )
        if not entries:
            raise StoreFault(f"log {log} ends at {position}, it is valid to {valid_to}")
        for at, entry in entries:
            if at != position + 1:
                # Deleted by whoever finished this takeover, or damaged: claim nothing.
                raise StoreFault(f"log {log} lacks position {position + 1}")
            position = at
            # Rows of an earlier epoch reached the stores when the shard changed hands.
            mine = [step for step in decode_entry(entry) if epochs.get(step[0]) == step[1]]
            merged.add(at, mine, len(entry))
        if merged.size >= _WRITTEN_BYTES or position == valid_to:
            await write_merged(merged, stores, describe, clock=clock, deadline_ms=deadline_ms)
            merged = MergedRows()
    _lines.info("replay ended", log=log)


async def _seal(stores: Stores, log: LogId, clock: Clock, deadline_ms: int) -> tuple[int, int]:
    fence = await insist(lambda: stores.logs.seal(log), clock=clock, deadline_ms=deadline_ms)
    if fence.valid_to is None:
        raise StoreFault(f"the seal of log {log} recorded no end")
    return fence.first_segment, fence.valid_to
