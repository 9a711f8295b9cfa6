"""Whether a script is JavaScript at all, told without running it."""

import re

import quickjs

_CHECK_CHARS_MAX = 128 * 1024
_CHECK_MEMORY_BYTES = 64 * 1024 * 1024
# A script that starts with a throw is parsed as a whole and runs nothing that follows.
_UNREACHED = "throw 0;"
_POSITION = re.compile(r":(\d+):(\d+)\)?\s*\Z")


def check_javascript(source: str) -> str | None:
    """What is wrong with the syntax of a script, None when it is right. The script does not run."""
    if len(source) > _CHECK_CHARS_MAX:
        return f"SyntaxError: the script is longer than {_CHECK_CHARS_MAX} characters"
    context = quickjs.Context()
    context.set_memory_limit(_CHECK_MEMORY_BYTES)
    try:
        context.eval(_UNREACHED + source)
    except quickjs.JSException as error:
        message, _, stack = str(error).partition("\n")
        return None if message == "0" else _syntax_error(message, stack, source)
    except (ValueError, UnicodeError) as error:
        return f"SyntaxError: {error}"
    raise AssertionError("a script ran that was to be parsed only")


def _syntax_error(message: str, stack: str, source: str) -> str:
    """The message with the place, the line and a caret, as Conductor shows it."""
    position = _POSITION.search(stack)
    if position is None or not message.startswith("SyntaxError: "):
        return message
    line, column = int(position.group(1)), int(position.group(2)) - 1
    if line == 1:
        column -= len(_UNREACHED)
    lines = source.split("\n")
    text = lines[line - 1] if line <= len(lines) else ""
    detail = message.removeprefix("SyntaxError: ")
    return f"SyntaxError: inline:{line}:{column} {detail}\n{text}\n{' ' * column}^\n"
