# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel, memory, limits, privileges and Python of a node."""

from __future__ import annotations

import os
import sys

from ..node.inspection import memory_bytes, open_files_limit, sysctl, thp
from ..system.procfs import port_holder
from . import CheckContext, Verdict, check, fail, ok, warn

OLDEST_PYTHON = (3, 11)
KERNEL_FILES = {
    "/proc/sys/kernel/ns_last_pid": "CONFIG_CHECKPOINT_RESTORE",
    "/proc/self/pagemap": "CONFIG_PROC_PAGE_MONITOR",
    "/proc/self/timers": "CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS",
}
# The kernel's own default. A lower one does not hold the mappings of a large server.
MAP_COUNT_DEFAULT = 65530
OPEN_FILES_WANTED = 65536
GIB = 1024**3


@check("root", "host", "privileges", "CRIU, podman's checkpoints and the tmpfs need uid 0.")
def root(context: CheckContext) -> Verdict:
    """The modules run as root."""
    if os.geteuid() == 0:
        return ok("uid 0")
    return fail(f"uid {os.geteuid()}", "Connect as root, or let Ansible become root (become: true).")


@check("kernel", "host", "kernel", "CRIU reads and rebuilds processes through interfaces that are kernel options.")
def kernel(context: CheckContext) -> Verdict:
    """The kernel has what CRIU cannot do without."""
    release = context.node.read("/proc/sys/kernel/osrelease") or "unknown release"
    missing = sorted({option for path, option in KERNEL_FILES.items() if not context.node.exists(path)})
    if missing:
        return fail(
            f"{release} without {', '.join(missing)}",
            "Boot a kernel with these options; distribution kernels have them.",
        )
    return ok(release)


@check(
    "capabilities",
    "host",
    "capabilities",
    "Each is used by a part of dump or restore; a container host may withhold them.",
)
def capability_set(context: CheckContext) -> Verdict:
    """The capabilities that CRIU uses are there."""
    missing = [name for name, have in context.capabilities.items() if not have]
    if not missing:
        return ok("all that CRIU uses")
    if missing == ["CAP_SYS_RESOURCE"]:
        return warn(
            "CAP_SYS_RESOURCE is missing",
            "Grant it to this machine, or run servers as uid 0 in their containers; no limit can be raised.",
        )
    return fail(
        f"missing: {', '.join(missing)}", "Grant them to this machine (it is a container or a confined service)."
    )


@check("cgroups", "host", "cgroups", "The runtime freezes the processes through the freezer cgroup; crun wants v2.")
def cgroup_mode(context: CheckContext) -> Verdict:
    """There are cgroups that a runtime can freeze with."""
    mode = context.cgroups
    if mode == "none":
        return fail(
            "none are mounted", "Mount /sys/fs/cgroup (systemd does); without it only the runtime `process` works."
        )
    if mode == "v2":
        return ok("v2")
    return ok(f"{mode}: runc works, crun does not")


@check("memory", "host", "memory", "Images on tmpfs and the server share the memory of the node.")
def memory(context: CheckContext) -> Verdict:
    """There is memory left."""
    size = memory_bytes(context.node)
    text = f"{size['available'] / GIB:.1f} of {size['total'] / GIB:.1f} GiB available"
    if size["available"] < GIB:
        return warn(text, "Free memory before a benchmark, or use smaller weights (gpuckpt_weights_mib).")
    return ok(text)


@check(
    "thp",
    "host",
    "transparent huge pages",
    "First touch of fresh memory is several times faster with huge pages; it bounds stock restores.",
)
def huge_pages(context: CheckContext) -> Verdict:
    """The chosen settings of transparent huge pages."""
    chosen = thp(context.node)
    if not chosen:
        return warn("not in this kernel", "Boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE.")
    text = ", ".join(f"{name}={word}" for name, word in chosen.items())
    if chosen.get("enabled") == "never":
        return warn(
            text, "Allow them where they are asked for.", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
    return ok(text)


@check(
    "map-count",
    "host",
    "mappings of a process",
    "A mapped restore makes one mapping for each run of pages; the limit ends it with ENOMEM.",
)
def map_count(context: CheckContext) -> Verdict:
    """vm.max_map_count is not below the kernel's default."""
    limit = sysctl(context.node, "vm.max_map_count")
    if limit is None:
        return warn("vm.max_map_count cannot be read", "Mount /proc completely.")
    if limit < MAP_COUNT_DEFAULT:
        return warn(f"vm.max_map_count = {limit}", "Raise it.", "sysctl -w vm.max_map_count=262144")
    return ok(f"vm.max_map_count = {limit}")


@check(
    "open-files",
    "host",
    "open files",
    "A server and a restore of it hold many descriptors; a hard limit cannot be raised without CAP_SYS_RESOURCE.",
)
def open_files(context: CheckContext) -> Verdict:
    """The hard limit of open files is ample."""
    limit = open_files_limit()
    if limit == -1 or limit >= OPEN_FILES_WANTED:
        return ok("no hard limit" if limit == -1 else f"hard limit {limit}")
    return warn(
        f"hard limit {limit}", "Raise nofile in /etc/security/limits.conf or in the service that starts the server."
    )


@check("io-uring", "host", "io_uring", "A process that holds an io_uring descriptor cannot be dumped.")
def io_uring(context: CheckContext) -> Verdict:
    """io_uring is denied by the kernel, or by a profile where containers are used."""
    state = sysctl(context.node, "kernel.io_uring_disabled")
    if state is None:
        return ok("this kernel has no switch for it; containers rely on the seccomp profile")
    if state == 2:
        return ok("denied by the kernel (kernel.io_uring_disabled = 2)")
    if context.node.exists(context.seccomp_path):
        return ok(f"kernel.io_uring_disabled = {state}; containers are denied it by {context.seccomp_path}")
    return warn(
        f"kernel.io_uring_disabled = {state}, and {context.seccomp_path} does not exist",
        "Run provision.yml (role seccomp_profile), or deny it on the whole node.",
        "sysctl -w kernel.io_uring_disabled=2",
    )


@check("python", "host", "Python of the modules", "The modules are written for this version.")
def python(context: CheckContext) -> Verdict:
    """The interpreter that runs the modules is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return fail(f"{version} ({sys.executable})", "Set ansible_python_interpreter to Python 3.11 or newer.")
    return ok(f"{version} ({sys.executable})")


@check(
    "port",
    "server",
    "port of the server",
    "A server that cannot bind its port never becomes healthy; a restore into a taken port fails.",
)
def port(context: CheckContext) -> Verdict:
    """Nobody listens on the port that the server under test uses."""
    holder = port_holder(context.port, context.node.path("/proc"))
    if holder:
        return fail(
            f"{context.port} is taken by {holder}",
            "End that process, or give the server another port (inference_server_port).",
        )
    return ok(f"{context.port} is free")
