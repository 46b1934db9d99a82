# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the project lies, for tests in any folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
