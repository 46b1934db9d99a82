#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures checkpoint and restore of a process with GPU data, by bare CRIU, variant by variant, interleaved.

One JSON line per operation is appended to --out; the first line of a run is its manifest. A table of medians follows on
standard output. An operation counts as ok only when criu exited 0, the driver says RUNNING, and the counter went on. The
digest of the GPU's memory must be the one from before the dump, too. Needs root, no network, only the standard library.
Nothing waits longer than --op-limit-s: the first hang is recorded and ends the run.

    gpu_bench.py --stock HOME --patched HOME --workload gpu_workload --out samples.jsonl --gib 8 --rounds 10
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
CRIU_OPTIONS = ("--network-lock", "skip", "-v4")
SPAN = re.compile(
    r"gpuckpt: span name=(?P<name>\S+) pid=(?P<pid>\d+) start=(?P<start>[\d.]+) end=(?P<end>[\d.]+)"
    r" bytes=(?P<bytes>\d+) note=(?P<note>\S+)"
)
HUGE_PAGES = re.compile(r"gpuckpt: huge pages pid=\d+ bytes=(\d+)$", re.M)
COMMAND = {"CRIU_CUDA_BACKEND": "cuda-checkpoint"}
DRIVER_API = {"CRIU_CUDA_BACKEND": "driver-api"}
MAPPED = {"CRIU_MAPPED_RESTORE": "1"}
THREADS = {"CRIU_RESTORE_THREADS": "8"}
POOL = {"CRIU_CUDA_CONTEXT_POOL": "1", "CRIU_CUDA_POOL_CONTEXTS": "1"}
HUGE = {"CRIU_DRIVER_HUGE_PAGES": "1"}
NO_CONTEXTS = ("--no-contexts",)
POPULATE = {"CRIU_DRIVER_POPULATE": "1"}
QUICK_FREEZE = {"CRIU_FREEZE_POLL_MS": "1"}
ALL = DRIVER_API | MAPPED | THREADS | POPULATE | QUICK_FREEZE


@dataclass(frozen=True)
class Variant:
    """One way to run CRIU: a build and its switches.

    A resident pool with its options may run during it, and each GPU's data may go to the next GPU. Or the program stages
    its GPU memory itself (docs/staging.md).
    """

    build: str
    environment: dict[str, str]
    resident_pool: bool = False
    pool_options: tuple[str, ...] = ()
    renumbered: bool = False
    staged: bool = False


VARIANTS = {
    "stock": Variant("stock", {}),
    "patched-off": Variant("patched", COMMAND),
    "driver-api": Variant("patched", DRIVER_API),
    "mapped": Variant("patched", COMMAND | MAPPED),
    "populate": Variant("patched", COMMAND | MAPPED | THREADS | POPULATE),
    "threads": Variant("patched", COMMAND | THREADS),
    "huge-threads": Variant("patched", COMMAND | THREADS | HUGE),
    "pool": Variant("patched", COMMAND | POOL),
    "resident": Variant("patched", COMMAND, resident_pool=True),
    "resident-init": Variant("patched", COMMAND, resident_pool=True, pool_options=NO_CONTEXTS),
    "all": Variant("patched", ALL),
    "all+driver-scope": Variant("patched", ALL | {"CRIU_MAPPED_SCOPE": "driver"}),
    "all-threads": Variant("patched", DRIVER_API | THREADS | QUICK_FREEZE),
    "all-threads+huge": Variant("patched", DRIVER_API | THREADS | QUICK_FREEZE | HUGE),
    "all+pool": Variant("patched", ALL | POOL),
    "all+pool-init": Variant("patched", ALL | POOL | {"CRIU_CUDA_POOL_CONTEXTS": "0"}),
    "all+resident": Variant("patched", ALL, resident_pool=True),
    "all+resident-init": Variant("patched", ALL, resident_pool=True, pool_options=NO_CONTEXTS),
    "all+renumbered": Variant("patched", ALL, renumbered=True),
    "staged": Variant("patched", ALL, staged=True),
    "staged+resident": Variant("patched", ALL, resident_pool=True, staged=True),
}
ON_ONE_GPU = [name for name, variant in VARIANTS.items() if not variant.renumbered]


