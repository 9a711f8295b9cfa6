"""The data folder: locked for one process, and the files in it opened together."""

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from cluster.errors import Unavailable
from cluster.store.ports import Stores
from cluster.store.sql.database import Database
from cluster.store.sql.executions import SqlExecutionStore
from cluster.store.sql.log import SqlLogStore
from cluster.store.sql.metadata import SqlMetadataStore
from cluster.store.sql.open_set import SqlOpenSet
from cluster.store.sql.records import SqlRecordStore
from cluster.store.sql.schema import DATA_STEPS, LOG_STEPS, bring_up_to_date
from cluster.store.sql.search import SqlSearchIndex
from cluster.store.sql.shards import SqlShardTable

_READERS = 2
_locked_here: set[Path] = set()


@asynccontextmanager
async def open_sqlite(path: Path, *, shard_count: int) -> AsyncIterator[Stores]:
    """The stores in `path` (podium.db) and the log beside it (podium-log.db).

    Creates folder and files. Unavailable: another process has them open. Conflict: a newer
    version wrote them, or the cluster was created with another shard count.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_lock(path))
        log_path = path.with_name(f"{path.stem}-log{path.suffix}")
        data = await Database.open(
            path, partial(bring_up_to_date, steps=DATA_STEPS), readers=_READERS
        )
        stack.push_async_callback(data.close)
        searches = Database(path, readers=1)
        stack.push_async_callback(searches.close)
        log = await Database.open(log_path, partial(bring_up_to_date, steps=LOG_STEPS), readers=0)
        stack.push_async_callback(log.close)
        shards = SqlShardTable(log)
        await shards.create(shard_count)
        yield Stores(
            logs=SqlLogStore(log),
            shards=shards,
            executions=SqlExecutionStore(data),
            open_set=SqlOpenSet(data, shard_count=shard_count),
            search=SqlSearchIndex(data, searches),
            metadata=SqlMetadataStore(data),
            records=SqlRecordStore(data),
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`; it goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_suffix(".lock").resolve()
    # A record lock, not flock: a forked child that outlives us must not go on holding it. Record
    # locks do not exclude their own process, and end when it closes any descriptor of the file.
    if lock_path in _locked_here:
        raise _in_use(path, "this process")
    file = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _in_use(path, f"process {os.read(file, 20).decode().strip()}") from None
        _locked_here.add(lock_path)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        _locked_here.discard(lock_path)
        os.close(file)


def _in_use(path: Path, holder: str) -> Unavailable:
    return Unavailable(
        f"the data in {path.parent} is in use by {holder}:"
        " stop it first, or choose another data folder"
    )
