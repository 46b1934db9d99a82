# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the modules look for the driver's library."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import settings
from ansible.module_utils.ckpt.cuda import library


def test_the_environment_wins_over_the_node_and_the_node_over_the_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "criu.env"
    monkeypatch.setattr(settings, "DEFAULTS_FILE", str(node))
    monkeypatch.delenv("GPUCKPT_LIBCUDA", raising=False)
    assert library.path() == "libcuda.so.1"
    node.write_text("CRIU_RESTORE_THREADS=8\n")
    assert library.path() == "libcuda.so.1"
    node.write_text("GPUCKPT_LIBCUDA=/opt/libcuda.so.1\n")
    assert library.path() == "/opt/libcuda.so.1"
    monkeypatch.setenv("GPUCKPT_LIBCUDA", "/srv/libcuda.so.1")
    assert library.path() == "/srv/libcuda.so.1"
    with pytest.raises(OSError, match="/srv/libcuda"):
        library.load()
