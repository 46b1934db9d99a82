# SPDX-License-Identifier: GPL-3.0-or-later
"""The restore bench as it runs on another machine: out of a folder that holds it, its harness and its workload."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MIB = 1 << 20


@pytest.fixture
def bench(stock_build, patched_build, programs, tmp_path, disk):
    kit, images = (tmp_path / name for name in ("kit", "images"))
    for folder in (kit, images):
        folder.mkdir()
    for file in (HERE / "bench_restore.py", HERE / "criu_harness.py", programs / "heap"):
        shutil.copy(file, kit)

    def bench(*arguments: str, patched: Path = patched_build.home) -> tuple[subprocess.CompletedProcess, list[dict]]:
        output = kit / "samples.jsonl"
        command = [sys.executable, "bench_restore.py", "--stock", stock_build.home, "--patched", patched]
        command += ["--output", output, "--images", images, "--tmpfs", "1g", "--disk", disk]
        done = subprocess.run(
            [*command, "--gib", "0.0625", *arguments],
            cwd=kit,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert [*images.iterdir(), *disk.iterdir()] == [], "images are left"
        assert not os.path.ismount(images)
        return done, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []

    return bench


def test_scattered_memory_among_thousands_of_mappings_is_the_same_again(bench):
    done, samples = bench("-n", "1", "--kind", "scattered", "--variants", "stock", "mapped")
    assert done.returncode == 0, done.stderr
    assert {(sample["variant"], sample["correct"]) for sample in samples} == {("stock", True), ("mapped", True)}


def test_each_variant_restores_from_each_cache_in_each_round(bench):
    names = ["stock", "threads", "huge-threads", "mapped", "mapped-populate"]
    expanded = {"stock", "mapped"} | {
        f"{name}-{n}" for name in names if "-" in name or name == "threads" for n in (1, 3)
    }
    done, samples = bench("-n", "1", "--cache", "warm", "dropped", "--variants", *names, "--threads", "1", "3")
    assert done.returncode == 0, done.stderr
    for iteration in range(2):
        of_round = [(s["cache"], s["variant"]) for s in samples if s["iteration"] == iteration]
        assert sorted(of_round) == sorted((cache, name) for cache in ("warm", "dropped") for name in expanded)
    for sample in samples:
        assert sample["correct"]
        assert (sample["cached_bytes_before"] > 60 * MIB) == (sample["cache"] == "warm")
        assert sample["asked_huge_bytes"] == (64 * MIB if "huge" in sample["variant"] else 0)
        if sample["variant"].endswith("threads-3"):
            assert sample["used_threads"] == 3
        if sample["variant"].startswith("mapped"):
            assert (sample["maps"] == 1) == ("populate" in sample["variant"]), "the heap is the driver's only there"
    assert len(done.stdout.splitlines()) == 1 + 2 * len(expanded)


def test_a_restore_that_hangs_ends_the_run_and_keeps_the_samples(bench, tmp_path):
    home = tmp_path / "holding"
    (home / "libexec").mkdir(parents=True)
    (home / "libexec/criu").write_text("#!/bin/sh\nexec sleep 600\n")
    (home / "libexec/criu").chmod(0o755)
    # The seed puts stock first.
    done, samples = bench("-n", "1", "--variants", "stock", "mapped", "--op-limit-s", "2", "--seed", "5", patched=home)
    assert done.returncode == 1
    assert "bench_restore: criu restore did not end within 2 s" in done.stderr
    assert [sample["variant"] for sample in samples] == ["stock"]


def test_the_time_limit_leaves_a_table(bench):
    done, samples = bench("-n", "1", "--variants", "stock", "--limit-s", "0.001")
    assert done.returncode == 0, done.stderr
    assert not samples
    assert done.stdout.startswith("memory")


def test_what_is_no_build_is_refused(bench, tmp_path):
    done, _ = bench(patched=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} holds no build (libexec/criu)" in done.stderr
