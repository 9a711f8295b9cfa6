"""Definitions of workflows and tasks."""

import orjson

from cluster.node import wire
from cluster.node.api.bodies import json_body
from cluster.node.api.services import Services
from cluster.node.middleware import EMPTY, Answer, Call, Route, parse_integer


def routes(services: Services) -> list[Route]:
    api = MetadataApi(services)
    workflow, taskdefs = "/api/metadata/workflow", "/api/metadata/taskdefs"
    return [
        Route("POST", workflow, api.register),
        Route("PUT", workflow, api.update),
        Route("GET", workflow, api.workflows),
        Route("POST", f"{workflow}/validate", api.validate),
        Route("GET", f"{workflow}/latest-versions", api.latest),
        Route("GET", f"{workflow}/names-and-versions", api.names_and_versions),
        Route("GET", f"{workflow}/names", api.names),
        Route("GET", f"{workflow}/{{name}}", api.workflow),
        Route("GET", f"{workflow}/{{name}}/versions", api.versions),
        Route("DELETE", f"{workflow}/{{name}}/{{version}}", api.remove_workflow),
        Route("POST", taskdefs, api.register_task_defs),
        Route("PUT", taskdefs, api.update_task_def),
        Route("GET", taskdefs, api.task_defs),
        Route("GET", f"{taskdefs}/{{tasktype}}", api.task_def),
        Route("DELETE", f"{taskdefs}/{{tasktype}}", api.remove_task_def),
    ]


class MetadataApi:
    def __init__(self, services: Services) -> None:
        self._metadata = services.metadata
        self._limits = services.limits

    async def register(self, call: Call) -> Answer:
        overwrite = call.flag("overwrite", default=False)
        await self._metadata.register(json_body(call.body), overwrite=overwrite)
        return EMPTY

    async def update(self, call: Call) -> Answer:
        return Answer(wire.bulk_json(await self._metadata.update(json_body(call.body)), {}))

    async def validate(self, call: Call) -> Answer:
        self._metadata.validate(json_body(call.body))
        return EMPTY

    async def workflow(self, call: Call) -> Answer:
        version = call.optional_integer("version")
        return Answer(await self._metadata.workflow(call.path["name"], version))

    async def workflows(self, call: Call) -> Answer:
        classifier = call.text("classifier") or ""
        return Answer(wire.list_json(await self._metadata.workflows(classifier)))

    async def latest(self, _call: Call) -> Answer:
        return Answer(wire.list_json(await self._metadata.latest_workflows()))

    async def names(self, _call: Call) -> Answer:
        return Answer(orjson.dumps(await self._metadata.workflow_names()))

    async def names_and_versions(self, _call: Call) -> Answer:
        return Answer(orjson.dumps(await self._metadata.workflow_names_and_versions()))

    async def versions(self, call: Call) -> Answer:
        return Answer(orjson.dumps(await self._metadata.workflow_versions(call.path["name"])))

    async def remove_workflow(self, call: Call) -> Answer:
        version = parse_integer(call.path["version"], "The version in the path")
        await self._metadata.remove_workflow(call.path["name"], version)
        return EMPTY

    async def register_task_defs(self, call: Call) -> Answer:
        definitions = json_body(call.body)
        await self._metadata.register_task_defs(definitions)
        await self._limits.refresh(definition["name"] for definition in definitions)
        return EMPTY

    async def update_task_def(self, call: Call) -> Answer:
        definition = json_body(call.body)
        await self._metadata.update_task_def(definition)
        await self._limits.refresh((definition["name"],))
        return EMPTY

    async def task_def(self, call: Call) -> Answer:
        return Answer(await self._metadata.task_def(call.path["tasktype"]))

    async def task_defs(self, _call: Call) -> Answer:
        return Answer(wire.list_json(await self._metadata.task_defs()))

    async def remove_task_def(self, call: Call) -> Answer:
        name = call.path["tasktype"]
        await self._metadata.remove_task_def(name)
        await self._limits.refresh((name,))
        return EMPTY
