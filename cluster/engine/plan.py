"""A definition compiled once: what follows what, parsed templates, what each step needs to run."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.engine import payloads
from cluster.engine.definitions import (
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
    """One step of a definition, wired to its neighbours. Immutable once its plan is built."""

    __slots__ = (
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
        "template",
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
        self.template: Template = compile_template(task.input_parameters)
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


def dynamic_nodes(tasks: list[tuple[WorkflowTask, dict[str, Any]]]) -> dict[str, Node]:
    """Wire the branches of a dynamic fork: each is one step, which may hold others."""
    nodes: dict[str, Node] = {}
    for task, wire in tasks:
        wire_sequence(nodes, [task], [wire], parent=None, loop=None)
    return nodes


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
