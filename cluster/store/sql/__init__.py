"""The stores in SQL: SQLite in two files of the data folder."""

from cluster.store.sql.folder import open_sqlite

__all__ = ["open_sqlite"]
