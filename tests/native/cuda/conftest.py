# SPDX-License-Identifier: GPL-3.0-or-later
"""Real CRIU, stock and patched, on a real process tree whose CUDA driver is a fake (fake_libcuda.c): no GPU needed."""

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from criu_harness import Build, become_subreaper, descendants, kill, reap, wait_until

HERE = Path(__file__).resolve().parent
# CRIU's own switch that enables the CUDA plugin on a machine without a GPU.
FORCE_CUDA_PLUGIN = "138"
STEPS_OF_A_THREAD = 30  # before it counts as going on
SPAN = re.compile(
    r"gpuckpt: span name=(?P<name>\S+) pid=(?P<pid>\d+) start=(?P<start>\d+\.\d{6}) end=(?P<end>\d+\.\d{6})"
    r" bytes=(?P<bytes>\d+) note=(?P<note>\S+)$"
)


@dataclass(frozen=True)
class Span:
    """One span of CRIU's log; times are seconds of the monotonic clock."""

    name: str
    pid: int
    start: float
    end: float
    bytes: int
    note: str


@dataclass
class Tools:
    """What tests/native/cuda/Makefile builds."""

    folder: Path

    @property
    def driver(self) -> Path:
        return self.folder / "libcuda.so.1"

    @property
    def old_driver(self) -> Path:
        """A fake without the checkpoint API, as before driver 570."""
        return self.folder / "old/libcuda.so.1"

    @property
    def cuda_checkpoint(self) -> Path:
        return self.folder / "sanitized/cuda-checkpoint"

    @property
    def pool(self) -> Path:
        return self.folder / "sanitized/gpuckpt-pool"

    def on_fake(self, folder: Path, **more: str) -> dict[str, str]:
        """The environment of a Python program on the fake driver that may import staged_program."""
        (folder / "gpu").mkdir(exist_ok=True)
        own = {"GPUCKPT_FAKE_DIR": str(folder / "gpu"), "GPUCKPT_LIBCUDA": str(self.driver), "PYTHONPATH": str(HERE)}
        return {**os.environ, **own, **more}

    @property
    def staging(self) -> Path:
        """The library as it is installed, without sanitizers, which cannot be preloaded into Python."""
        return self.folder / "libgpuckpt_staging.so"


