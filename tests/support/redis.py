"""Real Redis servers for tests: each kind is started once per test process, when asked for."""

import asyncio
import atexit
import itertools
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

from cluster.clock import SystemClock, SystemRandom
from cluster.errors import StoreFault
from cluster.store.redis import Access, RedisStores, open_redis
from cluster.store.redis.connection import NOTHING_MORE
from cluster.urls import Login
from ops.redis_up import Secured, Servers

KINDS = ("standalone", "sentinel", "cluster")
_prefixes = itertools.count()


def start_servers(kind: str, *, is_secured: bool = False) -> Servers:
    """Servers of one's own, to be hurt; they end with this process at the latest. Secured: with
    TLS, certificates of both sides, and logins."""
    folder = Path(tempfile.mkdtemp(prefix=f"podium-redis-{kind}-"))
    secured = _certified(folder) if is_secured else None
    servers = Servers(kind, folder, die_with_starter=True, secured=secured)
    servers.start()
    atexit.register(servers.stop)
    return servers


shared_servers = cache(start_servers)


def _certified(folder: Path) -> Secured:
    """An authority of one's own, and one certificate for everybody on this machine."""
    ca, ca_key, cert, key = (folder / name for name in ("ca", "ca-key", "cert", "key"))
    request, extra = folder / "request", folder / "extra"
    extra.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    of_ca = ("-CA", str(ca), "-CAkey", str(ca_key))
    for words in (
        ("req", "-x509", "-subj", "/CN=ca", *new_key, "-keyout", str(ca_key), "-out", str(ca)),
        ("req", "-subj", "/CN=redis", *new_key, "-keyout", str(key), "-out", str(request)),
        ("x509", "-req", "-in", str(request), *of_ca, "-extfile", str(extra), "-out", str(cert)),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    logins = ("podium", "hush"), ("watcher", "hush:hush"), ("admin", "quiet")
    return Secured(ca, cert, key, *logins)


def access_of(servers: Servers) -> Access:
    """What it takes to get into secured servers, besides their address."""
    secured = servers.secured
    if secured is None:
        return NOTHING_MORE
    return Access(
        ca_file=str(secured.ca_file),
        cert_file=str(secured.cert_file),
        key_file=str(secured.key_file),
        sentinel_login=Login(*secured.sentinel_login),
    )


@asynccontextmanager
async def opened(
    kind: str,
    *,
    url: str = "",
    prefix: str = "",
    shard_count: int = 0,
    timeout_ms: int = 3_000,
    partitions: int = 0,
    access: Access = NOTHING_MORE,
) -> AsyncIterator[RedisStores]:
    """Stores on servers of a kind, empty unless a prefix is given that was used before."""
    async with open_redis(
        url or shared_servers(kind).url,
        shard_count=shard_count,
        clock=SystemClock(),
        random=SystemRandom(),
        prefix=prefix or fresh_prefix(),
        timeout_ms=timeout_ms,
        partitions=partitions,
        access=access,
    ) as stores:
        yield stores


def fresh_prefix() -> str:
    return f"test-{os.getpid()}-{next(_prefixes)}"


async def again(call: Callable[[], Awaitable[object]], *, within_s: float = 15) -> None:
    """Repeat a call until it is answered."""
    async with asyncio.timeout(within_s):
        while True:
            with suppress(StoreFault):
                await call()
                return
            await asyncio.sleep(0.05)
