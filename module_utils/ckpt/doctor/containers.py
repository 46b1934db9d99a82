# SPDX-License-Identifier: GPL-3.0-or-later
"""podman and the OCI runtime below it, as a checkpoint needs them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from ..node.inspection import open_files_limit, program_version
from ..node.oci import LIBCRIU, crun_lacks, finds_libcriu
from ..parsing import FormatError, parse_json, pick
from . import CheckContext, Verdict, check, fail, ok, skip, warn

PROVISION = "ansible-playbook provision.yml"
ENOSYS = 38
IO_URING_CALLS = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
# podman's profile carries the version of its library in its name (containers-default-0.57.4-apparmor1 on Ubuntu 24.04).
PODMANS_PROFILE = "containers-default-"
APPARMOR_SWITCH = "/sys/module/apparmor/parameters/enabled"
APPARMOR_PROFILES = "/sys/kernel/security/apparmor/profiles"
CONTAINERS_CONF = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
CONTAINERS_CONF_D = "/etc/containers/containers.conf.d/*.conf"
# soft and hard limit, or one for both
NOFILE = re.compile(r"nofile=(?:-?[0-9]{1,19}:)?(-?[0-9]{1,19})")


@check(
    "podman",
    "containers",
    "podman",
    "The runtime that users run; without it only the runtime `process` can be measured.",
)
def podman(context: CheckContext) -> Verdict:
    """podman runs."""
    if context.podman is None:
        return warn(
            "not installed",
            "Run provision.yml (role container_runtime), or use lanes of the runtime `process`.",
            PROVISION,
        )
    version = program_version(context.node, context.podman, "--version")
    if version is None:
        return fail("podman --version fails", "Reinstall podman.", "apt-get install --reinstall podman")
    return ok(version)


@check(
    "oci-runtime",
    "containers",
    "OCI runtime",
    "podman hands checkpoints to it; crun can only if it was built with CRIU, and loads libcriu then.",
)
def oci_runtime(context: CheckContext) -> Verdict:
    """podman's runtime can checkpoint, on this kind of cgroups."""
    if context.podman is None:
        return skip("no podman")
    done = context.node.run(context.podman, "info", "--format", "json")
    if done.rc != 0:
        return fail(
            f"podman info fails: {done.stderr.strip().splitlines()[-1:]}",
            "Correct podman's configuration: it names the file.",
        )
    try:
        name, version = named_runtime(done.stdout)
    except FormatError as error:
        return fail(f"what podman info says {error}", "Use the podman that provision.yml installs.", PROVISION)
    return judge_runtime(name, version, context.cgroups, finds_libcriu(context.node))


def named_runtime(text: str) -> tuple[str, str]:
    """Returns name and version of the OCI runtime in what `podman info` prints as JSON. Raises FormatError."""
    runtime = pick(parse_json(text), "host", "ociRuntime", kind=dict[str, Any])
    return pick(runtime, "name", kind=str), pick(runtime, "version", kind=str, default="")


def judge_runtime(name: str, version: str, cgroup_mode: str, libcriu: bool) -> Verdict:
    """Judges a runtime by its name, the text of its version, the cgroups of the node, and whether there is libcriu."""
    first = version.splitlines()[0] if version else name
    if name != "crun":
        return ok(first)
    lacks = crun_lacks(version, libcriu, cgroup_mode)
    if "criu" in lacks:
        return fail(
            f"{first} was built without CRIU", "Use runc: run provision.yml (role container_runtime).", PROVISION
        )
    if "libcriu" in lacks:
        return fail(f"{first} does not find {LIBCRIU}", "Install libcriu2, or use runc.", "apt-get install libcriu2")
    if "cgroup-v2" in lacks:
        return fail(
            f"{first} does not checkpoint on cgroups {cgroup_mode}", "Use runc, or boot with cgroups v2.", PROVISION
        )
    return ok(f"{first} with CRIU")


@check(
    "network",
    "containers",
    "container network",
    "podman's bridge needs a packet filter; CRIU locks the network of a container with it.",
)
def network(context: CheckContext) -> Verdict:
    """iptables or nft is there."""
    found = [tool for tool in ("iptables", "nft") if context.node.which(tool)]
    if found:
        return ok(", ".join(found))
    return warn(
        "neither iptables nor nft", "Install iptables, or use --network=host lanes.", "apt-get install iptables"
    )


