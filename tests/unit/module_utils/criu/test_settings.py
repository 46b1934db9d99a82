# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader of criu.env takes what the front takes: each input goes to the real front, too."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from random import Random

import jinja2
import pytest
import yaml
from ansible.module_utils.ckpt.criu import settings
from project import ROOT

ROLE = ROOT / "roles" / "criu"
# what the front sets itself
OF_THE_FRONT = "CRIU_LIBS_DIR"


def taken_by(front: Path, text: str) -> dict[str, str]:
    """What the real front hands to CRIU of the node's file."""
    (front.parent / "etc" / "criu.env").write_bytes(text.encode())
    done = subprocess.run([front], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    given = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name: value for name, value in given.items() if settings.NAME.fullmatch(name) and name != OF_THE_FRONT}


@pytest.mark.parametrize(
    ("text", "values", "left_out"),
    [
        ("", {}, []),
        ("CRIU_A=1", {"CRIU_A": "1"}, []),
        ("CRIU_A=1\nCRIU_B=2\n", {"CRIU_A": "1", "CRIU_B": "2"}, []),
        ("\n\n# CRIU_A=1\n  # text\n\t\nCRIU_B=2\n", {"CRIU_B": "2"}, []),
        ("CRIU_A='1'\nCRIU_B=\"a=b,c\"\nCRIU_C=''\n", {"CRIU_A": "1", "CRIU_B": "a=b,c", "CRIU_C": ""}, []),
        ("CRIU_A='1\"\n", {}, ["CRIU_A='1\""]),
        ("CRIU_A='\n", {}, ["CRIU_A='"]),
        ("CRIU_A=\"'1'\"\n", {}, ["CRIU_A=\"'1'\""]),
        ("export CRIU_A=1\n", {}, ["export CRIU_A=1"]),
        (" CRIU_A=1\n", {}, [" CRIU_A=1"]),
        ("CRIU_A =1\n", {}, ["CRIU_A =1"]),
        ("CRIU_A= 1\n", {}, ["CRIU_A= 1"]),
        ("CRIU_A=1 \n", {}, ["CRIU_A=1 "]),
        ("CRIU_A=1 # text\n", {}, ["CRIU_A=1 # text"]),
        ("CRIU_A=1\r\n", {}, ["CRIU_A=1\r"]),
        ("CRIU_A=1\x0bCRIU_B=2\n", {}, ["CRIU_A=1\x0bCRIU_B=2"]),
        ("CRIU_A=$HOME\nCRIU_B=a\\b\n", {}, ["CRIU_A=$HOME", "CRIU_B=a\\b"]),
        ("CRIU_A\n", {"CRIU_A": ""}, []),
        ("CRIU_=1\ncriu_a=1\nOTHER=1\n", {}, ["CRIU_=1", "criu_a=1", "OTHER=1"]),
        ("CRIU_A=1\nCRIU_A=2\nCRIU_A=ä\n", {"CRIU_A": "2"}, ["CRIU_A=ä"]),
        ("GPUCKPT_LIBCUDA=/opt/libcuda.so.1\n", {"GPUCKPT_LIBCUDA": "/opt/libcuda.so.1"}, []),
        ("GPUCKPT_CRIU_BUILD=stock\n", {"GPUCKPT_CRIU_BUILD": "stock"}, []),
    ],
)
def test_what_the_front_takes_is_what_is_read(
    front: Path, text: str, values: dict[str, str], left_out: list[str]
) -> None:
    found = settings.parse(text)
    assert (found.values, found.left_out) == (values, left_out)
    assert taken_by(front, text) == values


@pytest.mark.parametrize("seed", range(4))
def test_the_front_and_the_reader_agree_on_odd_lines(front: Path, seed: int) -> None:
    random = Random(seed)
    pieces = ["CRIU_", "A", "B", "=", "1", "'", '"', " ", "\t", "\r", "#", "export ", "\\", "$", "é", "/x", "_", "*"]
    starts = ["CRIU_A=", "CRIU_B=", "CRIU_", "GPUCKPT_LIBCUDA=", ""]
    lines = (random.choice(starts) + "".join(random.choices(pieces, k=random.randrange(6))) for _ in range(300))
    text = "\n".join(lines)
    values = settings.parse(text).values
    assert values
    assert taken_by(front, text) == values


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    values = {"GPUCKPT_CRIU_BUILD": "patched", "GPUCKPT_CRIU_ROOT": "/opt/gpuckpt/criu", "CRIU_A": "x:y,/z=+-.1"}
    text = settings.render(values, holder="1 2 boot")
    assert text.splitlines()[0] == "holder=1 2 boot", "the front looks for it there"
    (tmp_path / "criu.env").write_text(text, encoding="ascii")
    found = settings.read(str(tmp_path / "criu.env"))
    assert found is not None
    assert found.values == values
    assert found.of_criu == {"CRIU_A": "x:y,/z=+-.1"}
    assert settings.parse(settings.render(values)).left_out == []


@pytest.mark.parametrize(
    "values", [{"PATH": "/tmp"}, {"CRIU_A": "1 2"}, {"CRIU_A": "1\nLD_PRELOAD=x"}, {"CRIU_A\n": "1"}]
)
def test_what_the_front_would_leave_out_is_not_written(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=re.escape(next(iter(values)))):
        settings.render({"CRIU_B": "1", **values})


def test_no_file_is_no_settings(tmp_path: Path) -> None:
    assert settings.read(str(tmp_path / "criu.env")) is None
    assert settings.read(str(tmp_path)) is None


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_what_the_role_writes_is_read_whole(runtime: str) -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((ROLE / "templates" / "criu.env.j2").read_text(encoding="utf-8"))
    text = template.render(
        ansible_managed="Ansible managed",
        criu_front_path=defaults["criu_front_path"],
        criu_env=defaults["criu_env"],
        criu_oci_runtime=runtime,
        criu_runtime_conf_path="/etc/criu/runc.conf",
    )
    found = settings.parse(text)
    assert found.left_out == []
    own = {"CRIU_CONFIG_FILE": "/etc/criu/runc.conf"} if runtime == "crun" else {}
    assert found.values == {**{name: str(value) for name, value in defaults["criu_env"].items()}, **own}
