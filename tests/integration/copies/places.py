# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers of copies, and nodes that are folders: rclone's SFTP and WebDAV, an S3 server, a registry, a folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("node.py")
LIMIT_S = 120
USER, PASSWORD = "copier", "pass-word-of-the-tests"
Given = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A node below a folder. Each call is a process of its own, which can be killed."""

    root: Path
    options: Given = field(default_factory=dict)
    # words before each command
    before: list[str] = field(default_factory=list)

    def begin(self, verb: str, **given: Any) -> subprocess.Popen[str]:
        """Starts a call."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # a node does not have the settings of this machine's own clients
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RCLONE_"))}
        command = [*self.before, sys.executable, PROGRAM, self.root, verb, json.dumps({**self.options, **given})]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def call(self, verb: str, **given: Any) -> Given:
        """Does a call; returns its result."""
        with self.begin(verb, **given) as process:
            said, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors
        return dict(json.loads(said.splitlines()[-1]))


@dataclass(frozen=True)
class Place:
    """Where copies lie: how a node is told of it, where the server keeps its files, and the port that it listens on."""

    kind: str
    given: Given
    folder: Path | None = None
    port: int | None = None
    # of a server that can be started again: its process, and its arguments
    server: int = 0
    arguments: list[str] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[object], port: int, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Within, a server that listens."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def needs(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}: install {package}")
    return path


def obscured(password: str) -> str:
    done = subprocess.run(["rclone", "obscure", "-"], input=password, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def configuration(path: Path, **settings: str) -> str:
    """A file of rclone that describes the remote `there`."""
    path.write_text("[there]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    path.chmod(0o600)
    return str(path)


@contextmanager
def folder(scratch: Path) -> Iterator[Place]:
    (scratch / "remote").mkdir()
    yield Place("folder", {"rclone": str(scratch / "remote")}, scratch / "remote")


@contextmanager
def sftp(scratch: Path) -> Iterator[Place]:
    rclone, port = needs("rclone", "rclone"), free_port()
    (scratch / "remote").mkdir()
    # files that a test changes by hand have another size at once
    arguments = [f"--user={USER}", f"--pass={PASSWORD}", "--dir-cache-time=0s"]
    words = ["serve", "sftp", scratch / "remote", f"--addr=127.0.0.1:{port}", *arguments]
    # its key lies in the cache
    home = {"HOME": str(scratch), "XDG_CACHE_HOME": str(scratch / "cache")}
    with running([rclone, "--config=", *words], port, scratch / "server.log", **home) as process:
        settings = {"type": "sftp", "host": "127.0.0.1", "port": str(port), "user": USER, "pass": obscured(PASSWORD)}
        file = configuration(scratch / "rclone.conf", **settings, shell_type="none", disable_hashcheck="true")
        given = {"rclone": "there:golden", "credentials": file}
        yield Place("sftp", given, scratch / "remote" / "golden", port, process.pid, arguments)


@contextmanager
def webdav(scratch: Path) -> Iterator[Place]:
    rclone, port = needs("rclone", "rclone"), free_port()
    (scratch / "remote").mkdir()
    arguments = [f"--user={USER}", f"--pass={PASSWORD}", "--dir-cache-time=0s"]
    words = ["serve", "webdav", scratch / "remote", f"--addr=127.0.0.1:{port}", *arguments]
    with running([rclone, "--config=", *words], port, scratch / "server.log"):
        settings = {
            "type": "webdav",
            "url": f"http://127.0.0.1:{port}",
            "vendor": "other",
            "user": USER,
            "pass": obscured(PASSWORD),
        }
        file = configuration(scratch / "rclone.conf", **settings)
        yield Place("webdav", {"rclone": "there:golden", "credentials": file}, scratch / "remote" / "golden", port)


@contextmanager
def s3(scratch: Path) -> Iterator[Place]:
    """A server of S3 that rclone itself has since 1.65; older ones are not served."""
    rclone = os.environ.get("GPUCKPT_NEW_RCLONE") or needs("rclone", "rclone")
    known = subprocess.run([rclone, "serve", "s3", "--help"], capture_output=True, text=True)
    if known.returncode or "s3" not in known.stdout.partition("\n")[0].lower():
        pytest.skip("needs an rclone of 1.65 or newer for its S3 server; GPUCKPT_NEW_RCLONE names one")
    port = free_port()
    (scratch / "remote").mkdir()
    words = ["serve", "s3", scratch / "remote", f"--addr=127.0.0.1:{port}", f"--auth-key={USER},{PASSWORD}"]
    with running([rclone, "--config=", *words], port, scratch / "server.log"):
        settings = {"type": "s3", "provider": "Other", "endpoint": f"http://127.0.0.1:{port}", "access_key_id": USER}
        file = configuration(scratch / "rclone.conf", **settings, secret_access_key=PASSWORD, force_path_style="true")
        yield Place(
            "s3", {"rclone": "there:bucket/golden", "credentials": file}, scratch / "remote" / "bucket" / "golden", port
        )


@contextmanager
def registry(scratch: Path) -> Iterator[Place]:
    needs("skopeo", "skopeo")
    program, port = needs("docker-registry", "docker-registry"), free_port()
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(scratch / "remote")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(scratch / "htpasswd")}},
    }
    (scratch / "registry.json").write_text(json.dumps(settings))
    (scratch / "htpasswd").write_text(f"{USER}:{BCRYPT}\n")
    with running([program, "serve", scratch / "registry.json"], port, scratch / "server.log"):
        auth = scratch / "auth.json"
        login = [
            "skopeo",
            "login",
            "--tls-verify=false",
            f"--authfile={auth}",
            f"--username={USER}",
            "--password-stdin",
        ]
        subprocess.run([*login, f"127.0.0.1:{port}"], input=PASSWORD, check=True, capture_output=True, text=True)
        auth.chmod(0o600)
        yield Place(
            "registry",
            {"registry": f"127.0.0.1:{port}/golden", "credentials": str(auth), "verify_tls": False},
            scratch / "remote",
            port,
        )


# of PASSWORD: the registry takes bcrypt alone, which not every Python can make
BCRYPT = "$2y$05$abcdefghijklmnopqrstuu0UMtiPnj6eEH/yKMtPQ5uTWq1K5VDgm"
KINDS: dict[str, Callable[[Path], Any]] = {
    "folder": folder,
    "sftp": sftp,
    "webdav": webdav,
    "s3": s3,
    "registry": registry,
}
