"""What holds of SQLite alone: the folder's lock, the schema's version, faults, and kill -9."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.errors import Conflict, Fenced, NotFound, StoreFault, Unavailable
from cluster.ids import WorkflowId
from cluster.sharding.takeover import restart
from cluster.store.ports import Row, Stores
from cluster.store.sql import open_sqlite
from cluster.store.sql.database import Database
from cluster.store.sql.log import SqlLogStore
from cluster.store.sql.schema import LOG_STEPS, bring_up_to_date
from tests.support.process import CLOCK, SHARD_COUNT, contents, describe
from tests.support.rows import log_id, revised, workflow_id

pytestmark = pytest.mark.asyncio

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "podium.db"


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(
        tmp_path / "one.db", partial(bring_up_to_date, steps=LOG_STEPS), readers=2
    )
    yield opened
    await opened.close()


async def recover(stores: Stores) -> None:
    await restart(
        stores,
        log_id(),
        is_predecessor=lambda _: True,
        takes_unowned=True,
        describe=describe,
        clock=CLOCK,
    )


async def test_all_is_there_after_closing_and_opening(path: Path) -> None:
    one = workflow_id()
    async with open_sqlite(path, shard_count=4) as stores:
        await stores.executions.write([revised(Row(one, 0, b"header"))])
        await stores.logs.create(log_id("a"))
    async with open_sqlite(path, shard_count=4) as stores:
        assert list(await stores.executions.read(one)) == [Row(one, 0, b"header")]
        assert len(await stores.logs.logs()) == 1
    with pytest.raises(Conflict, match="4 shards, not 8"):
        async with open_sqlite(path, shard_count=8):
            pass


async def test_a_second_process_is_refused(path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cluster.store.sql import open_sqlite\n"
        "async def main():\n"
        "    async with open_sqlite(Path(sys.argv[1]), shard_count=4):\n"
        "        print('opened')\n"
        "asyncio.run(main())\n"
    )

    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    async with open_sqlite(path, shard_count=4) as stores:
        refused = await asyncio.to_thread(second)
        assert refused.returncode != 0
        assert f"in use by process {os.getpid()}" in refused.stderr
        with pytest.raises(Unavailable, match="in use by this process"):
            async with open_sqlite(path, shard_count=4):
                pass
        # A refused attempt leaves the lock where it was.
        assert "in use" in (await asyncio.to_thread(second)).stderr
        await stores.logs.create(log_id())
    assert (await asyncio.to_thread(second)).stdout == "opened\n"


async def test_data_of_a_newer_version_is_refused(path: Path) -> None:
    async with open_sqlite(path, shard_count=4):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO schema_version (version) VALUES (1000)")
    connection.close()
    with pytest.raises(Conflict, match="schema version 1000"):
        async with open_sqlite(path, shard_count=4):
            pass


async def test_a_file_that_is_no_database_is_a_fault(path: Path) -> None:
    path.parent.mkdir()
    await asyncio.to_thread(path.write_bytes, b"something else" * 1_000)
    with pytest.raises(StoreFault, match="not a database"):
        async with open_sqlite(path, shard_count=4):
            pass


async def test_every_commit_is_synced(database: Database) -> None:
    """A process that is killed cannot show this: what it wrote stays in the system's cache."""

    def pragmas(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await database.write(pragmas) == ["wal", 2]


async def test_the_log_takes_no_locks_and_is_read_by_its_writer(path: Path) -> None:
    own = log_id("a")
    async with open_sqlite(path, shard_count=4) as stores:
        await stores.logs.create(own)
        # Only who shares a WAL with others needs an index of it that others can see.
        assert path.with_name("podium.db-shm").exists()
        assert not path.with_name("podium-log.db-shm").exists()
        with (
            closing(sqlite3.connect(path.with_name("podium-log.db"), timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("SELECT * FROM fences")
        appends = [stores.logs.append(own, position, b"entry") for position in range(1, 9)]
        fence, *_ = await asyncio.gather(stores.logs.fence(own), *appends)
        assert fence is not None
        assert fence.open
        read = await stores.logs.read(own, after=0, upto=99, bytes_max=1 << 20)
        assert [position for position, _ in read] == list(range(1, 9))
        assert list(await stores.logs.logs()) == [own]


async def test_work_that_raises_takes_nothing_else_with_it(database: Database) -> None:
    def write(shard: int, connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO shards VALUES (?, NULL, 0)", (shard,))
        if shard == 2:
            raise NotFound("refused")
        if shard == 3:
            raise ZeroDivisionError
        return shard

    # Submitted together, so they are one group.
    answers = await asyncio.gather(
        *(database.write(partial(write, shard)) for shard in range(5)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [int, int, NotFound, ZeroDivisionError, int]

    def shards(connection: sqlite3.Connection) -> list[int]:
        return [shard for (shard,) in connection.execute("SELECT shard FROM shards")]

    assert await database.read(shards) == [0, 1, 4]
    with pytest.raises(StoreFault, match="readonly"):
        await database.read(lambda connection: write(9, connection))


async def test_a_full_disk_is_a_fault_until_there_is_room(database: Database) -> None:
    logs, log = SqlLogStore(database), log_id()
    await logs.create(log)
    await logs.append(log, 1, b"x" * 50_000)
    (pages,) = await database.write(lambda c: c.execute("PRAGMA page_count").fetchone())

    def limit(count: int, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA max_page_count = {count}")

    await database.write(partial(limit, pages + 1))
    for _ in range(2):
        with pytest.raises(StoreFault, match="full"):
            await logs.append(log, 2, b"y" * 50_000)
    group = [logs.append(log, position, b"y" * 50_000) for position in (2, 3)]
    answers = await asyncio.gather(*group, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreFault, StoreFault]
    await database.write(partial(limit, pages + 1_000))
    await logs.append(log, 2, b"y" * 50_000)
    assert (await logs.seal(log)).valid_to == 2


async def test_appends_that_wait_together_are_fenced_one_by_one(database: Database) -> None:
    logs, sealed, open_log = SqlLogStore(database), log_id(), log_id()
    for log in (sealed, open_log):
        await logs.create(log)
    await logs.seal(sealed)
    answers = await asyncio.gather(
        logs.append(open_log, 1, b"1"),
        logs.append(sealed, 1, b"1"),
        logs.append(open_log, 2, b"2"),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [type(None), Fenced, type(None)]
    assert (await logs.seal(open_log)).valid_to == 2


async def test_a_locked_file_is_waited_for(database: Database, tmp_path: Path) -> None:
    logs, log = SqlLogStore(database), log_id()
    await logs.create(log)
    other = sqlite3.connect(tmp_path / "one.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    append = asyncio.create_task(logs.append(log, 1, b"entry"))
    await asyncio.sleep(0.05)
    assert not append.done()
    other.execute("ROLLBACK")
    other.close()
    await append


async def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    """Killed at random instants, many of them in a checkpoint, a truncation or a takeover."""
    random_ms = random.Random(7)
    acknowledged: dict[WorkflowId, dict[int, bytes]] = {}
    commits = 0
    for attempt in range(10):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.sqlite_writer",
            str(path),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        # Some are killed before they have finished the takeover of what the last one left.
        told = b""
        if attempt % 4 != 3:
            told = await asyncio.wait_for(process.stdout.readline(), 30)
        await asyncio.sleep(random_ms.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        told += await process.stdout.read()
        await process.wait()
        for line in told.decode().splitlines(keepends=True):
            if line.endswith("\n"):
                one, header, number = line.strip().split(",")
                rows = acknowledged.setdefault(WorkflowId(one), {})
                rows[0] = header.encode()
                rows[int(number)] = bytes([int(number)]) * 300
                commits += 1
    assert commits > 500
    async with open_sqlite(path, shard_count=SHARD_COUNT) as stores:
        await recover(stores)
        found = await contents(stores, list(acknowledged))
        for one, rows in acknowledged.items():
            # What was written but not acknowledged may be there too.
            assert found.rows[one].items() >= {n: d for n, d in rows.items() if n}.items()
            at_least = len(rows) - 1
            assert max(found.rows[one]) >= at_least
            is_ended = found.rows[one][0] == b"ended"
            assert is_ended == (max(found.rows[one]) == 5)
            assert (one in found.open) == (not is_ended)
            assert found.search[one] == ("COMPLETED" if is_ended else "RUNNING")
        assert len(await stores.logs.logs()) == 1
