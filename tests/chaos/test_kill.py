"""kill -9 under load, again and again: nothing acknowledged is lost, nothing happens twice."""

import asyncio
import os
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from cluster.ids import WorkflowId
from cluster.store.sql import open_sqlite
from tests.chaos.definitions import KINDS
from tests.chaos.ledger import Ledger, entries
from tests.chaos.load import Load, now_ms
from tests.chaos.server import Server
from tests.chaos.verdict import Verdict, fetch, judge
from tests.chaos.waiting import Say, background, until

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
OPEN_TARGET = 360
OPEN_STEADY = 290
OPEN_MIN = 200
WRITES_IN_FLIGHT = 3
INSIDE_MIN = KILLS // 4
"""Kills that must fall into a checkpoint or a replay."""

_DRAIN_S = 90


@dataclass(frozen=True)
class Kill:
    """One kill: when it came, what was going on."""

    aim: str
    at_ms: int
    in_flight: Counter[str]
    hit: str
    """What the server was at, by its own log: starting, replay, checkpoint or serving."""


class Chaos:
    """One run: a server, its load, and who kills."""

    def __init__(self, server: Server, load: Load, dice: random.Random, say: Say) -> None:
        self.server = server
        self.load = load
        self.dice = dice
        self.say = say
        self.kills: list[Kill] = []
        self.began_ms = now_ms()
        """When the kills began, in Unix ms."""

    async def run(self) -> None:
        """Kill as often as it takes: KILLS times, INSIDE_MIN of them inside something."""
        # To kill in a replay takes a kill before it.
        aims = ["checkpoint"] * (KILLS // 5) + ["replay"] * (KILLS // 4)
        aims += ["any"] * (KILLS - KILLS // 5 - 2 * (KILLS // 4))
        self.dice.shuffle(aims)
        while aims or self._inside() < INSIDE_MIN:
            assert len(self.kills) < 2 * KILLS, "the kills do not hit a checkpoint or a replay"
            aim = aims.pop() if aims else self.dice.choice(("checkpoint", "replay"))
            if self.dice.random() < 0.8:
                await self.server.listening()
            await self._until_steady()
            if aim == "replay":
                await self._any_moment("any")
                await self._while_it_replays()
            elif aim == "checkpoint":
                await self._in_a_checkpoint()
            else:
                await self._any_moment("any")

    def _inside(self) -> int:
        return sum(kill.hit in ("checkpoint", "replay") for kill in self.kills)

    async def _until_steady(self) -> None:
        """Enough is open and going on, whether the server is up or coming up."""
        await until(lambda: self.load.open >= OPEN_STEADY, pause_s=0.02)

    async def _any_moment(self, aim: str) -> None:
        await asyncio.sleep(self.dice.uniform(0.0, 2.5))
        await self._until_steady()
        await until(lambda: self.load.writes_in_flight >= WRITES_IN_FLIGHT, pause_s=0.001)
        await self._kill(aim)
        await self.server.spawn()

    async def _in_a_checkpoint(self) -> None:
        await self.server.shot("checkpoint begins", self.dice.uniform(0.0, 0.01))
        await self._kill("checkpoint")
        await self.server.spawn()

    async def _while_it_replays(self) -> None:
        await self.server.shot("replay begins", self.dice.uniform(0.0, 0.004))
        await self._kill("replay")
        await self.server.spawn()

    async def _kill(self, aim: str) -> None:
        in_flight, at_ms = +self.load.in_flight, now_ms()
        await self.server.kill()
        hit = "serving" if self.server.was_listening else "starting"
        for phase in ("replay", "checkpoint"):
            if self.server.was_in(phase):
                hit = phase
        self.kills.append(Kill(aim, at_ms, in_flight, hit))
        self.say(
            f"{self._elapsed_s():6.1f} s: kill {len(self.kills)}, aimed at {aim}, hit {hit}, "
            f"in flight {dict(in_flight)}"
        )

    def _elapsed_s(self) -> float:
        return (now_ms() - self.began_ms) / 1000


async def open_at_last(url: str) -> list[str]:
    """Wait until no workflow is open any more; returns those that stay open for too long."""
    open_ids: list[str] = []
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(_DRAIN_S):
            while True:
                open_ids = []
                for name in KINDS:
                    async with session.get(f"{url}/api/workflow/running/{name}") as response:
                        open_ids += await response.json()
                if not open_ids:
                    break
                await asyncio.sleep(0.3)
    except TimeoutError:
        pass
    return open_ids


async def metric(url: str, name: str) -> float:
    """The sum over all label sets of a metric."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found, f"no metric {name}"
    return sum(map(float, found))


async def stored_ids(data: Path) -> list[WorkflowId]:
    """Every workflow that stands in the data folder, by the port that searches read from."""
    ids: list[WorkflowId] = []
    async with open_sqlite(data / "podium.db", shard_count=256) as stores:
        for name in KINDS:
            after: WorkflowId | None = None
            while page := await stores.search.by_definition(
                name, version=None, statuses=(), start_ms=0, end_ms=1 << 60, after=after, limit=500
            ):
                ids += [summary.workflow_id for summary in page]
                after = page[-1].workflow_id
    return ids


@pytest.mark.asyncio
async def test_kill_dash_nine_loses_nothing_and_repeats_nothing(tmp_path: Path, say: Say) -> None:
    say(f"\nCHAOS_SEED={SEED}")
    data = tmp_path / "data"
    async with Server(data) as server:
        ledger = Ledger(tmp_path / "ledger")
        load = Load(lambda: server.url, ledger, seed=SEED, open_target=OPEN_TARGET)
        await server.spawn()
        await server.listening()
        await load.register()
        chaos = Chaos(server, load, random.Random(SEED + 1), say)
        async with background(ledger.run()):
            async with background(load.run()):
                await chaos.run()
                load.stop_producing()
                await server.listening()
                open_ids = await open_at_last(server.url)
            repairs = await metric(server.url, "audit_repairs_total")
            quarantined = await metric(server.url, "quarantined_workflows")
        await server.stop()
        # One more start, over what is left when nothing is under way.
        present_ids = await stored_ids(data)
        await server.spawn()
        await server.listening()
        present = await fetch(server.url, list(present_ids))
        await server.stop()
    verdict = judge(list(entries(tmp_path / "ledger")), present)
    report(verdict, chaos.kills, load, say)
    assert set(present) == set(present_ids)
    assert verdict.lost == []
    assert verdict.duplicated == []
    assert verdict.wrong == []
    assert open_ids == []
    assert verdict.late <= verdict.results / 100
    assert load.unexpected == []
    assert [line for line in server.complaints if line["level"] != "warning"] == []
    assert (repairs, quarantined) == (0, 0)
    check_kills(chaos.kills, verdict)


def check_kills(kills: list[Kill], verdict: Verdict) -> None:
    """The kills were what the test says they were."""
    assert len(kills) >= KILLS
    assert sum(kill.hit in ("checkpoint", "replay") for kill in kills) >= INSIDE_MIN
    for kill in kills:
        assert verdict.open_at(kill.at_ms) >= OPEN_MIN, kill
        assert kill.in_flight.total() > 0, kill


def report(verdict: Verdict, kills: list[Kill], load: Load, say: Say) -> None:
    """What was found; the last line is the sum."""
    for title, lines in (
        ("LOST", verdict.lost),
        ("DUPLICATED", verdict.duplicated),
        ("WRONG", verdict.wrong),
        ("UNEXPECTED ANSWERS", load.unexpected),
    ):
        for line in lines[:20]:
            say(f"{title}: {line}")
    open_at = [verdict.open_at(kill.at_ms) for kill in kills]
    hits = Counter(kill.hit for kill in kills)
    say(
        f"open at a kill: {min(open_at)} to {max(open_at)}; requests without an answer: "
        f"{dict(load.lost)}; starts without an answer that happened: {verdict.unanswered}; "
        f"results too late: {verdict.late}; workflows: {len(verdict.spans)}"
    )
    say(
        f"kills {len(kills)} (in a checkpoint {hits['checkpoint']}, in a replay {hits['replay']}), "
        f"starts acknowledged {verdict.starts}, results acknowledged {verdict.results}, "
        f"lost {len(verdict.lost)}, duplicated {len(verdict.duplicated)}"
    )
