# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the ckpt_* modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.ckpt.vocabulary import RUNTIME_TRAITS
from module_call import OWN_RUNTIMES

Result = dict[str, Any]
Call = Callable[..., Result]

# the runtimes that need no image: those of users, and those for tests alone
WITHOUT_A_CONTAINER = [*(name for name, traits in RUNTIME_TRAITS.items() if not traits.in_container), *OWN_RUNTIMES]
RUNTIMES_OF_USERS = ("process", "podman")
STOCK = {"build": "stock", "switches": {"CRIU_MAPPED_RESTORE": "0"}}


def tried_by_ci(*runtimes: str) -> pytest.MarkDecorator:
    """Parameters of the fixture `server`: what these runtimes show need not be shown by the others each time."""
    servers = [pytest.param(name, marks=[] if name in runtimes else [pytest.mark.long]) for name in RUNTIMES_OF_USERS]
    return pytest.mark.parametrize("server", servers, indirect=True)


def identity(lane: str, seq: int = 1) -> Result:
    """A record's identity."""
    return {"run_id": "modules-test", "host": "here", "seq": seq, "lane": lane, "iteration": 1}
