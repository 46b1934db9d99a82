# SPDX-License-Identifier: GPL-3.0-or-later
"""One server with a good checkpoint, and what must hold whatever happens to it."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import module_call
import node

SERVER = module_call.ROOT / "roles/inference_server/files/gpuckpt_reference_server.py"
IMAGE = "localhost/gpuckpt-reference:latest"
MODULE_LIMIT_S = 120.0
# what a checkpoint may say of a server that was killed; an answer may break off before its process is gone
ENDS = ("server_died", "server_unhealthy", None)
BUILDS: dict[str, dict[str, Any]] = {
    "stock": {"build": "stock", "switches": {"CRIU_MAPPED_RESTORE": "0"}},
    "patched": {"build": "patched", "switches": {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_SCOPE": "all"}},
}


@dataclass
class Outcome:
    """What a trial found. Empty lists are what is wished for."""

    kind: str
    seed: int
    struck: bool = True
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0


class World:
    """A server, its golden checkpoint, and the digest of its memory."""

    def __init__(self, runtime: str, build: str, weights: Path, outcome: Outcome) -> None:
        self.rng = random.Random(outcome.seed)
        self.runtime, self.outcome = runtime, outcome
        self.port = free_port()
        base = f"faults-{self.port}"
        self.folder = node.STORE / base
        self.server: dict[str, Any] = {
            "name": f"{base}-lane",
            "kind": "reference",
            "model": "gpuckpt-reference",
            "port": self.port,
            "health_timeout_s": 30,
        }
        if runtime == "podman":
            volumes = ["-v", f"{weights.parent}:/weights:ro", "-v", f"{SERVER.parent}:/server:ro"]
            self.server |= {
                "image": IMAGE,
                "podman_args": ["--network=host", *volumes],
                "command": ["/usr/bin/python3", f"/server/{SERVER.name}", f"--weights=/weights/{weights.name}"],
            }
        else:
            self.server |= {
                "command": ["/usr/bin/python3", str(SERVER), f"--weights={weights}"],
                "stdout": f"/var/tmp/{base}.log",
            }
        self.server["command"].append(f"--port={self.port}")
        self.criu = BUILDS[build]
        self.flags = ["--keep"] if runtime == "podman" else []
        self.before = frozenset(node.traces(frozenset()))
        self.digest = ""

    def options(self, **more: Any) -> dict[str, Any]:
        """Options of any module for this server."""
        return {"runtime": self.runtime, "server": self.server, **more}

    def begin(self, operation: str, **more: Any) -> module_call.ModuleCall:
        """Starts `start`, `checkpoint`, `restore`, or `stop`."""
        given = {"checkpoint": {"dir": str(self.folder)}, "criu": self.criu}
        if operation == "restore":
            given["flags"] = self.flags
        return module_call.ModuleCall(
            f"ckpt_{operation}", self.options(**(given if operation in ("checkpoint", "restore") else {}), **more)
        )

    def finish(self, running: module_call.ModuleCall, what: str) -> dict[str, Any] | None:
        """The module's result; one that does not end is noted as hung, and ended."""
        try:
            return running.finish(MODULE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.outcome.hung.append(f"{what} did not end within {MODULE_LIMIT_S:g} s")
            running.process.kill()
            return running.finish(10)

    def perform(self, operation: str, **more: Any) -> dict[str, Any] | None:
        """Runs one module to its end."""
        return self.finish(self.begin(operation, **more), operation)

    def prepare(self, serving: bool, **checkpoint: Any) -> None:
        """Starts the server, takes the golden checkpoint (with more options, if given), and restores it if it shall serve."""
        for operation in ("start", "checkpoint", *(["restore"] if serving else [])):
            if operation == "checkpoint":
                self.digest = self.memory()
            result = self.perform(operation, **(checkpoint if operation == "checkpoint" else {}))
            if not ok(result):
                raise RuntimeError(f"{operation} failed before anything was done to it: {message(result)}")

    def memory(self) -> str:
        """The digest that the server makes of its own memory; empty if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/debug/digest", timeout=20) as answer:
                return str(json.load(answer))
        except (OSError, ValueError):
            return ""

    def ended(self, what: str) -> None:
        """Notes a server or a port that is still there although `what` says that it ended."""
        alive = node.settled(lambda: [f"{what}: server {pid}" for pid in node.servers(self.port)])
        self.outcome.left += alive
        if node.listens(self.port):
            self.outcome.left.append(f"{what}: port {self.port} is taken")

    def audit_result(self, operation: str, result: dict[str, Any] | None, killed_later: bool = False) -> None:
        """A success must be one, a failure must leave no process of a restored server.

        :param killed_later: whether the server may have been killed after it had proved itself.
        """
        self.outcome.said = message(result)
        reason = (result or {}).get("reason")
        if operation == "checkpoint" and killed_later and self.outcome.struck and reason not in ENDS:
            self.outcome.wrong.append(f"the server was killed, and the reason is {reason}: {message(result)}")
        if ok(result) and operation == "restore":
            memory = self.memory()
            if memory != self.digest and not (killed_later and not memory):
                self.outcome.wrong.append("the restore says ok, and the server's memory differs or it does not answer")
        if result is not None and not ok(result) and operation == "restore":
            self.ended("a failed restore")

    def audit_stop(self) -> None:
        """A stop that says ok has ended the server; what a checkpoint is restored into stays."""
        base = {**self.server, "name": self.server["name"].removesuffix("-lane")}
        result = self.finish(
            module_call.ModuleCall("ckpt_stop", {**self.options(), "server": base, "left_behind": True}), "stop"
        )
        if result is None or result.get("failed"):
            self.outcome.left.append(f"stop failed: {message(result)}")
        self.ended("after the stop")

    def audit_checkpoint(self) -> None:
        """The good checkpoint, or a newer one, brings the server's memory back."""
        result = self.perform("restore")
        if not ok(result) or self.memory() != self.digest:
            log = " | ".join((result or {}).get("log_lines") or [])
            self.outcome.lost.append(f"the checkpoint is not restored: {message(result)} {log}")

    def clean(self) -> None:
        """Removes server and checkpoint with our own module, and looks what stays."""
        result = self.perform("stop", checkpoints=[str(self.folder)])
        if result is None or result.get("failed"):
            self.outcome.left.append(f"the last stop failed: {message(result)}")
        self.ended("at the end")
        self.outcome.left += node.settled(lambda: node.traces(self.before))
        # the next trial begins on a clean node, whatever this one found
        node.strike([*node.servers(self.port), *(pid for name in node.HELPERS for pid in node.named(name))])
        if self.runtime == "podman":
            subprocess.run(
                ["podman", "rm", "--force", "--time=0", self.server["name"]],
                capture_output=True,
                timeout=60,
                check=False,
            )
        shutil.rmtree(self.folder, ignore_errors=True)


def ok(result: dict[str, Any] | None) -> bool:
    """Whether a module says that its operation succeeded."""
    return result is not None and not result.get("failed") and result.get("record", {}).get("status") == "ok"


def message(result: dict[str, Any] | None) -> str:
    """What a module says."""
    if result is None:
        return "no result: the module was killed"
    return str(
        result.get("msg")
        or (result.get("record") or {}).get("message")
        or (result.get("record") or {}).get("status")
        or "ok"
    )


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_weights(path: Path, mib: int) -> Path:
    """Weights for the reference server."""
    subprocess.run(
        [sys.executable, SERVER, "--weights", path, "--make-weights", str(mib)], check=True, stdout=subprocess.DEVNULL
    )
    return path


def wait_until(condition: Any, limit_s: float) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return False
