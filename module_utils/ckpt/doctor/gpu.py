# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA part of a node: driver, libraries, plugin, and what is known to break a CUDA checkpoint."""

from __future__ import annotations

import os

from ..cuda import features as driver_features
from ..node.gpu import (
    cdi_specifications,
    device_users,
    gpu_links,
    installed_libraries,
    legacy_hooks,
    library_versions,
    processes_named,
)
from ..node.inspection import thp
from . import CheckContext, Verdict, check, fail, ok, skip, warn

PROVISION = "ansible-playbook provision.yml"
ELF_MAGIC = b"\x7fELF"
OUR_COMMAND_MARK = b"gpuckpt"


@check("driver", "gpu", "NVIDIA driver", "A CUDA checkpoint is the driver's work; each feature has a lowest version.")
def driver(context: CheckContext) -> Verdict:
    """A driver is loaded that can do what CRIU's plugin asks."""
    if context.driver is None:
        return fail(
            f"{len(context.pci_gpus)} NVIDIA GPU(s), but no driver is loaded",
            "Install a driver (role nvidia_driver), reboot where its kernel module needs it.",
            PROVISION,
        )
    return judge_driver(str(context.driver["version"]), bool(context.driver["open"]))


def judge_driver(version: str, is_open: bool) -> Verdict:
    """Judges a driver by its version."""
    have = driver_features.supported(version)
    text = f"{version}, {'open' if is_open else 'proprietary'} kernel module"
    lacking = [feature for feature in driver_features.FEATURES if not have[feature.name]]
    names = ", ".join(f"{feature.name} (≥ {feature.minimum})" for feature in lacking)
    if not have[driver_features.REQUIRED]:
        return fail(
            f"{text}: too old, lacks {names}", f"Install a driver ≥ {driver_features.minimum('driver-api')}.", PROVISION
        )
    if not have["driver-api"] or not have["migration"]:
        return warn(f"{text}: lacks {names}", "Install a newer driver if a lane uses these.", PROVISION)
    return ok(text + (f"; lacks {names}" if names else ""))


@check(
    "driver-libraries",
    "gpu",
    "driver and libraries",
    "After an upgrade without a reboot every CUDA call fails with a version mismatch.",
)
def libraries(context: CheckContext) -> Verdict:
    """libcuda is of the version of the loaded kernel module."""
    if context.driver is None:
        return skip("no driver is loaded")
    return judge_libraries(str(context.driver["version"]), installed_libraries(context.node), context.gpus[1])


def judge_libraries(loaded: str, found: dict[str, str], complaint: str) -> Verdict:
    """Judges the versions of libcuda, and what nvidia-smi complains of, against the loaded kernel module."""
    others = sorted(f"{path} ({version})" for path, version in found.items() if version != loaded)
    if others and loaded not in found.values():
        return fail(
            f"the kernel module is {loaded}, the libraries are {', '.join(others)}",
            "Reboot, or reload the kernel modules; hold the driver's packages so that it does not come back.",
        )
    if complaint:
        return fail(
            f"nvidia-smi fails: {complaint.splitlines()[0]}",
            "Fix the driver first; a mismatch goes away with a reboot.",
        )
    if others:
        return warn(f"libcuda of other versions too: {', '.join(others)}", "Remove what is left of the other driver.")
    if not found:
        return warn(
            "neither the dynamic linker nor a usual folder has libcuda",
            "Install the driver's compute libraries, or tell ldconfig of them.",
        )
    return ok(loaded)


@check("gpus", "gpu", "GPUs", "What a restore can be put on.")
def gpus(context: CheckContext) -> Verdict:
    """nvidia-smi sees the GPUs that are on the bus."""
    seen, complaint = context.gpus
    if not seen:
        return fail(f"nvidia-smi: {complaint or 'no GPU'}", "Fix the driver: the GPU is on the bus, but not served.")
    if len(context.pci_gpus) > len(seen):
        return warn(
            f"{len(seen)} of {len(context.pci_gpus)} GPUs on the bus are served",
            "Look at the kernel's log for Xid errors.",
        )
    return ok(", ".join(f"{gpu.name} ({gpu.pci})" for gpu in seen))


