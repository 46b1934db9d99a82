# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages the role takes, and what it says when a driver cannot be installed or does not serve."""

from __future__ import annotations

from typing import Any

import pytest
from project import filters_of

ROLE = filters_of("nvidia_driver")
# `apt-cache madison` with one version twice, as of two lists of one repository
MADISON = """\
 nvidia-open | 580.82.07-1 | https://packages.example/debian12 ./ Packages
 nvidia-open | 580.65.06-1 | https://packages.example/debian12 ./ Packages
 nvidia-open | 580.82.07-1 | https://packages.example/debian12 ./ Packages
 libcuda1 | 580.82.07-1 | https://packages.example/debian12 ./ Packages
"""
OFFERS = ["nvidia-open=580.82.07-1", "nvidia-open=580.65.06-1", "libcuda1=580.82.07-1"]
REPOSITORY = {"uris": ["https://packages.example/debian12"], "suites": ["./"], "signed_by": "key.asc"}
ASKED: dict[str, Any] = {
    "branch": 580,
    "packages": ["nvidia-open=580.82.07-1", "libcuda1"],
    "repository": REPOSITORY,
    "key": "/keys/key.asc",
    "key_exists": True,
    "allow_reboot": False,
    "on_controller": False,
    "libs_dir": "/opt/nvidia-libs",
    "cdi_path": "/etc/cdi/nvidia.yaml",
}
UNTRIED: dict[str, Any] = {"fetched": {}, "offered": ""}
TRIED: dict[str, Any] = {"fetched": {"rc": 0, "stderr_lines": []}, "offered": MADISON}


def planned(kernel: str = "6.1.0-1", precompiled: str = "", loaded: str | None = None, **plan: Any) -> dict[str, Any]:
    """What `ckpt_driver_plan` returns, as far as the role reads it."""
    driver = {"version": loaded, "open": True} if loaded else None
    return {
        "plan": {"modules": "dkms", "headers": "", "install": True, "reboot": False, "problems": [], **plan},
        "observed": {"kernel": kernel, "precompiled": precompiled, "driver": driver},
    }


def test_packages_with_and_without_versions_are_told_apart() -> None:
    packages = ["nvidia-open=580.82.07-1", "libcuda1=580.82.07-1", "tool=1.0", "plain", "empty=", "nvidia-open"]
    chosen = ROLE.nvidia_driver_choice(planned(), packages, 580)
    assert chosen["pinned"] == packages[:3]
    assert chosen["versions"] == ["580.82.07-1"]
    assert chosen["asked"] == chosen["held"] == ["nvidia-open", "libcuda1", "tool", "plain", "empty"]
    assert chosen["wanted"] == chosen["own"] == packages


@pytest.mark.parametrize("branch", [58, 5])
def test_a_version_of_another_branch_is_no_pin(branch: int) -> None:
    assert ROLE.nvidia_driver_choice(planned(), ["nvidia-open=580.82.07-1"], branch)["versions"] == []


def test_headers_are_installed_and_not_held() -> None:
    chosen = ROLE.nvidia_driver_choice(planned(headers="linux-headers-6.1.0-1"), ["a=1"], 580)
    assert chosen["wanted"] == ["linux-headers-6.1.0-1", "a=1"]
    assert (chosen["own"], chosen["held"]) == (["a=1"], ["a"])


@pytest.mark.parametrize(("modules", "taken"), [("precompiled", ["a=1", "modules-6.1"]), ("dkms", ["a=1"])])
def test_precompiled_modules_are_the_drivers_own(modules: str, taken: list[str]) -> None:
    chosen = ROLE.nvidia_driver_choice(planned(precompiled="modules-6.1", modules=modules), ["a=1"], 580)
    assert (chosen["own"], chosen["asked"]) == (taken, ["a"])


def test_what_a_repository_has_is_told_once() -> None:
    assert ROLE.nvidia_driver_offers(MADISON) == OFFERS
    assert ROLE.nvidia_driver_offers("N: Unable to locate package x\n\n") == []


