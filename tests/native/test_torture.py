# SPDX-License-Identifier: GPL-3.0-or-later
"""Random memory layouts survive a checkpoint, whatever restores them.

GPUCKPT_NATIVE_SEEDS sets the number of layouts (default 40; `make -C native check-full` runs 200). Each of them is
checkpointed by stock CRIU once and restored by every variant. Two of four are checkpointed again by the patched
build from their mapped life, and that checkpoint is restored by stock CRIU alone. With an odd seed most memory is inherited,
and stands aside; with an even one it is mapped.
"""

import os
import shutil
from pathlib import Path

import pytest
from criu_harness import Target

SEEDS = int(os.environ.get("GPUCKPT_NATIVE_SEEDS", "40"))
VARIANTS = {
    "off": {},
    "mapped": {"CRIU_MAPPED_RESTORE": "1"},
    "mapped-each-page": {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_MIN_KB": "4"},
    "threads": {"CRIU_RESTORE_THREADS": "8"},
    "mapped-threads": {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_MIN_KB": "16", "CRIU_RESTORE_THREADS": "3"},
}


def torture(programs: Path, seed: int, folder: Path, targets: list[Target]) -> Target:
    folder.mkdir()
    target = Target(
        [str(programs / "torture"), str(seed), str(folder)],
        [folder / "parent", folder / "child"],
    )
    targets.append(target)
    return target.start()


@pytest.fixture(autouse=True)
def _shared_memory_names(targets):
    yield
    for pid in [pid for target in targets for pid in target.pids]:
        for name in Path("/dev/shm").glob(f"torture-{pid}-*"):
            name.unlink()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_layout_survives(seed, stock_build, patched_build, programs, store, tmp_path, targets):
    target = torture(programs, seed, tmp_path / "work", targets)
    expected = target.ask()
    stock_build.dump(target, store / "first")

    for name, environment in VARIANTS.items():
        outcome = patched_build.restored(store / "first", environment=environment)
        assert target.ask() == expected, name
        if "CRIU_MAPPED_RESTORE" not in environment:
            assert outcome.mapped_bytes == 0
        elif seed % 2:
            assert "inherited" in outcome.notes("standaside")
        elif environment.get("CRIU_MAPPED_MIN_KB") == "4":
            assert outcome.mapped_bytes > 0
        target.stop()

    if seed % 4 > 1:
        return
    patched_build.restored(store / "first", environment=VARIANTS["mapped-each-page"])
    patched_build.dump(target, store / "second")
    shutil.rmtree(store / "first")
    stock_build.restored(store / "second")
    assert target.ask() == expected
