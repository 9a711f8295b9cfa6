"""The tables: applied step by step, compared with what a keyspace has, checked before serving."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cluster.errors import Conflict
from cluster.store.cassandra.session import Session

_COPIES = 3
_COPIES_OF_A_SAFE_CLUSTER = 3
_STEPS_TABLE = (
    "CREATE TABLE IF NOT EXISTS {keyspace}.schema_steps"
    " (part int, step int, name text, PRIMARY KEY (part, step)) WITH read_repair = 'BLOCKING'"
)
_TABLE = re.compile(r"^CREATE TABLE (\w+) \((.*?)\n\)(.*)$", re.DOTALL)
_INDEX = re.compile(r"^CREATE INDEX (\w+)")
_ADDED = re.compile(r"^ALTER TABLE (\w+) ADD (\w+) (\w+)$")
_COLUMN = re.compile(r"^\s+(\w+) (\w+),?$", re.MULTILINE)
_KEY = re.compile(r"PRIMARY KEY \((.*)\)$", re.MULTILINE)
_READ_REPAIR = re.compile(r"read_repair = '(\w+)'")
_COMPACTION = re.compile(r"'class': '(\w+)'")


@dataclass(frozen=True, slots=True)
class Step:
    """One file of `schema/`: its number, its name, its statements."""

    number: int
    name: str
    statements: tuple[str, ...]


@cache
def steps() -> tuple[Step, ...]:
    """All steps there are, in order."""
    found = []
    for file in files(__package__).joinpath("schema").iterdir():
        if file.name.endswith(".cql"):
            lines = [line for line in file.read_text().splitlines() if not line.startswith("--")]
            parts = "\n".join(lines).split(";")
            statements = tuple(part.strip() for part in parts if part.strip())
            found.append(Step(int(file.name[:4]), file.name, statements))
    return tuple(sorted(found, key=lambda step: step.number))


async def apply(session: Session, keyspace: str, replication: Mapping[str, str]) -> list[str]:
    """Bring the keyspace up to date; says what was done. May be repeated, after a fault too.

    `replication` counts when the keyspace is created, and is not changed afterwards; empty: three
    copies, or as many as there are nodes. One run at a time.
    """
    done: list[str] = []
    if await _replication(session, keyspace) is None:
        wanted = dict(replication) or await _default_replication(session)
        literal = ", ".join(f"'{name}': '{value}'" for name, value in wanted.items())
        await session.change_schema(
            f"CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{{literal}}}"
        )
        done.append(f"created keyspace {keyspace} with {_shown(wanted)}")
    await session.change_schema(_STEPS_TABLE.format(keyspace=keyspace))
    applied = await _applied(session, keyspace)
    _refuse_newer(keyspace, applied)
    for step in steps():
        if step.number in applied:
            continue
        for statement in step.statements:
            await session.change_schema(_repeatable(statement, keyspace))
        await session.run(
            f"INSERT INTO {keyspace}.schema_steps (part, step, name) VALUES (0, %s, %s)",
            (step.number, step.name),
        )
        done.append(f"applied {step.name}")
    return done or [f"keyspace {keyspace} is up to date"]


async def status(session: Session, keyspace: str) -> list[str]:
    """What is there and what is missing, a line each."""
    replication = await _replication(session, keyspace)
    if replication is None:
        return [f"keyspace {keyspace}: not there; `podium schema apply` creates it"]
    applied = await _applied(session, keyspace)
    lines = [f"keyspace {keyspace}: {_shown(replication)}"]
    if _copies(replication) < _COPIES_OF_A_SAFE_CLUSTER:
        lines.append("fewer than 3 copies: the loss of one Cassandra node stops the engine")
    lines += [
        f"{step.name}: {'applied' if step.number in applied else 'missing'}" for step in steps()
    ]
    lines += [f"step {step}: unknown to this version" for step in sorted(applied - _known())]
    return lines


async def diff(session: Session, keyspace: str) -> list[str]:
    """Where the tables of the keyspace are not what the files say, a line each."""
    if await _replication(session, keyspace) is None:
        return [f"keyspace {keyspace} is not there"]
    applied = await _applied(session, keyspace)
    lines = [f"{step.name} is missing" for step in steps() if step.number not in applied]
    tables, columns, indexes = await asyncio.gather(
        *(
            session.run(f"SELECT {what} WHERE keyspace_name = %s", (keyspace,))
            for what in (
                "table_name, read_repair, default_time_to_live, compaction"
                " FROM system_schema.tables",
                "table_name, column_name, type, kind, position FROM system_schema.columns",
                "index_name FROM system_schema.indexes",
            )
        )
    )
    options = {table: rest for table, *rest in tables}
    there = {name for (name,) in indexes}
    added = [
        found.groups()
        for step in steps()
        if step.number in applied
        for found in map(_ADDED.match, step.statements)
        if found
    ]
    for step in steps():
        if step.number not in applied:
            continue
        for statement in step.statements:
            if table := _TABLE.match(statement):
                name, body, properties = table.groups()
                if name not in options:
                    lines.append(f"table {name} is missing")
                    continue
                mine = [row[1:] for row in columns if row[0] == name]
                body += "".join(
                    f"\n    {column} {kind},"
                    for table_of, column, kind in added
                    if table_of == name
                )
                lines += _table_differences(name, body, properties, mine, options[name])
            elif (index := _INDEX.match(statement)) and index[1] not in there:
                lines.append(f"index {index[1]} is missing")
    return lines


async def check(session: Session, keyspace: str) -> None:
    """Conflict: the tables are missing, older or newer than this version, or set up unsafely."""
    advice = "run `podium schema apply` with the same settings first"
    if await _replication(session, keyspace) is None:
        raise Conflict(f"Cassandra has no keyspace {keyspace}: {advice}")
    applied = await _applied(session, keyspace)
    _refuse_newer(keyspace, applied)
    missing = [step.name for step in steps() if step.number not in applied]
    if missing:
        raise Conflict(f"keyspace {keyspace} lacks {', '.join(missing)}: {advice}")
    for name in ("fences", "log_entries"):
        rows = await session.run(
            "SELECT read_repair, default_time_to_live FROM system_schema.tables"
            " WHERE keyspace_name = %s AND table_name = %s",
            (keyspace, name),
        )
        if not rows or rows[0][0] != "BLOCKING" or rows[0][1] != 0:
            raise Conflict(
                f"table {keyspace}.{name} must have read_repair = 'BLOCKING' and no TTL, or"
                " acknowledged workflows can be lost: see `podium schema diff`"
            )


async def _replication(session: Session, keyspace: str) -> dict[str, str] | None:
    rows = await session.run(
        "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = %s", (keyspace,)
    )
    return dict(rows[0][0]) if rows else None


async def _default_replication(session: Session) -> dict[str, str]:
    peers = await session.run("SELECT peer FROM system.peers_v2")
    copies = min(_COPIES, len(peers) + 1)
    return {"class": "NetworkTopologyStrategy", "replication_factor": str(copies)}


async def _applied(session: Session, keyspace: str) -> set[int]:
    there = await session.run(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s AND table_name = %s",
        (keyspace, "schema_steps"),
    )
    if not there:
        return set()
    rows = await session.run(f"SELECT step FROM {keyspace}.schema_steps WHERE part = 0")
    return {step for (step,) in rows}


def _known() -> set[int]:
    return {step.number for step in steps()}


def _refuse_newer(keyspace: str, applied: set[int]) -> None:
    if applied - _known():
        raise Conflict(
            f"keyspace {keyspace} has schema step {max(applied)}, this program knows up to"
            f" {max(_known())}: use the version that applied it, or a later one"
        )


def _repeatable(statement: str, keyspace: str) -> str:
    """A step that was stopped half-way is run again from its beginning."""
    statement = re.sub(r"^CREATE TABLE ", f"CREATE TABLE IF NOT EXISTS {keyspace}.", statement)
    statement = re.sub(
        r"^ALTER TABLE (\w+) ADD ", rf"ALTER TABLE {keyspace}.\1 ADD IF NOT EXISTS ", statement
    )
    return re.sub(
        r"^CREATE INDEX (\w+) ON ", rf"CREATE INDEX IF NOT EXISTS \1 ON {keyspace}.", statement
    )


def _table_differences(
    name: str,
    body: str,
    properties: str,
    columns: Sequence[tuple[str, str, str, int]],
    options: Sequence[object],
) -> list[str]:
    wanted = dict(_COLUMN.findall(body))
    found = {column: kind for column, kind, _, _ in columns}
    lines = [
        f"column {name}.{column} is {found.get(column, 'missing')},"
        f" wanted: {wanted.get(column, 'none')}"
        for column in sorted(wanted.keys() | found.keys())
        if wanted.get(column) != found.get(column)
    ]
    key = _KEY.search(body)
    assert key is not None
    found_key = _key_of(columns)
    if key[1].replace("(", "").replace(")", "") != found_key:
        lines.append(f"table {name} has key ({found_key}), wanted: ({key[1]})")
    read_repair, ttl, compaction = options
    if (repair := _READ_REPAIR.search(properties)) and repair[1] != read_repair:
        lines.append(f"table {name} has read_repair {read_repair}, wanted: {repair[1]}")
    if ttl:
        lines.append(f"table {name} has default_time_to_live {ttl}, wanted: 0")
    assert isinstance(compaction, Mapping)
    strategy = str(compaction["class"]).rsplit(".", 1)[-1]
    if (wanted_class := _COMPACTION.search(properties)) and wanted_class[1] != strategy:
        lines.append(f"table {name} has compaction {strategy}, wanted: {wanted_class[1]}")
    return lines


def _key_of(columns: Sequence[tuple[str, str, str, int]]) -> str:
    order = {"partition_key": 0, "clustering": 1}
    parts = sorted(
        (order[kind], position, column) for column, _, kind, position in columns if kind in order
    )
    return ", ".join(column for _, _, column in parts)


def _copies(replication: Mapping[str, str]) -> int:
    return min(int(value) for name, value in replication.items() if name != "class")


def _shown(replication: Mapping[str, str]) -> str:
    strategy = replication["class"].rsplit(".", 1)[-1]
    copies = ", ".join(f"{k} {v}" for k, v in replication.items() if k != "class")
    return f"{strategy}: {copies}"
