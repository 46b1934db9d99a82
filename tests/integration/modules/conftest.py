# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers, real CRIU, real podman: the ckpt_* modules run as Ansible runs them, without Ansible around."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.system import procfs

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import module_call
from programs import PATIENCE_S, PRELUDE, SERVE, Begin, Program
from support import RUNTIMES_OF_USERS, Call, Result

ROOT = Path(__file__).resolve().parents[3]
SERVER = ROOT / "roles" / "inference_server" / "files" / "gpuckpt_reference_server.py"
IMAGE = "localhost/gpuckpt-reference:latest"
WEIGHTS_MIB = 16


@pytest.fixture(scope="session")
def call(provisioned: object) -> Call:
    """Runs a module with options; returns its result."""
    return module_call.call


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small weights file."""
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    subprocess.run([sys.executable, SERVER, "--weights", path, "--make-weights", str(WEIGHTS_MIB)], check=True)
    return path


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def store() -> Iterator[Path]:
    """A folder on the checkpoint store."""
    folder = Path("/mnt/checkpoint-ram") / f"modules-test-{os.getpid()}"
    folder.mkdir(mode=0o700)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture
def bare_server(weights: Path, port: int, tmp_path: Path) -> Result:
    """The reference server without a container."""
    return {
        "name": f"modules-test-{port}",
        "kind": "reference",
        "model": "gpuckpt-reference",
        "port": port,
        "command": ["/usr/bin/python3", str(SERVER), f"--weights={weights}", f"--port={port}"],
        "stdout": str(tmp_path / "server.log"),
        "unique": [["/reseed", {}]],
        "health_timeout_s": 30,
    }


@pytest.fixture
def process_server(call: Call, bare_server: Result) -> Iterator[Result]:
    """Options for the reference server as a plain process; stopped at the end."""
    yield {"runtime": "process", "server": bare_server}
    call("ckpt_stop", runtime="process", server=bare_server)


@pytest.fixture
def podman_server(call: Call, weights: Path, port: int) -> Iterator[Result]:
    """Options for the reference server in a container; removed at the end."""
    server = {
        "name": f"modules-test-{port}",
        "kind": "reference",
        "model": "gpuckpt-reference",
        "port": port,
        "image": IMAGE,
        "podman_args": ["--network=host", "-v", f"{weights.parent}:/weights:ro", "-v", f"{SERVER.parent}:/server:ro"],
        "command": ["/usr/bin/python3", f"/server/{SERVER.name}", "--weights=/weights/weights.bin", f"--port={port}"],
        "unique": [["/reseed", {}]],
        "health_timeout_s": 30,
    }
    yield {"runtime": "podman", "server": server}
    call("ckpt_stop", runtime="podman", server=server)


@pytest.fixture(params=RUNTIMES_OF_USERS)
def server(request: pytest.FixtureRequest) -> Result:
    """Both runtimes that users have, one after the other."""
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def begin(provisioned: object, store: Path) -> Iterator[Begin]:
    """Starts a program; returns it when it serves. Skips where the kernel lacks what it asks for."""
    procfs.adopt_orphans()
    programs = []
    scratch = [tempfile.TemporaryDirectory(dir=folder) for folder in ("/dev/shm", "/var/tmp")]

    def start(code: str) -> Program:
        beat, log = store / "beat", store / "log"
        argv = ["/usr/bin/python3", "-c", PRELUDE + code + SERVE, str(beat), *(folder.name for folder in scratch)]
        with log.open("wb") as out:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        programs.append(Program(process, store))
        deadline = time.monotonic() + PATIENCE_S
        while not beat.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        said = log.read_text().strip()
        if said.splitlines() and "Error: " in said.splitlines()[-1] and "[Errno" in said.splitlines()[-1]:
            pytest.skip(f"not on this kernel: {said.splitlines()[-1]}")
        assert beat.exists(), said
        return programs[-1]

    yield start
    for program in programs:
        program.end()
    # other tests leave it to process 1 to collect their servers
    ctypes.CDLL(None).prctl(procfs.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    for folder in scratch:
        folder.cleanup()
    while os.path.ismount(store / "over"):
        subprocess.run(["umount", "--lazy", store / "over"], check=True)
