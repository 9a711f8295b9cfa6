"""FORK_JOIN_DYNAMIC: branches that come out of the input, in one of three forms (rules 145-154)."""

from typing import Any

from cluster.engine.definitions import StepReader, WorkflowTask
from cluster.engine.expressions import to_text
from cluster.engine.model import Execution, Task
from cluster.engine.plan import Branches, Node
from cluster.engine.scheduling import schedule
from cluster.engine.step import Place, Step, TaskType, WorkflowFailed, place_of
from cluster.engine.transitions import TaskStatus
from cluster.errors import ClusterError

NOT_FOLLOWED_BY_JOIN = (
    "Dynamic join definition is not followed by a join task.  Check the workflow definition."
)


def begin(step: Step, task: Task, node: Node) -> None:
    """Read the branches; those of unknown task types need their definitions looked up first."""
    branches = _branches(step, task, node)
    if node.next is None or node.next.type != "JOIN":
        raise WorkflowFailed(NOT_FOLLOWED_BY_JOIN)
    step.start(task)
    names = _names_to_freeze(step, branches)
    if not names:
        _fork(step, task, branches)
    elif step.freeze(task, tuple(names)):
        _fork_with_definitions(step, task, branches)


def on_definitions(step: Step, task: Task, node: Node) -> None:
    """All task definitions are frozen."""
    _fork_with_definitions(step, task, _branches(step, task, node))


def _fork_with_definitions(step: Step, task: Task, branches: list[dict[str, Any]]) -> None:
    frozen = step.execution.frozen_task_defs()
    for branch in branches:
        if branch.get("taskDefinition") is None and branch.get("name") in frozen:
            branch["taskDefinition"] = frozen[branch["name"]]
    _fork(step, task, branches)


def _fork(step: Step, task: Task, branches: list[dict[str, Any]]) -> None:
    parsed = _parse(branches)
    refs = [branch.task_reference_name for branch, _ in parsed]
    value = {
        "forkedTasks": refs,
        "forkedTaskDefs": [wire for _, wire in parsed],
        **step.execution.task_input(task),
    }
    value["forkedTasks"] = refs
    step.set_input(task, value)
    execution = step.execution
    execution.dynamic[task.number] = Branches(parsed)
    step.close(task, TaskStatus.COMPLETED)
    task.executed = True
    schedule_branches(step, task, 0)
    execution.release(task.scope)


def schedule_branches(step: Step, task: Task, index: int) -> None:
    """Begin the branches from `index` on, as many as this transition may, and the JOIN last."""
    execution = step.execution
    node = execution.node_of(task)
    nodes = execution.dynamic[task.number]
    refs: list[str] = execution.task_input(task)["forkedTasks"]
    place = place_of(task)
    inside = place._replace(origin=task.number)
    while index < len(refs):
        if step.budget <= 0 or step.bytes_left <= 0:
            step.later("resume", task.number, index, task.scope)
            return
        ref = refs[index]
        present = execution.by_ref.get(ref + place.suffix)
        if (
            present is not None
            and present.origin != task.number
            and present.status is not TaskStatus.SKIPPED
        ):
            raise WorkflowFailed(
                "No dynamic tasks could be created for the Workflow: "
                f"{execution.header.name}.{execution.header.version}/{execution.id}, Dynamic Fork "
                f"Task: {nodes[ref].name}/{ref} attempted to create a duplicate task reference "
                f"name: {ref}"
            )
        schedule(step, nodes[ref], inside)
        index += 1
    assert node.next is not None
    if node.next.ref + place.suffix in execution.by_ref:
        # The JOIN is to be skipped: what follows it does not wait for the branches.
        schedule(step, node.next, place)
        return
    join = step.new_task(node.next, place, type="JOIN", name="JOIN")
    joined = [_last_ref(step, nodes[ref], inside) for ref in refs]
    step.set_input(join, {**node.next.task.input_parameters, "joinOn": joined})
    step.types["JOIN"].begin(step, join, node.next)


def _last_ref(step: Step, branch: Node, place: Place) -> str:
    """What the JOIN waits for in a branch: where a SWITCH has chosen, the last step it chose."""
    execution = step.execution
    task = execution.by_ref.get(branch.ref + place.suffix)
    choose = step.types[branch.type].branch
    if task is None or choose is None:
        return branch.ref
    chosen = choose(execution, task, branch)
    if chosen is None:
        return branch.ref
    while chosen.next is not None:
        chosen = chosen.next
    return chosen.ref


def restore(execution: Execution, task: Task) -> None:
    """Have the branches of a dynamic FORK at hand again after a load."""
    definitions = execution.task_input(task).get("forkedTaskDefs")
    if definitions is not None and "forkedTasks" in execution.task_input(task):
        execution.dynamic[task.number] = Branches(definitions)


def _parse(branches: list[dict[str, Any]]) -> list[tuple[WorkflowTask, dict[str, Any]]]:
    read = StepReader().read
    try:
        return [read(branch) for branch in branches]
    except ClusterError as e:
        reason = f"Tasks could not be dynamically forked due to invalid input: {e}"
        raise WorkflowFailed(reason) from e


def _branches(step: Step, task: Task, node: Node) -> list[dict[str, Any]]:
    """The branches as WorkflowTask JSON, their own input among their inputParameters."""
    value = step.execution.task_input(task)
    inputs = value.get("forkTaskInputs")
    if isinstance(inputs, list):
        return _same_task(step, task, node, value, inputs)
    if node.task.dynamic_fork_tasks_param:
        return _listed_tasks(node, value)
    return _legacy_tasks(node, value)


