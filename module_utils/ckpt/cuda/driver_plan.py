# SPDX-License-Identifier: GPL-3.0-or-later
"""Which NVIDIA driver belongs on a node, and what stands in its way: decided from what was observed, nothing is changed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ..node import gpu as gpu_inspection
from ..node.inspection import Node
from . import features as driver_features

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# PCI device numbers (first, last) of each generation; the numbers of Ampere and Hopper, Turing and Ampere interleave.
GENERATIONS = (
    (0x1D80, 0x1DFF, "volta"),
    (0x1E00, 0x1FFF, "turing"),
    (0x2080, 0x20FF, "ampere"),
    (0x2180, 0x21FF, "turing"),
    (0x2200, 0x22FF, "ampere"),
    (0x2300, 0x23FF, "hopper"),
    (0x2400, 0x25FF, "ampere"),
    (0x2600, 0x28FF, "ada"),
    (0x2900, 0x2FFF, "blackwell"),
    (0x3180, 0x31FF, "blackwell"),
)
AGE = ("older", "volta", "turing", "ampere", "ada", "hopper", "blackwell")
# The open kernel modules need the GPU's own system processor, which came with Turing; from Blackwell on there is no other.
FIRST_OPEN, FIRST_OPEN_ONLY = "turing", "blackwell"
# Branches from this one on have no driver for Volta and older.
LAST_BRANCH_FOR_VOLTA = 580
# What a CUDA program loads from the driver; a container needs these and no more.
CONTAINER_LIBRARIES = (
    "libcuda",
    "libnvidia-ml",
    "libnvidia-ptxjitcompiler",
    "libnvidia-nvvm",
    "libnvidia-gpucomp",
    "libcudadebugger",
)


@dataclass(frozen=True)
class Observation:
    """What a node is, as far as a driver is concerned."""

    kernel: str
    devices: dict[str, int] = field(default_factory=dict)  # PCI address → device number
    driver: dict[str, object] | None = None  # version, open
    headers: bool = False
    nouveau: bool = False
    secure_boot: bool = False
    precompiled: str = ""  # the package for exactly this kernel, empty if there is none
    headers_package: str = ""  # what would bring the headers of this kernel, empty if the lists have none
    boot_id: str = ""  # of the kernel that runs


@dataclass(frozen=True)
class Wish:
    """What is asked for. `branch` 0 takes any."""

    branch: int = 0
    kind: str = "auto"  # auto, open, proprietary
    install: bool = False
    features: tuple[str, ...] = (driver_features.REQUIRED,)
    dkms_key_enrolled: bool = False


@dataclass
class Plan:
    """What is to be done, and why it cannot be (`problems`, one sentence each with the fix)."""

    gpus: dict[str, str] = field(default_factory=dict)  # PCI address → generation
    kind: str = "none"  # open, proprietary, none
    modules: str = "none"  # loaded, precompiled, dkms, none
    headers: str = ""  # the package to install for them
    install: bool = False
    reboot: bool = False
    features: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For Ansible."""
        return asdict(self)


def generation(device: int) -> str:
    """Returns the generation of a GPU by its PCI device number; `unknown` for numbers newer than the table."""
    for first, last, name in GENERATIONS:
        if first <= device <= last:
            return name
    return "older" if device < GENERATIONS[0][0] else "unknown"


def module_kind(generations: Sequence[str], wanted: str = "auto") -> tuple[str, str]:
    """Returns the kind of kernel module that serves all these GPUs (open or proprietary), and the problem if none does."""
    ages = [AGE.index(name) if name in AGE else len(AGE) for name in generations]
    can_open = all(age >= AGE.index(FIRST_OPEN) for age in ages)
    can_proprietary = all(age < AGE.index(FIRST_OPEN_ONLY) for age in ages)
    if not can_open and not can_proprietary:
        return "none", "No one driver serves both the oldest and the newest GPU of this node; take one of them out."
    if wanted == "open" and not can_open:
        return "proprietary", "The open kernel modules need Turing or newer; set nvidia_driver_kind to proprietary."
    if wanted == "proprietary" and not can_proprietary:
        return "open", "This GPU has open kernel modules only; set nvidia_driver_kind to open."
    if wanted != "auto":
        return wanted, ""
    return ("open" if can_open else "proprietary"), ""


