# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark run becomes on the controller: validated records, statistics and reports.

This package reads records and manifests only; it knows nothing of Ansible's inside (``console`` starts it, no more).
"""

from pathlib import Path

VERSION = "0.1.0"
PROJECT = Path(__file__).resolve().parents[2]
DATABASE_URL_VARIABLE = "GPUCKPT_DATABASE_URL"
