# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame that the ckpt_* modules have in common: options, record, result, failure."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from ansible.module_utils.basic import AnsibleModule

from .criu.folder import HOME
from .errors import CkptError, os_errors_explained
from .measure import flows
from .measure.record import Record, outcome, write_record
from .runtimes import RUNTIMES
from .safety import claim, locks
from .system.commands import Commands
from .vocabulary import BUILDS, GOLDEN_SOURCES, LEVELS, MEASURED_KINDS, SLIMMINGS

# kinds that are results even where they fail, and kinds that leave the node as it was
RESULT_KINDS = (*MEASURED_KINDS, "floor")
HARMLESS_KINDS = ("probe", "floor")
RECORD_OPTIONS: dict[str, Any] = {
    "run_id": {"type": "str", "required": True},
    "host": {"type": "str"},
    "seq": {"type": "int", "required": True},
    "lane": {"type": "str", "required": True},
    "iteration": {"type": "int", "default": 0},
    "warmup": {"type": "bool", "default": False},
    "bill": {"type": "bool", "default": False},
}
RECORDING_OPTIONS: dict[str, Any] = {
    "record": {"type": "dict", "options": RECORD_OPTIONS},
    "record_path": {"type": "path"},
    "deadline_s": {"type": "float"},
    "fail_on_error": {"type": "bool", "default": False},
}
SERVER_OPTIONS: dict[str, Any] = {
    "runtime": {"type": "str", "choices": list(RUNTIMES), "required": True},
    "server": {"type": "dict", "required": True},
    "criu": {
        "type": "dict",
        "options": {
            "build": {"type": "str", "choices": list(BUILDS), "default": "current"},
            "switches": {"type": "dict", "default": {}},
            "home": {"type": "path", "default": HOME},
        },
    },
}
# a server that is served from a golden checkpoint
GOLDEN_OPTIONS: dict[str, Any] = {
    **SERVER_OPTIONS,
    "name": {"type": "str", "required": True},
    "folder": {"type": "path", "default": "/var/lib/gpuckpt/golden"},
    "slimming": {"type": "str", "choices": list(SLIMMINGS), "default": "none"},
    "flags": {"type": "list", "elements": "str", "default": []},
    "verify": {"type": "str", "choices": list(LEVELS), "default": "metadata"},
    "prefetch": {"type": "bool", "default": False},
    "warmup_requests": {"type": "int", "default": 5},
    "listen": {"type": "str", "default": ""},
    "source": {"type": "str", "choices": list(GOLDEN_SOURCES), "default": "disk"},
}
# where copies of golden checkpoints lie
COPIES_OPTIONS: dict[str, Any] = {
    "rclone": {"type": "str"},
    "registry": {"type": "str"},
    # paths of files: what is in them is secret
    "credentials": {"type": "path", "no_log": False},
    "verify_tls": {"type": "bool", "default": True},
    "age_identity": {"type": "path", "no_log": False},
    "node": {"type": "str", "default": ""},
    "transfers": {"type": "int", "default": 0},
}


class ServerModule(AnsibleModule):  # type: ignore[misc]  # Ansible has no types
    """A module that is told about a server. Neither the system's log nor `-vvv` shows the values of its environment."""

    params: dict[str, Any]

    def exit_json(self, **kwargs: Any) -> None:
        """The result, with the options as they may be seen."""
        super().exit_json(invocation={"module_args": without_values(self.params)}, **kwargs)

    def fail_json(self, msg: str, **kwargs: Any) -> None:
        """The failure, with the options as they may be seen."""
        super().fail_json(msg, invocation={"module_args": without_values(self.params)}, **kwargs)

    def _log_invocation(self) -> None:
        params, self.params = self.params, without_values(self.params)
        try:
            super()._log_invocation()
        finally:
            self.params = params


def without_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with the names but not the values of the server's environment."""
    server = params.get("server")
    if not isinstance(server, Mapping) or not isinstance(server.get("env"), Mapping):
        return dict(params)
    return {**params, "server": {**server, "env": dict.fromkeys(server["env"], "(not shown)")}}


class Measurement(Protocol):
    """What the frame needs to know of a measurement under way."""

    record: Record
    commands: Commands
    log_lines: list[str]


MeasurementT = TypeVar("MeasurementT", bound=Measurement)
OptionsT = TypeVar("OptionsT")


