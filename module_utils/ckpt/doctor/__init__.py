# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix of what a node can do. Each check judges one thing and changes nothing.

A check is a function of a `CheckContext` that returns a `Verdict`; the decorator gives it a name, a title, and why it
matters. `examine` runs them in order. A check that breaks is a failure of its own and does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property

from .. import paths
from ..criu import builds as criu_builds
from ..criu.folder import HOME
from ..errors import CkptError
from ..node import gpu as gpu_inspection
from ..node.inspection import Node, capabilities, cgroups

STATES = ("ok", "warn", "fail", "skip")
GROUPS = ("host", "criu", "containers", "store", "server", "gpu")


@dataclass(frozen=True)
class Verdict:
    """What a check found; `fix` tells what to do, `command` is a command that does it."""

    state: str
    detail: str
    fix: str | None = None
    command: str | None = None


def ok(detail: str) -> Verdict:
    """Nothing to do."""
    return Verdict("ok", detail)


def skip(detail: str) -> Verdict:
    """Does not apply to this node."""
    return Verdict("skip", detail)


def warn(detail: str, fix: str, command: str | None = None) -> Verdict:
    """Works, but not as well as it could, or not for everything."""
    return Verdict("warn", detail, fix, command)


def fail(detail: str, fix: str, command: str | None = None) -> Verdict:
    """A checkpoint or a restore would fail."""
    return Verdict("fail", detail, fix, command)


@dataclass
class CheckContext:
    """A node, what is expected of it, and what several checks look at, read once."""

    node: Node
    criu_home: str = HOME
    store_path: str = paths.STORE
    seccomp_path: str = paths.SECCOMP_PROFILE
    port: int = 18080
    trial: bool = True
    workdir: str = "/tmp"
    gpu_libraries: str = paths.GPU_LIBRARIES

    @cached_property
    def builds(self) -> list[criu_builds.Build]:
        """The builds of CRIU, each examined."""
        return [criu_builds.examine(self.node, build) for build in criu_builds.find(self.node, self.criu_home)]

    @cached_property
    def current(self) -> criu_builds.Build | None:
        """The build that is used where nothing else is said."""
        return next((build for build in self.builds if "current" in build.names), None)

    @cached_property
    def criu(self) -> str | None:
        """The criu that podman, runc and crun find."""
        return self.node.which("criu")

    @cached_property
    def podman(self) -> str | None:
        """The podman of the node."""
        return self.node.which("podman")

    @cached_property
    def cgroups(self) -> str:
        """v2, hybrid, v1 or none."""
        return cgroups(self.node)

    @cached_property
    def capabilities(self) -> dict[str, bool]:
        """Whether this process has each capability that matters."""
        return capabilities(self.node)

    @cached_property
    def pci_gpus(self) -> list[str]:
        """PCI addresses of the NVIDIA GPUs."""
        return gpu_inspection.pci_gpus(self.node)

    @cached_property
    def driver(self) -> dict[str, object] | None:
        """The loaded kernel module of the NVIDIA driver."""
        return gpu_inspection.driver(self.node)

    @property
    def has_gpu(self) -> bool:
        """Whether the GPU checks apply."""
        return bool(self.pci_gpus or self.driver)

    @cached_property
    def gpus(self) -> tuple[list[gpu_inspection.Gpu], str]:
        """The GPUs as nvidia-smi tells them, and its complaint if it failed."""
        return gpu_inspection.gpus(self.node)


@dataclass(frozen=True)
class Check:
    """A registered check."""

    id: str
    group: str
    title: str
    why: str
    judge: Callable[[CheckContext], Verdict] = field(repr=False)


REGISTRY: list[Check] = []


def check(
    id: str, group: str, title: str, why: str
) -> Callable[[Callable[[CheckContext], Verdict]], Callable[[CheckContext], Verdict]]:
    """Registers a check under an id; `why` says what goes wrong where it fails."""

    def register(judge: Callable[[CheckContext], Verdict]) -> Callable[[CheckContext], Verdict]:
        REGISTRY.append(Check(id, group, title, why, judge))
        return judge

    return register


@dataclass(frozen=True)
class Finding:
    """One line of the matrix."""

    id: str
    group: str
    title: str
    state: str
    detail: str
    why: str
    fix: str | None
    command: str | None

    def as_dict(self) -> dict[str, str | None]:
        """For a module's result."""
        return asdict(self)


def examine(context: CheckContext, groups: Iterable[str] = GROUPS) -> list[Finding]:
    """Runs the checks of the groups, in the order of GROUPS."""
    wanted = [one for group in GROUPS if group in set(groups) for one in REGISTRY if one.group == group]
    return [_judge(one, context) for one in wanted]


def _judge(one: Check, context: CheckContext) -> Finding:
    if one.group == "gpu" and not context.has_gpu:
        verdict = skip("no NVIDIA GPU on this node")
    else:
        verdict = _guarded(one, context)
    return Finding(one.id, one.group, one.title, verdict.state, verdict.detail, one.why, verdict.fix, verdict.command)


def _guarded(one: Check, context: CheckContext) -> Verdict:
    try:
        return one.judge(context)
    except CkptError as error:
        return fail(error.message, "See why the command did not end.")
    except Exception as error:  # one broken check must not hide the others
        return fail(
            f"the check broke: {type(error).__name__}: {error}",
            "This is a defect of the doctor: report it with the output of this check.",
        )


def matrix(findings: Iterable[Finding]) -> list[str]:
    """Returns the matrix as lines to read: one for each check, its reason and fix below those that are not ok."""
    lines = []
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines.append(group)
        lines.append(f"  {finding.state:<4}  {finding.title:<30} {finding.detail}")
        if finding.state in ("warn", "fail"):
            lines.append(f"          why:  {finding.why}")
            lines.append(f"          fix:  {finding.fix}" + (f"  ({finding.command})" if finding.command else ""))
    return lines


def count(findings: Iterable[Finding]) -> dict[str, int]:
    """Returns how many findings there are of each state."""
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in STATES}
