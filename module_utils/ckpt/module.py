# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame that the ckpt_* modules have in common: options, record, result, failure."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt import flows
from ansible.module_utils.ckpt.criu import BUILDS, DEFAULT_HOME
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.record import write_record

RECORD_OPTIONS: dict[str, Any] = {
    "run_id": {"type": "str", "required": True},
    "host": {"type": "str"},
    "seq": {"type": "int", "required": True},
    "lane": {"type": "str", "required": True},
    "iteration": {"type": "int", "default": 0},
    "warmup": {"type": "bool", "default": False},
}
SHARED_OPTIONS: dict[str, Any] = {
    "runtime": {"type": "str", "choices": ["podman", "process"], "required": True},
    "server": {"type": "dict", "required": True},
    "criu": {
        "type": "dict",
        "options": {
            "build": {"type": "str", "choices": list(BUILDS), "default": "current"},
            "switches": {"type": "dict", "default": {}},
            "home": {"type": "path", "default": DEFAULT_HOME},
        },
    },
    "record": {"type": "dict", "options": RECORD_OPTIONS},
    "record_path": {"type": "path"},
    "fail_on_error": {"type": "bool", "default": False},
}

Flow = Callable[[flows.Operation, dict[str, Any]], dict[str, Any]]


def run_module(kind: str, options: dict[str, Any], flow: Flow) -> None:
    """Run a measuring module: its flow, the record on the node, and the result."""
    module = AnsibleModule(argument_spec={**SHARED_OPTIONS, **options}, supports_check_mode=True)
    result: dict[str, Any] = {"changed": False, "record": None, "actions": [], "reason": None, "log_lines": []}
    operation: flows.Operation | None = None
    try:
        operation = flows.open_operation(kind, module.params)
        if module.check_mode:
            result["changed"] = kind != "probe"
            module.exit_json(**result)
        result.update(flow(operation, module.params))
        result["changed"] = kind != "probe"
    except CkptError as error:
        _note_failure(module, operation, result, error)
    except Exception as error:
        message = f"{type(error).__name__}: {error}; this is a defect of gpuckpt, please report it with the log lines."
        _note_failure(
            module, operation, result, CkptError("internal", message, traceback.format_exc().splitlines()[-8:])
        )
    if operation is not None:
        _keep_record(module, operation, result)
    module.exit_json(**result)


def _note_failure(
    module: AnsibleModule, operation: flows.Operation | None, result: dict[str, Any], error: CkptError
) -> None:
    """A failed measurement is a result; a failure that makes no measurement ends the task."""
    result.update(reason=error.reason, log_lines=error.log_lines, changed=True, msg=error.message)
    if operation is not None:
        operation.record.failure = error
        operation.record.log_tail = error.log_lines or operation.record.log_tail
        result["log_lines"] = error.log_lines + operation.log_lines
        _keep_record(module, operation, result)
    measured = operation is not None and operation.record.kind in ("cold", "restore")
    if not measured or not module.params.get("record") or module.params["fail_on_error"]:
        module.fail_json(**result)


def _keep_record(module: AnsibleModule, operation: flows.Operation, result: dict[str, Any]) -> None:
    result["actions"] = operation.commands.actions
    result["record"] = operation.record.as_dict(operation.commands.actions)
    if module.params.get("record"):
        write_record(module.params["record_path"], result["record"])