@check(
    "gpu-links",
    "gpu",
    "links between GPUs",
    "A server on several GPUs is restored with buffers that they read from each other; without NVLink NCCL stands in.",
)
def links(context: CheckContext) -> Verdict:
    """NVLink connects every GPU with every other."""
    seen, _ = context.gpus
    if len(seen) < 2:
        return skip("one GPU, or none")
    return judge_links(gpu_links(context.node, len(seen)), len(seen))


def judge_links(found: dict[tuple[int, int], str], count: int) -> Verdict:
    """Judges how the pairs of so many GPUs are linked."""
    if len(found) < count * (count - 1) // 2:
        return warn("nvidia-smi does not tell all of them", "Look at `nvidia-smi topo -m`.", "nvidia-smi topo -m")
    slow = {pair: link for pair, link in found.items() if not link.startswith("NV")}
    kinds = ", ".join(sorted(set(found.values())))
    if not slow:
        return ok(f"{kinds} between all {count}")
    pairs = ", ".join(f"{one} and {other} ({link})" for (one, other), link in slow.items())
    return warn(
        f"no NVLink between GPU {pairs}",
        "Give a server GPUs with NVLink. More than two without it reduce through NCCL, which graphs would hold: add "
        "--enforce-eager.",
    )


@check(
    "cuda-checkpoint",
    "gpu",
    "cuda-checkpoint",
    "CRIU's plugin takes a missing one for `not a CUDA process`, and a mock for success.",
)
def cuda_checkpoint(context: CheckContext) -> Verdict:
    """The cuda-checkpoint that CRIU finds is a real program."""
    inside = f"{context.current.path}/bin/cuda-checkpoint" if context.current else None
    path = inside if inside and context.node.exists(inside) else context.node.which("cuda-checkpoint")
    if path is None:
        return fail("not found", "Run provision.yml (role criu): its builds carry one.", PROVISION)
    try:
        with open(context.node.path(path), "rb") as source:
            kind = command_kind(source.read())
    except OSError as error:
        return fail(f"{path} cannot be read: {error.strerror}", "Run provision.yml (role criu).", PROVISION)
    if kind == "script":
        return fail(
            f"{path} is a script, not a program: a mock", "Remove it, so that the build's own is found.", f"rm {path}"
        )
    return ok(f"{path} ({kind})")


def command_kind(content: bytes) -> str:
    """Tells what a cuda-checkpoint is by its content: ours, another program, or a script."""
    if not content.startswith(ELF_MAGIC):
        return "script"
    return "ours, driver API" if OUR_COMMAND_MARK in content else "NVIDIA's or another program"


@check(
    "plugin",
    "gpu",
    "CRIU's CUDA plugin",
    "A plugin of another build than its criu fails to load, or does other things than the lane says.",
)
def plugin(context: CheckContext) -> Verdict:
    """The plugin of the build in use is there and of that build."""
    build = context.current
    if build is None:
        return fail("no build is in use", "Run provision.yml (role criu).", PROVISION)
    if build.plugin_sha256 is None:
        return fail(
            f"{build.files.plugin} is missing",
            "Run provision.yml (role criu): it builds the plugin with criu.",
            PROVISION,
        )
    if build.problems:
        return fail("; ".join(build.problems), "Remove the build's folder and run provision.yml.", PROVISION)
    return ok(f"of the same build as criu ({os.path.basename(os.path.realpath(context.node.path(build.path)))})")


@check(
    "persistence",
    "gpu",
    "persistence mode",
    "Without it the driver shuts the GPU down after each dump, and the restore pays for its initialisation.",
)
def persistence(context: CheckContext) -> Verdict:
    """Every GPU is kept initialised."""
    seen, _ = context.gpus
    if not seen:
        return skip("nvidia-smi sees no GPU")
    off = [str(gpu.index) for gpu in seen if not gpu.persistence]
    if off:
        return warn(f"off on GPU {', '.join(off)}", "Start nvidia-persistenced, or switch it on.", "nvidia-smi -pm 1")
    return ok("on")


@check(
    "gpu-thp",
    "gpu",
    "huge pages for the dump",
    "The driver's checkpoint is bound by the first touch of fresh host memory.",
)
def huge_pages(context: CheckContext) -> Verdict:
    """Large host allocations get huge pages."""
    chosen = thp(context.node).get("enabled", "not in this kernel")
    if chosen == "always":
        return ok("always")
    return warn(
        chosen,
        "Try `always`: large allocations then get huge pages unasked.",
        "echo always > /sys/kernel/mm/transparent_hugepage/enabled",
    )


