"""Connections to Redis, whatever its form: one server, a Sentinel group or a Cluster."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, Protocol

import msgspec
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
from cluster.store.redis.pipe import Address, Argument, Heard, Server
from cluster.urls import Host, Login, RedisClusterUrl, RedisSentinelUrl, RedisUrl

_FAULTS: Final = (RedisError, OSError, TimeoutError)
"""What is raised when a server is away, busy, or not what it was."""

_PING_S = 1.0


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis servers want besides their address and the login in it."""

    ca_file: str = ""
    """Who has to have signed their certificates; empty: whom this machine trusts."""
    cert_file: str = ""
    key_file: str = ""
    """Of this node, for servers that ask for it."""
    check_hostname: bool = True
    sentinel_login: Login | None = None

    def tls(self) -> ssl.SSLContext:
        """For connections to data servers. OSError: one of the files is none of that kind."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        context.check_hostname = self.check_hostname
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def sentinel_tls(self) -> dict[str, Any]:
        """The same as the driver wants it, for those to sentinels."""
        return {
            "ssl": True,
            "ssl_ca_certs": self.ca_file or None,
            "ssl_certfile": self.cert_file or None,
            "ssl_keyfile": self.key_file or None,
            "ssl_check_hostname": self.check_hostname,
        }


NOTHING_MORE = Access()


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

    async def listen(self, channel: str, heard: Heard, began: Callable[[], None]) -> None:
        """Hear what is published until the connection breaks: StoreFault. `began` is called when
        nothing is missed from then on."""


class OneServer:
    """A single server, or whichever a Sentinel group calls its primary."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> list[Any]:
        try:
            return await _run(self._server, script, key, arguments)
        except _FAULTS as error:
            raise _fault(error) from error

    async def listen(self, channel: str, heard: Heard, began: Callable[[], None]) -> None:
        try:
            await self._server.listen(channel, heard=heard, began=began, ping_s=_PING_S)
        except _FAULTS as error:
            raise _fault(error) from error


class ClusterServers:
    """The primaries of a Redis Cluster.

    The driver has a client for this too; but that one gives up all its connections when it loses
    one, and so carries the loss of a primary to all the others.
    """

    def __init__(self, seeds: Sequence[Address], server_at: Callable[[Address], Server]) -> None:
        self._seeds = seeds
        self._server_at = server_at
        self._servers: dict[Address, Server] = {}
        self._owners: list[tuple[int, int, Address]] = []
        """First slot, last slot, primary."""
        self._is_stale = True
        self._refreshing = asyncio.Lock()

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> list[Any]:
        slot = key_slot(key.encode())
        try:
            await self._refresh()
            try:
                return await _run(self._owner_of(slot), script, key, arguments)
            except MovedError as moved:
                # It was not run there; whom the answer names knows better than our table.
                self._is_stale = True
                server = self._at((moved.host, moved.port))
                return await _run(server, script, key, arguments)
        except _FAULTS as error:
            # Also while a slot is on its way (ASK): half of it would look like a loss.
            self._is_stale = True
            raise _fault(error) from error

    async def listen(self, channel: str, heard: Heard, began: Callable[[], None]) -> None:
        has_begun = False

        def begin() -> None:
            nonlocal has_begun
            has_begun = True
            began()

        # Whichever it is, the servers pass messages on to each other.
        error: Exception = ClusterDownError("no server of the Redis Cluster is known")
        try:
            await self._refresh()
            for _, _, address in self._owners:
                try:
                    server = self._at(address)
                    await server.listen(channel, heard=heard, began=begin, ping_s=_PING_S)
                except _FAULTS as failure:
                    error = failure
                    if has_begun:
                        break
        except _FAULTS as failure:
            error = failure
        raise _fault(error) from error

    def close(self) -> None:
        """Close all connections."""
        for server in self._servers.values():
            server.close()

    def _owner_of(self, slot: int) -> Server:
        for first, last, address in self._owners:
            if first <= slot <= last:
                return self._at(address)
        raise ClusterDownError(f"no server of the Redis Cluster has slot {slot}")

    def _at(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = self._server_at(address)
        return server

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
                    told = await self._at(address).call("CLUSTER", "SLOTS")
                except _FAULTS as failure:
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
    server: Server, script: Script, key: str, arguments: Sequence[Argument]
) -> list[Any]:
    try:
        try:
            answer = await server.call("EVALSHA", script.digest, 1, key, *arguments)
        except NoScriptError:
            answer = await server.call("EVAL", script.source, 1, key, *arguments)
    except OutOfMemoryError as error:
        raise OutOfMemory(f"Redis takes nothing new: {error}") from error
    assert isinstance(answer, list)
    return answer


def _fault(error: Exception) -> StoreFault:
    return StoreFault(f"Redis gave no answer: {type(error).__name__}: {error}")


@asynccontextmanager
async def connected(
    url: RedisUrl | RedisSentinelUrl | RedisClusterUrl,
    *,
    timeout_ms: int,
    access: Access = NOTHING_MORE,
) -> AsyncIterator[Connection]:
    """A connection that is opened by its first call, and again whenever it broke."""
    new = partial(
        Server, login=url.login, timeout_ms=timeout_ms, tls=access.tls() if url.tls else None
    )
    match url:
        case RedisUrl():
            alone = new(partial(_itself, _address(url.host)), database=url.database)
            try:
                yield OneServer(alone)
            finally:
                alone.close()
        case RedisSentinelUrl():
            login = access.sentinel_login
            group = Sentinel(  # type: ignore[no-untyped-call]
                [_address(host) for host in url.sentinels],
                sentinel_kwargs={
                    "username": (login.user or None) if login else None,
                    "password": login.password if login else None,
                    "socket_timeout": timeout_ms / 1000,
                    "socket_connect_timeout": timeout_ms / 1000,
                    "retry": Retry(NoBackoff(), 0),
                    "protocol": 2,
                    **(access.sentinel_tls() if url.tls else {}),
                },
            )
            primary = new(partial(_primary, group, url.master))
            try:
                yield OneServer(primary)
            finally:
                primary.close()
                for sentinel in group.sentinels:
                    await sentinel.aclose()
        case RedisClusterUrl():
            servers = ClusterServers(
                [_address(host) for host in url.hosts],
                lambda address: new(partial(_itself, address)),
            )
            try:
                yield servers
            finally:
                servers.close()


async def _itself(address: Address) -> Address:
    return address


async def _primary(group: Sentinel, name: str) -> Address:
    try:
        host, port = await group.discover_master(name)
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The driver drops a cancellation now and then, or makes a failure of its own of it.
            raise asyncio.CancelledError
    return str(host), int(port)


def _address(host: Host) -> Address:
    return host.name.strip("[]"), host.port
