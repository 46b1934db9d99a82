# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPU bench on the fake driver: what it records, and that nothing holds it up."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1 << 20
BENCH = Path(__file__).resolve().parent / "gpu_bench.py"


@dataclass
class Result:
    """One run of the bench."""

    returncode: int
    stdout: str
    stderr: str
    records: list[dict]
    seconds: float

    def restores(self, variant: str) -> list[dict]:
        return [r for r in self.records if r["kind"] == "restore" and r["variant"] == variant]


@pytest.fixture
def bench(tools, stock_build, patched_build, tmp_path):
    def bench(*arguments: str, patched: Path = patched_build.home, **environment: str) -> Result:
        out = tmp_path / "samples.jsonl"
        command = [sys.executable, BENCH, "--stock", stock_build.home, "--patched", patched, "--out", out]
        command += ["--workload", tools.folder / "gpu_workload", "--fake", tools.driver, "--images", tmp_path]
        start = time.monotonic()
        done = subprocess.run(
            [*command, "--gib", "0.0625", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return Result(done.returncode, done.stdout, done.stderr, records, time.monotonic() - start)

    return bench


def wrapping(home: Path, folder: Path, program: str, line: str) -> Path:
    """A build like `home`, one of whose programs runs a line of shell before it begins."""
    wrapper = folder / program
    folder.mkdir()
    wrapper.parent.mkdir()
    for source in (home, home / wrapper.parent.name):
        for entry in source.iterdir():
            copy = folder / entry.relative_to(home)
            if not copy.exists() and entry != home / program:
                copy.symlink_to(entry)
    wrapper.write_text(f'#!/bin/sh\n{line}\nexec {home}/{program} "$@"\n')
    wrapper.chmod(0o755)
    return folder


def holding(home: Path, folder: Path, command: str) -> Path:
    """A build like `home` whose criu never comes back from one command."""
    return wrapping(home, folder, "libexec/criu", f'[ "$1" = {command} ] && exec sleep 600')


def test_variants_set_what_they_are_named_after(bench):
    ways = {"stock": set(), "mapped": {"mapped"}, "populate": {"mapped", "populate"}}
    ways |= {name: {"read"} for name in ["threads", "huge-threads", "all-threads", "all-threads+huge"]}
    done = bench("--rounds", "1", "--variants", ",".join(ways))
    assert done.returncode == 0, done.stderr
    for name in ways:
        samples = done.restores(name)
        assert [(sample["ok"], sample["warmup"]) for sample in samples] == [(True, True), (True, False)]
        large = {span["name"] for sample in samples for span in sample["spans"] if span["bytes"] > 60 * MIB}
        assert large & {"mapped", "read", "populate"} == ways[name]
        assert [sample["huge_bytes"] for sample in samples] == [64 * MIB if "huge" in name else 0] * 2
        assert f"restore  0.0625 {name:18}   1   0" in done.stdout


def test_programs_that_stage_their_memory_are_measured_next_to_others(bench):
    done = bench("--rounds", "1", "--variants", "stock,staged", "--dump-rounds", "1", "--dump-variants", "all,staged")
    assert done.returncode == 0, done.stderr
    carried = {"stock": [], "staged": ["gpu-bring-back"]}
    for name, spans in carried.items():
        samples = done.restores(name)
        assert [sample["ok"] for sample in samples] == [True, True]
        assert [span["name"] for span in samples[-1]["spans"] if span["name"].startswith("gpu-")] == spans
    dumps = [r for r in done.records if r["kind"] == "dump" and not r["warmup"]]
    assert sorted((r["variant"], r["ok"]) for r in dumps) == [("all", True), ("staged", True)]


@pytest.mark.parametrize(("variant", "contexts"), [("resident", True), ("all+resident-init", False)])
def test_a_resident_pool_holds_contexts_or_none(bench, patched_build, tmp_path, variant, contexts):
    asked = tmp_path / "asked"
    patched = wrapping(patched_build.home, tmp_path / "noting", "bin/gpuckpt-pool", f'echo "$*" >>{asked}')
    done = bench("--rounds", "1", "--variants", variant, patched=patched)
    assert done.returncode == 0, done.stderr
    assert [sample["ok"] for sample in done.restores(variant)] == [True, True]
    starts = [line for line in asked.read_text().splitlines() if "--status " not in line]
    assert len(starts) == 2
    assert {"--no-contexts" in start for start in starts} == {not contexts}


def fake_nvidia_smi(folder: Path, used_by_workload: tuple[int, int]) -> str:
    """A PATH on which nvidia-smi, a fake, knows the fake driver's GPU and another; memory in use while the workload runs."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    first, second = used_by_workload
    program.write_text(f"""#!/bin/sh
case $1 in
*=uuid) echo GPU-11111111-1111-1111-1111-111111111111; echo GPU-22222222-2222-2222-2222-222222222222 ;;
*=memory.used) if pgrep -f '^[^ ]*/gpu_workload ' >/dev/null; then echo {first}; echo {second}; else echo 0; echo 0; fi ;;
esac
""")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_renumbered_restore_puts_the_data_on_the_second_gpu(bench, tmp_path):
    done = bench("--rounds", "1", "--variants", "all+renumbered", PATH=fake_nvidia_smi(tmp_path / "smi", (2, 66)))
    assert done.returncode == 0, done.stderr
    samples = done.restores("all+renumbered")
    assert [(sample["ok"], sample["gpus_used_mib"]) for sample in samples] == [(True, [2, 66])] * 2
    switches = done.records[0]["variants"]["all+renumbered"]
    first, second = (f"GPU-{n * 8}-{n * 4}-{n * 4}-{n * 4}-{n * 12}" for n in "12")
    assert switches["CRIU_CUDA_DEVICE_MAP"] == f"{first}={second},{second}={first}"


def test_data_on_the_wrong_gpu_is_a_failure(bench, tmp_path):
    done = bench("--rounds", "1", "--variants", "all+renumbered", PATH=fake_nvidia_smi(tmp_path / "smi", (66, 2)))
    samples = done.restores("all+renumbered")
    assert {sample["reason"] for sample in samples} == {"the data is not on the second GPU: [66, 2] MiB in use"}


def test_a_renumbered_restore_needs_two_gpus(bench):
    done = bench("--variants", "all+renumbered")
    assert done.returncode == 1
    assert "gpu_bench: a renumbered restore needs two GPUs that nvidia-smi lists" in done.stderr


def test_a_criu_that_hangs_ends_the_run(bench, patched_build, tmp_path):
    patched = holding(patched_build.home, tmp_path / "holding", "restore")
    done = bench("--rounds", "5", "--variants", "stock,driver-api", "--op-limit-s", "3", patched=patched)
    assert done.returncode == 1
    assert "gpu_bench: the run stops at its first hang, restore driver-api: " in done.stderr
    assert "libexec/criu restore did not end within 3 s" in done.stderr
    [sample] = done.restores("driver-api")
    assert (sample["ok"], sample["hang"]) == (False, True)
    assert done.records[-1] == sample, "nothing comes after it"
    assert all(record["ok"] for record in done.restores("stock"))
    assert done.seconds < 30
    assert "kind" in done.stdout, "the table of what there is"


def test_a_driver_that_hangs_ends_the_run(bench):
    faults = {"GPUCKPT_FAKE_FAULTS": "restore:*:delay=60000"}
    done = bench("--rounds", "5", "--variants", "driver-api", "--op-limit-s", "4", **faults)
    assert done.returncode == 1
    [sample] = done.restores("driver-api")
    assert sample["hang"]
    assert sample["reason"].startswith("cuda-restore of pid ")
    assert done.seconds < 30


def test_a_workload_that_does_not_start_ends_the_run(bench):
    done = bench("--op-limit-s", "2", GPUCKPT_FAKE_FAULTS="retain:*:delay=60000")
    assert done.returncode == 1
    assert "gpu_bench: the workload was not ready within 2 s" in done.stderr
    assert [record["kind"] for record in done.records] == ["manifest"]
    assert done.seconds < 30
