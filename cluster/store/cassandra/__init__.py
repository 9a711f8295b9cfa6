"""The stores in Cassandra 5.0."""

from cluster.store.cassandra.session import Consistency, connected
from cluster.store.cassandra.stores import open_cassandra

__all__ = ["Consistency", "connected", "open_cassandra"]
