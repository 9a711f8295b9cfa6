"""The system tasks of this process: Podium's own, and those of installed packages."""

import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import EntryPoint, entry_points

from cluster.clock import Clock
from cluster.engine.tasks import TASK_TYPES
from cluster.node.executors.http_addresses import AddressPolicy
from cluster.node.executors.http_task import Evaluate, HttpTask, load_certificates
from cluster.node.executors.kafka_task import KafkaTask
from cluster.node.executors.sql_connections import Connect
from cluster.node.executors.sql_task import SqlTask, open_databases
from cluster.settings import InvalidSettings, Settings
from cluster.system_tasks import ENTRY_POINTS, SystemTask


@asynccontextmanager
async def open_system_tasks(
    settings: Settings, *, evaluate: Evaluate, clock: Clock
) -> AsyncIterator[dict[str, SystemTask]]:
    """All of them by task type, ready for work. InvalidSettings: one cannot be had."""
    http = HttpTask(
        addresses=AddressPolicy(
            private=settings.http_private_addresses, loopback=settings.http_loopback_addresses
        ),
        evaluate=evaluate,
        certificates=_certificates(settings),
        response_bytes_max=settings.http_response_bytes_max,
        clock=clock,
    )
    sql = SqlTask(
        _databases(settings),
        rows_max=settings.sql_rows_max,
        bytes_max=settings.task_output_bytes_max,
        time_limit_ms=settings.sql_time_limit_ms,
        clock=clock,
    )
    found: dict[str, SystemTask] = {"HTTP": http, "HTTP_POLL": http, "JDBC": sql}
    found["KAFKA_PUBLISH"] = KafkaTask()
    found |= custom_system_tasks(entry_points(group=ENTRY_POINTS))
    async with AsyncExitStack() as stack:
        for system_task in dict.fromkeys(found.values()):
            await system_task.open()
            stack.push_async_callback(system_task.close)
        yield found


def custom_system_tasks(entries: Iterable[EntryPoint]) -> dict[str, SystemTask]:
    """Those that installed packages bring. InvalidSettings: one cannot be loaded."""
    found: dict[str, SystemTask] = {}
    for entry in entries:
        if entry.name in TASK_TYPES or entry.name in found or entry.name == "SIMPLE":
            raise InvalidSettings(f"{_named(entry)}: there is a task type of that name")
        try:
            made = entry.load()()
        except Exception as fault:
            raise InvalidSettings(f"{_named(entry)} cannot be loaded: {fault!r}") from fault
        if not isinstance(made, SystemTask):
            raise InvalidSettings(f"{_named(entry)} makes no SystemTask, but {made!r}")
        found[entry.name] = made
    return found


def _named(entry: EntryPoint) -> str:
    package = "" if entry.dist is None else f" of {entry.dist.name}"
    return f"the system task {entry.name}{package} ({entry.value})"


def _databases(settings: Settings) -> dict[str, Connect]:
    try:
        return open_databases(settings.sql_connections, time_limit_ms=settings.sql_time_limit_ms)
    except ValueError as fault:
        raise InvalidSettings(f"sql_connections: {fault}") from fault


def _certificates(settings: Settings) -> dict[str, ssl.SSLContext]:
    try:
        return load_certificates(settings.http_client_certificates)
    except (OSError, ValueError) as fault:
        raise InvalidSettings(f"http_client_certificates: {fault}") from fault
