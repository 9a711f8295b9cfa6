"""Real Redis servers with TLS and logins: one, a Sentinel group, a Cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import pytest
from msgspec.structs import replace

from cluster.errors import StoreFault
from cluster.ids import TaskId
from cluster.store.ports import LogId
from cluster.store.queue_ports import QueueItem
from cluster.store.redis import Access, RedisStores
from cluster.urls import Login
from ops.redis_up import Servers
from tests.support import redis

pytestmark = [
    pytest.mark.asyncio,
    # As in test_redis.py: a connection that the library drops without closing it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

T0 = 1_800_000_000_000
LOG = LogId("node-a/1")
secured = cache(lambda kind: redis.start_servers(kind, is_secured=True))


@pytest.fixture(params=redis.KINDS)
def servers(request: pytest.FixtureRequest) -> Servers:
    return secured(request.param)


@asynccontextmanager
async def opened(
    servers: Servers, *, url: str = "", access: Access | None = None
) -> AsyncIterator[RedisStores]:
    async with redis.opened(
        servers.kind,
        url=url or servers.url,
        timeout_ms=10_000,
        access=redis.access_of(servers) if access is None else access,
    ) as stores:
        yield stores


async def is_let_in(stores: RedisStores) -> bool:
    try:
        await stores.leases.renew(LOG)
    except StoreFault:
        return False
    return True


async def test_who_has_certificate_and_login_works_there(servers: Servers) -> None:
    woken: list[str] = []
    async with opened(servers) as stores:
        stores.queues.watch(lambda queue, at_ms: woken.append(queue))
        items = [QueueItem(TaskId(name), 1, 0, T0, b"{}", "plan") for name in ("a", "b")]
        await stores.queues.push({"mail": items}, now_ms=T0)
        popped = await stores.queues.pop("mail", count=9, now_ms=T0, limits=None)
        assert [one.task_id for one in popped.items] == ["a", "b"]
        await stores.leases.renew(LOG)
        assert LOG in (await stores.leases.read()).counters


async def test_nobody_else_does(servers: Servers) -> None:
    right = redis.access_of(servers)
    wrong = [
        # An authority that did not sign: this machine's own ones.
        (servers.url, replace(right, ca_file="")),
        (servers.url, replace(right, cert_file="", key_file="")),
        (servers.url.replace("rediss", "redis"), right),
        (servers.url.replace("hush@", "shout@"), right),
        (servers.url.replace("podium:hush@", ""), right),
    ]
    if servers.kind == "sentinel":
        wrong += [
            (servers.url, replace(right, sentinel_login=None)),
            (servers.url, replace(right, sentinel_login=Login("watcher", "shout"))),
        ]
    for url, access in wrong:
        async with opened(servers, url=url, access=access) as stores:
            assert not await is_let_in(stores), (url, access)


async def test_a_certificate_has_to_name_its_host_unless_that_is_waived() -> None:
    servers = secured("standalone")
    url = servers.url.replace("127.0.0.1", "127.0.0.2")
    servers.data[0].command("CONFIG", "SET", "bind", "127.0.0.1 127.0.0.2")
    right = redis.access_of(servers)
    async with opened(servers, url=url, access=right) as stores:
        assert not await is_let_in(stores)
    async with opened(servers, url=url, access=replace(right, check_hostname=False)) as stores:
        assert await is_let_in(stores)


async def test_a_failover_is_followed_by_the_same_login() -> None:
    servers = redis.start_servers("sentinel", is_secured=True)
    try:
        async with opened(servers) as stores:
            assert await is_let_in(stores)
            servers.data[0].kill()
            await redis.again(lambda: stores.leases.renew(LOG))
            assert servers.primary() is servers.data[1]
    finally:
        servers.stop()
