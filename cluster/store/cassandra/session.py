"""One session of cassandra-driver, awaited; its sockets are served by the event loop."""

import asyncio
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, TypeAlias

from cassandra import ConsistencyLevel, DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    ResultSet,
)
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    TokenAwarePolicy,
)
from cassandra.query import (
    BatchStatement,
    BatchType,
    BoundStatement,
    SimpleStatement,
    tuple_factory,
)

from cluster.errors import StoreFault
from cluster.store.cassandra.connection import connection_on
from cluster.store.traffic import Flow, Traffic
from cluster.urls import CassandraUrl

# The driver has no types: its statements and rows stay Any, and go no further than this package.
Statement: TypeAlias = Any
Prepared: TypeAlias = Any
Values: TypeAlias = Sequence[Any]

_LEVELS = {
    "QUORUM": ConsistencyLevel.QUORUM,
    "LOCAL_QUORUM": ConsistencyLevel.LOCAL_QUORUM,
    "SERIAL": ConsistencyLevel.SERIAL,
    "LOCAL_SERIAL": ConsistencyLevel.LOCAL_SERIAL,
}

# Version 5 frames carry checksums that the driver computes in Python: 60 % more CPU for an entry.
_PROTOCOL = 4
_CONNECT_S = 10
_REQUEST_S = 10.0
"""After this the driver gives up on an answer; the callers' own deadlines are shorter."""

