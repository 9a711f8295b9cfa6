"""One SQLite file: a writer thread that groups what waits into transactions, and reader threads.

The event loop never waits for the disk, and is crossed once per group, not once per statement.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeAlias, TypeVar

from cluster.errors import StoreFault

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]

_GROUP_MAX = 64
_BUSY_WAIT_S = 5.0
"""How long a statement waits for a lock of another program, such as a backup."""
# Rows above a quarter of a page spill to pages of their own; 8 KB held 0.3-6 KB rows best.
_PAGE_BYTES = 8192
_CACHE_KB = 65_536


class _Job(Generic[T]):
    __slots__ = ("error", "future", "is_one_statement", "result", "work")

    def __init__(
        self, work: Work[T] | None, future: asyncio.Future[T], is_one_statement: bool
    ) -> None:
        self.work = work
        self.future = future
        self.is_one_statement = is_one_statement
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        if self.work is not None:
            self.result = self.work(connection)

    def settle(self) -> None:
        if self.future.done():
            return  # The caller gave up; what was done stays done.
        if self.error is None:
            self.future.set_result(self.result)  # type: ignore[arg-type]
        else:
            self.future.set_exception(self.error)


_Queue: TypeAlias = "SimpleQueue[_Job[object]]"


class Database:
    """Open with `open`; `write` and `read` run a function of a connection on its threads.

    Functions may raise ClusterErrors; whatever sqlite3 raises becomes a StoreFault.
    """

    def __init__(self, path: Path, *, readers: int) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._is_exclusive = not readers
        self._writes: _Queue = SimpleQueue()
        self._reads: _Queue = SimpleQueue() if readers else self._writes
        self._threads = [self._thread("writer", self._write_loop, self._writes)]
        for number in range(readers):
            self._threads.append(self._thread(f"reader-{number}", self._read_loop, self._reads))

    @classmethod
    async def open(cls, path: Path, schema: Work[None], *, readers: int) -> "Database":
        """Open or create the file and bring its schema up to date.

        `readers` 0: the writer reads too, and keeps the file to itself. SQLite then takes no locks
        (six system calls per commit) and shares no index of its WAL with anybody.
        StoreFault: the file cannot be opened; or what `schema` raises.
        """
        database = cls(path, readers=readers)
        try:
            await database.write(schema)
        except BaseException:
            await database.close()
            raise
        return database

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, with what else waits; durable when it returns.

        If `work` raises, what it wrote is undone and the others of its group are kept.
        """
        return await self._submit(self._writes, work, is_one_statement=False)

    async def write_one(self, work: Work[T]) -> T:
        """The same for work whose writes are one statement: alone it needs no BEGIN and COMMIT.

        Each statement gives up the interpreter lock and has to win it back from a busy loop.
        """
        return await self._submit(self._writes, work, is_one_statement=True)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which only reads, beside the writer if there are readers; it sees all
        completed writes."""
        return await self._submit(self._reads, work, is_one_statement=False)

    async def close(self) -> None:
        """Finish what was submitted and close the file."""
        stops: list[asyncio.Future[object]] = []
        # The writer last: the connection that closes last folds the WAL into the file.
        for queue, count in ((self._reads, len(self._threads) - 1), (self._writes, 1)):
            for _ in range(count):
                stop = self._loop.create_future()
                queue.put(_Job(None, stop, is_one_statement=False))
                stops.append(stop)
            await asyncio.gather(*stops)
        for thread in self._threads:
            thread.join()

    async def _submit(self, queue: _Queue, work: Work[T], *, is_one_statement: bool) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        queue.put(_Job(work, future, is_one_statement))  # type: ignore[arg-type]
        return await future

    def _thread(self, name: str, loop: Callable[[_Queue], None], queue: _Queue) -> threading.Thread:
        # A daemon: a process that is to die does not wait for the disk.
        thread = threading.Thread(
            target=loop, args=(queue,), name=f"{self._path.name} {name}", daemon=True
        )
        thread.start()
        return thread

    def _write_loop(self, queue: _Queue) -> None:
        connection: sqlite3.Connection | None = None
        is_stopping = False
        while not is_stopping:
            group = _next_group(queue)
            is_stopping = any(job.work is None for job in group)
            try:
                connection = connection or self._connect()
                _transact(connection, group)
            except sqlite3.Error as error:
                fault = self._fault(error)
                for job in group:
                    job.error = job.error or (fault if job.work else None)
            if is_stopping and connection is not None:
                connection.close()
            self._hand_back(group)

    def _read_loop(self, queue: _Queue) -> None:
        connection: sqlite3.Connection | None = None
        is_stopping = False
        while not is_stopping:
            job = queue.get()
            is_stopping = job.work is None
            try:
                if not is_stopping:
                    connection = connection or self._connect(is_reader=True)
                    job.run(connection)
            except sqlite3.Error as error:
                job.error = self._fault(error)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                job.error = error
            if is_stopping and connection is not None:
                connection.close()
            self._hand_back([job])

    def _connect(self, *, is_reader: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_WAIT_S, isolation_level=None, cached_statements=256
        )
        if is_reader:
            connection.execute("PRAGMA query_only = ON")
        else:
            if self._is_exclusive:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL syncs the WAL at every commit: what was acknowledged survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = OFF")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        return connection

    def _fault(self, error: sqlite3.Error) -> StoreFault:
        fault = StoreFault(f"{self._path.name}: {error}")
        fault.__cause__ = error
        return fault

    def _hand_back(self, group: "Sequence[_Job[object]]") -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, group)
        except RuntimeError:
            pass  # The loop is closed: nobody waits any more.


def _next_group(queue: _Queue) -> "list[_Job[object]]":
    group = [queue.get()]
    try:
        while len(group) < _GROUP_MAX:
            group.append(queue.get_nowait())
    except Empty:
        pass
    return group


def _transact(connection: sqlite3.Connection, group: "list[_Job[object]]") -> None:
    if len(group) == 1 and (group[0].is_one_statement or group[0].work is None):
        _run_alone(connection, group[0])
        return
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in group:
            _run_in_savepoint(connection, job)
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _run_alone(connection: sqlite3.Connection, job: _Job[object]) -> None:
    try:
        job.run(connection)
    except sqlite3.Error:
        raise
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        job.error = error


def _run_in_savepoint(connection: sqlite3.Connection, job: _Job[object]) -> None:
    connection.execute("SAVEPOINT job")
    try:
        job.run(connection)
    except sqlite3.Error:
        # Of a full disk or a broken file the rest of the group has nothing to hope for.
        raise
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        connection.execute("ROLLBACK TO job")
        job.error = error
    connection.execute("RELEASE job")


def _settle(group: "Sequence[_Job[object]]") -> None:
    for job in group:
        job.settle()
