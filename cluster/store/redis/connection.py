"""Connections to Redis, whatever its form: one server, a Sentinel group or a Cluster."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, Protocol

import redis.asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
)

from cluster.errors import StoreFault
from cluster.urls import Host, Login, RedisClusterUrl, RedisSentinelUrl, RedisUrl

Argument = bytes | str | int
Address = tuple[str, int]

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


class Connection(Protocol):
    """Runs scripts on the server that holds their key. Never repeats what may have been run."""

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> list[Any]:
        """The script's answer. StoreFault: there was none, the outcome is unknown."""

    def subscribed(self, channel: str) -> AbstractAsyncContextManager[PubSub]:
        """A subscription while the context lasts. The driver's errors pass through."""


class OneServer:
    """The connection to a single server, or to whichever a Sentinel group calls its primary."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> list[Any]:
        try:
            return await _run(self._client, script, key, arguments)
        except FAULTS as error:
            raise fault(error) from error

    @asynccontextmanager
    async def subscribed(self, channel: str) -> AsyncIterator[PubSub]:
        pubsub = await _subscribe(self._client, channel)
        try:
            yield pubsub
        finally:
            await _unsubscribe(pubsub)


class ClusterServers:
    """The connections to the primaries of a Redis Cluster.

    The driver has a client for this too; but that one gives up all its connections when it loses
    one, and so carries the loss of a primary to all the others.
    """

    def __init__(self, seeds: Sequence[Address], options: Mapping[str, Any]) -> None:
        self._seeds = seeds
        self._options = options
        self._clients: dict[Address, redis.asyncio.Redis] = {}
        self._owners: list[tuple[int, int, Address]] = []
        """First slot, last slot, primary."""
        self._is_stale = True
        self._refreshing = asyncio.Lock()

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> list[Any]:
        slot = key_slot(key.encode())
        try:
            await self._refresh()
            try:
                return await _run(self._client_of(slot), script, key, arguments)
            except MovedError as moved:
                # It was not run there; whom the answer names knows better than our table.
                self._is_stale = True
                client = self._client_at((moved.host, moved.port))
                return await _run(client, script, key, arguments)
        except FAULTS as error:
            # Also while a slot is on its way (ASK): half of it would look like a loss.
            self._is_stale = True
            raise fault(error) from error

    @asynccontextmanager
    async def subscribed(self, channel: str) -> AsyncIterator[PubSub]:
        # Whichever it is, the servers pass messages on to each other.
        await self._refresh()
        error: Exception = ClusterDownError("no server of the Redis Cluster is known")
        for _, _, address in self._owners:
            try:
                pubsub = await _subscribe(self._client_at(address), channel)
            except FAULTS as failure:
                pass_cancellation()
                error = failure
                continue
            try:
                yield pubsub
            finally:
                await _unsubscribe(pubsub)
            return
        raise error

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    def _client_of(self, slot: int) -> redis.asyncio.Redis:
        for first, last, address in self._owners:
            if first <= slot <= last:
                return self._client_at(address)
        raise ClusterDownError(f"no server of the Redis Cluster has slot {slot}")

    def _client_at(self, address: Address) -> redis.asyncio.Redis:
        client = self._clients.get(address)
        if client is None:
            host, port = address
            client = redis.asyncio.Redis(host=host, port=port, **self._options)
            self._clients[address] = client
        return client

    def _is_known(self) -> bool:
        return not self._is_stale

    async def _refresh(self) -> None:
        """Ask who owns what, if that is not known or something went wrong since."""
        if self._is_known():
            return
        async with self._refreshing:
            if self._is_known():
                return
            error: Exception = ClusterDownError("no server of the Redis Cluster is known")
            known = [address for _, _, address in self._owners]
            for address in dict.fromkeys([*known, *self._seeds]):
                try:
                    told = await _send(self._client_at(address), "CLUSTER", "SLOTS")
                    pass_cancellation()
                except FAULTS as failure:
                    pass_cancellation()
                    error = failure
                    continue
                self._owners = _owners(told, address)
                self._is_stale = False
                return
            raise error


def _owners(told: Sequence[Any], teller: Address) -> list[tuple[int, int, Address]]:
    """What CLUSTER SLOTS says: first slot, last slot, the primary, its replicas."""
    found = []
    for first, last, primary, *_ in told:
        # A server that does not know its own address means: the one that you have reached.
        host = primary[0].decode() if primary[0] else teller[0]
        found.append((first, last, (host, primary[1])))
    return found


async def _run(
    client: redis.asyncio.Redis, script: Script, key: str, arguments: Sequence[Argument]
) -> list[Any]:
    try:
        try:
            answer = await _send(client, "EVALSHA", script.digest, 1, key, *arguments)
        except NoScriptError:
            answer = await _send(client, "EVAL", script.source, 1, key, *arguments)
    except OutOfMemoryError as error:
        raise OutOfMemory(f"Redis takes nothing new: {error}") from error
    except FAULTS:
        pass_cancellation()
        raise
    pass_cancellation()
    assert isinstance(answer, list)
    return answer


async def _send(client: redis.asyncio.Redis, *words: Argument) -> Any:
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def _subscribe(client: redis.asyncio.Redis, channel: str) -> PubSub:
    pubsub = client.pubsub()
    try:
        await pubsub.subscribe(channel)
    except BaseException:
        await _unsubscribe(pubsub)
        raise
    return pubsub


async def _unsubscribe(pubsub: PubSub) -> None:
    with suppress(*FAULTS):
        await pubsub.aclose()  # type: ignore[no-untyped-call]


def pass_cancellation() -> None:
    """The driver turns a cancellation into an error of its own, or drops it, now and then."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


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
                yield OneServer(alone)
        case RedisSentinelUrl():
            group = Sentinel(  # type: ignore[no-untyped-call]
                [(_name(host), host.port) for host in url.sentinels],
                sentinel_kwargs=_options(None, timeout_ms),
                **_options(url.login, timeout_ms),
            )
            try:
                async with group.master_for(url.master) as primary:
                    yield OneServer(primary)
            finally:
                for sentinel in group.sentinels:
                    await sentinel.aclose()
        case RedisClusterUrl():
            seeds = [(_name(host), host.port) for host in url.hosts]
            servers = ClusterServers(seeds, _options(url.login, timeout_ms))
            try:
                yield servers
            finally:
                await servers.close()


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
