"""Bulk jobs: one operation on every workflow that a query finds, in the background.

A job is a record of the store, written before it begins and after every part. The node that took
it carries it out, and after a restart goes on behind the last part that was written. What that
part's successor had done already is not done again: an item is acted upon only while it still is
as the job found the world when it was created.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from cluster.clock import Clock, Random
from cluster.engine.events import Paused, Resumed, Terminated
from cluster.engine.model import Execution
from cluster.errors import ClusterError, InvalidRequest, NotFound, Overloaded
from cluster.ids import WorkflowId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.node.router import Router
from cluster.sharding.insist import insist
from cluster.store.ports import RecordStore, SearchIndex, Summary

log = get_log(__name__)

T = TypeVar("T")

KIND, CANCEL_KIND = "bulk-job", "bulk-job-cancel"
RUNNING_MAX = 4
"""Jobs that one node works on at a time."""
OPEN_MAX = 100
"""Jobs of one node that have not ended."""
KEPT_MAX = 500
"""Jobs that are shown; the oldest that have ended go first."""
SHOWN_MAX = 100
"""Failures, and ids found by a dry run, that a job remembers."""
PART_MAX = 100
DRY_PART_MAX = 1_000
"""Who is only counted costs nothing but the search."""
_PARTS_PER_S = 5
_PAGE = 100
_STATUS_OK = 200
_LOOK_MS = 30_000
ORPHAN_MS = 60_000
"""A job whose node is no member and has not written for this long goes on at another."""
_ATTEMPT_MS = 30_000
"""A look for the next part may go through many workflows that do not match."""

OPEN = ("RUNNING", "PAUSED")
ENDED = ("FAILED", "TIMED_OUT", "TERMINATED")
ELIGIBLE: dict[str, tuple[str, ...]] = {
    "pause": ("RUNNING",),
    "resume": ("PAUSED",),
    "terminate": OPEN,
    "retry": ENDED,
    "restart": ("COMPLETED", *ENDED),
}
"""Operation → what a workflow must be for it; another status is passed over."""
_ON_ENDED = ("retry", "restart")

State = Literal["QUEUED", "RUNNING", "COMPLETED", "CANCELLED", "FAILED"]
_UNFINISHED = ("QUEUED", "RUNNING")


class Query(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Workflows of a definition that started in [from, to), Unix ms, and are in one of `statuses`
    (empty: all that the operation can act upon)."""

    name: str
    version: int | None = None
    statuses: tuple[str, ...] = ()
    start_time_from: int = 0
    start_time_to: int | None = None


