# SPDX-License-Identifier: GPL-3.0-or-later
"""Which driver belongs on a node: decided from observations that were made by hand, each case a real kind of node."""

import pytest
from ansible.module_utils.ckpt.cuda import driver_plan
from ansible.module_utils.ckpt.cuda.driver_plan import Observation, Wish

H100, A100, T4, V100, B200, L4, RTX_3090 = 0x2330, 0x20B0, 0x1EB8, 0x1DB1, 0x2901, 0x27B8, 0x2204
OPEN_580 = {"version": "580.159.04", "open": True}
INSTALL_580 = Wish(branch=580, install=True)


def seen(*devices: int, **more: object) -> Observation:
    numbers = {f"0000:{index:02x}:00.0": number for index, number in enumerate(devices)}
    return Observation(**{"kernel": "6.8.0-45-generic", "devices": numbers, "headers": True, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "name"),
    [(H100, "hopper"), (A100, "ampere"), (T4, "turing"), (V100, "volta"), (B200, "blackwell"), (L4, "ada"),
     (RTX_3090, "ampere"), (0x1B80, "older"), (0x3F00, "unknown")],
)  # fmt: skip
def test_generation(number: int, name: str) -> None:
    assert driver_plan.generation(number) == name


def test_no_gpu_nothing_to_do() -> None:
    plan = driver_plan.decide(seen(), INSTALL_580)
    assert (plan.kind, plan.install, plan.problems) == ("none", False, [])


def test_a_driver_that_fits_is_left_alone() -> None:
    plan = driver_plan.decide(seen(H100, driver=OPEN_580), Wish(features=("actions", "driver-api", "migration")))
    assert (plan.modules, plan.install, plan.problems) == ("loaded", False, [])


def test_a_missing_feature_names_the_driver_that_has_it() -> None:
    plan = driver_plan.decide(seen(H100, driver={"version": "550.90.07", "open": True}), Wish(features=("driver-api",)))
    assert len(plan.problems) == 1
    assert "550.90.07" in plan.problems[0]
    assert "570" in plan.problems[0]


def test_no_driver_and_none_wanted_is_a_problem() -> None:
    plan = driver_plan.decide(seen(H100), Wish())
    assert "nvidia_driver_install" in plan.problems[0]


@pytest.mark.parametrize(
    ("devices", "wanted", "kind", "problem"),
    [
        ((H100,), "auto", "open", False),
        ((H100,), "proprietary", "proprietary", False),
        ((V100,), "auto", "proprietary", False),
        ((V100,), "open", "proprietary", True),
        ((B200,), "proprietary", "open", True),
        ((V100, H100), "auto", "proprietary", False),
        ((V100, B200), "auto", "none", True),
        ((0x3F00,), "auto", "open", False),
    ],
)
def test_kind_of_module(devices: tuple[int, ...], wanted: str, kind: str, problem: bool) -> None:
    plan = driver_plan.decide(seen(*devices), Wish(branch=580, install=True, kind=wanted))
    assert plan.kind == kind
    assert bool(plan.problems) is problem


def test_precompiled_modules_need_neither_headers_nor_a_key() -> None:
    node = seen(
        H100, headers=False, secure_boot=True, precompiled="linux-modules-nvidia-580-server-open-6.8.0-45-generic"
    )
    plan = driver_plan.decide(node, INSTALL_580)
    assert (plan.modules, plan.problems) == ("precompiled", [])


def test_everything_wrong_is_named_at_once() -> None:
    plan = driver_plan.decide(seen(H100, headers=False, secure_boot=True), INSTALL_580)
    assert plan.modules == "dkms"
    assert ["headers" in text for text in plan.problems] == [True, False]
    assert "Secure Boot" in plan.problems[1]


def test_headers_that_can_be_had_are_installed() -> None:
    plan = driver_plan.decide(seen(H100, headers=False, headers_package="linux-headers-6.8.0-45-generic"), INSTALL_580)
    assert (plan.modules, plan.headers, plan.problems) == ("dkms", "linux-headers-6.8.0-45-generic", [])


def test_an_enrolled_key_settles_secure_boot() -> None:
    wish = Wish(branch=580, install=True, dkms_key_enrolled=True)
    assert driver_plan.decide(seen(H100, secure_boot=True), wish).problems == []


def test_volta_and_a_branch_without_it() -> None:
    plan = driver_plan.decide(seen(V100), Wish(branch=590, install=True))
    assert "580" in plan.problems[0]


@pytest.mark.parametrize(
    ("more", "reboot"),
    [({}, False), ({"nouveau": True}, True), ({"driver": {"version": "550.1", "open": False}}, True)],
)
def test_a_reboot_only_where_another_module_holds_the_gpu(more: dict[str, object], reboot: bool) -> None:
    assert driver_plan.decide(seen(H100, **more), INSTALL_580).reboot is reboot
