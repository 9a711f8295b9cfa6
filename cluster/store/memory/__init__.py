"""The readable model of every port: dictionaries that a whole simulated cluster shares."""

from cluster.store.memory.executions import MemoryExecutionStore
from cluster.store.memory.log import MemoryLogStore
from cluster.store.memory.metadata import MemoryMetadataStore
from cluster.store.memory.open_set import MemoryOpenSet
from cluster.store.memory.records import MemoryRecordStore
from cluster.store.memory.search import MemorySearchIndex
from cluster.store.memory.shards import MemoryShardTable
from cluster.store.ports import Stores


def open_memory(*, shard_count: int) -> Stores:
    """Empty stores. Processes of one simulated cluster share them; nothing survives Python."""
    return Stores(
        logs=MemoryLogStore(),
        shards=MemoryShardTable(),
        executions=MemoryExecutionStore(),
        open_set=MemoryOpenSet(shard_count=shard_count),
        search=MemorySearchIndex(),
        metadata=MemoryMetadataStore(),
        records=MemoryRecordStore(),
    )
