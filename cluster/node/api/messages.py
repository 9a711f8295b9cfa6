"""Messages to workflows, which their PULL_WORKFLOW_MESSAGES tasks take."""

from cluster.engine.events import MessageSent
from cluster.errors import NotFound, TooLarge
from cluster.ids import parse_workflow_id
from cluster.node.api.bodies import json_object
from cluster.node.api.services import Services
from cluster.node.middleware import Answer, Call, Route, plain


def routes(services: Services) -> list[Route]:
    return [Route("POST", "/api/workflow/{workflowId}/messages", MessageApi(services).send)]


class MessageApi:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def send(self, call: Call) -> Answer:
        """Answers with the id of the message, when it is durable."""
        services = self._services
        workflow_id = parse_workflow_id(call.path["workflowId"])
        payload = json_object(call.body, "A message")
        # A message comes out as part of a task's output.
        limit = services.settings.task_output_bytes_max // 2
        if len(payload) > limit:
            raise TooLarge(f"A message has at most {limit} bytes")
        message_id = services.new_request_id()
        event = MessageSent(services.clock.now_ms(), message_id, payload)
        try:
            await services.router.submit(workflow_id, event)
        except NotFound as error:
            raise NotFound(f"Workflow not found: {workflow_id}") from error
        return plain(message_id)
