# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark run becomes on the controller: validated records, statistics and reports.

This package reads records and manifests only, and knows nothing of Ansible. The package gpuckpt_console does.
"""

from pathlib import Path

VERSION = "0.1.0"
PROJECT = Path(__file__).resolve().parents[2]
DATABASE_URL_VARIABLE = "GPUCKPT_DATABASE_URL"
