# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded outputs for the tests of module_utils/ckpt."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture
def criu() -> Path:
    """Outputs of CRIU 4.2.1."""
    return FIXTURES / "criu-4.2.1"


@pytest.fixture
def podman() -> Path:
    """Outputs of podman 4.3.1."""
    return FIXTURES / "podman-4.3.1"
