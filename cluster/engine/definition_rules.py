"""The rules a definition has to keep to be registered, in the words of Conductor's answers.

They work on the JSON form that `definitions.parse_...` returns: it tells a name that is missing
from one that is empty, and so do the answers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.engine.definitions import steps_of
from cluster.engine.schemas import schema_fault
from cluster.engine.wait_times import duration_seconds, until_ms
from cluster.errors import Violation

CheckJavascript = Callable[[str], str | None]
"""Text of the syntax error in a script, or None."""

_PREDEFINED = frozenset({"CPEWF_TASK_ID", "NETFLIX_ENV", "NETFLIX_STACK"})
_REFERENCE_EDGE = re.compile(r"(?=(?<!\$)\$\{)|(?<=\})")
_BRACKETS = re.compile(
    r"""\[(?:
        \* | -?\d+(?:,-?\d+)* | -?\d*:-?\d*(?::-?\d*)?
        | '(?:[^'\\]|\\.)*'(?:,'(?:[^'\\]|\\.)*')* | "(?:[^"\\]|\\.)*"(?:,"(?:[^"\\]|\\.)*")*
    )\]""",
    re.VERBOSE | re.ASCII,
)


def check_workflow_def(
    definition: Mapping[str, Any],
    *,
    path: str,
    check_javascript: CheckJavascript,
    owner_email_required: bool = False,
) -> list[Violation]:
    """All broken rules of a workflow definition (JSON form), each once.

    `path` is where it stands in the request: "registerWorkflowDef.arg0".
    """
    found = list(_name_rules(definition, "WorkflowDef name", f"{path}.name"))
    if not definition["tasks"]:
        found.append(Violation(f"{path}.tasks", "WorkflowTask list cannot be empty"))
    if (schema_version := definition["schemaVersion"]) != 2:
        message = "workflowDef schemaVersion: 2 is only supported"
        found.append(Violation(f"{path}.schemaVersion", message, str(schema_version)))
    if owner_email_required:
        found += _owner_rules(definition, path)
    for i, task in enumerate(definition["tasks"]):
        found += _step_rules(task, f"{path}.tasks[{i}]", check_javascript)
    found += _reference_rules(definition, path)
    found += _schema_rules(definition, path)
    for task in steps_of(definition["tasks"]):
        for fault in _schema_rules(task.get("taskDefinition") or {}, "taskDefinition"):
            where = f"{fault.path} of {task.get('taskReferenceName', 'null')}"
            found.append(Violation(path, f"{where}: {fault.message}"))
    return list(dict.fromkeys(found))


def check_task_def(
    definition: Mapping[str, Any], *, path: str, owner_email_required: bool = False
) -> list[Violation]:
    """All broken rules of a task definition (JSON form); `path` as in "registerTaskDef.arg0[0]"."""
    found = list(_name_rules(definition, "TaskDef name", f"{path}.name"))
    if owner_email_required:
        found += _owner_rules(definition, path)
    for field in (
        "retryCount",
        "pollTimeoutSeconds",
        "maxRetryDelaySeconds",
        "backoffJitterMs",
        "totalTimeoutSeconds",
    ):
        if (value := definition.get(field, 0)) < 0:
            message = f"TaskDef {field}: 0 must be >= 0"
            found.append(Violation(f"{path}.{field}", message, str(value)))
    if (scale := definition["backoffScaleFactor"]) < 1:
        message = "Backoff scale factor. Applicable for LINEAR_BACKOFF"
        found.append(Violation(f"{path}.backoffScaleFactor", message, str(scale)))
    response, timeout = definition["responseTimeoutSeconds"], definition["timeoutSeconds"]
    if response < 1:
        message = f"TaskDef responseTimeoutSeconds: {response} should be minimum 1 second"
        found.append(Violation(f"{path}.responseTimeoutSeconds", message, str(response)))
    label = f"TaskDef: {definition.get('name', 'null')}"
    if 0 < timeout < response:
        message = (
            f"{label} responseTimeoutSeconds: {response} must be less than"
            f" timeoutSeconds: {timeout}"
        )
        found.append(Violation(path, message))
    if 0 < (total := definition["totalTimeoutSeconds"]) < timeout:
        message = (
            f"{label} timeoutSeconds: {timeout} must be less than or equal to"
            f" totalTimeoutSeconds: {total}"
        )
        found.append(Violation(path, message))
    return [*found, *_schema_rules(definition, path)]


def _schema_rules(definition: Mapping[str, Any], path: str) -> Iterator[Violation]:
    """Not Conductor's: it stores schemas and ignores them, so any text passes for one."""
    for field in ("inputSchema", "outputSchema"):
        fault = schema_fault(definition.get(field))
        if fault is not None:
            message = f"{field} is not a valid JSON Schema: {fault}"
            yield Violation(f"{path}.{field}.data", message)


