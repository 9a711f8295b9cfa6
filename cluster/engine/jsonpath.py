"""JSONPath as Conductor's library (Jayway) reads it: parsed once, evaluated over plain JSON values.

A path whose every step names one thing is *definite* and yields that thing; any other path is
indefinite and yields the list of what it found. What is missing yields nothing, never an error.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cluster.engine import jsonpath_filters, jsonpath_functions

# Bounds: a path over them counts as broken, which reads as null.
PATH_CHARS_MAX = 8_192
STEPS_MAX = 100
VISITS_MAX = 1_000_000
_CACHED_CHARS_MAX = 256

_INDEXES = re.compile(r" *-?[0-9]+ *(?:, *-?[0-9]+ *)*\Z")
_SLICE = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?(?::-?[0-9]*)?\Z")


class PathError(ValueError):
    """The text is no path, or it asks for something that cannot be computed."""


class Scope:
    """What one evaluation may look at, and how much of it."""

    __slots__ = ("document", "visits")

    def __init__(self, document: Callable[[], Any]) -> None:
        self.document = document
        self.visits = 0

    def visit(self) -> None:
        self.visits += 1
        if self.visits > VISITS_MAX:
            raise PathError("the path visits too many values")


class Step(Protocol):
    """One step of a path; `walk` hands every value it selects to the step after it."""

    @property
    def is_definite(self) -> bool: ...

    def walk(self, steps: "Steps", at: int, model: Any, scope: Scope, found: list[Any]) -> None: ...

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        """Whether a deep scan tries this step on `model`."""


Steps = tuple[Step, ...]


class Path:
    """A parsed path. `roots` are the keys of the document that it and its filters start from."""

    __slots__ = ("is_definite", "roots", "steps")

    def __init__(self, steps: Steps, roots: frozenset[str]) -> None:
        self.steps = steps
        self.roots = roots
        self.is_definite = all(
            step.is_definite
            and (not isinstance(step, Property) or len(step.names) == 1 or at == len(steps) - 1)
            for at, step in enumerate(steps)
        )

    def read(self, model: Any, scope: Scope, *, at: int = 0) -> Any:
        """The value of the steps from `at` on, or None. Raises PathError."""
        found: list[Any] = []
        _walk(self.steps, at, model, scope, found)
        if self.is_definite:
            return found[-1] if found else None
        return found

    def exists(self, model: Any, scope: Scope) -> bool:
        found: list[Any] = []
        _walk(self.steps, 0, model, scope, found)
        return bool(found) or not self.is_definite


def compile_path(text: str) -> Path:
    """Parse a path; the leading `$.` may be left out. Raises PathError."""
    if len(text) <= _CACHED_CHARS_MAX:
        return _compile_cached(text)
    if len(text) > PATH_CHARS_MAX:
        raise PathError("the path is too long")
    return Parser(text).path()


@functools.lru_cache(maxsize=2_048)
def _compile_cached(text: str) -> Path:
    return Parser(text).path()


def _walk(steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
    scope.visit()
    if at == len(steps):
        found.append(model)
    else:
        steps[at].walk(steps, at, model, scope, found)


class Property:
    """`.name`, `['name']`; several names at the end of a path make one object of them."""

    __slots__ = ("names",)
    is_definite = True

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        if not isinstance(model, dict):
            return
        if len(self.names) > 1 and at == len(steps) - 1:
            found.append({name: model[name] for name in self.names if name in model})
            return
        for name in self.names:
            if name in model:
                _walk(steps, at + 1, model[name], scope, found)

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return isinstance(model, dict) and all(name in model for name in self.names)


class Wildcard:
    """`.*`, `[*]`"""

    __slots__ = ()
    is_definite = False

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        for value in children(model):
            _walk(steps, at + 1, value, scope, found)

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return True


class Index:
    """`[0]`, `[-1]`, `[0,2]`"""

    __slots__ = ("indexes", "is_definite")

    def __init__(self, indexes: tuple[int, ...]) -> None:
        self.indexes = indexes
        self.is_definite = len(indexes) == 1

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        if isinstance(model, list):
            for index in self.indexes:
                if -len(model) <= index < len(model):
                    _walk(steps, at + 1, model[index], scope, found)

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return isinstance(model, list)


class Slice:
    """`[1:3]`, `[:2]`, `[-2:]`"""

    __slots__ = ("end", "start")
    is_definite = False

    def __init__(self, start: int | None, end: int | None) -> None:
        self.start = start
        self.end = end

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        if not isinstance(model, list):
            return
        for index in self._indexes(len(model)):
            _walk(steps, at + 1, model[index], scope, found)

    def _indexes(self, length: int) -> range:
        # With both ends given, negative ones count through zero instead of being normalised
        # first: [-2:1] of [a, b, c] is [b, c, a]. That is how Conductor's library does it.
        if self.start is None:
            end = self.end if self.end is not None else length
            return range(min(length, end + length if end < 0 else end))
        if self.end is None:
            return range(max(0, self.start + length if self.start < 0 else self.start), length)
        return range(max(self.start, -length), min(self.end, length))

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return isinstance(model, list)


class Scan:
    """`..`: the next step on the value itself and on everything below it, parents first."""

    __slots__ = ()
    is_definite = False

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        step = steps[at + 1]
        pending = [model]
        while pending:
            value = pending.pop()
            scope.visit()
            if isinstance(value, (dict, list)) and step.can_start_at(value, scope):
                step.walk(steps, at + 1, value, scope, found)
            if isinstance(value, dict):
                pending.extend(reversed(value.values()))
            elif isinstance(value, list):
                pending.extend(reversed(value))

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return False


class Filter:
    """`[?(...)]`: items of a list that pass; an object is tested as a whole."""

    __slots__ = ("accepts", "after_definite")
    is_definite = False

    def __init__(self, accepts: jsonpath_filters.Predicate, *, after_definite: bool) -> None:
        self.accepts = accepts
        self.after_definite = after_definite

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        if isinstance(model, list):
            for item in model:
                if self.accepts(item, scope):
                    _walk(steps, at + 1, item, scope, found)
        elif isinstance(model, dict):
            if self.accepts(model, scope):
                _walk(steps, at + 1, model, scope, found)
        elif self.after_definite:
            raise PathError("a filter needs a list or an object")

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return self.accepts(model, scope)


class Function:
    """`.length()` and the like; arguments are paths from the top or JSON values."""

    __slots__ = ("arguments", "compute")
    is_definite = True

    def __init__(self, name: str, arguments: tuple[Path | Any, ...]) -> None:
        if name not in jsonpath_functions.FUNCTIONS:
            raise PathError(f"no function {name}")
        self.compute = jsonpath_functions.FUNCTIONS[name]
        if name in ("length", "size") and arguments:
            # `length(path)` counts what the path finds below itself, not the thing it names.
            first = arguments[0]
            if not isinstance(first, Path):
                raise PathError("length of a constant")
            arguments = (Path((*first.steps, Wildcard()), first.roots),)
        self.arguments = arguments

    def walk(self, steps: Steps, at: int, model: Any, scope: Scope, found: list[Any]) -> None:
        values = [
            argument.read(scope.document(), scope) if isinstance(argument, Path) else argument
            for argument in self.arguments
        ]
        try:
            found.append(self.compute(model, values))
        except (ArithmeticError, LookupError, ValueError) as error:
            raise PathError("the function has no value here") from error

    def can_start_at(self, model: Any, scope: Scope) -> bool:
        return False


def children(model: Any) -> Iterable[Any]:
    if isinstance(model, dict):
        return model.values()
    return model if isinstance(model, list) else ()


class Parser:
    """Recursive descent over the text; `position` is always the next character to read."""

    def __init__(self, text: str, *, depth: int = 0) -> None:
        text = text.rstrip(" ")
        self.text = text if text[:1] in ("$", "@") else "$." + text
        self.position = 1
        self.depth = depth
        self.steps: list[Step] = []
        self.roots: set[str] = set()

    def path(self) -> Path:
        if self.text.endswith("."):
            raise PathError("a path must not end with a dot")
        while self.position < len(self.text) and self._step():
            if len(self.steps) > STEPS_MAX:
                raise PathError("the path has too many steps")
        steps = tuple(self.steps)
        if steps and isinstance(steps[-1], Scan):
            raise PathError("a path must not end with ..")
        if steps and isinstance(steps[0], Property) and self.text[0] == "$":
            self.roots.update(steps[0].names)
        if len(steps) > 1 and isinstance(steps[0], Scan) and isinstance(steps[-1], Function):
            # $..a.sum() means sum($..a): a function works on one value, not on each of a scan.
            scanned = Path(steps[:-1], frozenset())
            steps = (_with_argument(steps[-1], scanned),)
        return Path(steps, frozenset(self.roots))

    def _step(self) -> bool:
        """Read one step; False when what remains does not count."""
        text = self.text
        char = text[self.position]
        if char == "[":
            return self._bracket()
        if char == ".":
            self.position += 1
            if text.startswith(".", self.position):
                self.position += 1
                self.steps.append(Scan())
                if text.startswith((".", " "), self.position):
                    raise PathError("nothing to scan for")
            if text.startswith("[", self.position):
                return self._bracket()
        elif not self.steps or char == " ":
            raise PathError("a dot or a bracket must follow the root")
        if text.startswith("*", self.position):
            self.position += 1
            self.steps.append(Wildcard())
            return self._not_a_last_stray_character()
        return self._name()

    def _name(self) -> bool:
        end = self.position
        while end < len(self.text) and self.text[end] not in ".[( ":
            end += 1
        name = self.text[self.position : end]
        following = self.text[end : end + 1]
        if following == " " or not name:
            raise PathError("use ['name'] for a name with a blank")
        self.position = end
        if following == "(":
            self.steps.append(Function(name, self._arguments()))
            # Whatever follows a function is ignored by Conductor's library.
            return False
        self.steps.append(Property((name,)))
        return True

    def _bracket(self) -> bool:
        text = self.text
        start = self._skip_blanks(self.position + 1)
        char = text[start : start + 1]
        if char in ("'", '"') and char:
            self.position = start
            self.steps.append(Property(self._quoted_names(char)))
        elif char == "?":
            start = self._skip_blanks(start + 1)
            if not text.startswith("(", start):
                raise PathError("a filter is written [?(...)]")
            predicate, end, roots = jsonpath_filters.parse_filter(
                text, start + 1, depth=self.depth + 1, compile_path=_compile_inner
            )
            self.roots |= roots
            self.position = self._close(end)
            definite = all(step.is_definite for step in self.steps)
            self.steps.append(Filter(predicate, after_definite=definite))
        else:
            end = text.find("]", start)
            if end < 0:
                raise PathError("a bracket is not closed")
            self.steps.append(_subscript(text[self.position + 1 : end]))
            self.position = end + 1
        return self._not_a_last_stray_character()

    def _quoted_names(self, quote: str) -> tuple[str, ...]:
        names: list[str] = []
        while True:
            self.position = self._skip_blanks(self.position)
            if not self.text.startswith(quote, self.position):
                raise PathError("a quoted name is expected")
            name, self.position = jsonpath_filters.read_quoted(self.text, self.position)
            names.append(name)
            self.position = self._skip_blanks(self.position)
            if not self.text.startswith(",", self.position):
                self.position = self._close(self.position)
                return tuple(names)
            self.position += 1

    def _close(self, position: int) -> int:
        position = self._skip_blanks(position)
        if not self.text.startswith("]", position):
            raise PathError("a bracket is not closed")
        return position + 1

    def _not_a_last_stray_character(self) -> bool:
        # Conductor's library does not look at a single character left after ] or *.
        return self.position != len(self.text) - 1

    def _skip_blanks(self, position: int) -> int:
        while self.text.startswith(" ", position):
            position += 1
        return position

    def _arguments(self) -> tuple[Path | Any, ...]:
        if self.depth > jsonpath_filters.DEPTH_MAX:
            raise PathError("functions are nested too deep")
        parts = jsonpath_functions.split_arguments(self.text, self.position)
        if parts is None:
            raise PathError("a function call is not closed")
        arguments: list[Path | Any] = []
        for part in parts:
            if part.startswith(("$", "@")):
                path = _compile_inner(part, self.depth + 1)
                self.roots |= path.roots
                arguments.append(path)
            elif part[:1] in '{"-0123456789' and part:
                arguments.append(jsonpath_functions.constant(part))
        return tuple(arguments)


def _compile_inner(text: str, depth: int) -> Path:
    return Parser(text, depth=depth).path()


def _with_argument(step: Step, argument: Path) -> Function:
    assert isinstance(step, Function)
    named = {compute: name for name, compute in jsonpath_functions.FUNCTIONS.items()}
    return Function(named[step.compute], (argument,))


def _subscript(text: str) -> Step:
    stripped = text.strip(" ")
    if stripped == "*":
        return Wildcard()
    if _INDEXES.match(text) is not None:
        indexes = tuple(int(part) for part in text.split(","))
        if any(abs(index) > 2**31 - 1 for index in indexes):
            raise PathError("an index is out of range")
        return Index(indexes)
    slice_match = _SLICE.match(text)
    if slice_match is None or text.startswith("::") or text == ":":
        raise PathError("neither an index nor a slice")
    start, end = slice_match.group(1), slice_match.group(2)
    if start is None and end is None:
        raise PathError("a slice needs an end")
    return Slice(None if start is None else int(start), None if end is None else int(end))
