"""Leases and Membership: who is alive, as far as the queue store (Redis, or this process) knows.

Neither decides who may write: that is the unsealed log (ports.py). They say when it is time to
look. Everything here may be lost at any moment and is written again by the next heartbeats. All
methods raise Unavailable when there is no answer; every call may be repeated.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from cluster.store.ports import LogId


class LeasesSeen(msgspec.Struct, frozen=True):
    """One reading of all leases."""

    generation: str
    """Another one than before: the server was flushed, restarted or failed over in between, and
    may have lost or taken back renewals. Whoever waits for a lease to run out begins anew."""
    counters: Mapping[LogId, int]
    """How often each log's lease was renewed. A log that is absent was never renewed here, was
    dropped, or is lost."""


class Leases(Protocol):
    """Signs of life of commit logs. A counter that stands still for a whole TTL, on the watcher's
    own monotonic clock and with all readings in between answered, is a lease that ran out; nothing
    here expires by a clock of the server."""

    async def renew(self, log: LogId) -> None:
        """Raise the log's counter by at least one."""

    async def drop(self, log: LogId) -> None:
        """Remove the lease of a log that was given up in good order; an absent one is no error."""

    async def read(self) -> LeasesSeen:
        """All leases there are. Every renewal that returned before is in it, but for what a server
        lost; then the generation differs."""


class Member(msgspec.Struct, frozen=True):
    """What a node process tells the others about itself with every heartbeat."""

    node_id: str
    """Unique among processes that live at the same time, and kept over a restart."""
    log: LogId
    """The commit log it writes now; "" while it has none."""
    link: str
    """`host:port` where it takes links, /metrics and /health."""
    state: Literal["joining", "serving", "draining"]
    """Only a serving member is given shards."""
    shard_count: int
    version: str
    started_ms: int


class MembersSeen(msgspec.Struct, frozen=True):
    """One reading of all members."""

    members: Mapping[str, Member]
    """By node id: each that beat within the TTL it gave, by the server's clock."""
    server_now_ms: int
    """The server's clock (Redis TIME) when it answered: a node whose clock is far off is not
    ready."""


class Membership(Protocol):
    """The node processes that are up."""

    async def beat(self, member: Member, *, ttl_ms: int) -> None:
        """Insert or replace the member; it is listed for `ttl_ms` from now on."""

    async def leave(self, node_id: str) -> None:
        """Take the member off the list at once; an absent one is no error."""

    async def read(self) -> MembersSeen:
        """The members there are."""