def _name_rules(definition: Mapping[str, Any], field: str, path: str) -> Iterator[Violation]:
    name = definition.get("name")
    if not name:
        yield Violation(path, f"{field} cannot be null or empty", name)


def _owner_rules(definition: Mapping[str, Any], path: str) -> Iterator[Violation]:
    owner = definition.get("ownerEmail")
    if not owner:
        yield Violation(f"{path}.ownerEmail", "ownerEmail cannot be empty", owner)


def _step_rules(
    task: Mapping[str, Any], path: str, check_javascript: CheckJavascript
) -> Iterator[Violation]:
    """Rules of one step and the steps that stand in it, whether its type uses them or not.

    Conductor does not look at the steps of a loop here, nor into inline sub-workflows.
    """
    if not (name := task.get("name")):
        yield Violation(f"{path}.name", "WorkflowTask name cannot be empty or null", name)
    if not (reference := task.get("taskReferenceName")):
        message = "WorkflowTask taskReferenceName name cannot be empty or null"
        yield Violation(f"{path}.taskReferenceName", message, reference)
    if (delay := task["startDelay"]) < 0:
        message = "must be greater than or equal to 0"
        yield Violation(f"{path}.startDelay", message, str(delay))
    rules = _TYPE_RULES.get(task["type"])
    if rules is not None:
        for message in rules(task, task.get("name", "null"), check_javascript):
            yield Violation(path, message)
    for case, tasks in task["decisionCases"].items():
        for i, inner in enumerate(tasks):
            where = f"{path}.decisionCases[{case}].<map value>[{i}]"
            yield from _step_rules(inner, where, check_javascript)
    for i, inner in enumerate(task["defaultCase"]):
        yield from _step_rules(inner, f"{path}.defaultCase[{i}]", check_javascript)
    for i, branch in enumerate(task["forkTasks"]):
        for j, inner in enumerate(branch):
            where = f"{path}.forkTasks[{i}].<list element>[{j}]"
            yield from _step_rules(inner, where, check_javascript)


_ROUND = re.compile(r"__\d+$")


def _reference_rules(definition: Mapping[str, Any], path: str) -> Iterator[Violation]:
    """Reference names are unique, carry no loop suffix, and inputs name only those there are."""
    references: set[str] = set()
    has_loop = any(task.get("type") == "DO_WHILE" for task in steps_of(definition["tasks"]))
    for task in steps_of(definition["tasks"]):
        reference = task.get("taskReferenceName", "null")
        if reference in references:
            yield Violation(
                path,
                f"taskReferenceName: {reference} should be unique across tasks for a given"
                f" workflowDefinition: {definition.get('name', 'null')}",
            )
        references.add(reference)
        if has_loop and _ROUND.search(reference):
            # Conductor takes it, and then mistakes what follows for the round of a loop.
            yield Violation(
                path,
                f"taskReferenceName: {reference} must not end in '__' and a number,"
                " which marks the rounds of a loop",
            )
    for task in definition["tasks"]:
        for message in _input_rules(task, references):
            yield Violation(path, message)