@check(
    "container-limits",
    "containers",
    "limits of containers",
    "A container whose limits exceed the machine's hard limits does not start where CAP_SYS_RESOURCE is missing.",
)
def container_limits(context: CheckContext) -> Verdict:
    """default_ulimits fits the hard limit of open files."""
    hard = open_files_limit()
    if context.capabilities["CAP_SYS_RESOURCE"] or hard == -1:
        return ok("limits can be raised here")
    try:
        asked = default_nofile(containers_config(context))
    except FormatError as error:
        return fail(f"containers.conf {error}", "Correct it, or its drop-ins.", PROVISION)
    if asked is None:
        return warn(
            "no default_ulimits, and limits cannot be raised here",
            "Run provision.yml (role container_runtime): it sets limits that this machine allows.",
            PROVISION,
        )
    if asked > hard:
        return fail(
            f"default_ulimits asks for nofile {asked}, the hard limit is {hard}",
            "Lower it in containers.conf.",
            PROVISION,
        )
    return ok(f"nofile {asked}, hard limit {hard}")


def containers_config(context: CheckContext) -> list[str]:
    """Returns the texts of containers.conf and its drop-ins, in the order in which podman reads them."""
    paths = [*CONTAINERS_CONF, *context.node.glob(CONTAINERS_CONF_D)]
    return [text for text in map(context.node.read, paths) if text is not None]


def default_nofile(texts: list[str]) -> int | None:
    """Returns the hard nofile limit that the last file with default_ulimits sets. Raises FormatError."""
    found = None
    for text in texts:
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"is no TOML ({error})") from None
        for entry in pick(document, "containers", "default_ulimits", kind=list[str], default=[]):
            match = NOFILE.fullmatch(entry)
            found = int(match[1]) if match else found
    return found


@check(
    "seccomp",
    "containers",
    "seccomp profile",
    "It must answer io_uring with ENOSYS, so that libraries fall back instead of failing.",
)
def seccomp(context: CheckContext) -> Verdict:
    """The profile denies io_uring in the way that libraries understand."""
    text = context.node.read(context.seccomp_path)
    if text is None:
        return warn(
            f"{context.seccomp_path} does not exist",
            "Run provision.yml (role seccomp_profile). podman's default denies io_uring too, --privileged does not.",
            PROVISION,
        )
    try:
        answered = io_uring_answers(parse_json(text))
    except FormatError as error:
        return fail(f"{context.seccomp_path} {error}", "Run provision.yml (role seccomp_profile).", PROVISION)
    wrong = sorted(call for call in IO_URING_CALLS if answered.get(call) != ENOSYS)
    if wrong:
        return fail(
            f"{', '.join(wrong)}: not answered with ENOSYS", "Run provision.yml (role seccomp_profile).", PROVISION
        )
    return ok("io_uring_* answered with ENOSYS")


@check(
    "apparmor",
    "containers",
    "AppArmor",
    "A container is restored under the profile that it was checkpointed under; CRIU fails where that is not loaded.",
)
def apparmor(context: CheckContext) -> Verdict:
    """Where podman confines containers with its own profile, the profile is loaded."""
    if context.podman is None:
        return skip("no podman")
    if context.node.read(APPARMOR_SWITCH) != "Y":
        return ok("not in use on this kernel")
    if not context.node.which("apparmor_parser"):
        return ok("no apparmor_parser, so podman confines no container with it")
    profiles = context.node.read(APPARMOR_PROFILES)
    if profiles is None:
        return warn(
            f"{APPARMOR_PROFILES} cannot be read",
            "Run the doctor as root, and mount securityfs: CRIU restores no profile without it.",
            "mount -t securityfs securityfs /sys/kernel/security",
        )
    loaded = [line.split()[0] for line in profiles.splitlines() if line.startswith(PODMANS_PROFILE)]
    if loaded:
        return ok(f"{', '.join(loaded)} loaded")
    return warn(
        f"no profile {PODMANS_PROFILE}* is loaded",
        "podman loads it when it starts a container, not when it restores one: after a boot, start one before the first restore.",
        PROVISION,
    )


def io_uring_answers(profile: dict[str, Any]) -> dict[str, int | None]:
    """Returns the errno with which a seccomp profile answers each io_uring call, None where it allows the call.

    The first rule that names a call decides, then the profile's default. Raises FormatError if it is no profile.
    """
    default = _errno(profile, "defaultAction", "defaultErrnoRet")
    answers: dict[str, int | None] = {}
    for rule in pick(profile, "syscalls", kind=list[dict[str, Any]], default=[]):
        conditional = rule.get("includes") or rule.get("excludes") or rule.get("args")
        for call in IO_URING_CALLS.intersection(pick(rule, "names", kind=list[str], default=[])):
            if not conditional:
                answers.setdefault(call, _errno(rule, "action", "errnoRet"))
    return {call: answers.get(call, default) for call in IO_URING_CALLS}


def _errno(rule: dict[str, Any], action: str, number: str) -> int | None:
    if pick(rule, action, kind=str, default="") != "SCMP_ACT_ERRNO":
        return None
    answer: int = pick(rule, number, kind=int, default=1)
    return answer