class Order(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What to do."""

    operation: str
    query: Query
    dry_run: bool = False
    rate_per_second: int | None = None
    """At most so many workflows per second; None: as fast as it goes."""
    reason: str = ""
    """Of `terminate`."""
    use_latest_definitions: bool = False
    """Of `restart`."""
    resume_subworkflow_tasks: bool = False
    """Of `retry`."""


class Failure(msgspec.Struct, frozen=True, rename="camel"):
    workflow_id: str
    status: int
    message: str


class Job(msgspec.Struct, frozen=True, rename="camel"):
    """A job as it is kept and as it is shown."""

    id: str
    order: Order
    state: State
    node: str
    created_time: int
    updated_time: int
    ended_time: int = 0
    matched: int = 0
    """Found so far; of each it is said below what became of it."""
    succeeded: int = 0
    skipped: int = 0
    """Not what they had to be any more, or done already before the node was restarted."""
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    sample: tuple[str, ...] = ()
    """Some of those that a dry run has found."""
    after: str = ""
    """The last workflow that was looked at."""
    message: str = ""


class _Outcome(NamedTuple):
    workflow_id: WorkflowId
    status: int
    message: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Job).decode
_SKIPPED = 0
_OUTCOMES = {_STATUS_OK: "succeeded", _SKIPPED: "skipped"}


class BulkJobs:
    """The jobs of a cluster; those of this node are carried out by `run`."""

    def __init__(
        self,
        *,
        records: RecordStore,
        search: SearchIndex,
        router: Router,
        clock: Clock,
        random: Random,
        metrics: Metrics,
        node_id: str,
        members: Callable[[], Iterable[str]],
    ) -> None:
        """`members` are the nodes that are there, by their ids."""
        self._records = records
        self._search = search
        self._router = router
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._node_id = node_id
        self._members = members
        self._mine: dict[str, Job] = {}
        """Those of this node that have not ended, as they stand."""
        self._new: asyncio.Queue[Job] = asyncio.Queue()
        self._slots = asyncio.Semaphore(RUNNING_MAX)

    # -- what callers ask for

    async def create(self, order: Order) -> Job:
        """Begin a job; returns when it is durable. InvalidRequest; Overloaded: there are many."""
        _check(order)
        if len(self._mine) >= OPEN_MAX:
            raise Overloaded(f"{OPEN_MAX} bulk jobs of this node have not ended; try again later")
        now_ms = self._clock.now_ms()
        job = Job(
            id=f"{now_ms:012x}{self._random.bits(48):012x}",
            order=order,
            state="QUEUED",
            node=self._node_id,
            created_time=now_ms,
            updated_time=now_ms,
        )
        self._keep(job)
        try:
            await self._records.put(KIND, {job.id: _encode(job)})
            await self._drop_oldest()
        except ClusterError:
            self._forget(job)
            raise
        self._new.put_nowait(job)
        return job

    async def get(self, job_id: str) -> Job:
        """A job of any node, as last written. NotFound."""
        job = self._mine.get(job_id)
        if job is not None:
            return job
        found = await self._records.get(KIND, job_id)
        job = None if found is None else _read(job_id, found)
        if job is None:
            raise NotFound(f"No such bulk job: {job_id[:100]}")
        return job

    async def all(self) -> list[Job]:
        """All jobs of all nodes, newest first."""
        jobs: list[Job] = []
        after: str | None = None
        while True:
            page = await self._records.page(KIND, prefix="", after=after, limit=_PAGE)
            for key, found in page:
                job = self._mine.get(key) or _read(key, found)
                if job is not None:
                    jobs.append(job)
            if len(page) < _PAGE:
                return jobs[::-1]
            after = page[-1][0]

    async def cancel(self, job_id: str) -> Job:
        """Have a job end after the part that is under way; returns the job as it stands now. One
        that has ended stays as it is. NotFound."""
        job = await self.get(job_id)
        if job.state in _UNFINISHED:
            await self._records.put(CANCEL_KIND, {job_id: b"1"})
        return job

    # -- carrying out

    async def run(self) -> None:
        """Carry out the jobs of this node, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._adopt())
            for job in await self._unfinished():
                if job.node == self._node_id:
                    self._go_on(job)
            while True:
                group.create_task(self._supervise(await self._new.get()))

    async def _adopt(self) -> None:
        """Go on with jobs whose node is gone for good; one node of a cluster does that."""
        while True:
            await asyncio.sleep(_LOOK_MS / 1000)
            members = {*self._members(), self._node_id}
            if self._node_id != min(members):
                continue
            silent_ms = self._clock.now_ms() - ORPHAN_MS
            for job in await self._unfinished():
                if job.node not in members and job.updated_time < silent_ms:
                    log.info("a bulk job is taken over", job=job.id, node=job.node)
                    job = replace(job, node=self._node_id, updated_time=self._clock.now_ms())
                    await self._save(job)
                    self._go_on(job)

    async def _unfinished(self) -> list[Job]:
        """Those that are in nobody's hands here."""
        jobs = await self._insist(self.all)
        return [job for job in jobs if job.state in _UNFINISHED and job.id not in self._mine]

    def _go_on(self, job: Job) -> None:
        self._keep(job)
        self._new.put_nowait(job)

    async def _supervise(self, job: Job) -> None:
        async with self._slots:
            try:
                await self._carry_out(job)
            except Exception as error:
                # One job must not stop the node, nor begin again for ever.
                log.error("a bulk job failed", job=job.id, exc_info=error)
                await self._end(self._mine.get(job.id, job), "FAILED", repr(error))

    async def _carry_out(self, job: Job) -> None:
        log.info("a bulk job begins", job=job.id, operation=job.order.operation, after=job.after)
        job = self._note(replace(job, state="RUNNING"))
        await self._router.catch_up()
        rate = job.order.rate_per_second
        part = DRY_PART_MAX if job.order.dry_run else PART_MAX
        if rate is not None:
            part = max(1, min(part, rate // _PARTS_PER_S))
        next_ms = self._clock.monotonic_ms()
        while True:
            if await self._is_cancelled(job.id):
                await self._end(job, "CANCELLED")
                return
            page = await self._find(job, part)
            if not page:
                await self._end(job, "COMPLETED")
                return
            outcomes = await self._act(job, page)
            self._count(job.order, outcomes)
            job = self._note(_counted(job, page, outcomes))
            await self._save(job)
            if rate is not None:
                now_ms = self._clock.monotonic_ms()
                next_ms = max(now_ms, next_ms + len(page) * 1000 // rate)
                await asyncio.sleep((next_ms - now_ms) / 1000)

    async def _is_cancelled(self, job_id: str) -> bool:
        return await self._insist(lambda: self._records.get(CANCEL_KIND, job_id)) is not None

    async def _find(self, job: Job, limit: int) -> Sequence[Summary]:
        query = job.order.query
        # Who began after the job is none of its business: not even one that it restarted itself.
        end_ms = job.created_time + 1
        if query.start_time_to is not None:
            end_ms = min(end_ms, query.start_time_to)
        return await self._insist(
            lambda: self._search.by_definition(
                query.name,
                version=query.version,
                statuses=query.statuses or ELIGIBLE[job.order.operation],
                start_ms=query.start_time_from,
                end_ms=end_ms,
                after=WorkflowId(job.after) if job.after else None,
                limit=limit,
            )
        )

    async def _act(self, job: Job, page: Sequence[Summary]) -> list[_Outcome]:
        if job.order.dry_run:
            return [_Outcome(found.workflow_id, _STATUS_OK) for found in page]
        # All at once: what they change shares few commits.
        return await asyncio.gather(*(self._attempt(job, found.workflow_id) for found in page))

    async def _attempt(self, job: Job, workflow_id: WorkflowId) -> _Outcome:
        try:
            execution = await self._router.look(workflow_id)
        except NotFound:
            return _Outcome(workflow_id, _SKIPPED)
        except ClusterError as error:
            return _Outcome(workflow_id, error.status, error.message)
        if not is_wanted(job, execution):
            return _Outcome(workflow_id, _SKIPPED)
        try:
            await self._operate(job.order, workflow_id)
        except ClusterError as error:
            return _Outcome(workflow_id, error.status, error.message)
        return _Outcome(workflow_id, _STATUS_OK)

    async def _operate(self, order: Order, workflow_id: WorkflowId) -> None:
        router, now_ms = self._router, self._clock.now_ms()
        match order.operation:
            case "pause":
                await router.submit(workflow_id, Paused(now_ms))
            case "resume":
                await router.submit(workflow_id, Resumed(now_ms))
            case "terminate":
                await router.submit(workflow_id, Terminated(now_ms, order.reason))
            case "retry":
                await router.retry(workflow_id, resume_sub_workflows=order.resume_subworkflow_tasks)
            case _:
                await router.restart(workflow_id, order.use_latest_definitions)

    # -- the record

    def _note(self, job: Job) -> Job:
        job = replace(job, updated_time=self._clock.now_ms())
        self._mine[job.id] = job
        return job

    def _keep(self, job: Job) -> None:
        self._mine[job.id] = job
        self._metrics.bulk_jobs_open.of().set(len(self._mine))

    def _forget(self, job: Job) -> None:
        self._mine.pop(job.id, None)
        self._metrics.bulk_jobs_open.of().set(len(self._mine))

    def _count(self, order: Order, outcomes: Sequence[_Outcome]) -> None:
        if order.dry_run:
            return
        for outcome in outcomes:
            name = _OUTCOMES.get(outcome.status, "failed")
            self._metrics.bulk_job_workflows.of(order.operation, name).inc()

    async def _save(self, job: Job) -> None:
        await self._insist(lambda: self._records.put(KIND, {job.id: _encode(job)}))

    async def _end(self, job: Job, state: State, message: str = "") -> None:
        now_ms = self._clock.now_ms()
        job = replace(job, state=state, updated_time=now_ms, ended_time=now_ms, message=message)
        await self._save(job)
        self._forget(job)
        await self._insist(lambda: self._records.put(CANCEL_KIND, {job.id: None}))
        log.info("a bulk job ended", job=job.id, state=state, succeeded=job.succeeded)

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        return await insist(call, clock=self._clock, deadline_ms=None, attempt_ms=_ATTEMPT_MS)

    async def _drop_oldest(self) -> None:
        jobs = await self.all()
        ended = [job.id for job in jobs[KEPT_MAX:] if job.state not in _UNFINISHED]
        if ended:
            await self._records.put(KIND, dict.fromkeys(ended))


def _read(job_id: str, record: bytes) -> Job | None:
    """None for one that this version does not understand: a newer one may have written it."""
    try:
        return _decode(record)
    except msgspec.DecodeError as error:
        log.warning("a bulk job cannot be read", job=job_id, error=str(error))
        return None


def is_wanted(job: Job, execution: Execution) -> bool:
    """Whether a workflow is still what the job is for."""
    order, header = job.order, execution.header
    if header.status.value not in (order.query.statuses or ELIGIBLE[order.operation]):
        return False
    # One that ended since has been retried or restarted: by this very job, before its node died,
    # or by somebody else who knows better.
    return order.operation not in _ON_ENDED or header.end_ms <= job.created_time


def _counted(job: Job, page: Sequence[Summary], outcomes: Sequence[_Outcome]) -> Job:
    succeeded = sum(outcome.status == _STATUS_OK for outcome in outcomes)
    skipped = sum(outcome.status == _SKIPPED for outcome in outcomes)
    failures = [
        Failure(*outcome) for outcome in outcomes if outcome.status not in (_STATUS_OK, _SKIPPED)
    ]
    sample = job.sample
    if job.order.dry_run and len(sample) < SHOWN_MAX:
        sample = (*sample, *(found.workflow_id for found in page))[:SHOWN_MAX]
    return replace(
        job,
        matched=job.matched + len(page),
        succeeded=job.succeeded + (0 if job.order.dry_run else succeeded),
        skipped=job.skipped + skipped,
        failed=job.failed + len(failures),
        failures=(*job.failures, *failures)[:SHOWN_MAX],
        sample=sample,
        after=page[-1].workflow_id,
    )


def _check(order: Order) -> None:
    eligible = ELIGIBLE.get(order.operation)
    if eligible is None:
        raise InvalidRequest(
            f"operation must be one of {', '.join(ELIGIBLE)}, not '{order.operation[:100]}'"
        )
    query = order.query
    if not query.name:
        raise InvalidRequest("query.name must not be empty")
    for status in query.statuses:
        if status not in eligible:
            raise InvalidRequest(
                f"{order.operation} acts upon workflows that are {', '.join(eligible)}; "
                f"not '{status[:100]}'"
            )
    if query.start_time_to is not None and query.start_time_to <= query.start_time_from:
        raise InvalidRequest("query.startTimeTo must be above query.startTimeFrom")
    if order.rate_per_second is not None and order.rate_per_second < 1:
        raise InvalidRequest("ratePerSecond must be at least 1")