def _listed_tasks(node: Node, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Form A: a list of WorkflowTasks and a map reference name → input."""
    param = node.task.dynamic_fork_tasks_param
    tasks = value.get(param or "")
    if not isinstance(tasks, list) or any(
        not isinstance(branch, dict) or branch.get("taskReferenceName") is None for branch in tasks
    ):
        raise WorkflowFailed(
            f"Input '{param}' is invalid. Cannot deserialize a list of Workflow Tasks from "
            f"'{to_text(tasks)}'"
        )
    inputs = value.get(node.task.dynamic_fork_tasks_input_param_name or "")
    if not isinstance(inputs, dict):
        raise WorkflowFailed(
            "Input to the dynamically forked tasks is not a map -> expecting a map of K,V  but "
            f"found {to_text(inputs)}"
        )
    return [_with_input(branch, inputs.get(branch["taskReferenceName"])) for branch in tasks]


def _legacy_tasks(node: Node, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Form B: {dynamicTasks: [{taskName, referenceName, type, input}]}."""
    param = node.task.dynamic_fork_join_tasks_param
    listed = value.get(param or "")
    if listed is None:
        raise WorkflowFailed(
            f"Dynamic tasks could not be created. The value of {to_text(param)} from task's input "
            f"{to_text(value)} has no dynamic tasks to be scheduled"
        )
    tasks = listed.get("dynamicTasks") if isinstance(listed, dict) else listed
    if not isinstance(tasks, list):
        tasks = []
    return [
        _with_input(
            {
                "name": branch.get("taskName"),
                "taskReferenceName": branch.get("referenceName"),
                "type": branch.get("type") or "SIMPLE",
            },
            branch.get("input"),
        )
        for branch in tasks
    ]


def _same_task(
    step: Step, task: Task, node: Node, value: dict[str, Any], inputs: list[Any]
) -> list[dict[str, Any]]:
    """Form C: one task type or workflow, many inputs."""
    workflow = value.get("forkTaskWorkflow")
    type_name = value.get("forkTaskType")
    name = value.get("forkTaskName")
    if name is None and type_name is not None and step.types[type_name].is_worker is False:
        name = type_name
    if name is None:
        name = node.ref
    version = value.get("forkTaskWorkflowVersion")
    prefix = f"_{node.ref}_{name}_" if _has_other_fork(step, task) else f"_{name}_"
    branches = []
    for i, item in enumerate(inputs):
        branch: dict[str, Any] = dict(item) if isinstance(item, dict) else {}
        branch = {key: branch[key] for key in branch if key in _TASK_KEYS}
        branch["taskReferenceName"] = f"{prefix}{i}"
        parameters = dict(item) if isinstance(item, dict) else {"input": item}
        parameters["__index"] = i
        branch["inputParameters"] = parameters
        if workflow is not None:
            branch["name"] = workflow
            branch["type"] = "SUB_WORKFLOW"
            branch["subWorkflowParam"] = {"name": workflow}
            if version is not None and str(version).isdigit():
                branch["subWorkflowParam"]["version"] = int(version)
            if isinstance(item, dict) and isinstance(item.get("taskToDomain"), dict):
                branch["subWorkflowParam"]["taskToDomain"] = item["taskToDomain"]
        else:
            branch["name"] = name
            branch["type"] = type_name or "SIMPLE"
        if node.task.optional:
            branch["optional"] = True
        branches.append(branch)
    return branches


_TASK_KEYS = frozenset(
    {
        "optional",
        "permissive",
        "retryCount",
        "startDelay",
        "asyncComplete",
        "expression",
        "evaluatorType",
    }
)
"""Fields of a WorkflowTask that an item of form C may set; all its keys are input as well."""


def _has_other_fork(step: Step, task: Task) -> bool:
    """Whether the run holds another dynamic fork already, so that short names could collide."""
    return any(number != task.number for number in step.execution.dynamic)


def _with_input(branch: dict[str, Any], own: Any) -> dict[str, Any]:
    parameters = branch.get("inputParameters")
    merged = dict(parameters) if isinstance(parameters, dict) else {}
    if isinstance(own, dict):
        merged.update(own)
    elif own is not None:
        raise WorkflowFailed(
            "Tasks could not be dynamically forked due to invalid input: "
            f"expected a map, found {to_text(own)}"
        )
    return {**branch, "inputParameters": merged}


def _names_to_freeze(step: Step, branches: list[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for branch in branches:
        _collect(step, branch, names)
    return list(names)


def _collect(step: Step, branch: Any, names: dict[str, None]) -> None:
    """Names of worker tasks without a definition of their own, nested ones included."""
    if not isinstance(branch, dict):
        return
    type_name = branch.get("type") or "SIMPLE"
    name = branch.get("name")
    if isinstance(name, str) and branch.get("taskDefinition") is None:
        if step.types[type_name].is_worker or type_name in ("SIMPLE", "SUB_WORKFLOW"):
            names[name] = None
    for inner in _inner(branch):
        _collect(step, inner, names)


def _inner(branch: dict[str, Any]) -> list[Any]:
    inner: list[Any] = []
    cases = branch.get("decisionCases")
    if isinstance(cases, dict):
        for tasks in cases.values():
            inner += tasks if isinstance(tasks, list) else []
    for key in ("defaultCase", "loopOver"):
        tasks = branch.get(key)
        inner += tasks if isinstance(tasks, list) else []
    for tasks in branch.get("forkTasks") or []:
        inner += tasks if isinstance(tasks, list) else []
    return inner


TYPE = TaskType(begin=begin, on_definitions=on_definitions, shown_as="FORK", retries=False)