@dataclass
class Workload:
    """A tree of processes that hold data on the fake GPU."""

    tools: Tools
    folder: Path
    device: Path
    pids: list[int] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def gpu(self) -> Path:
        return self.folder / "gpu"

    def start(
        self, processes: int = 1, mib: int = 16, *, preload: Path | None = None, **environment: str
    ) -> "Workload":
        self.gpu.mkdir(exist_ok=True)
        self.environment = {
            "GPUCKPT_FAKE_DIR": str(self.gpu),
            "GPUCKPT_FAKE_DEVICE": str(self.device),
            "GPUCKPT_LIBCUDA": str(self.tools.driver),
            **environment,
        }
        command = [self.tools.folder / "gpu_workload", "--mib", str(mib), "--socket", self.folder / "socket"]
        process = subprocess.Popen(
            [*command, "--processes", str(processes)],
            env={**os.environ, **self.environment, **({"LD_PRELOAD": str(preload)} if preload else {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pids = [process.pid]
        wait_until(lambda: all(self.answers(n) for n in range(processes)), "the workload's answers")
        self.pids = descendants(process.pid)
        return self

    def socket(self, index: int) -> Path:
        return self.folder / ("socket" if index == 0 else f"socket.{index}")

    def ask(self, index: int, timeout_s: float = 15.0) -> dict[str, str]:
        """The answer of one process, read through the CUDA API. Raises TimeoutError when it hangs there."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            client.connect(str(self.socket(index)))
            client.sendall(b"digest\n")
            with client.makefile() as stream:
                # To the end: the workload has closed its side then, and holds no file that it did not before.
                return dict(pair.split("=") for pair in stream.read().split())

    def answers(self, index: int) -> bool:
        try:
            return bool(self.ask(index))
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def digests(self) -> list[str]:
        return [self.ask(index)["digest"] for index in range(len(self.pids))]

    def alive(self) -> list[int]:
        return [pid for pid in self.pids if Path(f"/proc/{pid}/exe").is_symlink() and exists(pid)]

    def contexts(self) -> list[str]:
        """Contexts on the fake GPU; those of the dead are gone, as with the real driver."""
        names = (path.name for path in self.gpu.glob("context.*"))
        return sorted(name for name in names if exists(int(name.split(".")[1])))

    def assert_gone(self) -> None:
        """Nothing of a failed restore may be left; CRIU does not wait for those it kills."""
        wait_until(lambda: not self.alive(), "the end of all processes of the failed restore")

    def stop(self) -> None:
        for pid in self.pids:
            kill(pid)
        for pid in self.pids:
            reap(pid)


class Busy(Workload):
    """One program whose threads use memory of the fake GPUs."""

    def begin(self, *options: str, preload: Path | None = None, gpus: int = 1, **environment: str) -> "Busy":
        self.gpu.mkdir(exist_ok=True)
        self.environment = {
            "GPUCKPT_FAKE_DIR": str(self.gpu),
            "GPUCKPT_FAKE_DEVICE": str(self.device),
            "GPUCKPT_FAKE_GPUS": str(gpus),
            "GPUCKPT_LIBCUDA": str(self.tools.driver),
            **environment,
        }
        command = [self.tools.folder / "staging_workload", "--socket", self.folder / "socket", "--gpus", str(gpus)]
        with self.messages.open("w") as stream:
            process = subprocess.Popen(
                [*command, *options],
                env={**os.environ, **self.environment, **({"LD_PRELOAD": str(preload)} if preload else {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
        self.pids = [process.pid]
        wait_until(lambda: self.answers(0), "the program's answer")
        self.goes_on()
        self.pids = descendants(process.pid)
        return self

    @property
    def messages(self) -> Path:
        """What the program says where something is wrong."""
        return self.folder / "messages"

    def tell(self, word: str, timeout_s: float = 30.0) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            try:
                client.connect(str(self.socket(0)))
                client.sendall(word.encode())
                with client.makefile() as stream:
                    answer = dict(pair.split("=") for pair in stream.read().split())
            except ConnectionError:
                answer = {}
        assert answer, f"it has ended: {self.messages.read_text()}"
        return answer

    def steps(self) -> list[int]:
        return [int(count) for count in self.tell("stats")["steps"].split(",")]

    def goes_on(self) -> None:
        """Every thread makes some more steps, which check what they find."""
        before = self.steps()
        wait_until(
            lambda: all(now >= then + STEPS_OF_A_THREAD for then, now in zip(before, self.steps(), strict=True)),
            f"steps of all threads; {self.messages.read_text()}",
        )


def exists(pid: int) -> bool:
    """True for a process that runs; a zombie has no memory map."""
    try:
        return bool(Path(f"/proc/{pid}/maps").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Outcome:
    """One run of criu."""

    returncode: int
    log: str

    @property
    def spans(self) -> list[Span]:
        return [
            Span(m["name"], int(m["pid"]), float(m["start"]), float(m["end"]), int(m["bytes"]), m["note"])
            for m in map(SPAN.search, self.log.splitlines())
            if m
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@dataclass
class Criu:
    """One build of CRIU, run with an explicit environment."""

    home: Path
    workload: Workload
    images: Path

    @property
    def staging(self) -> Path:
        """The library that programs load to stage their GPU memory."""
        return self.home / "lib/libgpuckpt_staging.so"

    def dump(self, *arguments: str, root: int | None = None, **environment: str) -> Outcome:
        self.images.mkdir(exist_ok=True)
        return self.run("dump", "-t", str(root or self.workload.pids[0]), *arguments, **environment)

    def restore(self, *arguments: str, **environment: str) -> Outcome:
        return self.run("restore", "-d", *arguments, **environment)

    def run(self, command: str, *arguments: str, **environment: str) -> Outcome:
        log = self.images / f"{command}.log"
        log.unlink(missing_ok=True)
        variables = {
            **os.environ,
            **self.workload.environment,
            "CRIU_FAULT": FORCE_CUDA_PLUGIN,
            "CRIU_LIBS_DIR": str(self.home / "lib/criu"),
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            **environment,
        }
        done = subprocess.run(
            [self.home / "libexec/criu", command, *arguments, "-D", self.images, "-o", log, "-v4"],
            env={name: value for name, value in variables.items() if value},
            timeout=120,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        text = log.read_text(errors="replace") if log.exists() else ""
        if command == "dump" and done.returncode == 0 and "--leave-running" not in arguments:
            self.workload.stop()
        return Outcome(done.returncode, text)


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    if os.geteuid() != 0:
        pytest.skip("CRIU needs root")
    become_subreaper()
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run(["make", "--quiet", "-C", HERE, f"O={folder}", "all"], check=True)
    return Tools(folder)


@pytest.fixture
def device() -> Iterator[Path]:
    """A plain file: the plugin tells NVIDIA's devices by their names."""
    path = Path(f"/dev/nvidia-gpuckpt-test-{os.getpid()}")
    path.touch()
    yield path
    path.unlink()


@pytest.fixture
def workload(tools: Tools, tmp_path: Path, device: Path) -> Iterator[Workload]:
    workload = Workload(tools, tmp_path, device)
    yield workload
    workload.stop()


@pytest.fixture
def busy(tools: Tools, tmp_path: Path, device: Path) -> Iterator[Busy]:
    busy = Busy(tools, tmp_path, device)
    yield busy
    busy.stop()


@pytest.fixture
def run_on_fake(tools: Tools, tmp_path: Path) -> Callable[..., Any]:
    """Runs a script in a program on the fake driver (staged_program.py), and returns what it calls `told` at its end."""

    def run(script: str, **environment: str) -> Any:
        prelude = "import json, os, sys, threading, time\nfrom staged_program import *\n"
        done = subprocess.run(
            [sys.executable, "-c", f"{prelude}{textwrap.dedent(script)}\nprint(json.dumps(told))"],
            env=tools.on_fake(tmp_path, **environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def criu(patched_build: Build, workload: Workload, tmp_path: Path) -> Criu:
    return Criu(patched_build.home, workload, tmp_path / "images")


@pytest.fixture
def stock_criu(stock_build: Build, workload: Workload, tmp_path: Path) -> Criu:
    return Criu(stock_build.home, workload, tmp_path / "images")
