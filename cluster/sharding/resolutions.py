"""Definitions that were found: answers to the effects that asked, inputs as they want them."""

from typing import Any, Protocol

from cluster.engine import payloads
from cluster.engine.definitions import Snapshot
from cluster.engine.effects import ResolveSubWorkflow
from cluster.engine.events import FailureWorkflowResolved, SubWorkflowResolved
from cluster.engine.plan import Plan


class Found(Protocol):
    """A frozen definition, and what it was made of."""

    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...


class Definitions(Protocol):
    """What shards need of the metadata."""

    def snapshot_cached(self, name: str, version: int | None) -> Found | None:
        """A registered definition, frozen, if that takes no look into a store."""


def resolved(
    effect: ResolveSubWorkflow, found: Found, plan: Plan, at_ms: int
) -> SubWorkflowResolved:
    """The answer to ResolveSubWorkflow."""
    if plan.check_input is not None:
        fault = input_fault(plan, with_template(plan, payloads.dump_map(effect.input)))
        if fault is not None:
            return SubWorkflowResolved(
                at_ms, effect.number, effect.token, name=found.name, error=fault, refused=True
            )
    return SubWorkflowResolved(
        at_ms,
        effect.number,
        effect.token,
        snapshot=found.snapshot.hash,
        name=found.name,
        version=found.version,
    )


def failure_resolved(found: Found, at_ms: int) -> FailureWorkflowResolved:
    """The answer to ResolveFailureWorkflow."""
    return FailureWorkflowResolved(
        at_ms, snapshot=found.snapshot.hash, name=found.name, version=found.version
    )


def input_fault(plan: Plan, encoded: bytes) -> str | None:
    """Why no run of this definition may start with an input, None if one may."""
    if plan.check_input is None:
        return None
    fault = plan.check_input(payloads.load(encoded))
    return None if fault is None else f"Workflow {plan.definition.name}: {fault}"


def with_template(plan: Plan, encoded: bytes) -> bytes:
    """The input of a run with its definition's inputTemplate filled in (rule 38)."""
    template: dict[str, Any] = plan.definition.input_template
    if not template or encoded == payloads.EMPTY:
        return encoded
    given: dict[str, Any] = payloads.load(encoded)
    if not given:
        return encoded
    # A null counts as absent, as in Conductor.
    filled = {key: value for key, value in template.items() if given.get(key) is None}
    return payloads.dump({**given, **filled})
