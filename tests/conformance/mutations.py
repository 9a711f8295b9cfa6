"""What can be broken: (rule, file below cluster/, old text, new text), one small change each.

The old text stands once in its file. `mutants.py` applies one at a time to a copy of the tree.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    rule: int
    file: str
    old: str
    new: str


def _of(file: str, *changes: tuple[int, str, str]) -> list[Mutant]:
    return [Mutant(rule, file, old, new) for rule, old, new in changes]


MUTANTS = [
    *_of(
        "engine/control.py",
        (
            4,
            "    if step.execution.is_terminal:\n",
            "    if False:\n",
        ),
        (
            116,
            "if task.type == event.task_type and task_type.is_worker and not is_done:",
            "if task.type == event.task_type and task.status is TaskStatus.SCHEDULED:",
        ),
        (226, "    header.last_retried_ms = step.at_ms\n    arm_all(step)", "    arm_all(step)"),
        (
            227,
            "    if status is not WorkflowStatus.TERMINATED:\n",
            "    if status is WorkflowStatus.RUNNING:\n",
        ),
        (228, "    header.next_seq = 1\n", ""),
        (
            229,
            'and not (task.status is TaskStatus.CANCELED and task.type in ("JOIN", "DO_WHILE"))',
            "",
        ),
        (231, '    header.reason = ""\n', ""),
        (233, "    go_on(step, REVIVE)\n", ""),
        (234, "        execution.header.correlation_id = event.correlation_id\n", "        pass\n"),
        (235, "is_later = task.seq > target.seq", "is_later = task.seq > target.seq + 1"),
        (
            237,
            '        if target.type == "SUB_WORKFLOW":\n            # A child',
            "        if False:\n            # A child",
        ),
        (238, '("FORK_JOIN_DYNAMIC", "SWITCH", "DECISION")', '("SWITCH", "DECISION")'),
        (239, "        seq=0,\n", "        seq=header.next_seq,\n"),
        (240, "and task.callback_after_s > 0", "and task.callback_after_s < 0"),
    ),
    *_of(
        "engine/decider.py",
        (
            1,
            "fail(step, WorkflowStatus.TIMED_OUT, e.reason, e.task)",
            "fail(step, WorkflowStatus.FAILED, e.reason, e.task)",
        ),
        (
            92,
            "finds the later due time when it fires.\n        task.update_ms = step.at_ms\n",
            "finds the later due time when it fires.\n",
        ),
        (
            94,
            "seconds. Timeout policy configured to TIME_OUT_WF",
            "s. Timeout policy configured to TIME_OUT_WF",
        ),
        (
            95,
            "        if number == 0:\n",
            "        if number == 0 and execution.header.status is WorkflowStatus.RUNNING:\n",
        ),
        (100, "task.start_ms = task.start_ms or step.at_ms", "task.start_ms = step.at_ms + 1000"),
        (
            103,
            "task.status not in OPEN_TASK or step.execution.is_terminal:",
            "step.execution.is_terminal:",
        ),
        (
            104,
            "task.visible_ms = step.at_ms + event.callback_after_s * 1000",
            "task.visible_ms = step.at_ms + 60_000",
        ),
        (
            105,
            "if task_type.is_worker and not task_type.by_executor and event.by_worker:",
            "if event.by_worker:",
        ),
        (
            106,
            "{**execution.task_output(task), **payloads.load(event.output)}",
            "payloads.load(event.output)",
        ),
        (219, '"failureStatus": header.status.value', '"failureStatus": "FAILED"'),
        (221, "failed to start.  reason:", "failed to start. reason:"),
        (275, "        if len(task.output) > limit:", "        if len(task.output) > 9 * limit:"),
    ),
    *_of(
        "engine/definition_rules.py",
        (277, 'if not definition["tasks"]:', 'if definition["tasks"] is None:'),
        (
            278,
            '    for task in steps_of(definition["tasks"]):\n        reference =',
            '    for task in definition["tasks"]:\n        reference =',
        ),
        (279, 'if root != "workflow" and root not in references:', "if root not in references:"),
        (280, 'if (delay := task["startDelay"]) < 0:', 'if (delay := task["startDelay"]) < -9:'),
        (281, '        "uri",\n        "method",\n', '        "uri",\n'),
        (282, "if 0 < timeout < response:", "if 0 < timeout <= response:"),
        (
            69,
            '!= 2:\n        message = "workflowDef schemaVersion',
            'not in (1, 2):\n        message = "workflowDef schemaVersion',
        ),
    ),
    *_of(
        "engine/definitions.py",
        (40, '"retryCount": 0, "responseTimeoutSeconds": 0}', '"retryCount": 0}'),
        (41, '"version": latest_versions[child]}', '"version": 1}'),
        (43, '" has no workflow definition available "', '" has no workflow definition"'),
    ),
    *_of(
        "engine/ending.py",
        (22, "step.close(task, TaskStatus.CANCELED)", "step.close(task, TaskStatus.SKIPPED)"),
        (23, '". ".join(failures)', '", ".join(failures)'),
        (
            186,
            "Parent workflow has been terminated with reason: {header.reason}",
            "{header.reason}",
        ),
        (210, "    header.terminated_output = True\n", ""),
        (
            211,
            "        header.failed_number = task.number\n    _end(step, status, reason)\n    if",
            "        pass\n    _end(step, status, reason)\n    if",
        ),
        (216, "execution.tasks_by_seq()[-1]", "execution.tasks_by_seq()[0]"),
        (
            217,
            "    if status is not WorkflowStatus.COMPLETED:\n        # What",
            "    if True:\n        # What",
        ),
        (
            218,
            "    _end(step, WorkflowStatus.TERMINATED, reason)\n",
            "    _end(step, WorkflowStatus.TERMINATED, reason)\n    compensate(step)\n",
        ),
        (220, '    if "${" in name:', '    if "$${" in name:'),
    ),
    *_of(
        "engine/expressions.py",
        (
            50,
            "    if isinstance(value, list):\n        compiled = [_compile",
            "    if isinstance(value, list) and depth < 2:\n        compiled = [_compile",
        ),
        (51, "    if len(compiled) == 1:\n", "    if not compiled:\n"),
        (56, "if depth > NESTED_EXPRESSIONS_MAX:", "if depth > 1:"),
        (57, 'return text.replace("$${", "${")', "return text"),
    ),
    *_of(
        "engine/references.py",
        (55, 'return _Literal("")', "return NULL"),
        (
            63,
            'return "${" + _TASK_ID + "}" if task_id is None else task_id',
            'return "${" + _TASK_ID + "}"',
        ),
        (64, 'name == "env" and len(rest) > 2:', 'name == "env" and len(rest) > 9:'),
    ),
    *_of("engine/jsonpath_functions.py", (58, '    "length": _length,\n', "")),
    *_of(
        "engine/text.py",
        (53, 'return "null"', 'return ""'),
        (54, '(", ", "=")', '(", ", ":")'),
    ),
    *_of(
        "engine/retries.py",
        (16, "    header.next_seq += 1\n", ""),
        (70, "return task.retry_count < allowed", "return task.retry_count + 1 < allowed"),
        (71, "    allowed = node.task.retry_count\n", "    allowed = None\n"),
        (72, "        retried_number=task.number,\n", ""),
        (73, "    attempt.reason = task.reason\n", ""),
        (
            74,
            "    delay = definition.retry_delay_seconds\n",
            "    delay = definition.retry_delay_seconds + 1\n",
        ),
        (
            75,
            "delay *= definition.backoff_scale_factor * (task.retry_count + 1)",
            "delay *= definition.backoff_scale_factor * (task.retry_count or 1)",
        ),
        (
            76,
            "delay *= 1 << min(task.retry_count, 32)",
            "delay *= 1 << min(task.retry_count + 1, 32)",
        ),
        (
            77,
            "delay = min(delay, definition.max_retry_delay_seconds)",
            "delay = max(delay, definition.max_retry_delay_seconds)",
        ),
        (78, "        callback_after_s=delay,\n", "        callback_after_s=delay + jitter,\n"),
        (
            79,
            "if total_s <= 0 or at_ms - task.first_scheduled_ms < total_s * 1000:",
            "if total_s <= 0 or at_ms - task.scheduled_ms < 2 * total_s * 1000:",
        ),
        (
            86,
            "return task.start_ms + (task.start_delay_s",
            "return task.scheduled_ms + (task.start_delay_s",
        ),
        (
            87,
            "wait_s = task.start_delay_s + task.callback_after_s",
            "wait_s = task.callback_after_s",
        ),
        (
            88,
            "TaskStatus.TIMED_OUT, reason)\n        return True\n    return False",
            "TaskStatus.FAILED, reason)\n        return True\n    return False",
        ),
        (89, 'if policy == "TIME_OUT_WF":', 'if policy == "TIME_OUT_WF" and not task.poll_count:'),
        (
            90,
            "            step.close(task, TaskStatus.TIMED_OUT, reason)\n",
            "            step.close(task, TaskStatus.FAILED, reason)\n",
        ),
        (
            93,
            "return execution.header.last_retried_ms or execution.header.create_ms",
            "return execution.header.create_ms",
        ),
    ),
    *_of("engine/revival.py", (230, '        attempt.reason = ""\n', "")),
    *_of(
        "engine/scheduling.py",
        (
            12,
            "        node = following(node)\n    if node is None:",
            "        node = None\n    if node is None:",
        ),
        (24, "and reason: '{task.reason or 'null'}'", "and reason: '{task.reason}'"),
        (25, "    TaskStatus.TIMED_OUT: WorkflowStatus.TIMED_OUT,\n", ""),
        (
            82,
            "task.status = TaskStatus.COMPLETED_WITH_ERRORS",
            "task.status = TaskStatus.COMPLETED",
        ),
        (
            83,
            "    if node.task.permissive:\n",
            "    if node.task.permissive and task.status is TaskStatus.FAILED:\n",
        ),
        (
            84,
            "    if node.task.optional:\n",
            "    if node.task.optional and not node.task.permissive:\n",
        ),
        (159, "    TaskStatus.CANCELED: WorkflowStatus.TERMINATED,\n", ""),
    ),
    *_of(
        "engine/schemas.py",
        (48, 'return _check(schema, "input") if enforced else None', "return None"),
    ),
    *_of(
        "engine/step.py",
        (67, "if value.get(key) is None:", "if key not in value:"),
    ),
    *_of(
        "engine/transitions.py",
        (
            26,
            "FAILED_TASK = frozenset({_T.FAILED, _T.FAILED_WITH_TERMINAL_ERROR})",
            "FAILED_TASK = frozenset({_T.FAILED})",
        ),
        (
            80,
            "NOT_RETRIABLE = frozenset({_T.CANCELED, _T.FAILED_WITH_TERMINAL_ERROR, _T.SKIPPED})",
            "NOT_RETRIABLE = frozenset({_T.CANCELED, _T.SKIPPED})",
        ),
        (81, "NOT_RETRIABLE = frozenset({_T.CANCELED, ", "NOT_RETRIABLE = frozenset({"),
    ),
    *_of(
        "engine/turn.py",
        (13, "No tasks found to be executed", "Nothing to be done"),
        (
            21,
            "if not execution.open and not step.work:",
            "if not execution.open and len(execution.tasks) < 5:",
        ),
        (
            225,
            "while work and header.status is WorkflowStatus.RUNNING:",
            "while work and not execution.is_terminal:",
        ),
    ),
    *_of(
        "engine/views.py",
        (
            59,
            "(name)\n        execution = self._execution\n        task = execution.newest.get(key)",
            "(name)\n        execution = self._execution\n        task = None",
        ),
        (60, "return execution.workflow_variables()", "return {}"),
        (61, "            return task.poll_count\n", "            return 0\n"),
        (
            156,
            "                output[ref] = value\n",
            "                output[ref + join.suffix] = value\n",
        ),
        (
            167,
            "            output[task.base_ref] = output_value(execution, task)\n    return output",
            "            output[task.ref] = output_value(execution, task)\n    return output",
        ),
    ),
    *_of("engine/wait_times.py", (190, "86_400", "86_401")),
    *_of(
        "engine/tasks/builtin.py",
        (135, "Cannot map a dynamic task based on", "Cannot map a task based on"),
        (
            208,
            "{**execution.workflow_variables(), **execution.task_input(task)}",
            "execution.task_input(task)",
        ),
        (209, 'output = {"output": output}', 'output = {"result": output}'),
        (213, "begin=begin_noop, resolves_input=False", "begin=begin_noop"),
    ),
    *_of(
        "engine/tasks/decision.py",
        (136, 'value["hasChildren"] = "true"', 'value["hasChildren"] = True'),
        (
            137,
            "_choose(step, task, node, value.get(source))",
            '_choose(step, task, node, value.get(source) or "")',
        ),
        (
            138,
            "step.finish(task, TaskStatus.FAILED, outcome.error)",
            "step.finish(task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, outcome.error)",
        ),
        (139, 'if first is not None or node.type == "SWITCH":', "if first is not None:"),
        (142, '{"caseOutput": [case]}', '{"caseOutput": case}'),
    ),
    *_of(
        "engine/tasks/dynamic_fork.py",
        (144, 'if node.next is None or node.next.type != "JOIN":', "if node.next is None:"),
        (145, "        merged.update(own)\n", "        merged = {**own, **merged}\n"),
        (
            146,
            "    if not isinstance(inputs, dict):\n",
            "    if inputs is not None and not isinstance(inputs, dict):\n",
        ),
        (147, '"type": branch.get("type") or "SIMPLE"', '"type": "SIMPLE"'),
        (148, 'parameters["__index"] = i', 'parameters["__index"] = i + 1'),
        (
            149,
            'f"_{node.ref}_{name}_" if _has_other_fork(step, task) else f"_{name}_"',
            'f"_{name}_"',
        ),
        (
            150,
            "        if node.task.optional:\n",
            "        if node.task.optional or node.task.permissive:\n",
        ),
        (151, '{**node.next.task.input_parameters, "joinOn": joined}', '{"joinOn": joined}'),
        (
            153,
            "            and present.origin != task.number\n",
            "            and present.origin\n",
        ),
        (154, "choose = step.types[branch.type].branch", "choose = None"),
    ),
    *_of(
        "engine/tasks/fork.py",
        (143, "while index < len(node.branches):", "while index < min(2, len(node.branches)):"),
    ),
    *_of(
        "engine/tasks/join.py",
        (
            152,
            "\n    check(step, task)\n",
            "\n    if step.execution.waiting[task.number]:\n        check(step, task)\n",
        ),
        (
            155,
            '{"joinOn": list(node.task.join_on)}',
            '{**node.task.input_parameters, "joinOn": list(node.task.join_on)}',
        ),
        (
            157,
            "step.finish(join, TaskStatus.COMPLETED_WITH_ERRORS, reason)",
            "step.finish(join, TaskStatus.COMPLETED, reason)",
        ),
        (
            158,
            '" ".join(task.reason or "null" for task in unsuccessful)',
            '", ".join(task.reason or "null" for task in unsuccessful)',
        ),
        (
            160,
            "        if task is None or not task.executed:\n",
            "        if task is not None and not task.executed:\n",
        ),
        (164, "    if chosen is None or not chosen.executed:\n", "    if chosen is None:\n"),
    ),
    *_of(
        "engine/tasks/loop.py",
        (165, "task.rounds, task.origin)", "task.rounds - 1, task.origin)"),
        (166, '    output["iteration"] = task.rounds\n    execution.touch', "    execution.touch"),
        (168, "and value > 0", "and value != 0"),
        (
            170,
            "    reasons = _failures_of_round(execution, task)\n",
            "    reasons: list[str] = []\n",
        ),
        (
            171,
            "_finish(step, task, TaskStatus.FAILED_WITH_TERMINAL_ERROR, reason)",
            "_finish(step, task, TaskStatus.FAILED, reason)",
        ),
        (172, "return task.rounds - keep", "return task.rounds - keep - 1"),
        (173, 'stored["loopIndex"] = task.rounds - 1', 'stored["loopIndex"] = task.rounds'),
        (174, 'f"{task.suffix}__{task.rounds}"', 'f"__{task.rounds}"'),
    ),
    *_of(
        "engine/tasks/scripts.py",
        (
            203,
            'wrong = task.type == "INLINE" and not outcome.timed_out',
            'wrong = task.type == "INLINE"',
        ),
        (204, 'wrong = task.type == "INLINE" and', 'wrong = task.type != "JSON_JQ_TRANSFORM" and'),
        (207, "value[0] if value else None", "value[-1] if value else None"),
    ),
    *_of("engine/tasks/start_workflow.py", (189, '{"workflowId": event.workflow_id}', "{}")),
    *_of(
        "engine/tasks/sub_workflow.py",
        (
            122,
            "if isinstance(domains, dict) else execution.header.task_to_domain",
            "if isinstance(domains, dict) else None",
        ),
        (177, "version if isinstance(version, int) and version > 0 else None", "None"),
        (
            178,
            '        "subWorkflowName": resolved.get("name"),\n',
            '        "subWorkflowName": node.name,\n',
        ),
        (180, '"dynamic": True', '"dynamic": False'),
        (
            181,
            "if isinstance(priority, int | float) else 0",
            "if isinstance(priority, int | float) else 7",
        ),
        (183, '    output["subWorkflowId"] = event.child_id\n', ""),
        (184, '    "TERMINATED": TaskStatus.CANCELED,\n', '    "TERMINATED": TaskStatus.FAILED,\n'),
        (187, "if isinstance(priority, int) and not 0 <= priority <= PRIORITY_MAX:", "if False:"),
    ),
    *_of(
        "engine/tasks/wait.py",
        (191, "task.callback_after_s = FOREVER_S", "task.callback_after_s = 0"),
        (192, "step.wake(task, step.at_ms + wait_s * 1000)", "step.wake(task, step.at_ms)"),
        (193, "Wait Until format.  Provided", "Wait Until format. Provided"),
    ),
    *_of(
        "engine/tasks/worker.py",
        (119, 'text = domains.get("*")', "text = None"),
        (
            120,
            "if choice != NO_DOMAIN and step.surroundings.is_polled",
            "if choice == choices[0] or step.surroundings.is_polled",
        ),
        (121, "    if domains:\n", "    if domains and not task.retry_count:\n"),
        (132, "task.visible_ms = step.at_ms + delay_s * 1000", "task.visible_ms = step.at_ms"),
        (133, '    if node.type == "SIMPLE":\n', "    if step.types[node.type].is_worker:\n"),
    ),
    *_of(
        "node/api/results.py",
        (
            5,
            "        TaskStatus.CANCELED,\n    )",
            "        TaskStatus.CANCELED,\n        TaskStatus.TIMED_OUT,\n    )",
        ),
        (107, "max(0, result.callback_after_seconds or 0)", "0"),
        (109, 'WORKER_STATUSES.get(text or "")', 'WORKER_STATUSES.get(text or "COMPLETED")'),
        (115, "result.logs[:LOG_LINES_PER_UPDATE]", "result.logs[:2]"),
    ),
    *_of(
        "node/api/tasks.py",
        (110, "            domain=task.domain,\n", "            domain=None,\n"),
    ),
    *_of(
        "node/api/bulk.py",
        (243, "if len(ids) > IDS_MAX:", "if len(ids) > IDS_MAX + 1:"),
    ),
    *_of(
        "node/api/starts.py",
        (36, "NULL input passed when", "No input when"),
        (283, "if priority > PRIORITY_MAX:", "if priority > 2 * PRIORITY_MAX:"),
    ),
    *_of(
        "node/api/waiting.py",
        (113, "        ended = _has_ended(execution, refs)\n", "        ended = False\n"),
        (
            114,
            "strategy == STRATEGIES[0] else blocking[0]",
            "strategy == STRATEGIES[1] else blocking[0]",
        ),
    ),
    *_of(
        "node/api/workflow.py",
        (34, 'named=(call.path["name"], version or None)', 'named=(call.path["name"], version)'),
    ),
    *_of(
        "node/metadata.py",
        (35, "No such workflow defined. name=", "No workflow defined. name="),
        (39, "        self._cache.clear()\n", ""),
        (285, 'raise NotFound(f"No such task by name {name}")', "pass"),
    ),
    *_of(
        "node/poll.py",
        (
            97,
            "self.queue = queue_name(task_type, domain)",
            "self.queue = queue_name(task_type, None)",
        ),
        (98, "if timeout_ms > TIMEOUT_MS_MAX:", "if timeout_ms > 2 * TIMEOUT_MS_MAX:"),
        (
            101,
            "PollData(*key, request.worker_id, now_ms)",
            "PollData(*key, None, now_ms)",
        ),
    ),
    *_of(
        "node/owner.py",
        (
            37,
            "        if request.definition is not None:\n",
            "        if request.definition is not None and not request.name:\n",
        ),
        (47, 'return strategy == "RETURN_EXISTING"', "return False"),
        (111, "        if task.base_ref == ref:\n", "        if task.ref == ref:\n"),
        (112, "        for child in children if depth else ():\n", "        for child in ():\n"),
        (232, "            target = await self._deepest_failed(workflow_id)\n", ""),
        (
            236,
            'raise InvalidRequest(f"Task {request.task_id} not found")',
            'raise NotFound(f"Task {request.task_id} not found")',
        ),
        (
            242,
            'f"Cannot archive workflow: {execution.id} with status: "',
            'f"Cannot archive {execution.id} with status: "',
        ),
    ),
    *_of(
        "node/wire.py",
        (11, '"executed": task.executed,', '"executed": task.retried,'),
        (46, '        "ownerApp": "",\n', '        "ownerApp": header.created_by or "podium",\n'),
        (65, "return secrets.get(whole[1])", 'return secrets.get(whole[1], "")'),
        (66, '        body["runtimeMetadata"] = known\n', '        body["inputData"] |= known\n'),
        (134, "0 if timeout is None else timeout.response_timeout_seconds", "0"),
    ),
    *_of("sharding/resolutions.py", (38, "if given.get(key) is None}", "if key not in given}")),
    *_of(
        "store/memory/queues.py",
        (45, "self.order = -priority", "self.order = priority"),
        (117, "room = limits.concurrent - self.held", "room = limits.concurrent"),
        (118, "room = min(room, limits.rate - len(stamps))", "room = min(room, limits.rate)"),
    ),
]
