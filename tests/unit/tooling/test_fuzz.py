# SPDX-License-Identifier: GPL-3.0-or-later
"""The fuzzer finds what it is to find, and gives the same inputs for the same seed."""

import importlib.util
import json
import signal
import sys
from random import Random

import pytest
from project import ROOT

FOLDER = ROOT / "tests" / "fuzz"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mutation():
    return load("mutation")


@pytest.fixture
def run(monkeypatch):
    module = load("run")
    former = signal.signal(signal.SIGPROF, module._too_slow)
    yield module
    signal.signal(signal.SIGPROF, former)


def test_the_same_seed_gives_the_same_inputs(mutation):
    samples = [json.dumps({"a": [1, {"b": "text"}], "c": None}).encode(), b'{"d": 1.5}']
    for make in (mutation.mutate, mutation.mutate_document):
        first, second, other = ([make(random, samples) for _ in range(200)] for random in map(Random, ("1", "1", "2")))
        assert first == second
        assert first != other
        assert len(set(first)) > 150
        assert max(map(len, first)) <= mutation.LARGEST


def test_every_change_survives_an_empty_input(mutation):
    random = Random(0)
    for change in mutation.CHANGES:
        assert isinstance(change(random, b"", [b""]), bytes)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("raise KeyError(data)", "KeyError"),
        ("raise ValueError(data)", None),
        ("bytearray(1 << 40)", "MemoryError"),
        ("[None for _ in iter(int, 1)]", "TooSlowError"),
        ("f = lambda: f(); f()", "RecursionError"),
    ],
)
def test_what_a_parser_does_not_document_is_found(run, monkeypatch, body, name):
    monkeypatch.setattr(run, "CPU_LIMIT_S", 0.2)
    space = {}
    exec(f"def parser(data):\n    {body}", space)
    with run.limited_memory():
        error = run.attempt(space["parser"], (ValueError,), b"x")
    assert (type(error).__name__ if error else None) == name


def test_of_several_findings_in_one_place_the_shortest_is_kept(run):
    findings = run.Findings()
    for data in (b"long input", b"short", b"long again"):
        findings.add(data, run.attempt(lambda data: data.nothing, (), data))
    assert [data for data, _ in findings.by_place.values()] == [b"short"]


def test_every_kept_seed_belongs_to_a_target(run):
    run.make_importable()
    targets = load("targets")
    folder = targets.Folder()
    try:
        known = targets.all_targets(folder)
        kept = {path.name for path in targets.SEEDS.iterdir()} - {"samples"}
        assert kept <= known.keys()
        assert [name for name, target in known.items() if not target.seeds()] == []
    finally:
        folder.remove()
