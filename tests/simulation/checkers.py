"""Judges a run by the ledger and by what stands in the logs; it asks none of the tested code.

The rows that count are those of the entries up to the recorded end of each sealed log, and all of
the open ones. In the order of epochs and positions they are the history of every workflow.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec
import orjson

from cluster.engine.model import Header, Task
from cluster.ids import shard_of, task_id
from cluster.store.ports import LogId
from tests.chaos.definitions import KINDS
from tests.chaos.verdict import judge
from tests.simulation.ledger import Archive, Json, Ledger

_LEASE_S = 5.0
_OPEN_RUN = ("RUNNING", "PAUSED")
_OPEN_TASK = ("SCHEDULED", "IN_PROGRESS")
_REVIVING = ("restart", "retry", "rerun")

_decode_entry = msgspec.msgpack.Decoder(list[tuple[int, int, list[tuple[str, int, bytes]]]]).decode
_decode_task = msgspec.msgpack.Decoder(Task).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode

_FIRST_TASK_ROW, _ROWS_PER_TASK = 16, 4


class Written(NamedTuple):
    """One version of a row that counts: when it reached its log, and under whom."""

    at_s: float
    epoch: int
    log: LogId
    position: int
    data: bytes


@dataclass
class History:
    """All that was ever committed, by workflow and row."""

    headers: dict[str, list[Written]] = field(default_factory=lambda: defaultdict(list))
    tasks: dict[str, list[Written]] = field(default_factory=lambda: defaultdict(list))
    """By task id."""
    faults: list[str] = field(default_factory=list)

    def open_runs(self) -> list[str]:
        """The workflows whose last header says that they go on."""
        return [
            run
            for run, headers in self.headers.items()
            if headers[-1].data and _decode_header(headers[-1].data).status in _OPEN_RUN
        ]


def read_history(archive: Archive, shard_count: int) -> History:
    """Put the entries of all logs in their order."""
    history = History()
    steps: list[tuple[int, int, float, LogId, list[tuple[str, int, bytes]]]] = []
    writers: dict[tuple[int, int], LogId] = {}
    for log, entries in archive.inserted.items():
        end = archive.ends.get(log)
        if end is None:
            end = _contiguous(entries)
        for position in sorted(entries):
            if position > end:
                break
            at_s, entry = entries[position]
            for shard, epoch, rows in _decode_entry(memoryview(entry)[1:]):
                other = writers.setdefault((shard, epoch), log)
                if other != log:
                    history.faults.append(
                        f"shard {shard} has two owners in epoch {epoch}: {other} and {log}"
                    )
                steps.append((epoch, position, at_s, log, rows))
                for workflow_id, _, _ in rows:
                    if shard_of(workflow_id, shard_count=shard_count) != shard:
                        history.faults.append(f"{workflow_id} was written by shard {shard}")
    steps.sort(key=lambda step: step[:2])
    for epoch, position, at_s, log, rows in steps:
        for workflow_id, number, data in rows:
            written = Written(at_s, epoch, log, position, data)
            if number == 0:
                history.headers[workflow_id].append(written)
            elif number >= _FIRST_TASK_ROW and not (number - _FIRST_TASK_ROW) % _ROWS_PER_TASK:
                number = (number - _FIRST_TASK_ROW) // _ROWS_PER_TASK
                history.tasks[task_id(workflow_id, number)].append(written)  # type: ignore[arg-type]
    return history


def _contiguous(entries: dict[int, tuple[float, bytes]]) -> int:
    end = 0
    while end + 1 in entries:
        end += 1
    return end


class _Result(NamedTuple):
    """How a task ended."""

    at_s: float
    status: str
    output: bytes
    worker_id: str


def judge_run(
    ledger: Ledger, archive: Archive, history: History, present: dict[str, Json]
) -> list[str]:
    """What was broken; `present`: every workflow as the cluster shows it at the end."""
    faults = [*ledger.faults, *archive.overwritten, *history.faults]
    results = _results(history, faults)
    _check_headers(ledger, history, faults)
    _check_writers(ledger, archive, faults)
    _check_seals(ledger, faults)
    _check_starts(ledger, history, faults)
    _check_reports(ledger, results, faults)
    _check_deliveries(ledger, history, faults)
    _check_sights(ledger, history, results, faults)
    _check_present(history, present, faults)
    _check_meaning(ledger, results, present, faults)
    return faults


def _results(history: History, faults: list[str]) -> dict[str, _Result]:
    """Each task ends once, and stays as it ended."""
    results: dict[str, _Result] = {}
    for task, versions in history.tasks.items():
        ended: _Result | None = None
        for version in versions:
            if not version.data:
                continue
            row = _decode_task(version.data)
            if row.status in _OPEN_TASK:
                if ended is not None:
                    faults.append(f"task {task} was {ended.status} and is {row.status} again")
            elif ended is None:
                ended = _Result(version.at_s, row.status.value, row.output, row.worker_id)
            elif (row.status.value, row.output) != (ended.status, ended.output):
                faults.append(
                    f"task {task} ended twice: {ended.status} {ended.output!r}, then "
                    f"{row.status.value} {row.output!r}"
                )
        if ended is not None:
            results[task] = ended
    return results


def _check_headers(ledger: Ledger, history: History, faults: list[str]) -> None:
    """What has ended stays ended, unless somebody asked for more."""
    for run, versions in history.headers.items():
        commands = [at_s for at_s, name in ledger.commands.get(run, ()) if name in _REVIVING]
        ended: str | None = None
        for version in versions:
            if not version.data:
                continue
            status = _decode_header(version.data).status.value
            if ended is not None and status != ended:
                if not any(at_s <= version.at_s for at_s in commands):
                    faults.append(f"workflow {run} was {ended} and became {status}")
            ended = None if status in _OPEN_RUN else status


def _check_writers(ledger: Ledger, archive: Archive, faults: list[str]) -> None:
    """What a writer took for committed counts for those who come after it."""
    for at_s, log, position in ledger.commits:
        end = archive.ends.get(log)
        if end is not None and position > end:
            faults.append(
                f"{log} took position {position} for committed at {at_s:.3f} s; it ends at {end}"
            )


def _check_seals(ledger: Ledger, faults: list[str]) -> None:
    """Nobody seals the log of a node that is heard of all the time."""
    sealed: set[LogId] = set()
    for at_s, place, log in ledger.seals:
        renewals = [renewed_s for renewed_s in ledger.renewals[log] if renewed_s < at_s]
        # To seal what was sealed before (by a node that left, say) harms nobody.
        is_first = log not in sealed
        sealed.add(log)
        if place == log.partition("/")[0] or len(renewals) < 2 or not is_first:
            continue
        # A log that had not been heard of may be sealed for a TTL after the reading that showed it.
        if at_s - renewals[0] < _LEASE_S:
            continue
        gaps = [later - earlier for earlier, later in pairwise([*renewals, at_s])]
        if max(gaps) < _LEASE_S - 0.1:
            faults.append(f"{place} sealed {log} at {at_s:.3f} s, which was heard of all the time")


def _check_starts(ledger: Ledger, history: History, faults: list[str]) -> None:
    for start in ledger.starts:
        versions = history.headers.get(start.workflow_id)
        if not versions:
            faults.append(f"start {start.intent}: {start.workflow_id} is in no log")
        elif versions[0].at_s > start.at_s:
            faults.append(f"start {start.intent} was acknowledged before it was durable")


def _check_reports(ledger: Ledger, results: dict[str, _Result], faults: list[str]) -> None:
    """An acknowledged result rests on an end of its task that was durable, and no later one."""
    first_acknowledged: dict[str, float] = {}
    for token, at_s in ledger.acknowledged.items():
        report = ledger.reports[token]
        first = first_acknowledged.get(report.task_id, at_s)
        first_acknowledged[report.task_id] = min(first, at_s)
        result = results.get(report.task_id)
        if result is None:
            faults.append(f"the result of {report.task_id} is in no log: {report.output}")
        elif result.at_s > at_s:
            faults.append(
                f"the result of {report.task_id} was acknowledged at {at_s:.3f} s, and what its "
                f"task ended with is from {result.at_s:.3f} s"
            )
    for task, result in results.items():
        if result.status not in ("COMPLETED", "FAILED", "FAILED_WITH_TERMINAL_ERROR"):
            continue
        output = orjson.loads(result.output)
        sent_as = output.get("token")
        if sent_as is None:
            continue
        if sent_as not in ledger.reports or ledger.reports[sent_as].task_id != task:
            faults.append(f"task {task} ended with a result that nobody sent: {output}")
        elif ledger.reports[sent_as].sent_s > first_acknowledged.get(task, 1e9):
            faults.append(f"task {task} took a result that was sent after another was taken")


def _check_deliveries(ledger: Ledger, history: History, faults: list[str]) -> None:
    """No worker sees what is not durable."""
    for at_s, task in ledger.deliveries:
        versions = history.tasks.get(task)
        if not versions:
            faults.append(f"a worker got task {task}, which is in no log")
        elif versions[0].at_s > at_s:
            faults.append(f"a worker got task {task} before it was durable")


def _check_sights(
    ledger: Ledger, history: History, results: dict[str, _Result], faults: list[str]
) -> None:
    """A read shows at least what was acknowledged before it was asked, and nothing that is not
    durable when it is answered."""
    started = {start.workflow_id: start.at_s for start in ledger.starts}
    taken: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for token, at_s in ledger.acknowledged.items():
        report = ledger.reports[token]
        taken[report.workflow_id].append((at_s, report.task_id))
    for sight in sorted(ledger.sights):
        run = sight.workflow_id
        what = f"{sight.place} at {sight.at_s:.3f} s showed {run}"
        if sight.status is None:
            if started.get(run, 1e9) < sight.sent_s:
                faults.append(f"{what} as unknown; its start was acknowledged before")
            continue
        missing = [
            task
            for at_s, task in taken[run]
            if at_s < sight.sent_s and task not in sight.ended_tasks
        ]
        if missing:
            faults.append(f"{what} without the acknowledged results of {missing}")
        for task in sight.ended_tasks:
            result = results.get(task)
            if result is None or result.at_s > sight.at_s:
                faults.append(f"{what} with an end of {task} that was not durable")
        versions = history.headers.get(run, [])
        seen = [v for v in versions if v.at_s <= sight.at_s and v.data]
        if not any(_decode_header(v.data).status == sight.status for v in reversed(seen)):
            faults.append(f"{what} as {sight.status}, which was not durable")


def _check_present(history: History, present: dict[str, Json], faults: list[str]) -> None:
    """What the cluster shows in the end is what the logs say last."""
    for run, versions in history.headers.items():
        if not versions[-1].data:
            continue
        shown = present.get(run)
        status = _decode_header(versions[-1].data).status.value
        if shown is None:
            faults.append(f"workflow {run} is {status} by the logs, and the cluster has lost it")
        elif shown["status"] != status:
            faults.append(
                f"workflow {run} is {status} by the logs, and {shown['status']} to clients"
            )
        if shown is not None:
            for task in shown["tasks"]:
                written = history.tasks.get(task["taskId"])
                if not written or not written[-1].data:
                    faults.append(f"task {task['taskId']} is shown and in no log")
                elif _decode_task(written[-1].data).status != task["status"]:
                    faults.append(f"task {task['taskId']} is shown as {task['status']}")


def _check_meaning(
    ledger: Ledger, results: dict[str, _Result], present: dict[str, Json], faults: list[str]
) -> None:
    """Every run has come to what follows from its definition and its input, each step once."""
    lines: list[Json] = [
        {"kind": "intent", "intent": intent, **fields} for intent, fields in ledger.intents.items()
    ]
    lines += [
        {"kind": "started", "intent": start.intent, "workflow_id": start.workflow_id}
        for start in ledger.starts
    ]
    for token in ledger.acknowledged:
        task = ledger.reports[token].task_id
        result = results.get(task)
        if result is None or result.status == "TIMED_OUT":
            continue
        lines.append(
            {
                "kind": "result",
                "task_id": task,
                "workflow_id": ledger.reports[token].workflow_id,
                "status": result.status,
                "output": orjson.loads(result.output),
                "answered_ms": 0,
            }
        )
    verdict = judge(
        lines, {run: shown for run, shown in present.items() if shown["workflowName"] in KINDS}
    )
    faults += [*verdict.lost, *verdict.duplicated, *verdict.wrong]
