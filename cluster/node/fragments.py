"""The constant parts of poll answers that other nodes have made: from the frozen definitions."""

from cluster.errors import ClusterError
from cluster.logs import get_log
from cluster.node.limits import TaskLimits
from cluster.node.wire import QueueItems
from cluster.sharding.plans import Plans

log = get_log(__name__)


class StoredFragments:
    """The Fragments of a poll desk that shares its queues with other nodes."""

    def __init__(self, items: QueueItems, plans: Plans, limits: TaskLimits) -> None:
        self._items = items
        self._plans = plans
        self._limits = limits

    def knows(self, key: str) -> bool:
        return self._items.knows(key)

    async def fetch(self, key: str, task_type: str) -> None:
        snapshot_hash, _, ref = key.partition("/")
        try:
            node = (await self._plans.load(snapshot_hash)).nodes.get(ref)
        except ClusterError as failure:
            # Answered without `workflowTask`, which workers do not need.
            log.warning("a definition was not read for a poll", error=failure.message)
            return
        if node is not None:
            self._items.learn(key, node)
            self._limits.note_copy(task_type, node.definition)
