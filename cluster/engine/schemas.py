"""JSON Schemas of definitions: checked when they are registered, enforced while runs go on.

Only schemas that stand in the definition itself (type JSON, `data`) are enforced; AVRO, PROTOBUF
and an `externalRef` alone are stored and shown. No reference is ever fetched, from no network and
no file: a schema that needs one is no valid schema here.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from cluster.engine import payloads
from cluster.engine.definitions import SchemaDef, TaskDef
from cluster.engine.schema_faults import explain, parts_at, shortened

if TYPE_CHECKING:
    from cluster.engine.plan import Node

Check = Callable[[Any], str | None]
"""What is wrong with a value, None if it fits."""

_BACKTRACK_MAX = 100_000
"""Steps a pattern may take to no avail: such a pattern must not hold up all other workflows."""

_UNFOLDED_MAX = 100_000
"""Subschemas with every reference written out: what one value may have to be held against."""

_DEPTH_MAX = 300
"""Parts inside parts, references written out."""


def input_check(schema: SchemaDef | None, *, enforced: bool) -> Check | None:
    """How an input is checked; None if nothing is asked of it."""
    return _check(schema, "input") if enforced else None


def output_check(schema: SchemaDef | None, *, enforced: bool) -> Check | None:
    """How an output is checked; None if nothing is asked of it."""
    return _check(schema, "output") if enforced else None


def task_checks(node: "Node", definition: TaskDef | None) -> tuple[Check | None, Check | None]:
    """How the input and the output of a task are checked that follows this definition."""
    if definition is None or not definition.enforce_schema:
        return None, None
    own = definition is node.definition
    checks: tuple[Check | None, Check | None] | None = node.compiled.get("checks") if own else None
    if checks is None:
        checks = (
            _check(definition.input_schema, "input"),
            _check(definition.output_schema, "output"),
        )
        if own:
            node.compiled["checks"] = checks
    return checks


def schema_fault(schema: Mapping[str, Any] | None) -> str | None:
    """Why a SchemaDef (JSON form) cannot be enforced though it asks for it, None if it can."""
    if schema is None or schema.get("type", "JSON") != "JSON" or schema.get("data") is None:
        return None
    return _compiled(payloads.dump(schema["data"]))[1]


def _check(schema: SchemaDef | None, root: str) -> Check | None:
    if schema is None or (schema.type or "JSON") != "JSON" or schema.data is None:
        return None
    data = schema.data
    validator, fault = _compiled(payloads.dump(data))
    label = f"{root} does not fit its schema"
    if schema.name:
        label += f" {schema.name} (version {schema.version})"
    if validator is None:
        # Registration refuses it, but a definition that came out of a run was never registered.
        return lambda _: f"{label}, which is no valid JSON Schema: {fault}"

    def check(value: Any) -> str | None:
        try:
            if validator.is_valid(value):
                return None
            fault = explain(data, value, root)
        except ValueError as error:
            # Nested deeper than the validator goes.
            fault = f"{root}: {error}"
        return f"{label}: {fault}"

    return check


@lru_cache(maxsize=256)
def _compiled(schema: bytes) -> tuple[jsonschema_rs.Validator | None, str | None]:
    """The validator of a schema, or what is wrong with the schema."""
    data = payloads.load(schema)
    try:
        validator = jsonschema_rs.validator_for(
            data,
            offline=True,
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACK_MAX),
        )
    except jsonschema_rs.ValidationError as error:
        where = "".join(f".{part}" for part in error.instance_path)
        return None, shortened(f"{where.removeprefix('.')}: {error.message}".removeprefix(": "))
    except ValueError as error:
        return None, shortened(str(error))
    if _unfolded(data, data, {}, 0) > _UNFOLDED_MAX:
        return None, "it refers to itself so often that checking a value could take for ever"
    return validator, None


def _unfolded(part: Any, whole: Any, known: dict[str, int], depth: int) -> int:
    """How many parts a schema has once its references are written out; recursive ones count 1."""
    if depth > _DEPTH_MAX:
        return _UNFOLDED_MAX + 1
    count = 1
    if isinstance(part, dict):
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            if reference not in known:
                known[reference] = 1
                known[reference] = _unfolded(parts_at(whole, reference), whole, known, depth + 1)
            count += known[reference]
        for key, value in part.items():
            if key not in _DEFINITIONS:
                count += _unfolded(value, whole, known, depth + 1)
    elif isinstance(part, list):
        for value in part:
            count += _unfolded(value, whole, known, depth + 1)
    return count


_DEFINITIONS = frozenset({"definitions", "$defs", "enum", "const", "default", "examples"})
"""What stands here is checked only where something refers to it, or never."""