_CHANGE_S = 60.0
_TABLE = re.compile(r"\b(FROM|INTO|UPDATE) (\w+)")
_SERVER = "cassandra"
_RECONNECT_S = (0.25, 4.0)
_HEARTBEAT_S = 5
_IN_FLIGHT_MAX = 64
"""Writes of one kind under way at a time; beyond this Cassandra only queues them."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """How many replicas answer. The proof of the fence needs these on every statement.

    The LOCAL_ forms count the replicas of one data centre: right only where every node of the
    engine talks to the same one.
    """

    quorum: str = "QUORUM"
    serial: str = "SERIAL"


class Session:
    """Statements in, rows out. StoreFault: no answer in time, or a refusal."""

    def __init__(
        self, session: Any, keyspace: str, consistency: Consistency, traffic: Traffic
    ) -> None:
        self._session = session
        self._traffic = traffic
        self._others = traffic.of(_SERVER, "other")
        self.keyspace = keyspace
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._quorum = _LEVELS[consistency.quorum]
        self._serial = _LEVELS[consistency.serial]
        self._answers: deque[_Answer] = deque()
        self._is_waking = False
        self._writes = asyncio.Semaphore(_IN_FLIGHT_MAX)

    def prepare(self, cql: str) -> Prepared:
        """A statement at QUORUM, its condition, if it has one, at SERIAL. Blocks."""
        # Each table with its keyspace: to Cassandra a statement prepared after USE is ambiguous.
        try:
            prepared = self._session.prepare(_TABLE.sub(rf"\1 {self.keyspace}.\2", cql))
        except (DriverException, NoHostAvailable) as error:
            raise fault_of(error) from error
        prepared.consistency_level = self._quorum
        prepared.serial_consistency_level = self._serial
        # Explicit timestamps and conditions make every statement of ours repeatable.
        prepared.is_idempotent = True
        prepared.flow = self._traffic.of(_SERVER, _kind(cql))
        return prepared

    def prepare_serial(self, cql: str) -> Prepared:
        """A read that sees, or finishes, every compare-and-set begun before it. Blocks."""
        prepared = self.prepare(cql)
        prepared.consistency_level = self._serial
        return prepared

    def batch(self, flow: Flow) -> BatchStatement:
        """An empty unlogged batch at QUORUM, counted as a request of this flow."""
        batch = BatchStatement(BatchType.UNLOGGED, consistency_level=self._quorum)
        batch.flow = flow
        return batch

    @property
    def requests(self) -> int:
        """How many were sent."""
        flows = self._traffic.flows.items()
        return sum(flow.requests for (server, _), flow in flows if server == _SERVER)

    async def run(self, cql: str, values: Values = ()) -> list[Any]:
        """A statement that is not worth preparing, its values as `%s`; all of its few rows."""
        statement = SimpleStatement(cql, consistency_level=self._quorum, fetch_size=None)
        return (await self._submit(statement, None, values=values)).rows

    async def change_schema(self, cql: str) -> None:
        """A statement that changes tables; all nodes have heard of it when it returns."""
        statement = SimpleStatement(cql, consistency_level=self._quorum)
        await self._submit(statement, None, timeout_s=_CHANGE_S)

    async def execute(self, statement: Statement) -> list[Any]:
        """The first page of rows; empty for a write."""
        return (await self._submit(statement, None)).rows

    async def one(self, prepared: Prepared, values: Values) -> Any | None:
        """The first row."""
        rows = await self.execute(prepared.bind(values))
        return rows[0] if rows else None

    async def all(self, prepared: Prepared, values: Values, *, page_rows: int = 1_000) -> list[Any]:
        """Every row, however many pages that takes."""
        rows: list[Any] = []
        async for page in self.pages(prepared, values, page_rows=page_rows):
            rows += page
        return rows

    async def pages(
        self, prepared: Prepared, values: Values, *, page_rows: int
    ) -> AsyncIterator[list[Any]]:
        """The rows, a page at a time: the next one is asked for when it is wanted."""
        bound = prepared.bind(values)
        bound.fetch_size = page_rows
        answer = await self._submit(bound, None)
        yield answer.rows
        while answer.paging_state is not None:
            answer = await self._submit(bound, answer.paging_state)
            yield answer.rows

    async def compare_and_set(self, prepared: Prepared, values: Values) -> dict[str, Any] | None:
        """None: applied. Otherwise what stands instead, as far as the condition names it.

        After a StoreFault it may have been applied, or may be yet.
        """
        answer = await self._submit(prepared.bind(values), None)
        found = dict(zip(answer.columns, answer.rows[0], strict=True))
        return None if found.pop("[applied]") else found

    async def write_all(self, statements: Sequence[Statement]) -> None:
        """All of them, many at a time; durable when it returns."""
        if len(statements) == 1:
            await self.execute(statements[0])
            return

        async def write(statement: Statement) -> None:
            async with self._writes:
                await self.execute(statement)

        await asyncio.gather(*(write(statement) for statement in statements))

    def _submit(
        self,
        statement: Statement,
        paging_state: Any,
        *,
        values: Values | None = None,
        timeout_s: float = _REQUEST_S,
    ) -> "asyncio.Future[_Answer]":
        waiter: asyncio.Future[_Answer] = self._loop.create_future()
        self._count(statement)
        try:
            response = self._session.execute_async(
                statement, values, timeout=timeout_s, paging_state=paging_state
            )
        except (DriverException, NoHostAvailable) as error:
            raise fault_of(error) from error
        response.add_callbacks(
            self._answered,
            self._failed,
            callback_args=(waiter, response),
            errback_args=(waiter,),
        )
        return waiter

    def _count(self, statement: Statement) -> None:
        if isinstance(statement, BoundStatement):
            statement.prepared_statement.flow.requests += 1
        elif isinstance(statement, BatchStatement):
            statement.flow.requests += 1
        else:
            self._others.requests += 1

    # -- on the loop's thread as a rule; what failed or was asked again, on one of the driver's

    def _answered(self, rows: list[Any] | None, waiter: Any, response: Any) -> None:
        self._hand_over(_Answer(waiter, rows, response, None))

    def _failed(self, error: Exception, waiter: Any) -> None:
        self._hand_over(_Answer(waiter, None, None, error))

    def _hand_over(self, answer: "_Answer") -> None:
        if get_ident() == self._thread:
            answer.settle()
            return
        self._answers.append(answer)
        if self._is_waking:
            return
        # Set before the loop is woken and cleared before it looks: no answer is left lying.
        self._is_waking = True
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            pass  # The loop is closed: nobody waits any more.

    # -- on the loop

    def _settle(self) -> None:
        self._is_waking = False
        answers = self._answers
        while answers:
            answers.popleft().settle()


class _Answer:
    __slots__ = ("_response", "error", "rows", "waiter")

    def __init__(
        self,
        waiter: "asyncio.Future[_Answer]",
        rows: list[Any] | None,
        response: Any,
        error: Exception | None,
    ) -> None:
        self.waiter = waiter
        self.rows = rows or []
        self.error = error
        self._response = response

    def settle(self) -> None:
        if self.waiter.done():
            return  # The caller gave up; what was done stays done.
        if self.error is None:
            self.waiter.set_result(self)
        else:
            self.waiter.set_exception(fault_of(self.error))

    @property
    def paging_state(self) -> Any:
        """Where the next page begins; None after the last one."""
        return ResultSet(self._response, self.rows).paging_state

    @property
    def columns(self) -> list[str]:
        return list(ResultSet(self._response, self.rows).column_names)


def _kind(cql: str) -> str:
    """`insert log_entries`: the verb and the table."""
    found = _TABLE.search(cql)
    assert found is not None, cql
    return f"{cql.split(maxsplit=1)[0].lower()} {found[2]}"


def fault_of(error: Exception) -> StoreFault:
    """The driver's error in words of ours."""
    if isinstance(error, NoHostAvailable):
        tried = "; ".join(f"{host}: {why}" for host, why in error.errors.items()) or str(error)
        fault = StoreFault(f"no Cassandra node answers ({tried})")
    else:
        fault = StoreFault(f"Cassandra: {type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault


@asynccontextmanager
async def connected(
    url: CassandraUrl, consistency: Consistency, traffic: Traffic | None = None
) -> AsyncIterator[Session]:
    """A session with the cluster that `url` names; `traffic` counts what it sends.

    StoreFault: no node of it can be reached.

    Connections that break are opened again by the driver, for as long as the session lives.
    """
    connections = connection_on(asyncio.get_running_loop())
    driver = await asyncio.to_thread(_driver, url, consistency, connections)
    try:
        try:
            session = await asyncio.to_thread(driver.connect)
        except (DriverException, NoHostAvailable) as error:
            raise _not_reached(url, error) from error
        yield Session(session, url.keyspace, consistency, traffic or Traffic())
    finally:
        await asyncio.to_thread(driver.shutdown)


def _driver(url: CassandraUrl, consistency: Consistency, connections: type[Any]) -> Any:
    login = url.login
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        consistency_level=_LEVELS[consistency.quorum],
        serial_consistency_level=_LEVELS[consistency.serial],
        request_timeout=_REQUEST_S,
        row_factory=tuple_factory,
    )
    return Cluster(
        [(host.name.strip("[]"), host.port) for host in url.hosts],
        port=url.hosts[0].port,
        connection_class=connections,
        protocol_version=_PROTOCOL,
        auth_provider=None if login is None else PlainTextAuthProvider(login.user, login.password),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ExponentialReconnectionPolicy(*_RECONNECT_S),
        idle_heartbeat_interval=_HEARTBEAT_S,
        idle_heartbeat_timeout=_HEARTBEAT_S,
        connect_timeout=_CONNECT_S,
        control_connection_timeout=_CONNECT_S,
        compression=False,
        # The driver sends large requests in pieces: without this, each waits 40 ms for the
        # server's delayed acknowledgement of the piece before the last.
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )


def _not_reached(url: CassandraUrl, error: Exception) -> StoreFault:
    hosts = ", ".join(f"{host.name}:{host.port}" for host in url.hosts)
    fault = fault_of(error)
    return StoreFault(f"cannot connect to Cassandra at {hosts}: {fault.message}")
