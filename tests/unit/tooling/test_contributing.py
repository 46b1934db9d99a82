# SPDX-License-Identifier: GPL-3.0-or-later
"""CONTRIBUTING's answers to "how do I add …" are true: the files are there, and what is registered is where they say."""

import re

import pytest
import yaml
from ansible.module_utils.ckpt import doctor
from ansible.module_utils.ckpt.criu.builds import SWITCHES
from ansible.module_utils.ckpt.doctor import containers, criu, gpu, host, store  # noqa: F401  # they register checks
from ansible.module_utils.ckpt.measure import record
from ansible.module_utils.ckpt.runtimes import RUNTIMES
from ansible.module_utils.ckpt.server.engines import ENGINES
from project import ROOT

from gpuckpt_report.records import schema

ANSWERS = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## How do I add …\n")[1].split("\n## ")[0]
FILE = re.compile(r"`([\w.-]+(?:/[\w.-]*)+|[A-Z]+\.md)`")
ASKED = [
    "a lane",
    "a lane's key",
    "a runtime",
    "an engine",
    "a CRIU patch",
    "a switch",
    "a check of the doctor",
    "a metric",
]


def text_of(*names: str) -> str:
    return "".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def answer(question: str) -> str:
    return ANSWERS.split(f"**… {question}?**")[1].split("\n**…")[0]


def test_every_question_has_an_answer_with_files():
    assert re.findall(r"\*\*… (.+?)\?\*\*", ANSWERS) == ASKED
    assert [question for question in ASKED if not FILE.search(answer(question))] == []


@pytest.mark.parametrize("name", sorted(set(FILE.findall(ANSWERS))))
def test_every_file_is_there(name):
    assert list(ROOT.glob(name.replace("NAME", "*").rstrip("/"))), f"CONTRIBUTING names {name}"


def test_a_lane_has_the_keys_that_the_role_describes():
    specs = yaml.safe_load(text_of("roles/checkpoint_bench/meta/argument_specs.yml"))
    described = " ".join(specs["argument_specs"]["main"]["options"]["checkpoint_bench_lanes"]["description"])
    assert [key for key in schema.Lane.model_fields if not re.search(rf"\bC\({key}[)=]", described)] == []


def test_a_runtime_is_a_file_and_a_line():
    files = {path.stem for path in ROOT.glob("module_utils/ckpt/runtimes/*.py")} - {"__init__", "base"}
    assert set(RUNTIMES) <= files
    assert {runtime.__module__.rsplit(".", 1)[1] for runtime in RUNTIMES.values()} == set(RUNTIMES)


def test_an_engine_has_its_variables():
    files = {path.stem for path in ROOT.glob("roles/inference_server/vars/*.yml")} - {"main"}
    assert files == set(ENGINES)
    specs = yaml.safe_load(text_of("roles/inference_server/meta/argument_specs.yml"))
    assert specs["argument_specs"]["main"]["options"]["inference_server_kind"]["choices"] == list(ENGINES)


def test_a_patch_has_its_place_and_its_row():
    patches = sorted(path.name for path in ROOT.glob("native/patches/*.patch"))
    assert [line for line in text_of("native/patches/series").splitlines() if not line.startswith("#")] == patches
    numbers = [name[:4] for name in patches if name.startswith("01")]
    assert [number for number in numbers if f"\n| {number} |" not in text_of("docs/native.md")] == []


def test_a_switch_is_read_known_and_explained():
    read = text_of("native/criu/switches.c", *(str(path.relative_to(ROOT)) for path in ROOT.glob("native/cuda/*.c")))
    assert [name for name in SWITCHES if f'"{name}"' not in read] == []
    rows = re.findall(r"^\| `?(CRIU_\w+)", text_of("docs/native.md", "docs/native-cuda.md"), re.M)
    assert sorted(rows) == sorted(SWITCHES)
    assert set(re.findall(r"^\| `(CRIU_\w+)", text_of("README.md"), re.M)) <= set(SWITCHES)
    defaults = yaml.safe_load(text_of("roles/criu/defaults/main.yml"))["criu_env"]
    assert set(defaults) <= set(SWITCHES)


def test_the_doctors_files_are_imported_and_explain_themselves():
    files = {path.stem for path in ROOT.glob("module_utils/ckpt/doctor/*.py")} - {"__init__", "trial"}
    imported = re.search(r"ckpt\.doctor import (.+?)  # noqa", text_of("library/ckpt_doctor.py"))[1].split(", ")
    assert set(imported) == files
    assert [one.id for one in doctor.REGISTRY if not one.why or one.group not in doctor.GROUPS] == []


def test_a_figure_of_a_record_is_in_the_schema_and_explained():
    made = record.Record("cold", {}).as_dict([])
    assert set(made) <= set(schema.Record.model_fields)
    rows = " ".join(re.findall(r"^\| (`.+?) \|", text_of("docs/records.md"), re.M))
    assert [name for name in schema.Record.model_fields if f"`{name}`" not in rows] == []