def decide(seen: Observation, wish: Wish) -> Plan:
    """Returns the plan for a node; one without a GPU gets an empty plan, and nothing is to be done there."""
    plan = Plan(gpus={address: generation(number) for address, number in seen.devices.items()})
    if not plan.gpus:
        return plan
    plan.kind, problem = module_kind(list(plan.gpus.values()), wish.kind)
    plan.problems += [problem] if problem else []
    loaded = str(seen.driver["version"]) if seen.driver else ""
    fits = bool(loaded) and wish.branch in (0, driver_features.branch(loaded))
    if fits:
        plan.modules = "loaded"
        _check_features(plan, loaded, wish)
    elif wish.install:
        _plan_installation(plan, seen, wish)
    else:
        have = f"driver {loaded}" if loaded else "no driver"
        plan.problems.append(
            f"This node has {have}, wanted is {f'branch {wish.branch}' if wish.branch else 'one'}; "
            "install it, or set nvidia_driver_install to true."
        )
    return plan


def _check_features(plan: Plan, version: str, wish: Wish) -> None:
    plan.features = driver_features.supported(version)
    for name in wish.features:
        if not plan.features.get(name, False):
            plan.problems.append(
                f"Driver {version} lacks the feature {name}, which came with {driver_features.minimum(name)}; "
                f"set nvidia_driver_branch to {driver_features.minimum(name)} or newer."
            )


def _plan_installation(plan: Plan, seen: Observation, wish: Wish) -> None:
    plan.install = True
    plan.reboot = seen.driver is not None or seen.nouveau
    plan.modules = "precompiled" if seen.precompiled else "dkms"
    _check_features(plan, str(wish.branch), wish)
    if wish.branch > LAST_BRANCH_FOR_VOLTA and {"volta", "older"} & set(plan.gpus.values()):
        plan.problems.append(
            f"Branch {wish.branch} has no driver for this GPU; the last one is {LAST_BRANCH_FOR_VOLTA}."
        )
    if plan.modules == "dkms":
        plan.headers = "" if seen.headers else seen.headers_package
        if not seen.headers and not seen.headers_package:
            plan.problems.append(
                f"The headers of the running kernel {seen.kernel} are missing, and no package holds modules that are built "
                f"for it; the node's package lists have no linux-headers-{seen.kernel}: run apt-get update there, install "
                "the headers by hand, or boot a kernel whose headers can be had."
            )
        if seen.secure_boot and not wish.dkms_key_enrolled:
            plan.problems.append(
                "Secure Boot is on and the modules would be built here, unsigned; enrol a key for DKMS (mokutil --import) "
                "and set nvidia_driver_dkms_key_enrolled, or use a kernel for which there are precompiled modules."
            )


def observe(node: Node, precompiled_pattern: str = "") -> Observation:
    """Looks at a node. `precompiled_pattern` names a package, with {kernel} for the running kernel."""
    kernel = node.read("/proc/sys/kernel/osrelease") or ""
    modules = node.read("/proc/modules") or ""
    devices = {}
    for address in gpu_inspection.pci_gpus(node):
        devices[address] = int(node.read(f"/sys/bus/pci/devices/{address}/device") or "0", 16)
    headers = node.exists(f"/lib/modules/{kernel}/build/Makefile")
    return Observation(
        kernel=kernel,
        devices=devices,
        driver=gpu_inspection.driver(node),
        headers=headers,
        nouveau=bool(re.search(r"^nouveau ", modules, re.M)),
        secure_boot=secure_boot(node),
        precompiled=_offered(node, precompiled_pattern.format(kernel=kernel)) if precompiled_pattern else "",
        headers_package="" if headers or not devices else _offered(node, f"linux-headers-{kernel}"),
        boot_id=node.read("/proc/sys/kernel/random/boot_id") or "",
    )


def secure_boot(node: Node) -> bool:
    """Tells whether the firmware enforces signatures: the last byte of its variable."""
    try:
        with open(node.path(SECURE_BOOT), "rb") as source:
            return source.read()[-1:] == b"\x01"
    except OSError:
        return False


def _offered(node: Node, package: str) -> str:
    """Returns the package if apt knows a version of it."""
    done = node.run("apt-cache", "policy", package)
    return package if re.search(r"Candidate: (?!\(none\))\S", done.stdout) else ""


def container_libraries(node: Node, version: str) -> list[dict[str, str]]:
    """Returns the driver's libraries that a container needs: path, file name, and the name under which they are loaded."""
    listed = node.run("ldconfig", "-p").stdout
    folders = [*gpu_inspection.linker_folders(listed), *gpu_inspection.LIBRARY_FOLDERS]
    found: dict[str, dict[str, str]] = {}
    for name in CONTAINER_LIBRARIES:
        for folder in folders:
            path = f"{folder}/{name}.so.{version}"
            if name not in found and node.exists(path):
                soname = f"{name}.so.4" if name == "libnvidia-nvvm" else f"{name}.so.1"
                bare = name == "libnvidia-gpucomp"
                found[name] = {
                    "path": path,
                    "file": os.path.basename(path),
                    "soname": os.path.basename(path) if bare else soname,
                }
    return list(found.values())