@check(
    "cdi",
    "gpu",
    "CDI specification",
    "A specification of another driver mounts libraries that no longer exist, or the wrong ones.",
)
def cdi(context: CheckContext) -> Verdict:
    """The CDI specification is of the loaded driver."""
    if context.driver is None:
        return skip("no driver is loaded")
    return judge_cdi(str(context.driver["version"]), cdi_specifications(context.node), context.podman is not None)


def judge_cdi(loaded: str, specifications: dict[str, set[str]], has_podman: bool) -> Verdict:
    """Judges the driver versions that CDI specifications name."""
    if not specifications:
        if not has_podman:
            return skip("no podman, none is needed")
        return warn("none", "Run provision.yml (role nvidia_driver), or give the devices one by one.", PROVISION)
    drifted = [
        f"{path} ({', '.join(sorted(found - {loaded}))})" for path, found in specifications.items() if found - {loaded}
    ]
    if drifted:
        return fail(
            f"the driver is {loaded}, not so {'; '.join(drifted)}",
            "Generate it again.",
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        )
    return ok(", ".join(specifications))


@check(
    "nvidia-libs",
    "gpu",
    "libraries for containers",
    "The folder is mounted into containers; libraries of an older driver in it fail at the first CUDA call.",
)
def container_libraries(context: CheckContext) -> Verdict:
    """/opt/nvidia-libs is of the loaded driver."""
    if context.driver is None:
        return skip("no driver is loaded")
    if not context.node.exists(context.gpu_libraries):
        return skip(f"{context.gpu_libraries} does not exist")
    loaded = str(context.driver["version"])
    found = library_versions(context.node, (context.gpu_libraries, f"{context.gpu_libraries}/lib"))
    others = sorted(set(found.values()) - {loaded})
    if others or not found:
        return fail(
            f"{context.gpu_libraries} has libcuda {', '.join(others) or 'of no version'}, the driver is {loaded}",
            "Run provision.yml.",
            PROVISION,
        )
    return ok(f"{context.gpu_libraries}: {loaded}")


@check("mig", "gpu", "MIG", "A checkpoint holds the GPU's identity; a MIG instance made anew has another.")
def mig(context: CheckContext) -> Verdict:
    """No GPU is cut into MIG instances."""
    cut = [str(gpu.index) for gpu in context.gpus[0] if gpu.mig == "Enabled"]
    if cut:
        return warn(
            f"on, GPU {', '.join(cut)}",
            "Restore only while the same instances exist, or switch MIG off.",
            "nvidia-smi -mig 0",
        )
    return ok("off")


@check(
    "mps", "gpu", "MPS", "Clients of the MPS daemon share one context, so none of them can be checkpointed by itself."
)
def mps(context: CheckContext) -> Verdict:
    """No MPS daemon serves the GPUs."""
    # daemon and server have the same first 15 characters, which is what the kernel keeps of a name
    pids = processes_named(context.node, "nvidia-cuda-mps-control")
    if pids:
        return fail(
            f"MPS is running (pid {', '.join(map(str, pids))})", "Stop it.", "echo quit | nvidia-cuda-mps-control"
        )
    return ok("not in use")


@check(
    "uvm-users",
    "gpu",
    "other users of the GPU",
    "A restore needs the GPU memory that was in use at the dump; others may hold it.",
)
def uvm_users(context: CheckContext) -> Verdict:
    """Nobody uses the GPU now."""
    users = device_users(context.node)
    if users:
        return warn(", ".join(users), "End them before a benchmark, or they share memory and time with it.")
    return ok("none")


@check(
    "gpu-hooks",
    "gpu",
    "container hooks",
    "NVIDIA's legacy OCI hook runs at a restore too, finds the container's root already set up, and breaks it.",
)
def hooks(context: CheckContext) -> Verdict:
    """No legacy hook is configured for podman."""
    found = legacy_hooks(context.node)
    if found:
        return fail(", ".join(found), "Remove the hook and use the CDI specification instead.", f"rm {' '.join(found)}")
    return ok("none")