class BenchError(Exception):
    """Something that the bench itself needs did not work; the message says what."""


class HangError(BenchError):
    """Something did not end or answer within the limit of one operation: whatever came after it would be no sample."""


class Limits:
    """Seconds that one program, one answer or one end of a process may take; set once from the command line."""

    operation_s: float = 60


def run(command: list[object], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a program and returns what it said. Raises HangError when it does not end within the limit, after SIGKILL."""
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=Limits.operation_s)
    except subprocess.TimeoutExpired:
        process.kill()
        # A program that hangs in the kernel does not even die: it must not take the bench with it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        raise HangError(f"{' '.join(words[:2])} did not end within {Limits.operation_s:g} s") from None
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def reap(pids: list[int]) -> None:
    """Ends processes and waits until their pids are free again. They are our children: we are a subreaper."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + Limits.operation_s
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline:
                raise HangError(f"pid {pid} did not end within {Limits.operation_s:g} s of SIGKILL")
            time.sleep(0.005)


@dataclass
class Workload:
    """gpu_workload with its sockets."""

    binary: Path
    folder: Path
    environment: dict[str, str]
    mib: int
    processes: int = 1
    library: Path | None = None  # loaded into it
    pids: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    counter: int = 0

    def start(self) -> None:
        """Starts it and waits until the data is on the GPU. Raises BenchError."""
        command = [self.binary, "--mib", self.mib, "--socket", self.folder / "socket", "--processes", self.processes]
        with (self.folder / "workload.log").open("w") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **self.environment, **({"LD_PRELOAD": str(self.library)} if self.library else {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.pids = [process.pid]
        deadline = time.monotonic() + Limits.operation_s
        while not self.digests:
            if process.poll() is not None:
                raise BenchError(f"the workload does not start: {(self.folder / 'workload.log').read_text()}")
            if time.monotonic() > deadline:
                raise HangError(f"the workload was not ready within {Limits.operation_s:g} s")
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self.digests = [self.ask(index, "digest")["digest"] for index in range(self.processes)]
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        self.pids = [process.pid, *map(int, children.split())]
        self.counter = int(self.ask(0, "ping")["counter"])

    def ask(self, index: int, question: str) -> dict[str, str]:
        """Its answer. Raises HangError when none comes within the limit."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(Limits.operation_s)
            try:
                client.connect(str(self.folder / ("socket" if index == 0 else f"socket.{index}")))
                client.sendall(f"{question}\n".encode())
                with client.makefile() as stream:
                    return dict(pair.split("=") for pair in stream.read().split())
            except TimeoutError:
                raise HangError(
                    f"process {index} did not answer '{question}' within {Limits.operation_s:g} s"
                ) from None


@dataclass(frozen=True)
class Run:
    """One run of criu: its exit code (None: killed), wall time in seconds, log, and what hung, or an empty string."""

    returncode: int | None
    seconds: float
    log: str
    spans: list[dict[str, object]]
    hang: str

    @property
    def failure(self) -> str:
        return self.hang or (f"criu exited {self.returncode}" if self.returncode else "")


@dataclass
class Bench:
    """Where everything lies, and what is common to all operations."""

    homes: dict[str, Path]
    workloads: dict[bool, Workload]  # by whether they stage their memory
    workload: Workload  # the one that is measured just now
    folder: Path
    environment: dict[str, str]
    out: Path
    deadline: float
    gpus: list[str] = field(default_factory=list)

    def switches(self, variant: Variant) -> dict[str, str]:
        """A variant's switches on this node. Raises BenchError where it needs GPUs that are not there."""
        if not variant.renumbered:
            return variant.environment
        if len(self.gpus) < 2:
            raise BenchError("a renumbered restore needs two GPUs that nvidia-smi lists; leave all+renumbered out")
        pairs = zip(self.gpus, self.gpus[1:] + self.gpus[:1])
        return variant.environment | {"CRIU_CUDA_DEVICE_MAP": ",".join(f"{old}={new}" for old, new in pairs)}

    def take(self, variant: Variant) -> Path:
        """Turns to the workload of a variant; returns the folder of its images."""
        self.workload = self.workloads[variant.staged]
        return self.workload.folder / "images"

    def record(self, **values: object) -> None:
        with self.out.open("a") as stream:
            stream.write(json.dumps(values, sort_keys=True) + "\n")

    def criu(self, variant: Variant, command: str, images: Path, *arguments: object) -> "Run":
        """Runs criu. A hang is in what it returns, so that it can be recorded with the log."""
        home = self.homes[variant.build]
        log = images / f"{command}.log"
        log.unlink(missing_ok=True)
        environment = {
            # Before our own limit, so that CRIU says which call of the driver hangs, and puts things back.
            "CRIU_CUDA_TIMEOUT_S": str(max(1, int(Limits.operation_s * 3 / 4))),
            **self.environment,
            **self.switches(variant),
            "CRIU_LIBS_DIR": str(home / "lib/criu"),
            "PATH": f"{home}/bin:{os.environ['PATH']}",
        }
        words = [home / "libexec/criu", command, "-D", images, "-o", log, *CRIU_OPTIONS, *arguments]
        start = time.monotonic()
        returncode, hang = None, ""
        try:
            returncode = run(words, environment).returncode
        except HangError as error:
            hang = str(error)
        seconds = time.monotonic() - start
        text = log.read_text(errors="replace") if log.exists() else ""
        spans = spans_of(text)
        for span in spans:
            if span["note"] == "timeout":
                hang = hang or f"{span['name']} of pid {span['pid']} did not end"
        return Run(returncode, seconds, text, spans, hang)

    def states(self) -> list[str]:
        command = [self.homes["patched"] / "bin/cuda-checkpoint", "--get-state", "--pid"]
        return [run([*command, pid], self.environment).stdout.strip() for pid in self.workload.pids]

    @contextlib.contextmanager
    def standing_by(self, variant: Variant) -> Iterator[None]:
        """The resident pool, where the variant has one."""
        if not variant.resident_pool:
            yield
            return
        command = [self.homes["patched"] / "bin/gpuckpt-pool", "--status-file", self.folder / "pool.status"]
        pool = subprocess.Popen(
            [*map(str, command), *variant.pool_options],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
        )
        try:
            status = [command[0], "--status", *command[1:]]
            deadline = time.monotonic() + Limits.operation_s
            while run(status, self.environment).returncode != 0:
                if pool.poll() is not None:
                    raise BenchError("the resident pool ended")
                if time.monotonic() > deadline:
                    raise HangError(f"the resident pool was not ready within {Limits.operation_s:g} s")
                time.sleep(0.05)
            yield
        finally:
            pool.terminate()
            pool.wait(30)


def spans_of(log: str) -> list[dict[str, object]]:
    return [
        {
            "name": m["name"],
            "pid": int(m["pid"]),
            "start": float(m["start"]),
            "end": float(m["end"]),
            "bytes": int(m["bytes"]),
            "note": m["note"],
        }
        for m in SPAN.finditer(log)
    ]


def image_bytes(images: Path) -> int:
    return sum(path.stat().st_size for path in images.iterdir() if path.suffix == ".img")


def ask_gpus(field: str) -> list[str]:
    """What nvidia-smi says of each GPU; nothing where it is missing."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"], {})
    return done.stdout.split() if done.returncode == 0 else []


def gpu_used_mib() -> int | None:
    """Memory in use on all GPUs together, or None where nvidia-smi does not tell."""
    used = ask_gpus("memory.used")
    return sum(map(int, used)) if used else None


def gpu_used_after_stop(before: int | None) -> int | None:
    """GPU memory in use once it has fallen to what it was before, or after 10 s."""
    deadline = time.monotonic() + 10
    while True:
        used = gpu_used_mib()
        if used is None or before is None or used <= before or time.monotonic() > deadline:
            return used
        time.sleep(0.1)


@dataclass
class Proof:
    """Why the restored tree is not what it was, or an empty string; times since the call; facts for the record."""

    reason: str = ""
    times: dict[str, float] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    hang: bool = False


def prove(bench: Bench, done: Run) -> Proof:
    if done.failure:
        return Proof(done.failure, hang=bool(done.hang))
    proof = Proof()
    start = time.monotonic()
    workload = bench.workload
    try:
        alive = [int(workload.ask(index, "ping")["counter"]) for index in range(workload.processes)]
        proof.times["answer_s"] = time.monotonic() - start
        states = bench.states()
        answers = [workload.ask(index, "digest") for index in range(workload.processes)]
        proof.times["digest_s"] = time.monotonic() - start
        proof.facts = {"states": states, "free_mib": int(answers[0]["free_mib"]), **footprint(workload.pids[0])}
    except HangError as error:
        return Proof(str(error), hang=True)
    except (OSError, KeyError) as error:
        return Proof(f"the restored workload does not answer: {error}")
    if states != ["running"] * workload.processes:
        proof.reason = f"CUDA states {states}"
    elif [answer["digest"] for answer in answers] != workload.digests:
        proof.reason = "the digest of the GPU memory changed"
    elif alive[0] < workload.counter:
        proof.reason = "the counter went back"
    return proof


def prove_place(proof: Proof, workload: Workload) -> None:
    """The data of a renumbered restore, which was on the first GPU, must lie on the second."""
    used = [int(mib) for mib in ask_gpus("memory.used")]
    proof.facts["gpus_used_mib"] = used
    if used[1] < workload.mib * workload.processes:
        proof.reason = f"the data is not on the second GPU: {used} MiB in use"


def footprint(pid: int) -> dict[str, object]:
    """What a leak would add to: open files, threads, and files mapped."""
    maps = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {
        "fds": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "mapped_files": len({line[5] for line in maps if len(line) > 5 and line[5].startswith("/")}),
    }


def restore_once(bench: Bench, name: str, gpu_before: int | None, **labels: object) -> bool:
    """One restore with its proof and record; the tree is ended again. Raises HangError when that is recorded too."""
    variant = VARIANTS[name]
    images = bench.take(variant)
    with bench.standing_by(variant):
        done = bench.criu(variant, "restore", images, "-d")
        proof = prove(bench, done)
        if variant.renumbered and not proof.reason:
            prove_place(proof, bench.workload)
        try:
            reap(bench.workload.pids)
        except HangError as error:
            proof.reason, proof.hang = proof.reason or str(error), True
    after = None if proof.hang else gpu_used_after_stop(gpu_before)
    if not proof.reason and gpu_before is not None and after is not None and after > gpu_before:
        proof.reason = f"GPU memory in use grew from {gpu_before} to {after} MiB"
    bench.record(
        kind="restore",
        variant=name,
        ok=not proof.reason,
        reason=proof.reason,
        hang=proof.hang,
        criu_s=done.seconds,
        ready_s=done.seconds + proof.times["answer_s"] if proof.times else None,
        digest_s=proof.times.get("digest_s"),
        gpu_used_mib={"before": gpu_before, "after": after},
        huge_bytes=sum(map(int, HUGE_PAGES.findall(done.log))),
        spans=done.spans,
        log_tail=done.log[-3000:] if proof.reason else "",
        **proof.facts,
        **labels,
    )
    print(f"{labels} restore {name}: {done.seconds:.3f} s {proof.reason or 'ok'}", flush=True)
    if proof.hang:
        raise HangError(f"the run stops at its first hang, restore {name}: {proof.reason}")
    return not proof.reason


def dump_once(bench: Bench, name: str, images: Path, **labels: object) -> bool:
    """One dump of the running tree, which ends with it. Raises HangError when that is recorded too."""
    images.mkdir(parents=True)
    done = bench.criu(VARIANTS[name], "dump", images, "-t", bench.workload.pids[0])
    size = image_bytes(images)
    expected = bench.workload.mib * bench.workload.processes << 20
    reason = done.failure
    if not reason and size < expected:
        reason = f"{size} bytes of images for {expected} bytes of GPU data"
    bench.record(
        kind="dump",
        variant=name,
        ok=not reason,
        reason=reason,
        hang=bool(done.hang),
        criu_s=done.seconds,
        image_bytes=size,
        spans=done.spans,
        log_tail=done.log[-3000:] if reason else "",
        **labels,
    )
    print(f"{labels} dump {name}: {done.seconds:.3f} s {size} bytes {reason or 'ok'}", flush=True)
    if done.hang:
        raise HangError(f"the run stops at its first hang, dump {name}: {reason}")
    if not reason:
        reap(bench.workload.pids)
    return not reason


def schedule(names: list[str], rounds: int, seed: int, warmup: list[str] | None = None) -> list[tuple[int, str]]:
    """Every variant once per round, in an order that the seed decides; round 0 is warm-up, of some or all of them."""
    shuffled = random.Random(seed)
    plan = []
    for index in range(rounds + 1):
        order = names[:] if index or warmup is None else warmup[:]
        shuffled.shuffle(order)
        plan += [(index, name) for name in order]
    return plan


def measure_restores(bench: Bench, args: argparse.Namespace, gpu_before: int | None) -> None:
    for index, name in schedule(args.variants, args.rounds, args.seed, args.warmup_variants):
        if time.monotonic() > bench.deadline:
            print("the time limit is reached: the rest of the schedule is left out", flush=True)
            return
        restore_once(bench, name, gpu_before, gib=args.gib, round=index, warmup=index == 0)


def measure_dumps(bench: Bench, args: argparse.Namespace) -> None:
    scratch = bench.folder / "scratch"
    for index, name in schedule(args.dump_variants, args.dump_rounds, args.seed):
        if time.monotonic() > bench.deadline:
            print("the time limit is reached: the rest of the dumps is left out", flush=True)
            return
        images = bench.take(VARIANTS[name])
        # Restored by copying, so that each dump meets memory of its own, whoever made it.
        restored = bench.criu(VARIANTS["driver-api"], "restore", images, "-d")
        if restored.failure:
            raise BenchError(f"the restore before a dump failed: {restored.failure}\n{restored.log[-2000:]}")
        for process in range(bench.workload.processes):
            bench.workload.ask(process, "ping")
        if not dump_once(bench, name, scratch, gib=args.gib, round=index, warmup=index == 0):
            reap(bench.workload.pids)
        shutil.rmtree(scratch)


def leak_check(bench: Bench, args: argparse.Namespace, gpu_before: int | None) -> bool:
    """Many restores with the pool: every one must find and leave the same."""
    labels = {"gib": args.gib, "warmup": False, "leak_check": True}
    done = [restore_once(bench, args.leak_variant, gpu_before, round=index, **labels) for index in range(args.leak)]
    records = [json.loads(line) for line in bench.out.read_text().splitlines()][-args.leak :]
    keys = ("fds", "threads", "mapped_files", "free_mib")
    seen = {tuple(record.get(key) for key in keys) for record in records}
    print(f"leak check, {args.leak} restores: {dict(zip(keys, next(iter(seen)))) if len(seen) == 1 else seen}")
    return all(done) and len(seen) == 1


def probe(bench: Bench) -> dict[str, object]:
    """What the driver answers about a process that has nothing to do with CUDA, and how long queries take."""
    command = bench.homes["patched"] / "bin/cuda-checkpoint"
    start = time.monotonic()
    stranger = run([command, "--get-restore-tid", "--pid", os.getpid()], bench.environment)
    return {
        "stranger": {"rc": stranger.returncode, "stderr": stranger.stderr.strip(), "s": time.monotonic() - start},
        "help": run([command, "--help"], bench.environment).stdout.splitlines()[0],
    }


def manifest(bench: Bench, args: argparse.Namespace) -> dict[str, object]:
    gpu = ["nvidia-smi", "--query-gpu=name,uuid,driver_version,persistence_mode,memory.total", "--format=csv,noheader"]
    return {
        "kind": "manifest",
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "builds": {name: json.loads((home / "BUILD.json").read_text()) for name, home in bench.homes.items()},
        "gpu": run(gpu, {}).stdout.strip() if shutil.which("nvidia-smi") else "none (fake driver)",
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "variants": {name: bench.switches(VARIANTS[name]) for name in args.variants},
        "probe": probe(bench),
    }


def summarise(out: Path) -> None:
    """Medians per kind and variant, warm-up left out, failures counted."""
    records = [json.loads(line) for line in out.read_text().splitlines()]
    samples = [r for r in records if r["kind"] != "manifest" and not r["warmup"] and not r.get("leak_check")]
    print(f"\n{'kind':8} {'gib':>6} {'variant':18} {'n':>3} {'bad':>3} {'criu s':>8} {'ready s':>8}  spans (median s)")
    for kind, gib, name in sorted({(r["kind"], r["gib"], r["variant"]) for r in samples}):
        group = [r for r in samples if (r["kind"], r["gib"], r["variant"]) == (kind, gib, name)]
        good = [r for r in group if r["ok"]]
        ready = [r["ready_s"] for r in good if r.get("ready_s")]
        print(
            f"{kind:8} {gib:6} {name:18} {len(group):3} {len(group) - len(good):3}"
            f" {median([r['criu_s'] for r in good]):>8} {median(ready):>8}  {span_medians(good)}"
        )


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.3f}" if values else "-"


def span_medians(records: list[dict]) -> str:
    names = sorted({span["name"] for record in records for span in record["spans"]})
    parts = []
    for name in names:
        # Spans of one name overlap when processes are handled at once: the time they cover together is what counts.
        covered = [
            max(s["end"] for s in spans) - min(s["start"] for s in spans)
            for record in records
            if (spans := [s for s in record["spans"] if s["name"] == name])
        ]
        parts.append(f"{name}={median(covered)}")
    return " ".join(parts)


def variant_list(text: str) -> list[str]:
    names = text.split(",") if text else []
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown variants {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    return names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stock", type=Path, required=True, help="folder of the stock build (bin, lib, libexec)")
    parser.add_argument("--patched", type=Path, required=True, help="folder of the patched build")
    parser.add_argument("--workload", type=Path, required=True, help="the gpu_workload program")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended here")
    parser.add_argument("--gib", type=float, default=8, help="GiB of GPU data, per process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10, help="after one warm-up round")
    parser.add_argument("--variants", type=variant_list, default=ON_ONE_GPU, help=", ".join(VARIANTS))
    parser.add_argument("--warmup-variants", type=variant_list, help="in the warm-up round only these; default: all")
    parser.add_argument("--dump-rounds", type=int, default=0)
    parser.add_argument("--dump-variants", type=variant_list, default=["stock", "patched-off", "all"])
    parser.add_argument("--leak", type=int, default=0, help="restores of the leak check")
    parser.add_argument("--leak-variant", default="all+pool", choices=sorted(VARIANTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=540, help="start no further operation after this time")
    parser.add_argument(
        "--op-limit-s", type=float, default=60, help="no program and no answer may take longer: the run stops there"
    )
    parser.add_argument("--images", type=Path, default=Path("/dev/shm"), help="folder on a tmpfs for the images")
    parser.add_argument("--tmpfs", metavar="SIZE", help="mount a tmpfs of this size on the images' folder meanwhile")
    parser.add_argument("--fake", type=Path, metavar="LIBCUDA", help="run on the tests' fake driver instead of a GPU")
    return parser.parse_args()


@contextlib.contextmanager
def image_folder(args: argparse.Namespace) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gpu-bench-", dir=args.images))
    try:
        if args.tmpfs:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={args.tmpfs},mode=0700,nosuid,nodev", "gpu-bench", folder]
            done = run(mount, {})
            if done.returncode:
                raise BenchError(f"cannot mount a tmpfs: {done.stderr.strip()}; leave --tmpfs out")
        yield folder
    finally:
        if args.tmpfs:
            run(["umount", folder], {})
        shutil.rmtree(folder, ignore_errors=True)


def fake_environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    if not args.fake:
        return {}
    (folder / "gpu").mkdir()
    return {
        "GPUCKPT_LIBCUDA": str(args.fake.resolve()),
        "GPUCKPT_FAKE_DIR": str(folder / "gpu"),
        "GPUCKPT_FAKE_TOTAL_MB": "16384",
        "CRIU_FAULT": "138",
    }


def make_workloads(
    args: argparse.Namespace, patched: Path, folder: Path, environment: dict[str, str]
) -> dict[bool, Workload]:
    """A program as it is, and one that stages its GPU memory, each with a folder of its own."""
    workloads = {}
    for staged, library in ((False, None), (True, patched / "lib/libgpuckpt_staging.so")):
        own = folder / ("staged" if staged else "plain")
        own.mkdir()
        binary, mib = args.workload.resolve(), int(args.gib * 1024)
        workloads[staged] = Workload(binary, own, environment, mib, args.processes, library)
    return workloads


def first_dumps(args: argparse.Namespace) -> list[str]:
    """The variants that make the images which all others restore."""
    asked = [*args.variants, *(args.dump_variants if args.dump_rounds else [])]
    asked += [args.leak_variant] if args.leak else []
    kinds = {VARIANTS[name].staged for name in asked}
    return [name for name, staged in (("driver-api", False), ("staged", True)) if staged in kinds]


def end_workload(workload: Workload) -> bool:
    """Ends what still runs; False, with a line, where that cannot be done."""
    try:
        reap(workload.pids)
    except HangError as error:
        print(f"gpu_bench: {error}; look at it by hand", file=sys.stderr)
        return False
    return True


def main() -> int:
    args = parse()
    Limits.operation_s = args.op_limit_s
    if os.geteuid() != 0:
        print("gpu_bench: run as root: CRIU needs it", file=sys.stderr)
        return 2
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ok = True
    with image_folder(args) as folder:
        environment = fake_environment(args, folder)
        homes = {"stock": args.stock.resolve(), "patched": args.patched.resolve()}
        workloads = make_workloads(args, homes["patched"], folder, environment)
        deadline = time.monotonic() + args.limit_s
        bench = Bench(homes, workloads, workloads[False], folder, environment, args.out, deadline, ask_gpus("uuid"))
        try:
            bench.record(**manifest(bench, args))
            before = gpu_used_mib()
            for name in first_dumps(args):
                images = bench.take(VARIANTS[name])
                bench.workload.start()
                if not dump_once(bench, name, images, gib=args.gib, round=-1, warmup=True):
                    raise BenchError("the first dump failed; its log's end is in the record")
            measure_restores(bench, args, before)
            if args.dump_rounds:
                measure_dumps(bench, args)
            if args.leak:
                ok = leak_check(bench, args, before)
        except BenchError as error:
            print(f"gpu_bench: {error}", file=sys.stderr)
            ok = False
        finally:
            ended = [end_workload(workload) for workload in workloads.values()]
            ok = ok and all(ended)
            summarise(args.out)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
