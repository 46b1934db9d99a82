# SPDX-License-Identifier: GPL-3.0-or-later
"""What leaves the project for other programs: records as CSV, JSON and Parquet, figures as OpenMetrics."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gpuckpt_report.errors import ReportError

FORMATS = ("csv", "json", "jsonl", "openmetrics", "parquet")


def replace_file(path: Path, content: bytes) -> None:
    """Puts a file in place as a whole: whoever reads it meanwhile gets the former one, or the new one.

    :raises ReportError: if the folder is missing, or cannot be written
    """
    mask = os.umask(0)
    os.umask(mask)
    scratch: Path | None = None
    try:
        # The name must not end as the target's does: node_exporter reads every *.prom of a folder.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        scratch = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(handle, 0o666 & ~mask)
            os.fsync(handle)
        scratch.replace(path)
    except OSError as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        raise ReportError(f"{path} cannot be written: {error.strerror}; name a file in a folder of yours") from None
