# SPDX-License-Identifier: GPL-3.0-or-later
"""What role serve decides: options of restores, and whose descriptions lie on a node."""

from __future__ import annotations

import pytest
from ansible.module_utils.ckpt.runtimes.podman import KEEP
from ansible.module_utils.ckpt.vocabulary import RUNTIME_TRAITS
from project import filters_of

ROLE = filters_of("serve")


@pytest.mark.parametrize(("runtime", "flags"), [("podman", [KEEP]), ("process", []), ("another", [])])
def test_a_golden_checkpoint_is_kept_whatever_restores_it(runtime: str, flags: list[str]) -> None:
    assert ROLE.serve_restore_flags(runtime) == flags


def test_every_runtime_is_asked_and_none_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIME_TRAITS, "third", RUNTIME_TRAITS["podman"])
    assert ROLE.serve_restore_flags("third") == ROLE.serve_restore_flags("podman")


def test_a_server_is_called_what_its_description_is_called() -> None:
    found = [
        {"path": "/etc/gpuckpt/servers/reference.json"},
        {"path": "/etc/gpuckpt/servers/llama-3.1.json", "size": 3},
    ]
    assert ROLE.serve_names(found) == ["reference", "llama-3.1"]
    assert ROLE.serve_names([]) == []
