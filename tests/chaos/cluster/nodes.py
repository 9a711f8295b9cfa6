"""Nodes of one cluster as processes, and the balancer in front of them."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from random import Random

import aiohttp

from ops.children import free_port
from tests.chaos.cluster.proxy import Proxy
from tests.chaos.server import Server

SHARD_COUNT = 256
TOKEN = "chaos"

_CHECK_EVERY_S = 0.25
_CHECK_S = 2.0
_READY_S = 120


class Cluster:
    """Nodes over one store and one queue. Requests go to those that last said they are ready, as a
    load balancer does it; links between nodes pass through a proxy in front of each."""

    def __init__(self, folder: Path, store_url: str, queue_url: str, *, seed: int) -> None:
        self.folder = folder
        self.store_url = store_url
        self.queue_url = queue_url
        self.nodes: list[Server] = []
        self.proxies: list[Proxy] = []
        self.ready: list[str] = []
        """Addresses that the balancer sends requests to."""
        self._dice = Random(seed)
        self._urls: dict[str, Server] = {}

    async def __aenter__(self) -> "Cluster":
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.is_running:
                await node.kill()
        for proxy in self.proxies:
            await proxy.close()

    async def add(self, **environment: str) -> Server:
        """Start one more node; returns at once."""
        number = len(self.nodes) + 1
        link_port = free_port()
        proxy = Proxy(link_port)
        await proxy.open()
        self.proxies.append(proxy)
        node = Server(
            self.folder / f"node{number}",
            *("--store", self.store_url, "--queue", self.queue_url),
            environment={
                "PODIUM_NODE_ID": f"node-{number}",
                "PODIUM_SHARD_COUNT": str(SHARD_COUNT),
                "PODIUM_LINK_PORT": str(link_port),
                "PODIUM_LINK_ADVERTISE": f"127.0.0.1:{proxy.port}",
                "PODIUM_LINK_TOKEN": TOKEN,
                **environment,
            },
        )
        self.nodes.append(node)
        await node.spawn()
        return node

    async def start(self, count: int, environment: Mapping[str, str] | None = None) -> None:
        """Start that many nodes and wait until they are ready and serve all shards."""
        for _ in range(count):
            await self.add(**(environment or {}))
        await self.whole()

    def pick(self) -> str:
        """Where the balancer sends the next request."""
        return self._dice.choice(self.ready or [node.url for node in self.nodes])

    async def balance(self) -> None:
        """Ask all nodes again and again whether they are ready, until cancelled. One that takes
        its time does not keep the balancer from hearing that another is about to stop."""
        timeout = aiohttp.ClientTimeout(total=_CHECK_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            watched = 0
            while True:
                for node in self.nodes[watched:]:
                    group.create_task(self._watch(session, node.url))
                watched = len(self.nodes)
                await asyncio.sleep(_CHECK_EVERY_S)

    async def _watch(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            is_ready = await _is_ready(session, url)
            if is_ready and url not in self.ready:
                self.ready.append(url)
            elif not is_ready and url in self.ready:
                self.ready.remove(url)
            await asyncio.sleep(_CHECK_EVERY_S)

    async def owned(self) -> dict[str, int]:
        """How many shards each running node serves; a node that does not answer serves none."""
        timeout = aiohttp.ClientTimeout(total=_CHECK_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            urls = [node.url for node in self.nodes if node.is_running]
            counts = await asyncio.gather(*(_metric(session, url, "shard_owned") for url in urls))
        return dict(zip(urls, map(int, counts), strict=True))

    async def served(self, *, without: Server | None = None, limit_s: float = _READY_S) -> float:
        """Wait until all shards are served, not counting one node; returns how long it took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            owned = await self.owned()
            if without is not None:
                owned.pop(without.url, None)
            if sum(owned.values()) == SHARD_COUNT:
                return loop.time() - began_s
            assert loop.time() - began_s < limit_s, f"not all shards are served: {owned}"
            await asyncio.sleep(0.05)

    async def whole(self) -> None:
        """Wait until every node is ready, has its share of the shards, and all are served."""
        deadline_s = asyncio.get_running_loop().time() + _READY_S
        running = [node for node in self.nodes if node.is_running]
        timeout = aiohttp.ClientTimeout(total=_CHECK_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                ready = [await _is_ready(session, node.url) for node in running]
                owned = await self.owned()
                if all(ready) and sum(owned.values()) == SHARD_COUNT and min(owned.values()) > 0:
                    return
                left_s = deadline_s - asyncio.get_running_loop().time()
                assert left_s > 0, (ready, owned, [node.lines[-3:] for node in running])
                await asyncio.sleep(0.1)

    async def total(self, name: str) -> float:
        """The sum of a metric over all label sets of all running nodes."""
        async with aiohttp.ClientSession() as session:
            return sum(
                [await _metric(session, node.url, name) for node in self.nodes if node.is_running]
            )


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    try:
        async with session.get(f"{url}/metrics") as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return 0
    return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
