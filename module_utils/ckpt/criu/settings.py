# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of settings that CRIU's front reads (native/front/criu), read and written as the front has them.

The front decides what counts, so this reader takes what the front takes, and a test runs the front on the same inputs:

    line  = NAME '=' value       NAME begins the line: an indented one counts as little as `export NAME=…`
    value = characters of SAFE_VALUE, which may stand in quotes of one kind
          | nothing

Of two lines with one name the last counts. Every other line is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..vocabulary import SWITCH_NAME

# the node's settings; the overrides of the lane that is being measured, which count while their holder lives
DEFAULTS_FILE = "/etc/gpuckpt/criu.env"
OVERRIDES_FILE = "/run/gpuckpt/criu.env"
BUILD = "GPUCKPT_CRIU_BUILD"
ROOT = "GPUCKPT_CRIU_ROOT"
LIBCUDA = "GPUCKPT_LIBCUDA"
HOLDER = "holder"
# CRIU's own; role criu sets it for crun, which hands CRIU no file of options
CONFIG_FILE = "CRIU_CONFIG_FILE"
# what CRIU and its plugin read
SWITCH = re.compile(SWITCH_NAME)
NAME = re.compile(rf"{SWITCH.pattern}|{BUILD}|{ROOT}|{LIBCUDA}")
SAFE_VALUE = re.compile(r"[A-Za-z0-9_./:,=+-]*")


@dataclass
class Settings:
    """What a file sets, in its order, and the lines of it that the front leaves out, comments not counted."""

    values: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def of_criu(self) -> dict[str, str]:
        """What CRIU and its plugin read; the rest tells the front which build to start."""
        return {name: value for name, value in self.values.items() if name not in (BUILD, ROOT)}


def parse(text: str) -> Settings:
    """The settings in the text of a file. Takes any text."""
    found = Settings()
    # other than str.splitlines, a shell ends lines at line feeds alone
    for line in text.split("\n"):
        name, _, value = line.partition("=")
        value = _unquoted(value)
        if NAME.fullmatch(name) and SAFE_VALUE.fullmatch(value):
            found.values[name] = value
        elif line.strip() and not line.lstrip().startswith("#"):
            found.left_out.append(line)
    return found


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def read(path: str) -> Settings | None:
    """The settings of a file; None if it is missing or cannot be read, which the front takes for no settings."""
    try:
        with open(path, "rb") as source:
            return parse(source.read().decode("utf-8", "replace"))
    except OSError:
        return None


def render(values: Mapping[str, str], holder: str | None = None) -> str:
    """The text of a file that sets these values.

    :param holder: number, start time and boot of the process that the overrides count for.
    :raises ValueError: the front would leave one of the values out.
    """
    refused = [name for name, value in values.items() if not (NAME.fullmatch(name) and SAFE_VALUE.fullmatch(value))]
    if refused:
        raise ValueError(f"CRIU's front would not read {', '.join(refused)}")
    first = {HOLDER: holder} if holder else {}
    return "".join(f"{name}={value}\n" for name, value in {**first, **values}.items())
