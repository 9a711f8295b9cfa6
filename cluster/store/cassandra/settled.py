"""Up to which revision everything of a shard is known to be in the tables.

What the open set tidies up behind itself (open_set.py) rests on two facts that pass through the
other stores of this process: a claim in epoch e means that the tails of all earlier epochs were
written before it, and a log is truncated only behind its checkpoint.
"""

from cluster.ids import ShardId
from cluster.store.ports import LogId, first_position, revision_of


class Settled:
    """What the claims and truncations of this process say."""

    def __init__(self) -> None:
        self._claims: dict[ShardId, tuple[LogId, int]] = {}
        self._positions: dict[LogId, int] = {}

    def claimed(self, shard: ShardId, epoch: int, log: LogId) -> None:
        """`log` owns the shard in this epoch, or did so once."""
        known = self._claims.get(shard)
        if known is None or known[1] <= epoch:
            self._claims[shard] = (log, epoch)

    def truncated(self, log: LogId, first_segment: int) -> None:
        """All positions before this segment are in the tables."""
        self._positions[log] = first_position(first_segment) - 1

    def upto(self, shard: ShardId) -> int | None:
        """Every row of the shard with this or a lower revision was written; None: not known."""
        claim = self._claims.get(shard)
        if claim is None:
            return None
        log, epoch = claim
        return revision_of(epoch, self._positions.get(log, 0))
