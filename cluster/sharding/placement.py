"""What a node does about shards: a pure function of what it saw."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from cluster.ids import ShardId
from cluster.sharding.ring import desired_owners
from cluster.store.lease_ports import Member
from cluster.store.ports import LogId, ShardRow

MOVED_AT_ONCE = 16
"""Shards given up in one go: each stands still until the last of them is written down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a node saw and knows of itself. The rows were read after all it has done before."""

    node_id: str
    own: LogId
    rows: Sequence[ShardRow]
    members: Mapping[str, Member]
    gone: AbstractSet[LogId]
    """Logs that are sealed, or may be: their lease has run out."""
    served: Mapping[ShardId, int]
    """Shard → epoch in which it is served here."""
    given_up: Mapping[ShardId, int]
    """Shard → epoch in which it was served here once. Its release may still be on its way, so it
    is never served in that epoch again."""
    is_able: bool
    """The store and the leases answer this node, and its clock is right."""
    is_stable: bool
    """Nobody came or went for a while."""
    is_draining: bool
    overdue: AbstractSet[ShardId] = frozenset()
    """Shards that were up for claim for so long that anybody may have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What to do now."""

    claim: tuple[ShardRow, ...] = ()
    """Take over, from logs that are gone or from nobody."""
    serve: tuple[ShardRow, ...] = ()
    """These were handed over, or were claimed and the answer got lost."""
    give_up: tuple[ShardRow, ...] = ()
    """Stop serving these, write them down, hand them over."""
    heirs: Mapping[ShardId, LogId] = field(default_factory=dict)
    """Shard → the log that gets it; one that is not in it is released."""
    release: tuple[ShardRow, ...] = ()
    """These are not served: release them, again perhaps."""
    overruled: ShardRow | None = None
    """A shard that is served here has another owner: this log must have been sealed."""
    is_restless: bool = False
    """Something is about to change: look again soon."""


def live_nodes(sight: Sight) -> list[str]:
    """The nodes that shards may be given to: up, willing, and with a log that is not gone."""
    live = [
        member.node_id
        for member in sight.members.values()
        if member.node_id != sight.node_id
        and member.state == "serving"
        and member.log
        and member.log not in sight.gone
    ]
    # What this node knows of itself is newer than what it told the others.
    return [*live, sight.node_id] if sight.is_able and not sight.is_draining else live


def is_up_for_claim(row: ShardRow, sight: Sight) -> bool:
    """Whether nobody may commit anything for a shard any more."""
    return row.owner is None or (row.owner != sight.own and row.owner in sight.gone)


def decide(sight: Sight) -> Moves:
    """What this node does now. Only its owner gives a live shard up, and nobody claims what the
    ring does not desire for it: so two views of the ring cannot fight."""
    live = live_nodes(sight)
    desired = desired_owners(live, shard_count=len(sight.rows))
    may_claim = sight.node_id in live
    claim, serve, give_up, release = [], [], [], []
    is_restless = False
    for row in sight.rows:
        shard = row.shard
        wants = desired[shard] if desired else None
        if row.owner != sight.own:
            if shard in sight.served:
                return Moves(overruled=row)
            if not is_up_for_claim(row, sight):
                is_restless |= may_claim and wants == sight.node_id
            elif may_claim and (wants == sight.node_id or shard in sight.overdue):
                claim.append(row)
        elif sight.served.get(shard) == row.epoch:
            if sight.is_draining or (wants is not None and wants != sight.node_id):
                is_restless = True
                if sight.is_draining or (sight.is_stable and sight.is_able):
                    give_up.append(row)
        elif shard in sight.served:
            return Moves(overruled=row)
        elif sight.given_up.get(shard) == row.epoch or not may_claim:
            release.append(row)
        else:
            serve.append(row)
    now = give_up[:MOVED_AT_ONCE]
    return Moves(
        claim=tuple(claim),
        serve=tuple(serve),
        give_up=tuple(now),
        heirs={row.shard: sight.members[desired[row.shard]].log for row in now} if desired else {},
        release=tuple(release),
        is_restless=is_restless or bool(claim or give_up or release),
    )