def run_module(
    kind: str,
    options: dict[str, Any],
    begin: Callable[[str, Mapping[str, Any]], tuple[flows.Operation, OptionsT]],
    flow: Callable[[flows.Operation, OptionsT], dict[str, Any]],
) -> None:
    """Runs a module that measures a server: its flow, the record on the node, and the result."""
    measure(kind, {**SERVER_OPTIONS, **options}, begin, flow)


def measure(
    kind: str,
    options: dict[str, Any],
    begin: Callable[[str, Mapping[str, Any]], tuple[MeasurementT, OptionsT]],
    flow: Callable[[MeasurementT, OptionsT], dict[str, Any]],
) -> None:
    """Runs any measuring module: `begin` checks and types its options, `flow` measures; both raise CkptError."""
    # before the fork: what reads the options of modules without running them stops here
    module = ServerModule(argument_spec={**RECORDING_OPTIONS, **options}, supports_check_mode=True)
    locks.supervise(lambda: _measure(module, kind, begin, flow))


def run_plain(module: AnsibleModule, what: str, act: Callable[[dict[str, Any], bool], dict[str, Any]]) -> None:
    """Runs a module that measures nothing: what it does returns its result, or raises CkptError."""
    result: dict[str, Any] = {"changed": False, "reason": None, "log_lines": []}
    try:
        with os_errors_explained():
            result.update(act(module.params, module.check_mode))
    except (CkptError, locks.EndedEarly) as caught:
        error = caught if isinstance(caught, CkptError) else locks.as_failure(what, caught)
        result.update(msg=error.message, reason=error.reason, log_lines=error.log_lines)
        module.fail_json(**result)
    module.exit_json(**result)


def _measure(
    module: ServerModule,
    kind: str,
    begin: Callable[[str, Mapping[str, Any]], tuple[MeasurementT, OptionsT]],
    flow: Callable[[MeasurementT, OptionsT], dict[str, Any]],
) -> None:
    result: dict[str, Any] = {"changed": False, "record": None, "actions": [], "reason": None, "log_lines": []}
    operation: MeasurementT | None = None
    try:
        with os_errors_explained():
            operation, own = begin(kind, module.params)
            if module.check_mode:
                result["changed"] = kind not in HARMLESS_KINDS
                module.exit_json(**result)
            if module.params["record"]:
                claim.guard(module.params["record"]["run_id"])
            with locks.deadline(module.params["deadline_s"]):
                result.update(flow(operation, own))
        result["changed"] = kind not in HARMLESS_KINDS
    except CkptError as error:
        _note_failure(module, operation, result, error)
    except locks.EndedEarly as error:
        _note_failure(module, operation, result, locks.as_failure(kind, error))
    except Exception as error:
        message = f"{type(error).__name__}: {error}; this is a defect of gpuckpt, please report it with the log lines."
        _note_failure(
            module, operation, result, CkptError("internal", message, traceback.format_exc().splitlines()[-8:])
        )
    if operation is not None:
        _keep_record(module, operation, result)
    module.exit_json(**result)


def _note_failure(
    module: AnsibleModule, operation: Measurement | None, result: dict[str, Any], error: CkptError
) -> None:
    """A failed measurement is a result; a failure that makes no measurement ends the task."""
    result.update(reason=error.reason, log_lines=error.log_lines, changed=True, msg=error.message)
    if operation is not None:
        result["changed"] = operation.record.kind not in HARMLESS_KINDS
        operation.record.failure = error
        operation.record.log_tail = error.log_lines or operation.record.log_tail
        result["log_lines"] = error.log_lines + operation.log_lines
        _keep_record(module, operation, result)
    measured = operation is not None and operation.record.kind in RESULT_KINDS
    if not measured or not module.params.get("record") or module.params["fail_on_error"]:
        module.fail_json(**result)


def _keep_record(module: AnsibleModule, operation: Measurement, result: dict[str, Any]) -> None:
    result["actions"] = operation.commands.actions
    result["record"] = operation.record.as_dict(operation.commands.actions)
    if operation.record.kind in MEASURED_KINDS:
        result["up_at_s"] = None if operation.record.failure else operation.record.up_at
    if module.params.get("record"):
        if operation.record.kind in MEASURED_KINDS or operation.record.bill:
            result["outcome"] = outcome(result["record"])
        write_record(module.params["record_path"], result["record"])
