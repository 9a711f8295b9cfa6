"""An execution as rows, and back: what is logged, checkpointed and loaded.

Row numbers: 0 header, 1 input, 2 variables, 3 output, 4 task definitions frozen at run time; task n
has row 16 + 4n, with its input or output in rows of their own (+1, +2) where they are large, so
that a step of a task with a large payload does not write the payload again; order n for another
shard, or message n from outside, has row 19 + 4n. Empty data means that the row is deleted.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from cluster.engine import payloads
from cluster.engine.indexes import reindex
from cluster.engine.model import (
    INPUT,
    OUTPUT,
    TASK_DEFS,
    VARIABLES,
    Execution,
    Header,
    Message,
    Order,
    Task,
)
from cluster.ids import WorkflowId

if TYPE_CHECKING:
    from cluster.engine.plan import Plan

HEADER_ROW, INPUT_ROW, VARIABLES_ROW, OUTPUT_ROW, TASK_DEFS_ROW = range(5)
_FIRST_TASK_ROW = 16
_ROWS_PER_TASK = 4
_FIRST_ORDER_ROW = _FIRST_TASK_ROW + 3
_INLINE_BYTES_MAX = 1024
_SPILLED = b"\x00"
"""Stands in a task's row for a payload that has a row of its own; no JSON begins like this."""

_encode = msgspec.msgpack.Encoder().encode
_decode_task = msgspec.msgpack.Decoder(Task).decode
_decode_order = msgspec.msgpack.Decoder(Order).decode
_decode_message = msgspec.msgpack.Decoder(Message).decode
_MESSAGE = b"\x01"
"""In front of a message, to tell it from an order, which is an array of msgpack."""
_decode_header = msgspec.msgpack.Decoder(Header).decode


def decode_header(encoded: bytes) -> Header:
    """The header of a row as `changed_rows` made it; raises ValueError on anything else."""
    return _decode_header(encoded)


def changed_rows(execution: Execution) -> list[tuple[int, bytes]]:
    """(row number, data) of all that changed since the last call, the header first."""
    rows = [(HEADER_ROW, _encode(execution.header))]
    parts = execution.parts
    if parts:
        if parts & INPUT:
            rows.append((INPUT_ROW, execution.input))
        if parts & VARIABLES and execution.variables != payloads.EMPTY:
            rows.append((VARIABLES_ROW, execution.variables))
        if parts & OUTPUT:
            rows.append((OUTPUT_ROW, execution.output))
        if parts & TASK_DEFS:
            rows.append((TASK_DEFS_ROW, execution.task_defs))
        execution.parts = 0
    if execution.changed:
        tasks = execution.tasks
        for number, changed in execution.changed.items():
            _task_rows(rows, tasks[number], changed)
        execution.changed = {}
    if execution.removed:
        for number in execution.removed:
            first = _FIRST_TASK_ROW + number * _ROWS_PER_TASK
            rows += ((first, b""), (first + 1, b""), (first + 2, b""))
        execution.removed = []
    if execution.posted:
        for mark in execution.posted:
            row = _FIRST_ORDER_ROW + mark * _ROWS_PER_TASK
            order, message = execution.orders.get(mark), execution.messages.get(mark)
            if message is not None:
                rows.append((row, _MESSAGE + _encode(message)))
            else:
                rows.append((row, b"" if order is None else _encode(order)))
        execution.posted = set()
    return rows


def state_rows(execution: Execution) -> list[tuple[int, bytes]]:
    """All rows of an execution but those of its tasks; nothing is taken for saved by this."""
    rows = [(HEADER_ROW, _encode(execution.header))]
    for number, part in (
        (INPUT_ROW, execution.input),
        (VARIABLES_ROW, execution.variables),
        (OUTPUT_ROW, execution.output),
        (TASK_DEFS_ROW, execution.task_defs),
    ):
        if part != payloads.EMPTY:
            rows.append((number, part))
    for mark, order in execution.orders.items():
        rows.append((_FIRST_ORDER_ROW + mark * _ROWS_PER_TASK, _encode(order)))
    for mark, message in execution.messages.items():
        rows.append((_FIRST_ORDER_ROW + mark * _ROWS_PER_TASK, _MESSAGE + _encode(message)))
    return rows


def task_rows(tasks: Iterable[Task]) -> list[tuple[int, bytes]]:
    """All rows of some tasks."""
    rows: list[tuple[int, bytes]] = []
    for task in tasks:
        _task_rows(rows, task, INPUT | OUTPUT)
    return rows


def _task_rows(rows: list[tuple[int, bytes]], task: Task, changed: int) -> None:
    number = _FIRST_TASK_ROW + task.number * _ROWS_PER_TASK
    task_input, task_output = task.input, task.output
    if len(task_input) <= _INLINE_BYTES_MAX and len(task_output) <= _INLINE_BYTES_MAX:
        rows.append((number, _encode(task)))
        return
    if len(task_input) > _INLINE_BYTES_MAX:
        task.input = _SPILLED
        if changed & INPUT:
            rows.append((number + 1, task_input))
    if len(task_output) > _INLINE_BYTES_MAX:
        task.output = _SPILLED
        if changed & OUTPUT:
            rows.append((number + 2, task_output))
    rows.append((number, _encode(task)))
    task.input, task.output = task_input, task_output


def load(
    workflow_id: WorkflowId,
    rows: Iterable[tuple[int, bytes]],
    plan_of: "Callable[[Header], Plan]",
) -> Execution:
    """The execution that was saved as `rows` (deleted ones may be among them)."""
    by_number: Mapping[int, bytes] = {number: data for number, data in rows if data}
    header = _decode_header(by_number[HEADER_ROW])
    execution = Execution(workflow_id, header, plan_of(header))
    execution.input = by_number.get(INPUT_ROW, payloads.EMPTY)
    execution.variables = by_number.get(VARIABLES_ROW, payloads.EMPTY)
    execution.output = by_number.get(OUTPUT_ROW, payloads.EMPTY)
    execution.task_defs = by_number.get(TASK_DEFS_ROW, payloads.EMPTY)
    for number in sorted(by_number):
        if _is_task(number):
            task = _task(number, by_number)
            execution.tasks[task.number] = task
        elif number >= _FIRST_ORDER_ROW and not (number - _FIRST_ORDER_ROW) % _ROWS_PER_TASK:
            mark = (number - _FIRST_ORDER_ROW) // _ROWS_PER_TASK
            data = by_number[number]
            if data.startswith(_MESSAGE):
                execution.messages[mark] = _decode_message(data[1:])
            else:
                execution.orders[mark] = _decode_order(data)
    reindex(execution, header.work)
    return execution


def tasks_in(rows: Iterable[tuple[int, bytes]]) -> list[Task]:
    """The tasks among all rows of an execution, in the order they were scheduled. An output that
    is derived while its task runs (rows of a JOIN, of a loop) is not there yet."""
    by_number = {number: data for number, data in rows if data}
    return [_task(number, by_number) for number in sorted(by_number) if _is_task(number)]


def _is_task(number: int) -> bool:
    return number >= _FIRST_TASK_ROW and not (number - _FIRST_TASK_ROW) % _ROWS_PER_TASK


def _task(number: int, by_number: Mapping[int, bytes]) -> Task:
    task = _decode_task(by_number[number])
    if task.input == _SPILLED:
        task.input = by_number[number + 1]
    if task.output == _SPILLED:
        task.output = by_number[number + 2]
    return task
