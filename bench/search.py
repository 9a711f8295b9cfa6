"""How long a first page of a search takes, over so many stored workflows.

    python -m bench.search [--count 1000000] [--store sqlite|cassandra] [--searches 300]

The workflows are written as a node does it, by checkpoints of their rows, not straight into the
index: 200 definitions by a zipf law, all statuses, 90 days, 100,000 customers. Then first pages
are asked for, one after the other, with the check of every result against the store and its JSON,
but without HTTP. At the end a node starts workflows, and it is measured after which time the index
shows them by itself. Prints a table and, as its last line, JSON.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from random import Random as SeededRandom
from typing import Any

import aiohttp
import msgspec
import orjson

from cluster.clock import SystemClock, SystemRandom
from cluster.engine.model import Header
from cluster.engine.rows import HEADER_ROW, INPUT_ROW, OUTPUT_ROW
from cluster.engine.transitions import WorkflowStatus
from cluster.ids import WorkflowId, new_workflow_id, shard_of
from cluster.logs import set_up_logs
from cluster.node.app import running
from cluster.node.query_language import WORKFLOW, parse
from cluster.node.search import Search
from cluster.node.summaries import describe
from cluster.node.wire_search import search_json, workflow_summary
from cluster.settings import load_settings
from cluster.sharding.checkpoint import Described, MergedRows, write_merged
from cluster.store.cassandra import Consistency, connected, schema
from cluster.store.cassandra.stores import stores_of
from cluster.store.ports import Row, SearchIndex, Stores
from cluster.store.queries import Comparison, Query
from cluster.store.sql import open_sqlite
from cluster.urls import CassandraUrl, Host
from ops.cassandra_up import Options, Ring

CLOCK, RANDOM = SystemClock(), SystemRandom()
SHARD_COUNT = 256
TYPES = 200
CUSTOMERS = 100_000
DAYS = 90
PER_CHECKPOINT = 2_000
LAG_STARTS = 50
_DAY_MS = 86_400_000
_STATUSES = {
    WorkflowStatus.COMPLETED: 86,
    WorkflowStatus.FAILED: 6,
    WorkflowStatus.TERMINATED: 3,
    WorkflowStatus.TIMED_OUT: 2,
    WorkflowStatus.RUNNING: 2,
    WorkflowStatus.PAUSED: 1,
}
_encode = msgspec.msgpack.Encoder().encode


class Population:
    """Workflows drawn by a seed, and queries for them."""

    def __init__(self, seed: int = 1) -> None:
        self.random = SeededRandom(seed)
        self.names = [f"flow_{number:03}" for number in range(TYPES)]
        self._weights = [1 / (number + 1) for number in range(TYPES)]
        self._began_ms = CLOCK.now_ms()

    def name(self) -> str:
        return self.random.choices(self.names, self._weights)[0]

    def status(self) -> WorkflowStatus:
        return self.random.choices(list(_STATUSES), list(_STATUSES.values()))[0]

    def customer(self) -> str:
        return f"c{self.random.randrange(CUSTOMERS)}"

    def workflow(self, number: int) -> tuple[WorkflowId, list[Row]]:
        at_ms = self._began_ms - self.random.randrange(DAYS * _DAY_MS)
        slot = self.random.getrandbits(16)
        workflow_id = new_workflow_id(at_ms=at_ms, slot=slot, random=RANDOM)
        status = self.status()
        is_open = status in (WorkflowStatus.RUNNING, WorkflowStatus.PAUSED)
        end_ms = 0 if is_open else at_ms + self.random.randrange(1, 600_000)
        header = Header(
            snapshot="0" * 64,
            name=self.name(),
            version=1,
            status=status,
            create_ms=at_ms,
            update_ms=end_ms or at_ms + 1,
            end_ms=end_ms,
            correlation_id=f"order-{number}",
            reason="the card was refused" if status is WorkflowStatus.FAILED else "",
        )
        given = {"customerId": self.customer(), "amount": self.random.randrange(10_000) / 100}
        parts = [(HEADER_ROW, _encode(header)), (INPUT_ROW, orjson.dumps(given))]
        if not is_open:
            parts.append((OUTPUT_ROW, b'{"receipt":"r-%d"}' % number))
        return workflow_id, [Row(workflow_id, number, data) for number, data in parts]


async def fill(stores: Stores, population: Population, count: int, *, by_slot: bool) -> float:
    """Write workflows, a checkpoint at a time; seconds it took."""
    began_s = time.monotonic()

    def described(workflow_id: WorkflowId, header: bytes) -> Described:
        # None of them was seen open before: those that have ended leave nothing to take back.
        return describe(workflow_id, header, was_open=False)

    for first in range(0, count, PER_CHECKPOINT):
        merged = MergedRows()
        for number in range(first, min(count, first + PER_CHECKPOINT)):
            workflow_id, rows = population.workflow(number)
            shard = shard_of(workflow_id, shard_count=SHARD_COUNT)
            merged.add(number + 1, [(shard, 1, rows)], sum(len(row.data) for row in rows))
        await write_merged(
            merged, stores, described, clock=CLOCK, deadline_ms=None, by_slot=by_slot
        )
        if first and not first % 50_000:
            print(f"  {first} written, {time.monotonic() - began_s:.0f} s", flush=True)
    return time.monotonic() - began_s


async def nothing() -> None:
    """Nothing waits to be written."""


async def pages(
    stores: Stores, population: Population, count: int, searches: int, sent: Callable[[], int]
) -> dict[str, dict[str, float]]:
    """Times of first pages, in ms, by what was asked for; and what a page takes of requests."""
    search = Search(stores.search, stores.executions, nothing)

    def by_status_and_type() -> str:
        return f"workflowType = '{population.name()}' AND status = '{population.status().value}'"

    def by_correlation_id() -> str:
        return f"correlationId = 'order-{population.random.randrange(count)}'"

    def by_input() -> str:
        return f"input.customerId = '{population.customer()}'"

    asked: dict[str, Callable[[], str]] = {
        "status and type": by_status_and_type,
        "correlation id": by_correlation_id,
        "input value": by_input,
        "newest": lambda: "",
        "failed, any type": lambda: "status = FAILED",
    }
    found: dict[str, dict[str, float]] = {}
    for kind, query in asked.items():
        times_ms: list[float] = []
        hits, sent_before = 0, sent()
        for _ in range(searches if kind in list(asked)[:3] else max(1, searches // 10)):
            text = query()
            began_s = time.monotonic()
            page = await search.workflows(Query(parse(text, WORKFLOW)), start=0, size=100)
            body = search_json(page.total, [workflow_summary(hit) for hit in page.hits])
            times_ms.append((time.monotonic() - began_s) * 1000)
            hits += len(page.hits)
            assert body
        times_ms.sort()
        found[kind] = {
            "first ms": times_ms[0],
            "p50 ms": statistics.median(times_ms),
            "p99 ms": times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)],
            "results": hits / len(times_ms),
            "requests": (sent() - sent_before) / len(times_ms),
        }
        shown = ", ".join(f"{name} {value:.1f}" for name, value in found[kind].items())
        print(f"  {kind}: {shown}", flush=True)
    return found


async def lag(settings: dict[str, Any]) -> dict[str, float]:
    """How long the index is behind a node that nobody searches by, in ms."""
    step = {"name": "lag_a", "taskReferenceName": "a", "type": "SIMPLE"}
    behind: list[float] = []
    async with (
        running(load_settings(flags={"port": 0, **settings}, environ={})) as node,
        aiohttp.ClientSession(f"{node.url}/api/") as client,
    ):
        definition = [{"name": "lag", "version": 1, "tasks": [step]}]
        async with client.put("metadata/workflow", json=definition) as response:
            assert response.status == 200, await response.text()
        for _ in range(LAG_STARTS):
            async with client.post("workflow/lag", json={}) as response:
                workflow_id = await response.text()
            began_s = time.monotonic()
            query = Query(Comparison("workflowId", "=", (workflow_id,)))
            await _seen(node.services.search, query)
            behind.append((time.monotonic() - began_s) * 1000)
    return {"p50 ms": statistics.median(behind), "most ms": max(behind)}


async def _seen(index: SearchIndex, query: Query) -> None:
    while True:
        found = await index.find(query, start=0, size=1)
        if found.total:
            return
        await asyncio.sleep(0.005)


async def measure(
    stores: Stores, count: int, searches: int, *, by_slot: bool, sent: Callable[[], int]
) -> dict[str, Any]:
    population = Population()
    took_s = await fill(stores, population, count, by_slot=by_slot)
    print(f"  {count} workflows written in {took_s:.0f} s", flush=True)
    found = await pages(stores, population, count, searches, sent)
    return {"written s": took_s, "pages": found}


@asynccontextmanager
async def cassandra(
    stack: ExitStack, folder: Path
) -> AsyncIterator[tuple[Stores, Callable[[], int]]]:
    """The stores in a Cassandra of its own, and how many requests it was sent."""
    ring = Ring(folder, options=Options(heap="1g", die_with_starter=True))
    stack.callback(ring.stop)
    ring.start()
    node = ring.nodes[0]
    url = CassandraUrl((Host(node.host, node.port),), "bench_search", login=None)
    async with connected(url, Consistency()) as session:
        await schema.apply(session, url.keyspace, {})
        yield (
            await asyncio.to_thread(stores_of, session, SHARD_COUNT, CLOCK, RANDOM),
            lambda: session.requests,
        )


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podium-search-")))
        if options.store == "cassandra":
            async with cassandra(stack, folder / "cassandra") as (stores, sent):
                return await measure(
                    stores, options.count, options.searches, by_slot=True, sent=sent
                )
        async with open_sqlite(folder / "podium.db", shard_count=SHARD_COUNT) as stores:
            result = await measure(
                stores, options.count, options.searches, by_slot=False, sent=lambda: 0
            )
        result["index behind"] = await lag({"data_dir": str(folder / "lag")})
        print(f"  index behind its node: {result['index behind']}", flush=True)
        return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--store", choices=["sqlite", "cassandra"], default="sqlite")
    parser.add_argument("--searches", type=int, default=300)
    options = parser.parse_args()
    set_up_logs(node_id="bench", level="warning")
    result = asyncio.run(run(options))
    print(json.dumps({"store": options.store, "count": options.count, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
