# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the ckpt_* modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
Call = Callable[..., Result]

STOCK = {"build": "stock", "switches": {"CRIU_MAPPED_RESTORE": "0"}}


def identity(lane: str, seq: int = 1) -> Result:
    """A record's identity."""
    return {"run_id": "modules-test", "host": "here", "seq": seq, "lane": lane, "iteration": 1}
