"""Messages to workflows of a served node, which dies in between."""

import os
import time
from pathlib import Path
from typing import Any

from tests.support.served import Server, serving

DEFINITION = {
    "name": "talk",
    "version": 1,
    "tasks": [
        {"name": "hold", "taskReferenceName": "hold", "type": "WAIT"},
        {
            "name": "pull",
            "taskReferenceName": "pull",
            "type": "PULL_WORKFLOW_MESSAGES",
            "inputParameters": {"batchSize": 10},
        },
    ],
}


def begin(server: Server) -> str:
    body = {"name": "talk", "workflowDef": DEFINITION}
    return server.call("POST", "/api/workflow", json=body).text


def ended(server: Server, workflow_id: str) -> Any:
    deadline = time.monotonic() + 60
    while True:
        shown = server.json("GET", f"/api/workflow/{workflow_id}")
        if shown["status"] != "RUNNING":
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.02)


def test_messages_survive_a_killed_node_and_come_in_order(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        workflow_id = begin(server)
        path = f"/api/workflow/{workflow_id}/messages"
        ids = []
        for number in range(3):
            answer = server.call("POST", path, json={"number": number})
            assert answer.status_code == 200, answer.text
            assert answer.headers["Content-Type"].startswith("text/plain")
            ids.append(answer.text)
    finally:
        server.stop(kill=True)
    with serving(tmp_path) as again:
        again.call("POST", f"/api/tasks/{workflow_id}/hold/COMPLETED", json={})
        shown = ended(again, workflow_id)
        output = shown["tasks"][1]["outputData"]
        assert [message["id"] for message in output["messages"]] == ids
        assert [message["payload"]["number"] for message in output["messages"]] == [0, 1, 2]
        assert output["count"] == 3
        message = again.refused("POST", path, 409, json={})
        assert "not in RUNNING state" in message


def test_what_is_no_message_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, env={**os.environ, "PODIUM_WORKFLOW_MESSAGES_MAX": "1"}) as server:
        nobody = "01a1fe72-f05c-8241-9d31-6a754b500000"
        server.refused("POST", f"/api/workflow/{nobody}/messages", 404, json={})
        workflow_id = begin(server)
        path = f"/api/workflow/{workflow_id}/messages"
        server.refused("POST", path, 400, content=b"[]")
        server.refused("POST", path, 400, content=b"{")
        server.refused("POST", path, 413, json={"long": "x" * 2_000_000})
        assert server.call("POST", path, json={}).status_code == 200
        full = server.call("POST", path, json={})
        assert full.status_code == 429
        assert full.json()["retryable"] is True
