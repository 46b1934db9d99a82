# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the project's own modules importable the way Ansible makes them: library, module_utils, filter_plugins."""

import sys
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parent.parent

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path[:0] = [str(ROOT / "library"), str(ROOT / "filter_plugins")]
