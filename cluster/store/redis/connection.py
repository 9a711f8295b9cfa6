"""Connections to Redis, whatever its form: one server, a Sentinel group or a Cluster."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

import redis.asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from cluster.errors import StoreFault
from cluster.urls import Host, Login, RedisClusterUrl, RedisSentinelUrl, RedisUrl

Argument = bytes | str | int

FAULTS: Final = (RedisError, OSError, TimeoutError)
"""What the driver raises when a server is away, busy, or not what it was."""


class Script:
    """A Lua script that is beside this module, and its digest."""

    def __init__(self, name: str, *, flags: str = "") -> None:
        text = files(__package__).joinpath(name).read_text()
        # With the first line a server runs no script that its memory does not allow to the end.
        self.source = f"#!lua{flags}\n{text}".encode()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest()


class OutOfMemory(StoreFault):
    """Redis has reached its memory limit and takes nothing new."""


class Connection:
    """Runs scripts on the server that holds their key. Never repeats one by itself."""

    def __init__(self, client: redis.asyncio.Redis | RedisCluster) -> None:
        self._client = client

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> list[Any]:
        """The script's answer. StoreFault: there was none, the outcome is unknown."""
        try:
            try:
                answer = await self._client.execute_command(
                    "EVALSHA", script.digest, 1, key, *arguments
                )
            except NoScriptError:
                answer = await self._client.execute_command(
                    "EVAL", script.source, 1, key, *arguments
                )
        except OutOfMemoryError as error:
            raise OutOfMemory(f"Redis takes nothing new: {error}") from error
        except FAULTS as error:
            raise fault(error) from error
        assert isinstance(answer, list)
        return answer

    @asynccontextmanager
    async def subscribed(self, channel: str) -> AsyncIterator[PubSub]:
        """A subscription while the context lasts. The driver's errors pass through."""
        client = self._client
        if isinstance(client, RedisCluster):
            await client.initialize()
        pubsub = client.pubsub()
        try:
            await pubsub.subscribe(channel)
            yield pubsub
        finally:
            with suppress(*FAULTS):
                await pubsub.aclose()  # type: ignore[no-untyped-call]


def fault(error: Exception) -> StoreFault:
    return StoreFault(f"Redis gave no answer: {type(error).__name__}: {error}")


@asynccontextmanager
async def connected(
    url: RedisUrl | RedisSentinelUrl | RedisClusterUrl, *, timeout_ms: int
) -> AsyncIterator[Connection]:
    """A connection that is opened by its first call, and again whenever it broke."""
    match url:
        case RedisUrl():
            alone = redis.asyncio.Redis(
                host=_name(url.host),
                port=url.host.port,
                db=url.database,
                **_options(url.login, timeout_ms),
            )
            async with alone:
                yield Connection(alone)
        case RedisSentinelUrl():
            group = Sentinel(  # type: ignore[no-untyped-call]
                [(_name(host), host.port) for host in url.sentinels],
                sentinel_kwargs=_options(None, timeout_ms),
                **_options(url.login, timeout_ms),
            )
            try:
                async with group.master_for(url.master) as primary:
                    yield Connection(primary)
            finally:
                for sentinel in group.sentinels:
                    await sentinel.aclose()
        case RedisClusterUrl():
            nodes = [ClusterNode(_name(host), host.port) for host in url.hosts]
            cluster = RedisCluster(startup_nodes=nodes, **_options(url.login, timeout_ms))
            try:
                yield Connection(cluster)
            finally:
                await cluster.aclose()


def _options(login: Login | None, timeout_ms: int) -> dict[str, Any]:
    return {
        "username": (login.user or None) if login else None,
        "password": login.password if login else None,
        "socket_timeout": timeout_ms / 1000,
        "socket_connect_timeout": timeout_ms / 1000,
        # A repeated pop would take twice; whoever asked decides whether to ask again.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def _name(host: Host) -> str:
    return host.name.strip("[]")
