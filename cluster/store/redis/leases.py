"""Leases and Membership on Redis: what is asked in one turn of the loop is one round trip."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.clock import Random
from cluster.store.lease_ports import LeasesSeen, Member, MembersSeen
from cluster.store.ports import LogId
from cluster.store.redis.connection import Connection, Script
from cluster.store.redis.gathering import Gathering, Operation
from cluster.store.traffic import Traffic

# Beats are few and small: a full memory must not look like the death of every node.
_SCRIPT = Script("leases.lua", flags=" flags=allow-oom")
_encode = msgspec.msgpack.Encoder().encode
_decode_member = msgspec.msgpack.Decoder(Member).decode


class SignsOfLife:
    """The one place in Redis where all nodes say that they live."""

    def __init__(
        self, connection: Connection, prefix: str, random: Random, traffic: Traffic
    ) -> None:
        self._connection = connection
        self._key = f"{prefix}:{{life}}:token"
        self._random = random
        self._calls = traffic.of("redis", "leases")
        self._gathering = Gathering(self._call)
        self.ask = self._gathering.ask
        self.run = self._gathering.run

    async def _call(self, operations: Sequence[Operation]) -> Sequence[Any]:
        token = f"{self._random.bits(64):016x}"
        arguments = [argument for operation in operations for argument in operation]
        self._calls.requests += 1
        self._calls.items += len(operations)
        return await self._connection.run(_SCRIPT, self._key, [token, *arguments])


class RedisLeases:
    """Leases. The generation is a token that a flush removes, and the run id of the server."""

    def __init__(self, life: SignsOfLife) -> None:
        self._life = life

    async def renew(self, log: LogId) -> None:
        await self._life.ask(["renew", log])

    async def drop(self, log: LogId) -> None:
        await self._life.ask(["drop", log])

    async def read(self) -> LeasesSeen:
        generation, leases = await self._life.ask(["leases"])
        pairs = zip(leases[::2], leases[1::2], strict=True)
        return LeasesSeen(
            generation.decode(), {LogId(log.decode()): int(count) for log, count in pairs}
        )


class RedisMembership:
    """Membership, by the clock of the server."""

    def __init__(self, life: SignsOfLife) -> None:
        self._life = life

    async def beat(self, member: Member, *, ttl_ms: int) -> None:
        await self._life.ask(["beat", member.node_id, _encode(member), ttl_ms])

    async def leave(self, node_id: str) -> None:
        await self._life.ask(["leave", node_id])

    async def read(self) -> MembersSeen:
        now_ms, members = await self._life.ask(["members"])
        listed = (_decode_member(one) for one in members[1::2])
        return MembersSeen({member.node_id: member for member in listed}, now_ms)
