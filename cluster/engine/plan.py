"""A definition compiled once: what follows what, parsed templates, what each step needs to run."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.engine import payloads
from cluster.engine.definitions import (
    StepReader,
    TaskDef,
    WorkflowDef,
    WorkflowTask,
    parse_task_def,
    parse_workflow_def,
)
from cluster.engine.expressions import Template, compile_template
from cluster.engine.schemas import input_check, output_check

BRANCHING = frozenset({"SWITCH", "DECISION"})
"""Steps that are over before their branch runs: what ends a branch goes on behind the step."""


class Node:
    """One step of a definition, wired to its neighbours. Only what it keeps at hand changes."""

    __slots__ = (
        "_template",
        "body",
        "branches",
        "cases",
        "compiled",
        "default_case",
        "defaults",
        "definition",
        "fragment",
        "loop",
        "name",
        "next",
        "parent",
        "ref",
        "task",
        "type",
        "wire",
    )

    def __init__(
        self,
        task: WorkflowTask,
        wire: dict[str, Any],
        *,
        parent: "Node | None",
        loop: "Node | None",
    ) -> None:
        self.task = task
        self.wire = wire
        self.ref = task.task_reference_name
        self.name = task.name
        self.type = task.type
        self.parent = parent
        """The step whose branch this one stands in; None at the top."""
        self.loop = loop
        """The innermost DO_WHILE around it."""
        self.next: Node | None = None
        self._template: Template | None = None
        self.definition: TaskDef | None = task.task_definition
        self.defaults: Template | None = None
        """The task definition's inputTemplate."""
        if self.definition is not None and self.definition.input_template:
            self.defaults = compile_template(self.definition.input_template)
        self.cases: dict[str, Node | None] = {}
        self.default_case: Node | None = None
        self.branches: list[Node] = []
        self.body: Node | None = None
        self.fragment: bytes | None = None
        """The step as clients see it in a task, encoded when first needed (node/wire.py)."""
        self.compiled: dict[str, Any] = {}
        """What a task type parsed out of the step, kept for the next time."""

    @property
    def template(self) -> Template:
        """Its inputParameters, parsed when they are first needed: a run with thousands of dynamic
        branches that is only read back needs none of them."""
        template = self._template
        if template is None:
            template = self._template = compile_template(self.task.input_parameters)
        return template


class Plan:
    """The compiled snapshot of one definition."""

    __slots__ = (
        "body",
        "check_input",
        "check_output",
        "definition",
        "first",
        "hash",
        "nodes",
        "outputs",
        "size_bytes",
    )

    def __init__(self, snapshot_hash: str, body: bytes) -> None:
        self.hash = snapshot_hash
        self.body = body
        """The definition as JSON, as it stands in an execution."""
        wire = payloads.load(body)
        self.definition: WorkflowDef
        self.definition, _ = parse_workflow_def(wire)
        self.nodes: dict[str, Node] = {}
        self.first = wire_sequence(
            self.nodes, self.definition.tasks, wire["tasks"], parent=None, loop=None
        )
        self.outputs = compile_template(self.definition.output_parameters)
        enforced = self.definition.enforce_schema
        self.check_input = input_check(self.definition.input_schema, enforced=enforced)
        self.check_output = output_check(self.definition.output_schema, enforced=enforced)
        self.size_bytes = len(body) * 8
        """What it weighs in a cache: a rough guess, parsed JSON is several times its text."""


class Branches(dict[str, Node]):
    """The steps of a dynamic fork's branches by reference name, wired when they are first needed:
    neither a fork nor a load wires thousands of them in one go."""

    def __init__(
        self,
        branches: "list[tuple[WorkflowTask, dict[str, Any]]] | list[dict[str, Any]]",
    ) -> None:
        """Each is one step, which may hold others: read already, or as JSON in full."""
        super().__init__()
        self._read = StepReader().read
        self._unwired: dict[str, tuple[WorkflowTask | None, dict[str, Any]]] = {}
        for branch in branches:
            task, wire = branch if isinstance(branch, tuple) else (None, branch)
            if any(wire.get(key) for key in _HOLDING):
                # The names inside have to be found as well.
                self._wire(task, wire)
            else:
                self._unwired[wire["taskReferenceName"]] = task, wire

    def __missing__(self, ref: str) -> Node:
        self._wire(*self._unwired.pop(ref))
        return self[ref]

    def _wire(self, task: WorkflowTask | None, wire: dict[str, Any]) -> None:
        if task is None:
            task, wire = self._read(wire)
        wire_sequence(self, [task], [wire], parent=None, loop=None)


_HOLDING = ("decisionCases", "defaultCase", "forkTasks", "loopOver")


def wire_sequence(
    nodes: dict[str, Node],
    tasks: "list[WorkflowTask] | tuple[WorkflowTask, ...]",
    wires: list[dict[str, Any]],
    *,
    parent: Node | None,
    loop: Node | None,
) -> Node | None:
    """Wire steps that run one after the other into `nodes`; returns the first."""
    first: Node | None = None
    before: Node | None = None
    for task, wire in zip(tasks, wires, strict=True):
        node = Node(task, wire, parent=parent, loop=loop)
        nodes[node.ref] = node
        if before is None:
            first = node
        else:
            before.next = node
        before = node
        _wire_inner(nodes, node)
    return first


def _wire_inner(nodes: dict[str, Node], node: Node) -> None:
    task, wire, loop = node.task, node.wire, node.loop
    for case, tasks in task.decision_cases.items():
        node.cases[case] = wire_sequence(
            nodes, tasks, wire["decisionCases"][case], parent=node, loop=loop
        )
    if task.default_case:
        node.default_case = wire_sequence(
            nodes, task.default_case, wire["defaultCase"], parent=node, loop=loop
        )
    for i, tasks in enumerate(task.fork_tasks):
        first = wire_sequence(nodes, tasks, wire["forkTasks"][i], parent=node, loop=loop)
        if first is not None:
            node.branches.append(first)
    if task.loop_over:
        node.body = wire_sequence(nodes, task.loop_over, wire["loopOver"], parent=node, loop=node)


def following(node: Node) -> Node | None:
    """The step after `node`, looking up through the branches that end with it."""
    step: Node | None = node
    while step is not None:
        if step.next is not None:
            return step.next
        step = step.parent if step.parent is not None and step.parent.type in BRANCHING else None
    return None


def inner_nodes(node: Node | None) -> Iterator[Node]:
    """A sequence of steps and all that stands inside them."""
    while node is not None:
        yield node
        for first in (*node.cases.values(), node.default_case, *node.branches, node.body):
            yield from inner_nodes(first)
        node = node.next


def task_definitions(extra: Mapping[str, Any]) -> dict[str, TaskDef]:
    """Parse the task definitions that an execution froze at run time (dynamic steps)."""
    return {name: parse_task_def(wire)[0] for name, wire in extra.items()}
