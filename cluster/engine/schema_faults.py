"""Says in one line where a value breaks a JSON Schema, and what was expected there.

The validator itself could list all faults, but what it lists grows beyond all bounds where
alternatives refer to each other. So the first fault is looked for level by level, asking the
validator only whether a part fits.
"""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

_LEVELS_MAX = 600
_TEXT_MAX = 300
_URI = "urn:podium:schema"

_LOCAL = frozenset(
    """
    type enum const format multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength
    minLength pattern maxItems minItems uniqueItems maxProperties minProperties required
    """.split()
)
"""Keywords that look at a value without a schema for what is in it."""

_COMPOUND = (
    *("anyOf", "oneOf", "not", "if", "contains", "propertyNames", "patternProperties"),
    *("dependencies", "dependentSchemas", "dependentRequired", "additionalItems"),
    *("unevaluatedProperties", "unevaluatedItems", "$ref", "$dynamicRef", "$recursiveRef"),
)


def explain(schema: dict[str, Any], value: Any, root: str) -> str:
    """`input.items[2].n: "one" is not of type "number"`, of a value that breaks a valid schema."""
    validators = _Validators(schema)
    pointer, where = "#", root
    part: Any = schema
    try:
        for _ in range(_LEVELS_MAX):
            part = parts_at(schema, pointer)
            for below, step, inner in _below(part, pointer, value):
                if not validators.fits(below, inner):
                    pointer, where, value = below, where + step, inner
                    break
            else:
                break
    except ValueError:
        # References in a form that only the whole schema resolves: the level above has to do.
        pass
    return f"{shortened(where)}: {shortened(_local_fault(schema, part, value))}"


def parts_at(schema: Any, pointer: str) -> Any:
    """What stands at a JSON pointer ("#/definitions/a"); None if there is nothing."""
    part = schema
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list):
            part = part[int(key)] if key.isdigit() and int(key) < len(part) else None
        else:
            part = part.get(key) if isinstance(part, dict) else None
    return part


def shortened(text: str) -> str:
    """At most a few hundred characters: the value comes first, what was expected comes last."""
    if len(text) <= _TEXT_MAX:
        return text
    half = _TEXT_MAX // 2
    return f"{text[:half]} … {text[-half:]}"


class _Validators:
    """Of the parts of one schema, each made when it is first asked."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._registry = jsonschema_rs.Registry([(_URI, schema)])
        self._draft = schema.get("$schema")
        self._known: dict[str, jsonschema_rs.Validator] = {}

    def fits(self, pointer: str, value: Any) -> bool:
        known = self._known.get(pointer)
        if known is None:
            part = {"$ref": _URI + _NOT_IN_URI.sub(_percent, pointer)}
            if self._draft is not None:
                part["$schema"] = self._draft
            known = self._known[pointer] = jsonschema_rs.validator_for(
                part, registry=self._registry, offline=True
            )
        return known.is_valid(value)


def _below(part: Any, pointer: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(pointer, step, value) of the parts of a schema that have to hold for parts of a value."""
    if not isinstance(part, dict):
        return
    reference = part.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        yield reference, "", value
    for i in range(len(part.get("allOf") or ())):
        yield f"{pointer}/allOf/{i}", "", value
    if isinstance(value, dict):
        named = part.get("properties") or {}
        for key in named:
            if key in value:
                yield f"{pointer}/properties/{_escaped(key)}", f".{key}", value[key]
        if isinstance(part.get("additionalProperties"), dict) and "patternProperties" not in part:
            for key in value.keys() - named.keys():
                yield f"{pointer}/additionalProperties", f".{key}", value[key]
    elif isinstance(value, list):
        items, first = part.get("items"), part.get("prefixItems") or []
        keyword = "prefixItems"
        if isinstance(items, list):
            keyword, first, items = "items", items, None
        for i, inner in enumerate(value):
            if i < len(first):
                yield f"{pointer}/{keyword}/{i}", f"[{i}]", inner
            elif isinstance(items, dict):
                yield f"{pointer}/items", f"[{i}]", inner


def _local_fault(schema: dict[str, Any], part: Any, value: Any) -> str:
    if not isinstance(part, dict):
        return "nothing is allowed here"
    local = {key: part[key] for key in part if key in _LOCAL}
    if part.get("additionalProperties") is False:
        local["additionalProperties"] = False
        local["properties"] = {key: {} for key in part.get("properties") or ()}
        local["patternProperties"] = {key: {} for key in part.get("patternProperties") or ()}
    if "$schema" in schema:
        local["$schema"] = schema["$schema"]
    validator = jsonschema_rs.validator_for(local, offline=True)
    for error in validator.iter_errors(value):
        return error.message
    named = [f"'{key}'" for key in _COMPOUND if key in part]
    return f"is not valid under {', '.join(named) or 'the schema'}"


_NOT_IN_URI = re.compile(r"[^A-Za-z0-9#/~._$-]")


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
