"""One trial: a cluster under load, one fault, and the account of all that was acknowledged."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from cluster.clock import SystemClock, SystemRandom
from cluster.ids import WorkflowId
from cluster.node.ground import open_stores
from cluster.settings import Settings
from tests.chaos.cluster.nodes import SHARD_COUNT, Cluster
from tests.chaos.definitions import KINDS
from tests.chaos.ledger import Ledger, entries
from tests.chaos.load import Load, now_ms
from tests.chaos.verdict import Verdict, fetch, judge
from tests.chaos.waiting import Say, background, until

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
LENGTH = float(os.environ.get("CHAOS_LENGTH", "1"))
"""How much longer than in `make test` every fault lasts, or how many times it is repeated."""
OPEN_TARGET = 150
ACKNOWLEDGED_MIN = 1_000
"""Requests that have to be acknowledged during a fault."""
LATE_SHARE_MAX = 0.2
"""Of the results: workers give up on what stands still, and another attempt takes its place."""

_SUCCESS = (200, 204)
_STEADY_S = 2.0
_DRAIN_S = 120


@dataclass
class Trial:
    """What a fault works on, and what was seen."""

    cluster: Cluster
    load: Load
    dice: random.Random
    say: Say
    faults: list[tuple[float, float]] = field(default_factory=list)
    """(begin, end) by the loop's clock."""
    calm_s: float = 0.0
    """The longest request before the fault: so much is the machine's."""
    _asked_before: int = 0
    _said_before: Counter[str] = field(default_factory=Counter)
    may_lose: set[str] = field(default_factory=set)
    """Addresses whose requests may stay without an answer: that process was killed."""

    @asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """What is done inside is the fault: requests acknowledged meanwhile count."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        self._asked_before = len(self.load.asked)
        self._said_before = self._said()
        yield
        self.faults.append((begin_s, loop.time()))

    def said_since(self) -> Counter[str]:
        """What the nodes have logged since the last fault began. A start before may have replayed
        what an earlier trial left."""
        return self._said() - self._said_before

    def _said(self) -> Counter[str]:
        return sum((node.said for node in self.cluster.nodes), Counter[str]())

    async def go_on(self, least_s: float) -> None:
        """Let the fault last that long, and until enough was acknowledged under it."""
        await asyncio.sleep(least_s)
        await until(self._is_enough, pause_s=0.1)

    def _is_enough(self) -> bool:
        since = self.load.asked[self._asked_before :]
        return sum(asked.status in _SUCCESS for asked in since) >= ACKNOWLEDGED_MIN * 1.1

    async def steady(self) -> None:
        """Wait until the load runs as it should."""
        await until(lambda: self.load.open >= OPEN_TARGET * 0.8, pause_s=0.05)
        await asyncio.sleep(_STEADY_S)
        self.calm_s = max(asked.took_s for asked in self.load.asked if asked.what != "poll")

    def acknowledged(self) -> int:
        """Requests answered with success while there was a fault."""
        return sum(
            1
            for asked in self.load.asked
            if asked.status in _SUCCESS
            and any(begin <= asked.sent_s + asked.took_s <= end for begin, end in self.faults)
        )

    def longest_s(self) -> float:
        """The longest time that a request other than a poll took during a fault."""
        return max(
            asked.took_s
            for asked in self.load.asked
            if asked.what != "poll"
            and any(
                begin <= asked.sent_s + asked.took_s and asked.sent_s <= end
                for begin, end in self.faults
            )
        )


@asynccontextmanager
async def trial(
    folder: Path, store_url: str, queue_url: str, say: Say, *, nodes: int = 3
) -> AsyncIterator[Trial]:
    """Run a cluster under load; at the end account for everything and fail if anything is amiss."""
    say(f"\nCHAOS_SEED={SEED}")
    since_ms = now_ms()
    async with Cluster(folder, store_url, queue_url, seed=SEED + 2) as cluster:
        ledger = Ledger(folder / "ledger")
        load = Load(cluster.pick, ledger, seed=SEED, open_target=OPEN_TARGET)
        await cluster.start(nodes)
        run = Trial(cluster, load, random.Random(SEED + 1), say)
        async with background(cluster.balance()), background(ledger.run()):
            await until(lambda: len(cluster.ready) == nodes, pause_s=0.05)
            await load.register()
            async with background(load.run()):
                await run.steady()
                yield run
                await cluster.served()
                load.stop_producing()
                open_ids = await all_ended(cluster)
            repairs = await cluster.total("audit_repairs_total")
            quarantined = await cluster.total("quarantined_workflows")
            await asyncio.gather(*(node.stop() for node in cluster.nodes if node.is_running))
            stored = await stored_ids(store_url, since_ms)
            # Over what is left when nothing is under way: by nodes that knew nothing of it.
            await cluster.nodes[0].spawn()
            await cluster.served()
            found = await fetch(cluster.nodes[0].url, list(stored))
    # A trial that failed leaves work behind, which goes on in the next.
    present = {
        one: seen for one, seen in found.items() if seen["input"]["intent"].startswith(load.name)
    }
    verdict = judge(list(entries(folder / "ledger")), present)
    report(run, verdict, say)
    assert set(found) == set(stored)
    assert verdict.lost == []
    assert verdict.duplicated == []
    assert verdict.wrong == []
    assert present.keys() & open_ids == set()
    assert verdict.late <= verdict.results * LATE_SHARE_MAX
    assert load.unexpected == []
    silent = Counter((one.url, one.what) for one in load.asked if not one.status)
    assert {at: count for at, count in silent.items() if at[0] not in run.may_lose} == {}
    assert (repairs, quarantined) == (0, 0)
    assert run.acknowledged() >= ACKNOWLEDGED_MIN


async def all_ended(cluster: Cluster) -> list[str]:
    """Wait until no workflow is open; returns those that stay open for too long."""
    open_ids: list[str] = []
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(_DRAIN_S):
            while True:
                open_ids = []
                for name in KINDS:
                    # Each node lists all of them, as of the last checkpoints.
                    url = f"{cluster.pick()}/api/workflow/running/{name}"
                    async with session.get(url) as response:
                        open_ids += await response.json()
                if not open_ids:
                    break
                await asyncio.sleep(0.5)
    except TimeoutError:
        pass
    return open_ids


async def stored_ids(store_url: str, since_ms: int) -> list[WorkflowId]:
    """Every workflow in the store that started since, by the port that searches read from."""
    ids: list[WorkflowId] = []
    settings = Settings(store_url=store_url, shard_count=SHARD_COUNT)
    async with open_stores(settings, clock=SystemClock(), random=SystemRandom()) as stores:
        for name in KINDS:
            after: WorkflowId | None = None
            while page := await stores.search.by_definition(
                name,
                version=None,
                statuses=(),
                start_ms=since_ms,
                end_ms=now_ms() + 1,
                after=after,
                limit=500,
            ):
                ids += [summary.workflow_id for summary in page]
                after = page[-1].workflow_id
    return ids


def report(run: Trial, verdict: Verdict, say: Say) -> None:
    """What was found; the last line is the sum."""
    for title, lines in (
        ("LOST", verdict.lost),
        ("DUPLICATED", verdict.duplicated),
        ("WRONG", verdict.wrong),
        ("UNEXPECTED ANSWERS", run.load.unexpected),
    ):
        for line in lines[:20]:
            say(f"{title}: {line}")
    complaints = Counter(
        f"{line['level']}: {line['event']}"
        for node in run.cluster.nodes
        for line in node.complaints
    )
    for line, count in complaints.most_common(12):
        say(f"  {count} × {line[:300]}")
    lasted_s = sum(end - begin for begin, end in run.faults)
    say(
        f"the fault lasted {lasted_s:.1f} s, {run.acknowledged()} requests acknowledged meanwhile, "
        f"the longest took {run.longest_s():.2f} s ({run.calm_s:.2f} s before); "
        f"without an answer: {dict(run.load.lost)}; results too late: {verdict.late}"
    )
    say(
        f"workflows {len(verdict.spans)}, starts acknowledged {verdict.starts}, results "
        f"acknowledged {verdict.results}, lost {len(verdict.lost)}, "
        f"duplicated {len(verdict.duplicated)}"
    )
