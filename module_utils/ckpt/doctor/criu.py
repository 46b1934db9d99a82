# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU itself: which one is used, whether it is whole, what configures it, and whether it works on this kernel."""

from __future__ import annotations

import os

from ..criu import builds as criu_builds
from ..criu.settings import CONFIG_FILE, DEFAULTS_FILE, OVERRIDES_FILE, SWITCH
from ..node.inspection import program_version
from ..versions import version_tuple
from . import CheckContext, Verdict, check, fail, ok, skip, warn
from .trial import try_listener

WANTED = "4.2.1"
# of a line that is named to a user
SHOWN_CHARACTERS = 60
PROVISION = "ansible-playbook provision.yml"
CONTAINER_CONFIG = "/etc/criu/runc.conf"
GLOBAL_CONFIGS = ("/etc/criu/default.conf", "/root/.criu/default.conf")


@check(
    "criu-front",
    "criu",
    "criu in PATH",
    "podman, runc and crun take criu from PATH; the front gives it the node's and the lane's settings.",
)
def front(context: CheckContext) -> Verdict:
    """The first criu in PATH is our front."""
    if context.criu is None:
        return fail("no criu in PATH", "Run provision.yml (role criu).", PROVISION)
    real = os.path.realpath(context.node.path(context.criu))
    if real.startswith(context.node.path(context.criu_home) + "/"):
        return ok(f"{context.criu} → {real}")
    return warn(
        f"{context.criu} is not the front of {context.criu_home}",
        "Run provision.yml (role criu); until then no switch of a lane reaches podman's CRIU.",
        PROVISION,
    )


@check(
    "criu-version",
    "criu",
    "CRIU version",
    "Older ones cannot dump what this kernel made: 4.1.1 fails on TCP listeners of Linux 6.18.",
)
def version(context: CheckContext) -> Verdict:
    """The criu in PATH is the release that the project is tested with, or newer."""
    found = program_version(context.node, context.criu, "--version") if context.criu else None
    if found is None:
        return fail("criu does not run", "Run provision.yml (role criu).", PROVISION)
    if version_tuple(found) < version_tuple(WANTED):
        return warn(found, f"Run provision.yml: it builds {WANTED}.", PROVISION)
    return ok(found)


@check(
    "criu-builds",
    "criu",
    "builds side by side",
    "A lane names a build; one that is not what it says makes the comparison worthless.",
)
def builds(context: CheckContext) -> Verdict:
    """Every build that a lane can name is complete and is what its BUILD.json says."""
    named = [one for one in context.builds if one.names]
    if not named:
        return fail(f"none below {context.criu_home}", "Run provision.yml (role criu).", PROVISION)
    troubles = [f"{'/'.join(sorted(one.names))}: {problem}" for one in named for problem in one.problems]
    troubles += [f"{link} leads nowhere" for link in criu_builds.dangling(context.node, context.criu_home)]
    if context.current is None:
        troubles.append(f"{context.criu_home}/current is missing")
    if troubles:
        return fail("; ".join(troubles), "Remove the broken folder and run provision.yml: it builds again.", PROVISION)
    return ok(", ".join(sorted(f"{'/'.join(sorted(one.names))} {one.version}" for one in named)))


@check("criu-check", "criu", "criu check", "CRIU's own test of what the kernel offers.")
def kernel_check(context: CheckContext) -> Verdict:
    """`criu check` passes with every build that a lane can name."""
    named = [one for one in context.builds if one.names]
    if not named:
        return skip("no build to ask")
    bad = [one for one in named if one.check not in ("ok", None)]
    text = "; ".join(f"{'/'.join(sorted(one.names))} {one.version}: {one.check}" for one in bad)
    if any("current" in one.names for one in bad):
        return fail(
            text, "The kernel lacks what CRIU names, or this machine is denied it: run as root, outside a container."
        )
    if bad:
        return warn(text, "Do not use this build in a lane on this kernel.")
    return ok("passes with every build")


@check(
    "criu-settings",
    "criu",
    "settings of the front",
    "Switches that nobody reads, or left by a lane that ended, make a measurement something else than it says.",
)
def settings(context: CheckContext) -> Verdict:
    """The environment files hold known switches only, and no lane's overrides are left."""
    files = criu_builds.setting_files(context.node)
    if OVERRIDES_FILE in files:
        return warn(
            f"{OVERRIDES_FILE} overrides the node's settings",
            "A benchmark is running; if none is, remove the file.",
            f"rm {OVERRIDES_FILE}",
        )
    found = files.get(DEFAULTS_FILE)
    if found is None:
        return warn(
            f"{DEFAULTS_FILE} does not exist: every feature is off",
            "Run provision.yml (role criu).",
            PROVISION,
        )
    if found.left_out:
        return warn(
            f"the front leaves out: {'; '.join(line[:SHOWN_CHARACTERS] for line in found.left_out)}",
            f"Correct {DEFAULTS_FILE}: a line is NAME=VALUE, without export and without blanks.",
        )
    known = {*criu_builds.SWITCHES, CONFIG_FILE}
    unknown = sorted(name for name in found.values if SWITCH.fullmatch(name) and name not in known)
    if unknown:
        return warn(
            f"unknown: {', '.join(unknown)}",
            f"Correct {DEFAULTS_FILE}; CRIU ignores what it does not know.",
        )
    return ok(" ".join(f"{name}={value}" for name, value in found.values.items()) or "no switch is set")


@check(
    "criu-config",
    "criu",
    "configuration for containers",
    "runc hands CRIU this file, which overrides podman's options; default.conf reaches every CRIU in addition to it.",
)
def config(context: CheckContext) -> Verdict:
    """The file that containers use is accepted by CRIU, and no other file mixes in."""
    text = context.node.read(CONTAINER_CONFIG)
    if text is None:
        return warn(f"{CONTAINER_CONFIG} does not exist", "Run provision.yml (role criu).", PROVISION)
    if context.current is not None:
        done = criu_builds.execute(
            context.node, context.current, "check", "--no-default-config", "--config", CONTAINER_CONFIG
        )
        if done.rc != 0:
            return fail(
                f"CRIU refuses {CONTAINER_CONFIG}: {criu_builds.check_result(done)}",
                "Correct or remove the line that it names.",
            )
    others = [path for path in GLOBAL_CONFIGS if context.node.exists(path)]
    if others:
        return warn(
            f"{', '.join(others)} is read by every CRIU, before {CONTAINER_CONFIG}",
            "Move its lines to where they are meant, so that one file decides.",
        )
    options = [line for line in (raw.split("#")[0].strip() for raw in text.splitlines()) if line]
    return ok(", ".join(options) or "no option is set")


@check(
    "criu-trial",
    "criu",
    "dump and restore of a listener",
    "The real thing: a process with a TCP listener, dumped and restored on this kernel.",
)
def trial(context: CheckContext) -> Verdict:
    """A small process survives a checkpoint."""
    if not context.trial:
        return skip("not asked for")
    if context.criu is None:
        return skip("no criu to try")
    return try_listener(context.criu, context.node.commands, context.workdir)
