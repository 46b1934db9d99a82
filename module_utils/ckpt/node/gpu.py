# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's NVIDIA driver and GPUs are, from files and nvidia-smi; empty on a node without one."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass

from ..parsing import FormatError, parse_json, pick
from .inspection import Node
from .smi import MIB, PROGRAM, parse_rows, whole_number
from .smi import query as smi_query

NVIDIA_VENDOR = "0x10de"
PCI_DISPLAY_CLASSES = ("0x0300", "0x0302")
DRIVER_FILE = "/proc/driver/nvidia/version"
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/aarch64-linux-gnu")
HOOK_FOLDERS = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")
CDI_PATTERNS = ("/etc/cdi/*.yaml", "/etc/cdi/*.json", "/var/run/cdi/*.yaml", "/var/run/cdi/*.json")
QUERY = (
    "index",
    "uuid",
    "name",
    "pci.bus_id",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "memory.total",
    "memory.used",
    "persistence_mode",
    "mig.mode.current",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it; memory in bytes."""

    index: int
    uuid: str
    name: str
    pci: str
    pcie_generation: int | None
    pcie_lanes: int | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    persistence: bool
    mig: str

    def as_dict(self) -> dict[str, object]:
        """For a manifest."""
        return asdict(self)


def pci_gpus(node: Node) -> list[str]:
    """Returns the PCI addresses of NVIDIA display and compute devices, whether or not a driver serves them."""
    found = []
    for folder in node.glob("/sys/bus/pci/devices/*"):
        kind = node.read(f"{folder}/class") or ""
        if node.read(f"{folder}/vendor") == NVIDIA_VENDOR and kind.startswith(PCI_DISPLAY_CLASSES):
            found.append(os.path.basename(folder))
    return found


def kernel_module(text: str) -> dict[str, object] | None:
    """Returns version and kind of the loaded kernel module from the text of /proc/driver/nvidia/version."""
    match = re.search(r"^NVRM version:.*?(\d{3}\.\d+(?:\.\d+)?)\s", text, re.M)
    return {"version": match.group(1), "open": "Open Kernel Module" in text} if match else None


def driver(node: Node) -> dict[str, object] | None:
    """Returns version and kind of the loaded kernel module, None without one."""
    return kernel_module(node.read(DRIVER_FILE) or "")


def linker_folders(text: str) -> list[str]:
    """Returns the folders in which `ldconfig -p` finds libcuda."""
    return [os.path.dirname(path) for path in re.findall(r"^\s*libcuda\.so\S* .*=> (\S+)$", text, re.M)]


def installed_libraries(node: Node) -> dict[str, str]:
    """Returns the version of each libcuda that the dynamic linker or a usual folder has, by its real path."""
    folders = dict.fromkeys([*linker_folders(node.run("ldconfig", "-p").stdout), *LIBRARY_FOLDERS])
    return library_versions(node, tuple(folders))


def library_versions(node: Node, folders: tuple[str, ...]) -> dict[str, str]:
    """Returns the version in the name of each libcuda.so.VERSION of the folders, by its real path."""
    versions = {}
    for folder in folders:
        for path in node.glob(f"{folder}/libcuda.so.[0-9]*.*"):
            real = os.path.realpath(node.path(path))
            versions[real] = os.path.basename(path).removeprefix("libcuda.so.")
    return versions


def parse_gpus(text: str) -> list[Gpu]:
    """Returns the GPUs in what nvidia-smi answers to a query for QUERY."""
    gpus = []
    for fields in parse_rows(text):
        if len(fields) != len(QUERY):
            continue
        index, uuid, name, pci, generation, lanes, total, used, persistence, mig = fields
        number = whole_number(index)
        if number is None:
            continue
        link = (whole_number(generation), whole_number(lanes))
        memory = (whole_number(total, MIB), whole_number(used, MIB))
        gpus.append(Gpu(number, uuid, name, pci, *link, *memory, persistence == "Enabled", mig))
    return gpus


def gpus(node: Node) -> tuple[list[Gpu], str]:
    """Returns the GPUs, and what nvidia-smi said if it failed."""
    done = node.run(*smi_query(f"--query-gpu={','.join(QUERY)}"))
    return (parse_gpus(done.stdout), "") if done.rc == 0 else ([], (done.stdout + done.stderr).strip())


def parse_links(text: str) -> dict[tuple[int, int], str]:
    """Returns how each pair of GPUs is linked, from what `nvidia-smi topo -m` prints: NV18, PIX, SYS."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line).split("\t") for line in text.splitlines()]
    links = {}
    for row in rows:
        name = re.fullmatch(r"GPU([0-9]+)", row[0].strip())
        if name is None:
            continue
        for other, cell in enumerate(cell.strip() for cell in row[1:]):
            if other > int(name[1]) and re.fullmatch(r"NV[0-9]+|PIX|PXB|PHB|NODE|SYS", cell):
                links[int(name[1]), other] = cell
    return links


def gpu_links(node: Node, count: int) -> dict[tuple[int, int], str]:
    """Returns how each pair of the node's GPUs is linked; those that nvidia-smi does not tell are left out."""
    done = node.run(PROGRAM, "topo", "-m")
    links = parse_links(done.stdout) if done.rc == 0 else {}
    # columns behind those of the GPUs are of network cards, or of processors
    return {pair: link for pair, link in links.items() if pair[1] < count}


def cuda_version(node: Node) -> str | None:
    """Returns the newest CUDA version that the driver serves, None where nvidia-smi does not tell."""
    match = re.search(r"CUDA Version\s*:\s*(\d+\.\d+)", node.run(PROGRAM).stdout)
    return match.group(1) if match else None


def cdi_library_versions(text: str) -> set[str]:
    """Returns the driver versions that a CDI specification (YAML or JSON) names in the files it mounts."""
    return set(re.findall(r"lib(?:cuda|nvidia-ml)\.so\.(\d{3}\.\d+(?:\.\d+)?)", text))


def cdi_specifications(node: Node) -> dict[str, set[str]]:
    """Returns the driver versions named by each CDI specification for NVIDIA devices, by its path."""
    found = {}
    for pattern in CDI_PATTERNS:
        for path in node.glob(pattern):
            text = node.read(path) or ""
            if "nvidia.com/" in text:
                found[path] = cdi_library_versions(text)
    return found


def legacy_hooks(node: Node) -> list[str]:
    """Returns the OCI hook files that run NVIDIA's container hook at every start, restores included."""
    found = []
    for folder in HOOK_FOLDERS:
        for path in node.glob(f"{folder}/*.json"):
            try:
                command = pick(parse_json(node.read(path) or "{}"), "hook", "path", kind=str, default="")
            except FormatError:
                continue
            if "nvidia-container" in command:
                found.append(path)
    return found


def device_users(node: Node, device: str = "/dev/nvidia-uvm") -> list[str]:
    """Returns the processes that have a device open, as `comm (pid N)`."""
    users = []
    for folder in node.glob("/proc/[0-9]*"):
        if any(_link(node, fd) == device for fd in node.glob(f"{folder}/fd/*")):
            users.append(f"{node.read(f'{folder}/comm') or '?'} (pid {os.path.basename(folder)})")
    return users


def _link(node: Node, path: str) -> str:
    try:
        return os.readlink(node.path(path))
    except OSError:
        return ""


def processes_named(node: Node, name: str) -> list[int]:
    """Returns the pids of processes whose command name is the given one, cut to 15 characters as the kernel does."""
    return [
        int(os.path.basename(folder))
        for folder in node.glob("/proc/[0-9]*")
        if node.read(f"{folder}/comm") == name[:15]
    ]
