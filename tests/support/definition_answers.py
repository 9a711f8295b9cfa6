"""Asks a real Conductor server about the definitions in tests/unit/definition_answers.json.

`python -m tests.support.definition_answers http://HOST:PORT/api` writes every answer anew beside
its case. To add a case put `[body, null]` into the file and run it. Keep paths with a script in
brackets (`a.output[(@.length-1)]`) out: the real server never comes back from them.
"""

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ANSWERS = Path(__file__).parents[1] / "unit" / "definition_answers.json"


def violations(response: httpx.Response) -> list[list[Any]]:
    """[path, message, invalid value] of every broken rule; [] if the definition is fine."""
    if response.status_code not in (200, 400, 404):
        raise SystemExit(f"{response.status_code} for {response.request.content!r}")
    errors = response.json()["validationErrors"] if response.status_code == 400 else []
    found = [[error["path"], error["message"], error.get("invalidValue")] for error in errors]
    return sorted(found, key=str)


def main(url: str) -> None:
    client = httpx.Client(base_url=url, timeout=10)
    prefix = f"answers_{secrets.token_hex(4)}_"

    def check(body: dict[str, Any]) -> list[list[Any]]:
        return violations(client.post("/metadata/workflow/validate", json=body))

    def check_task_def(body: dict[str, Any]) -> list[list[Any]]:
        # Nobody has this name: 404 says that no rule is broken, and nothing is registered.
        return violations(client.put("/metadata/taskdefs", json={"name": "nobody's"} | body))

    def status(body: dict[str, Any]) -> int:
        return client.post("/metadata/workflow/validate", json=body).status_code

    def served(path: str, name: str) -> dict[str, Any]:
        return {**client.get(f"{path}/{name}").json(), "name": "~", "createTime": 0}

    def register(body: dict[str, Any]) -> dict[str, Any]:
        name = prefix + secrets.token_hex(4)
        client.post("/metadata/workflow", json=body | {"name": name}).raise_for_status()
        return served("/metadata/workflow", name)

    def register_task_def(body: dict[str, Any]) -> dict[str, Any]:
        name = prefix + secrets.token_hex(4)
        client.post("/metadata/taskdefs", json=[body | {"name": name}]).raise_for_status()
        return served("/metadata/taskdefs", name)

    asks: dict[str, Callable[[dict[str, Any]], Any]] = {
        "workflows": check,
        "task_defs": check_task_def,
        "unreadable": status,
        "read_back": register,
        "read_back_task_defs": register_task_def,
    }
    cases = json.loads(ANSWERS.read_text())
    parts = [f'{{"server": "{client.get("/version").text}"']
    for kind, ask in asks.items():
        lines = (json.dumps([body, ask(body)], ensure_ascii=False) for body, _ in cases[kind])
        parts.append(f',\n"{kind}": [\n' + ",\n".join(lines) + "\n]")
    ANSWERS.write_text("".join(parts) + "}\n")


if __name__ == "__main__":
    main(sys.argv[1])
