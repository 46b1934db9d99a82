# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters are plain functions: make their files importable without Ansible's plugin loader."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "filter_plugins"))
