"""Statuses of workflows and tasks, and which may follow which, as tables."""

from enum import StrEnum


class TaskStatus(StrEnum):
    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    COMPLETED_WITH_ERRORS = "COMPLETED_WITH_ERRORS"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    FAILED_WITH_TERMINAL_ERROR = "FAILED_WITH_TERMINAL_ERROR"
    TIMED_OUT = "TIMED_OUT"
    CANCELED = "CANCELED"


class WorkflowStatus(StrEnum):
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    TERMINATED = "TERMINATED"


_T = TaskStatus
_W = WorkflowStatus

OPEN_TASK = frozenset({_T.SCHEDULED, _T.IN_PROGRESS})
SUCCESSFUL_TASK = frozenset({_T.COMPLETED, _T.COMPLETED_WITH_ERRORS, _T.SKIPPED})
UNSUCCESSFUL_TASK = frozenset({_T.FAILED, _T.FAILED_WITH_TERMINAL_ERROR, _T.TIMED_OUT, _T.CANCELED})
FAILED_TASK = frozenset({_T.FAILED, _T.FAILED_WITH_TERMINAL_ERROR})
NOT_RETRIABLE = frozenset({_T.CANCELED, _T.FAILED_WITH_TERMINAL_ERROR, _T.SKIPPED})

OPEN_WORKFLOW = frozenset({_W.RUNNING, _W.PAUSED})

NEXT_TASK_STATUS: dict[TaskStatus, frozenset[TaskStatus]] = {
    _T.SCHEDULED: frozenset(_T) - {_T.SKIPPED},
    _T.IN_PROGRESS: frozenset(_T) - {_T.SKIPPED},
    # What ended on its own account may still be forgiven by `optional`; all else is for commands.
    _T.FAILED: frozenset({_T.COMPLETED_WITH_ERRORS}),
    _T.FAILED_WITH_TERMINAL_ERROR: frozenset({_T.COMPLETED_WITH_ERRORS}),
    _T.TIMED_OUT: frozenset({_T.COMPLETED_WITH_ERRORS}),
    _T.CANCELED: frozenset({_T.COMPLETED_WITH_ERRORS}),
    **dict.fromkeys((_T.COMPLETED, _T.COMPLETED_WITH_ERRORS, _T.SKIPPED), frozenset()),
}
"""What a task may become by itself. Operator commands (control.py) may reopen what ended."""

NEXT_WORKFLOW_STATUS: dict[WorkflowStatus, frozenset[WorkflowStatus]] = {
    _W.RUNNING: frozenset(_W),
    _W.PAUSED: frozenset(_W),
    _W.COMPLETED: frozenset({_W.RUNNING}),
    _W.FAILED: frozenset({_W.RUNNING, _W.TERMINATED}),
    _W.TIMED_OUT: frozenset({_W.RUNNING, _W.TERMINATED}),
    _W.TERMINATED: frozenset({_W.RUNNING}),
}
"""What a workflow may become; the step from an ended status back to RUNNING needs a command."""