def _input_rules(task: Mapping[str, Any], references: set[str]) -> Iterator[str]:
    # A stack instead of recursion: how deep users nest their data is not bounded.
    left = list(task["inputParameters"].items())
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += ((key, item) for item in value)
        elif isinstance(value, str) and "${" in value:
            for piece in _REFERENCE_EDGE.split(value):
                if piece.startswith("${") and piece.endswith("}"):
                    yield from _reference_in_input(piece[2:-1], key, value, task, references)


def _reference_in_input(
    inner: str, key: str, value: str, task: Mapping[str, Any], references: set[str]
) -> Iterator[str]:
    if inner in _PREDEFINED:
        return
    if not is_path(inner):
        yield f"key: {key} input parameter value: {inner} is not valid"
        return
    root = inner.split(".", maxsplit=1)[0]
    if root != "workflow" and root not in references:
        yield (
            f"taskReferenceName: {root} for given task: {task.get('name', 'null')} input value:"
            f" {key} of input parameter: {value} is not defined in workflow definition."
        )


def is_path(text: str) -> bool:
    """Whether Conductor would take the text for a path into a workflow's data."""
    if not text or text.endswith(".") or any(character.isspace() for character in text):
        return False
    i = 0
    while i < len(text):
        if text.startswith("...", i):
            return False
        if text[i] == "(":
            end = _closing(text, i)
        elif text.startswith("[?(", i):
            end = _closing(text, i + 2)
            # A filter with nothing in it is none.
            end = end + 1 if i + 3 < end and text.startswith("]", end + 1) else -1
        elif text[i] == "[" and i + 1 < len(text):
            brackets = _BRACKETS.match(text, i)
            end = brackets.end() - 1 if brackets else -1
        else:
            end = i
        if end < 0:
            return False
        i = end + 1
    return True


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` is closed, quoted text apart; -1 if nowhere."""
    depth, quote = 0, ""
    for i in range(start, len(text)):
        character = text[i]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
            if depth == 0:
                return i
    return -1


# What each type asks for: the step, its name in the messages, the check of scripts.
TypeRule = Callable[[Mapping[str, Any], str, CheckJavascript], Iterator[str]]


def _required(field: str, task: Mapping[str, Any], name: str) -> str:
    return f"{field} field is required for taskType: {task['type']} taskName: {name}"


def _at_least_one(field: str, task: Mapping[str, Any], name: str) -> str:
    return f"{field} should have atleast one task for taskType: {task['type']} taskName: {name}"


def _needs(field: str) -> TypeRule:
    def rule(task: Mapping[str, Any], name: str, _: CheckJavascript) -> Iterator[str]:
        if field not in task:
            yield _required(field, task, name)

    return rule


def _needs_input(field: str, *or_else: str, label: str) -> TypeRule:
    """An input parameter, or a default for the first of them in the step's own TaskDef."""

    def rule(task: Mapping[str, Any], name: str, _: CheckJavascript) -> Iterator[str]:
        template = task.get("taskDefinition", {}).get("inputTemplate", {})
        if field not in template and not {field, *or_else} & task["inputParameters"].keys():
            yield _required(label, task, name)

    return rule


def _script_rule(
    script: str, task: Mapping[str, Any], name: str, check_javascript: CheckJavascript
) -> Iterator[str]:
    error = check_javascript(script)
    if error is not None:
        kind = task["type"]
        yield f"Expression is not well formatted: {error}, taskType: {kind} taskName {name}"


def _decision(
    task: Mapping[str, Any], name: str, check_javascript: CheckJavascript
) -> Iterator[str]:
    if "caseExpression" in task:
        yield from _script_rule(task["caseExpression"], task, name, check_javascript)
    elif "caseValueParam" not in task:
        yield _required("caseValueParam or caseExpression", task, name)
    if not task["decisionCases"]:
        yield _at_least_one("decisionCases", task, name)


def _switch(task: Mapping[str, Any], name: str, check_javascript: CheckJavascript) -> Iterator[str]:
    if "evaluatorType" not in task:
        yield _required("evaluatorType", task, name)
    elif "expression" not in task:
        yield _required("expression", task, name)
    elif task["evaluatorType"] == "javascript":
        yield from _script_rule(task["expression"], task, name, check_javascript)
    if not task["decisionCases"]:
        yield _at_least_one("decisionCases", task, name)


def _fork_join(task: Mapping[str, Any], name: str, _: CheckJavascript) -> Iterator[str]:
    if not task["forkTasks"]:
        yield _at_least_one("forkTasks", task, name)


def _fork_join_dynamic(task: Mapping[str, Any], name: str, _: CheckJavascript) -> Iterator[str]:
    if "forkTaskInputs" in task["inputParameters"]:
        return
    pair = ("dynamicForkTasksInputParamName", "dynamicForkTasksParam")
    if "dynamicForkJoinTasksParam" not in task:
        for field in pair:
            if field not in task:
                yield _required(field, task, name)
    elif any(field in task for field in pair):
        yield (
            "dynamicForkJoinTasksParam or combination of dynamicForkTasksInputParamName and"
            f" dynamicForkTasksParam cam be used for taskType: FORK_JOIN_DYNAMIC taskName: {name}"
        )


def _do_while(task: Mapping[str, Any], name: str, _: CheckJavascript) -> Iterator[str]:
    if "loopCondition" not in task:
        yield _required("loopCondition", task, name)
    if not task["loopOver"]:
        yield _required("loopOver", task, name)


def _terminate(task: Mapping[str, Any], name: str, _: CheckJavascript) -> Iterator[str]:
    if task["optional"]:
        yield f"terminate task cannot be optional, taskName: {name}"
    status = task["inputParameters"].get("terminationStatus")
    if status not in ("COMPLETED", "FAILED", "TERMINATED"):
        yield (
            "terminate task must have an terminationStatus parameter and must be set to COMPLETED"
            f" or FAILED, taskName: {name}"
        )


def _wait(task: Mapping[str, Any], _name: str, _: CheckJavascript) -> Iterator[str]:
    duration = _literal(task["inputParameters"].get("duration"))
    until = _literal(task["inputParameters"].get("until"))
    if duration and until:
        yield "Both 'duration' and 'until' specified. Please provide only one input"
    if duration:
        if not duration.startswith("${") and duration_seconds(duration) is None:
            yield "Either date or duration is passed as null "
    elif until and not until.startswith("${") and until_ms(until) is None:
        yield "Unable to parse date "


def _literal(value: Any) -> str:
    """An input of WAIT as text; "" if there is none worth the name."""
    text = "" if value is None else str(value)
    return "" if text.isspace() else text


_TYPE_RULES: dict[str, TypeRule] = {
    "EVENT": _needs("sink"),
    "DYNAMIC": _needs("dynamicTaskNameParam"),
    "SUB_WORKFLOW": _needs("subWorkflowParam"),
    "HTTP": _needs_input(
        "http_request",
        "uri",
        "method",
        label="inputParameters.http_request or inputParameters.uri",
    ),
    "KAFKA_PUBLISH": _needs_input("kafka_request", label="inputParameters.kafka_request"),
    "JSON_JQ_TRANSFORM": _needs_input("queryExpression", label="inputParameters.queryExpression"),
    "DECISION": _decision,
    "SWITCH": _switch,
    "FORK_JOIN": _fork_join,
    "FORK_JOIN_DYNAMIC": _fork_join_dynamic,
    "DO_WHILE": _do_while,
    "TERMINATE": _terminate,
    "WAIT": _wait,
}
