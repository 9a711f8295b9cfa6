"""Which node ought to own which shard: consistent hashing with capped load, a pure function."""

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

_POINTS_PER_NODE = 64


def desired_owners(node_ids: Iterable[str], *, shard_count: int) -> tuple[str, ...]:
    """For each shard the node that ought to own it; empty without nodes.

    No node gets more than ceil(shards / nodes). The same nodes give the same answer, whoever asks
    and in whatever order; one node more or less changes little more than its own share.
    """
    return _desired(tuple(sorted(set(node_ids))), shard_count)


@lru_cache(maxsize=8)
def _desired(node_ids: tuple[str, ...], shard_count: int) -> tuple[str, ...]:
    if not node_ids:
        return ()
    points = sorted(
        (_hash(f"{node_id} {point}"), node_id)
        for node_id in node_ids
        for point in range(_POINTS_PER_NODE)
    )
    hashes = [point for point, _ in points]
    room = dict.fromkeys(node_ids, -(-shard_count // len(node_ids)))
    owners = [""] * shard_count
    # In the order of the hashes, so that it is not always the highest numbers that find no room.
    for shard_hash, shard in sorted((_hash(f"shard {n}"), n) for n in range(shard_count)):
        at = bisect_left(hashes, shard_hash) % len(points)
        while not room[points[at][1]]:
            at = (at + 1) % len(points)
        owners[shard] = points[at][1]
        room[owners[shard]] -= 1
    return tuple(owners)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