@pytest.mark.parametrize("tried", [UNTRIED, TRIED])
def test_a_plan_that_can_be_carried_out_has_no_problem(tried: dict[str, Any]) -> None:
    assert ROLE.nvidia_driver_problems(planned(), ASKED, tried) == []
    rebooted = {**ASKED, "allow_reboot": True}
    assert ROLE.nvidia_driver_problems(planned(reboot=True), rebooted, tried) == []
    assert (
        ROLE.nvidia_driver_problems(planned(install=False), {**ASKED, "packages": [], "repository": {}}, UNTRIED) == []
    )


@pytest.mark.parametrize(
    ("plan", "change", "tried", "said"),
    [
        ({"problems": ["No."]}, {}, UNTRIED, "No."),
        ({}, {"packages": []}, UNTRIED, "nvidia_driver_packages is empty; name the packages of branch 580, with"),
        ({"reboot": True}, {}, UNTRIED, "needs a reboot; set nvidia_driver_allow_reboot."),
        ({"reboot": True}, {"on_controller": True, "allow_reboot": True}, UNTRIED, "reboot; this is the controller"),
        (
            {},
            {"repository": {"suites": ["./"], "signed_by": "k"}},
            UNTRIED,
            "nvidia_driver_repository lacks uris.",
        ),
        ({}, {"key_exists": False}, UNTRIED, "The controller has no file /keys/key.asc; name the key"),
        (
            {},
            {},
            {"fetched": {"rc": 100, "stderr_lines": ["N: a notice", "E: not signed"]}, "offered": ""},
            "https://packages.example/debian12 cannot be used with the key /keys/key.asc: E: not signed Fix uris",
        ),
        (
            {},
            {"packages": ["nvidia-open=580.99", "elsewhere=1.0", "libcuda1"]},
            TRIED,
            f"The repository has no nvidia-open=580.99; of these packages it has {', '.join(OFFERS)}. Fix",
        ),
        ({}, {"libs_dir": ""}, UNTRIED, "nvidia_driver_cdi_path needs nvidia_driver_libs_dir"),
    ],
)
def test_each_problem_is_named(plan: dict[str, Any], change: dict[str, Any], tried: dict[str, Any], said: str) -> None:
    [problem] = ROLE.nvidia_driver_problems(planned(**plan), {**ASKED, **change}, tried)
    assert said in problem


def test_all_problems_are_named_at_once() -> None:
    asked = {**ASKED, "packages": [], "repository": {"uris": []}, "libs_dir": ""}
    assert len(ROLE.nvidia_driver_problems(planned(reboot=True, problems=["No."]), asked, UNTRIED)) == 5


def seen(rc: int = 0, *versions: str) -> dict[str, Any]:
    """What nvidia-smi answered."""
    return {"rc": rc, "stdout": "\n".join(versions), "stderr": "", "stdout_lines": list(versions)}


def test_a_driver_that_serves_is_right() -> None:
    now = planned(loaded="580.82.07")
    assert ROLE.nvidia_driver_wrong(now, planned(), seen(0, "580.82.07", "580.82.07")) == []


@pytest.mark.parametrize(
    ("now", "answer", "said"),
    [
        (planned(loaded="580.82.07"), seen(9, "no devices"), "nvidia-smi failed: no devices"),
        (planned(loaded="580.82.07"), {}, "nvidia-smi failed: "),
        (
            planned(loaded="580.82.07"),
            seen(0, "580.65.06"),
            "The kernel module is 580.82.07, the libraries are 580.65.06;",
        ),
        (planned(), seen(0, "580.65.06"), "The kernel module is , the libraries are 580.65.06;"),
        (planned(kernel="6.1.0-2", loaded="1"), seen(0, "1"), "The kernel changed from 6.1.0-1 to 6.1.0-2; hold"),
        (planned(loaded="1", problems=["No."]), seen(0, "1"), "No."),
    ],
)
def test_a_driver_that_does_not_serve_is_told(now: dict[str, Any], answer: dict[str, Any], said: str) -> None:
    [wrong] = ROLE.nvidia_driver_wrong(now, planned(), answer)
    assert wrong.startswith(said)
