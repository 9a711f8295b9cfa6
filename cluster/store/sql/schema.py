"""The tables, and how a file of an earlier version is brought up to date.

Two files: the log with what decides about its fencing (a checkpoint must not hold up appends),
and everything else. A step is never edited once released; changes are appended as new steps.
"""

import sqlite3
from collections.abc import Sequence

from cluster.errors import Conflict
from cluster.store.sql.backfill import FUNCTIONS

LOG_STEPS: Sequence[Sequence[str]] = (
    (
        # `number` stands for the log in the key of its entries, which then only ever grows.
        """
        CREATE TABLE fences (
            log TEXT NOT NULL PRIMARY KEY,
            number INTEGER NOT NULL UNIQUE,
            open INTEGER NOT NULL,
            first_segment INTEGER NOT NULL,
            valid_to INTEGER
        )
        """,
        "CREATE TABLE entries (place INTEGER NOT NULL PRIMARY KEY, entry BLOB NOT NULL)",
        """
        CREATE TABLE shards (
            shard INTEGER NOT NULL PRIMARY KEY,
            owner TEXT,
            epoch INTEGER NOT NULL
        )
        """,
    ),
)

DATA_STEPS: Sequence[Sequence[str]] = (
    (
        # With a rowid: rows of 2-6 KB cost half of what they cost inside the key's own tree.
        """
        CREATE TABLE executions (
            workflow_id BLOB NOT NULL,
            number INTEGER NOT NULL,
            data BLOB NOT NULL,
            revision INTEGER NOT NULL,
            PRIMARY KEY (workflow_id, number)
        )
        """,
        """
        CREATE TABLE open_set (
            workflow_id BLOB NOT NULL PRIMARY KEY,
            shard INTEGER NOT NULL,
            next_due_ms INTEGER,
            has_unfinished_effects INTEGER NOT NULL,
            revision INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        "CREATE INDEX open_set_shard ON open_set (shard, workflow_id)",
        """
        CREATE INDEX open_set_due ON open_set (shard, next_due_ms, workflow_id)
        WHERE next_due_ms IS NOT NULL
        """,
        """
        CREATE TABLE summaries (
            workflow_id BLOB NOT NULL PRIMARY KEY,
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            status TEXT NOT NULL,
            correlation_id TEXT,
            start_ms INTEGER NOT NULL,
            summary BLOB NOT NULL,
            revision INTEGER NOT NULL
        )
        """,
        "CREATE INDEX summaries_status ON summaries (name, status, start_ms)",
        """
        CREATE INDEX summaries_correlation ON summaries (correlation_id, name)
        WHERE correlation_id IS NOT NULL
        """,
        """
        CREATE TABLE definitions (
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            body BLOB NOT NULL,
            revision INTEGER NOT NULL,
            create_ms INTEGER NOT NULL,
            update_ms INTEGER NOT NULL,
            PRIMARY KEY (kind, name, version)
        )
        """,
        "CREATE TABLE snapshots (content_hash BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL)",
        """
        CREATE TABLE task_logs (
            task_id BLOB NOT NULL,
            number INTEGER NOT NULL,
            created_ms INTEGER NOT NULL,
            line TEXT NOT NULL,
            PRIMARY KEY (task_id, number)
        )
        """,
        """
        CREATE TABLE poll_data (
            task_type TEXT NOT NULL,
            domain TEXT NOT NULL,
            worker_id TEXT NOT NULL,
            last_poll_ms INTEGER NOT NULL,
            PRIMARY KEY (task_type, domain)
        )
        """,
        """
        CREATE TABLE records (
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (kind, key)
        )
        """,
    ),
    (
        "ALTER TABLE summaries ADD COLUMN update_ms INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE summaries ADD COLUMN end_ms INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE summaries ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE summaries ADD COLUMN parent_id TEXT",
        # What of the input can be searched by: written with the start, and kept by later writes.
        "ALTER TABLE summaries ADD COLUMN inputs BLOB",
        """
        UPDATE summaries SET update_ms = summary_part(summary, 'update_ms'),
            end_ms = summary_part(summary, 'end_ms'),
            priority = summary_part(summary, 'priority'),
            parent_id = summary_part(summary, 'parent_workflow_id'),
            inputs = (SELECT searched_inputs(data) FROM executions
                WHERE executions.workflow_id = summaries.workflow_id AND number = 1)
        """,
        "CREATE INDEX summaries_started ON summaries (status, start_ms)",
        """
        CREATE TABLE input_values (
            term INTEGER NOT NULL,
            workflow_id BLOB NOT NULL,
            PRIMARY KEY (term, workflow_id)
        ) WITHOUT ROWID
        """,
        """
        INSERT INTO input_values (term, workflow_id) SELECT DISTINCT value, workflow_id
        FROM summaries, json_each(input_terms(inputs))
        """,
    ),
)


def bring_up_to_date(connection: sqlite3.Connection, steps: Sequence[Sequence[str]]) -> None:
    """Apply the steps that the file has not seen yet. Runs inside a transaction.

    Conflict: a newer version of the program wrote this file.
    """
    for name, arguments, function in FUNCTIONS:
        connection.create_function(name, arguments, function)
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    (version,) = connection.execute(
        "SELECT coalesce(max(version), 0) FROM schema_version"
    ).fetchone()
    if version > len(steps):
        raise Conflict(
            f"the data has schema version {version}, this program knows up to {len(steps)}:"
            " use the version that wrote it, or a later one"
        )
    for number, step in enumerate(steps[version:], start=version + 1):
        for statement in step:
            connection.execute(statement)
        connection.execute("INSERT INTO schema_version (version) VALUES (?)", (number,))
