"""What Cassandra costs: requests, bytes and CPU per append and per checkpoint batch.

    bench/stores.py [--seconds 3] [--hosts 127.0.0.1:9042 --pid PID]

Without --hosts it starts a node of its own (ops/cassandra_up.py) and stops it. CPU is that of this
process and of Cassandra, from /proc, after a warm-up; next to nothing else. `wire` is what goes
over the connection in both directions, by the loopback device: run nothing else on it.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.clock import SystemClock, SystemRandom
from cluster.ids import ShardId, WorkflowId, new_workflow_id, shard_of
from cluster.logs import set_up_logs
from cluster.sharding.checkpoint import Described, MergedRows, write_merged
from cluster.sharding.commit_log import Transition, encode_entry
from cluster.store.cassandra import Consistency, connected, schema
from cluster.store.cassandra.session import Session
from cluster.store.cassandra.stores import stores_of
from cluster.store.ports import LogId, OpenEntry, Row, Stores, Summary
from cluster.urls import CassandraUrl, Host
from ops.cassandra_up import Options, Ring

CLOCK, RANDOM = SystemClock(), SystemRandom()
SHARD_COUNT = 256
ROW_BYTES = 500
_TICKS = os.sysconf("SC_CLK_TCK")

Act = Callable[[], Awaitable[int]]
"""One operation; returns how many units it was."""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def wire_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.strip().partition(":")
        if name == "lo":
            return int(counts.split()[0])
    return 0


def ids(count: int) -> list[WorkflowId]:
    now_ms = CLOCK.now_ms()
    return [
        new_workflow_id(at_ms=now_ms, slot=RANDOM.bits(16), random=RANDOM) for _ in range(count)
    ]


def transitions(count: int) -> list[Transition]:
    return [
        (shard(one), 1, [Row(one, 0, os.urandom(ROW_BYTES // 4)), Row(one, 8, os.urandom(375))])
        for one in ids(count)
    ]


def shard(one: WorkflowId) -> ShardId:
    return shard_of(one, shard_count=SHARD_COUNT)


def appends(stores: Stores, log: LogId, count: int) -> Act:
    position = 0

    async def append() -> int:
        nonlocal position
        position += 1
        await stores.logs.append(log, position, encode_entry(transitions(count)))
        return count

    return append


def checkpoints(stores: Stores, count: int, *, is_open: bool) -> Act:
    """`count` workflows of a header and four rows, that are open still or have ended."""
    position = 0

    def describe(one: WorkflowId, _: bytes) -> Described:
        now_ms = CLOCK.now_ms()
        entry = OpenEntry(one, now_ms + 3_600_000, True) if is_open else None
        summary = Summary(
            workflow_id=one,
            name="simple1",
            version=1,
            status="RUNNING" if is_open else "COMPLETED",
            start_ms=now_ms,
            update_ms=now_ms,
        )
        return Described(open=entry, summary=summary, was_open=False)

    async def checkpoint() -> int:
        nonlocal position
        merged = MergedRows()
        for one in ids(count):
            position += 1
            rows = [Row(one, number, os.urandom(ROW_BYTES)) for number in (0, 1, 2, 3, 8)]
            merged.add(position, [(shard(one), 1, rows)], 5 * ROW_BYTES)
        await write_merged(merged, stores, describe, clock=CLOCK, deadline_ms=60_000, by_slot=True)
        return count

    return checkpoint


async def measure(
    name: str, act: Act, session: Session, pid: int, seconds: float, in_flight: int = 1
) -> None:
    async def repeat(until: float) -> tuple[int, int]:
        units = calls = 0
        while time.monotonic() < until:
            units += await act()
            calls += 1
        return units, calls

    await asyncio.gather(*(repeat(time.monotonic() + seconds / 2) for _ in range(in_flight)))
    requests, wire = session.requests, wire_bytes()
    own, other, began = time.process_time(), cpu_s(pid), time.monotonic()
    done = await asyncio.gather(*(repeat(began + seconds) for _ in range(in_flight)))
    took = time.monotonic() - began
    units, calls = sum(one for one, _ in done), sum(one for _, one in done)
    client = (time.process_time() - own) * 1e6 / units
    server = (cpu_s(pid) - other) * 1e6 / units
    print(
        f"| {name} | {units / took:,.0f} | {(session.requests - requests) / units:.3f}"
        f" | {(wire_bytes() - wire) / units:,.0f} | {client:.1f} | {server:.1f}"
        f" | {client + server:.1f} | {took / calls * in_flight * 1000:.1f} |",
        flush=True,
    )


async def run(url: CassandraUrl, pid: int, seconds: float) -> None:
    async with connected(url, Consistency()) as session:
        await session.change_schema(f"DROP KEYSPACE IF EXISTS {url.keyspace}")
        await schema.apply(session, url.keyspace, {})
        stores = await asyncio.to_thread(stores_of, session, SHARD_COUNT, CLOCK, RANDOM)
        await stores.shards.create(SHARD_COUNT)
        print(
            "| what | units/s | requests per unit | wire B | client µs | Cassandra µs | sum | ms |"
        )
        print("|---|---|---|---|---|---|---|---|")
        log = LogId(f"bench/{RANDOM.bits(64):016x}")
        await stores.logs.create(log)
        # The JVM compiles what runs often: let it.
        await measure("(warm-up)", appends(stores, log, 50), session, pid, 3 * seconds, 4)
        for count in (1, 10, 50, 200):
            log = LogId(f"bench/{RANDOM.bits(64):016x}")
            await stores.logs.create(log)
            act = appends(stores, log, count)
            await measure(f"append of {count} transitions", act, session, pid, seconds)
        for count in (50, 400, 2_000):
            act = checkpoints(stores, count, is_open=False)
            await measure(f"checkpoint of {count} ended workflows", act, session, pid, seconds)
            act = checkpoints(stores, count, is_open=True)
            await measure(f"checkpoint of {count} open workflows", act, session, pid, seconds)
        await session.change_schema(f"DROP KEYSPACE {url.keyspace}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--hosts", help="of a node that runs already, with --pid")
    parser.add_argument("--pid", type=int)
    asked = parser.parse_args()
    set_up_logs(node_id="bench", level="warning")
    if asked.hosts:
        name, _, port = asked.hosts.partition(":")
        url = CassandraUrl((Host(name, int(port or 9042)),), "podium_bench", None)
        asyncio.run(run(url, asked.pid, asked.seconds))
        return
    with tempfile.TemporaryDirectory() as folder:
        ring = Ring(Path(folder), options=Options(die_with_starter=True))
        try:
            ring.start()
            node = ring.nodes[0]
            url = CassandraUrl((Host(node.host, node.port),), "podium_bench", None)
            asyncio.run(run(url, node.pid, asked.seconds))
        finally:
            ring.stop()


if __name__ == "__main__":
    main()
