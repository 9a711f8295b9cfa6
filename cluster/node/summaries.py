"""What the stores are told of a workflow beside its rows: open or not, due when, searchable as."""

from collections.abc import Sequence

from cluster.engine.rows import decode_header
from cluster.engine.transitions import OPEN_WORKFLOW
from cluster.ids import WorkflowId, is_schedule
from cluster.sharding.checkpoint import Described
from cluster.store.ports import OpenEntry, Summary


def describe_replayed(workflow_id: WorkflowId, encoded: bytes) -> Described:
    """Read a header row that a dead process wrote last: nobody knows which effects it issued."""
    return describe(workflow_id, encoded, may_lack_effects=True)


def describe(
    workflow_id: WorkflowId,
    encoded: bytes,
    *,
    may_lack_effects: bool = False,
    was_open: bool = True,
    failed: tuple[Sequence[str], Sequence[str]] = ((), ()),
    bundle: int | None = None,
) -> Described:
    """Read a header row. `may_lack_effects`: not all that this workflow has asked for so far has
    reached its queue, or been answered: whoever owns it next has to issue it again. `was_open`
    and `bundle` are those of `Described`. `failed`: reference names and names of its failed
    tasks."""
    header = decode_header(encoded)
    # A run that has ended may still have tasks to cancel, a failure workflow to start, or orders
    # that no other shard has acknowledged.
    is_on_its_way = bool(header.failure_workflow == "?" or header.work or header.orders)
    entry = OpenEntry(
        workflow_id,
        next_due_ms=header.due_ms or None,
        has_unfinished_effects=may_lack_effects or is_on_its_way,
    )
    if is_schedule(workflow_id):
        # No workflow: it has a list of its own.
        return Described(open=entry, summary=None, was_open=was_open)
    parent_id = header.parent_id
    return Described(
        open=entry if is_on_its_way or header.status in OPEN_WORKFLOW else None,
        summary=Summary(
            workflow_id=workflow_id,
            name=header.name,
            version=header.version,
            status=header.status.value,
            start_ms=header.create_ms,
            update_ms=header.update_ms,
            end_ms=header.end_ms,
            correlation_id=header.correlation_id,
            parent_workflow_id=None if parent_id is None else WorkflowId(parent_id),
            priority=header.priority,
            reason=header.reason or None,
            event=header.event,
            created_by=header.created_by or None,
            idempotency_key=header.idempotency_key,
            failed_reference_task_names=tuple(failed[0]),
            failed_task_names=tuple(failed[1]),
        ),
        was_open=was_open,
        bundle=bundle,
    )
