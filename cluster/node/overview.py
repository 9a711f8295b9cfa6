"""The cluster as this node sees it: who is there, who serves what; and the order to drain."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.clock import Clock
from cluster.errors import Conflict, NotFound
from cluster.node.router import Router
from cluster.sharding.routes import Routes
from cluster.store.lease_ports import Member
from cluster.store.ports import LogId, ShardTable

Json = dict[str, Any]


class Overview:
    """Asks the stores each time: what an operator is shown is what there is."""

    def __init__(
        self,
        shards: ShardTable,
        routes: Routes,
        router: Router,
        clock: Clock,
        *,
        own: Callable[[], Member],
        own_address: Callable[[], str],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        """`own` is this node; `own_address` where its metrics are; `drain` hands its shards over,
        in the background."""
        self._shards = shards
        self._routes = routes
        self._router = router
        self._clock = clock
        self._own = own
        self._own_address = own_address
        self._drain = drain

    async def _members(self) -> list[Member]:
        await self._routes.refresh()
        own = self._own()
        # It knows of itself, also while its heartbeats do not get through.
        members = {**self._routes.members, own.node_id: own}
        return [members[node_id] for node_id in sorted(members)]

    async def targets(self) -> list[Json]:
        """Where Prometheus finds the metrics of all nodes: what its HTTP discovery reads."""
        own_id = self._own().node_id
        return [
            {"targets": [address], "labels": {"node": member.node_id}}
            for member in await self._members()
            if (address := member.link or (self._own_address() if member.node_id == own_id else ""))
        ]

    async def status(self) -> Json:
        """The nodes, and how many shards each serves."""
        members = await self._members()
        logs = {member.log: member.node_id for member in members if member.log}
        rows = await self._shards.rows()
        served = Counter(_owner(row.owner, logs) for row in rows)
        own_id, now_ms = self._own().node_id, self._clock.now_ms()
        return {
            "answeredBy": own_id,
            "shards": len(rows),
            "shardsWithoutNode": sum(
                count for owner, count in served.items() if owner not in logs.values()
            ),
            "nodes": [
                {
                    "node": member.node_id,
                    "state": member.state,
                    "shards": served[member.node_id],
                    "link": member.link,
                    "version": member.version,
                    "upSeconds": max(0, now_ms - member.started_ms) // 1000,
                }
                for member in members
            ],
        }

    async def shards(self) -> list[Json]:
        """Every shard and its owner; `node` is null for one that no node serves that is up."""
        logs = {member.log: member.node_id for member in await self._members() if member.log}
        return [
            {
                "shard": row.shard,
                "node": None if row.owner is None else logs.get(row.owner),
                "log": row.owner,
                "epoch": row.epoch,
            }
            for row in await self._shards.rows()
        ]

    async def drain(self, node_id: str) -> None:
        """Have a node hand its shards over; returns when it has begun.

        NotFound: it is not up. Conflict: nobody is there to take them.
        """
        members = await self._members()
        member = next((one for one in members if one.node_id == node_id), None)
        if member is None:
            raise NotFound(f"There is no node {node_id} in this cluster")
        others = [one for one in members if one.state == "serving" and one.node_id != node_id]
        if not others:
            raise Conflict(f"No node but {node_id} is serving: there is nobody to take its shards")
        if node_id == self._own().node_id:
            await self._drain()
        else:
            await self._router.drain(member)


def _owner(log: LogId | None, nodes: dict[LogId, str]) -> str | None:
    """The node that writes a log; of one that is not up, the name of the log."""
    return None if log is None else nodes.get(log, log)
