"""What is done to a cluster under load: a node killed, drained, added; and how soon all is well."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import Any

from bench.measuring import Cluster, Node

NAMES = ("kill", "drain", "add")
_LIMIT_S = 180
_LOOK_S = 0.2
_EVEN = 0.7
"""A node has so much of its share of the shards, at least, when they are spread evenly."""


class Injuries:
    """Every injury ends when all shards are served, and spread over the nodes that are there."""

    def __init__(self, running: Cluster) -> None:
        self._running = running

    async def inflict(self, name: str) -> dict[str, Any]:
        """One of NAMES; returns how long it took until all was well again."""
        began_s = time.monotonic()
        if name == "kill":
            figures = await self._kill()
        elif name == "drain":
            figures = await self._drain()
        else:
            figures = await self._add()
        self._running.note()
        return {"injury": name, **figures, "took_s": round(time.monotonic() - began_s, 1)}

    async def _kill(self) -> dict[str, Any]:
        """kill -9 of the node that came last, and its restart once the others serve its shards."""
        victim = self._nodes()[-1]
        victim.kill()
        served_s = await self._until_served(even=False)
        began_s = time.monotonic()
        await asyncio.to_thread(victim.start)
        ready_s = time.monotonic() - began_s
        await self._until_served(even=True)
        return {
            "node": victim.name,
            "served_by_others_s": round(served_s, 1),
            "restarted_s": round(ready_s, 1),
        }

    async def _drain(self) -> dict[str, Any]:
        """The node that came first hands over what it has, and stops."""
        leaving = self._nodes()[0]
        await asyncio.to_thread(_ask, leaving, "POST", f"/cluster/drain/{leaving.name}")
        began_s = time.monotonic()
        await _until(lambda: self._shards_of(leaving) == 0, f"{leaving.name} to hand over")
        drained_s = time.monotonic() - began_s
        await asyncio.to_thread(leaving.stop)
        await self._until_served(even=True)
        return {"node": leaving.name, "drained_s": round(drained_s, 1)}

    async def _add(self) -> dict[str, Any]:
        """One more node."""
        began_s = time.monotonic()
        node = await asyncio.to_thread(self._running.add)
        ready_s = time.monotonic() - began_s
        await self._until_served(even=True)
        return {"node": node.name, "started_s": round(ready_s, 1)}

    async def _until_served(self, *, even: bool) -> float:
        began_s = time.monotonic()
        await _until(lambda: self._is_served(even=even), "all shards to be served")
        return time.monotonic() - began_s

    def _nodes(self) -> list[Node]:
        return [node for node in self._running.nodes if node.pid]

    def _status(self) -> dict[str, Any]:
        answer: dict[str, Any] = _ask(self._nodes()[0], "GET", "/cluster/status")
        return answer

    def _shards_of(self, node: Node) -> int:
        shards = {one["node"]: int(one["shards"]) for one in self._status()["nodes"]}
        return shards.get(node.name, 0)

    def _is_served(self, *, even: bool) -> bool:
        status = self._status()
        names = [node.name for node in self._nodes()]
        shards = {one["node"]: int(one["shards"]) for one in status["nodes"]}
        served = [shards.get(name, 0) for name in names]
        if sum(served) < status["shards"]:
            return False
        return not even or min(served) >= _EVEN * status["shards"] / len(names)


async def _until(is_so: Any, what: str) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while True:
        try:
            if await asyncio.to_thread(is_so):
                return
        except (OSError, urllib.error.URLError, ValueError):
            pass  # A node that is busy with itself is asked again.
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited {_LIMIT_S} s in vain for {what}")
        await asyncio.sleep(_LOOK_S)


def _ask(node: Node, method: str, path: str) -> Any:
    request = urllib.request.Request(node.address + path, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())
