# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything about a node that a measurement depends on, for the manifest of a run."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

from ..criu import builds as criu_builds
from ..node import gpu as gpu_inspection
from ..node.inspection import (
    Node,
    capabilities,
    cgroups,
    cpu,
    memory_bytes,
    mount_at,
    os_release,
    program_version,
    sysctl,
    thp,
)
from ..parsing import FormatError, parse_json

SYSCTLS = ("kernel.io_uring_disabled", "vm.max_map_count", "vm.overcommit_memory", "vm.swappiness")
# Prints a JSON object of the versions of the packages that are installed, for an interpreter that is not ours.
PACKAGE_VERSIONS = """
import importlib.metadata, json, sys
sys.path[:0] = json.loads(sys.argv[1])
versions = {"python": sys.version.split()[0]}
for name in sys.argv[2:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


def host(node: Node, store_path: str) -> dict[str, Any]:
    """Returns kernel, processor, memory, cgroups and the mount of the checkpoint store."""
    release = os_release(node)
    mount = mount_at(node, store_path)
    return {
        "os": release.get("PRETTY_NAME"),
        "platform": f"{release.get('ID', '')}{release.get('VERSION_ID', '')}-{platform.machine()}",
        "kernel": node.read("/proc/sys/kernel/osrelease"),
        "cpu": cpu(node),
        "memory_bytes": memory_bytes(node)["total"],
        "thp": thp(node),
        "cgroups": cgroups(node),
        "sysctl": {name: sysctl(node, name) for name in SYSCTLS},
        "missing_capabilities": sorted(name for name, have in capabilities(node).items() if not have),
        "store": {
            "path": store_path,
            "fstype": mount.fstype if mount else None,
            "options": sorted(mount.options) if mount else [],
        },
    }


def software(node: Node, image: str | None) -> dict[str, Any]:
    """Returns the versions of what starts and checkpoints containers, and the digest of the server's image."""
    return {
        "podman": program_version(node, "podman", "--version"),
        "runc": program_version(node, "runc", "--version"),
        "crun": program_version(node, "crun", "--version"),
        "conmon": program_version(node, "conmon", "--version"),
        "image": describe_image(node, image) if image else None,
    }


def describe_image(node: Node, image: str) -> dict[str, Any]:
    """Returns the name of a container image, the digest that it means here, and whether the name asks for that digest."""
    return {"name": image, "digest": image_digest(node, image), "by": "digest" if "@sha256:" in image else "tag"}


def image_digest(node: Node, image: str) -> str | None:
    """Returns the digest of a container image, None where podman or the image is missing."""
    done = node.run("podman", "image", "inspect", "--format", "{{.Digest}}", image)
    return done.stdout.strip() or None if done.rc == 0 else None


def criu(node: Node, home: str) -> dict[str, Any]:
    """Returns each build with the digests of its patches, and what the front sets."""
    builds = [criu_builds.examine(node, build) for build in criu_builds.find(node, home)]
    return {
        "front": node.which("criu"),
        "builds": {"/".join(sorted(build.names)) or os.path.basename(build.path): build.as_dict() for build in builds},
        "settings": criu_builds.settings(node),
    }


def gpu(node: Node) -> dict[str, Any] | None:
    """Returns driver, CUDA version and GPUs; None on a node without an NVIDIA driver."""
    driver = gpu_inspection.driver(node)
    if driver is None:
        return None
    return {
        "driver": driver,
        "cuda": gpu_inspection.cuda_version(node),
        "gpus": [one.as_dict() for one in gpu_inspection.gpus(node)[0]],
    }


def packages(node: Node, python: str | None, paths: list[str], names: list[str]) -> dict[str, str] | None:
    """Returns the versions of Python packages as an interpreter sees them; None without one, or where it fails.

    :param paths: folders of packages that come before the interpreter's own, as in PYTHONPATH.
    """
    if python is None:
        return None
    done = node.run(python, "-I", "-c", PACKAGE_VERSIONS, json.dumps(paths), *names)
    versions: dict[str, str] | None = _document(done.stdout) if done.rc == 0 else None
    return versions


def weights(node: Node, path: str | None) -> dict[str, Any] | None:
    """Returns what the weights are: files with their sizes in bytes, and the digests that were recorded next to them."""
    if path is None:
        return None
    files = [path] if os.path.isfile(node.path(path)) else node.glob(f"{path}/*")
    sizes = {
        os.path.basename(name): os.path.getsize(node.path(name)) for name in files if os.path.isfile(node.path(name))
    }
    manifest = node.read(f"{path}/gpuckpt-model.json")
    return {
        "path": path,
        "files_bytes": sizes,
        "sha256": (node.read(f"{path}.sha256") or "").split(" ")[0] or None,
        "manifest": _document(manifest),
    }


def _document(text: str | None) -> Any:
    """A JSON document; None where there is none, or something else."""
    try:
        return parse_json(text) if text else None
    except FormatError:
        return None
