"""The other nodes of the cluster, as this one reaches them."""

from typing import Any

from cluster.errors import ClusterError
from cluster.ids import ShardId
from cluster.logs import get_log
from cluster.node.link import Links
from cluster.node.remote import Operation, encode
from cluster.sharding.routes import Routes
from cluster.store.lease_ports import Member

log = get_log(__name__)


class Elsewhere:
    """Where their shards are, and the links there."""

    def __init__(self, routes: Routes, links: Links, *, node_id: str) -> None:
        self._routes = routes
        self._links = links
        self._node_id = node_id

    def way_to(self, shard: ShardId) -> tuple[Member, int] | None:
        """The owner of a shard, if it is another node that is up, and the shard's epoch."""
        member = self._routes.owner_of(shard)
        if member is None or member.node_id == self._node_id or not member.link:
            return None
        return member, self._routes.epoch_of(shard)

    @property
    def members(self) -> list[Member]:
        """All others that are up."""
        return [
            member
            for member in self._routes.members.values()
            if member.node_id != self._node_id and member.link
        ]

    async def call(
        self,
        member: Member,
        operation: Operation,
        arguments: tuple[Any, ...],
        *,
        timeout_ms: int,
        shard: int = -1,
        epoch: int = -1,
    ) -> Any:
        """What the operation gives there. Raises as Links does."""
        value = await self._links.call(
            member.link,
            operation.name,
            encode(arguments),
            timeout_ms=timeout_ms,
            shard=shard,
            epoch=epoch,
        )
        return operation.decode_value(value)

    def heard_of(self, shard: ShardId) -> int:
        """How often another owner of a shard was heard of: to be asked for before a call."""
        return self._routes.heard_of(shard)

    async def moved(self, shard: ShardId, heard: int, wait_ms: int) -> None:
        """Wait until more is heard of a shard than that; for so long at most, then look."""
        if not await self._routes.moved(shard, heard, wait_ms):
            await self.refresh()

    async def refresh(self) -> None:
        """Look again who owns what."""
        try:
            await self._routes.refresh()
        except ClusterError as failure:
            log.info("the routes are not known anew", error=failure.message)
