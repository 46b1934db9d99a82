# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role criu: what is to be built, deployed and linked on a node, and which settings cannot work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils

# Ansible finds our module_utils for modules only.
OURS = str(Path(__file__).resolve().parents[3] / "module_utils")
if OURS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(OURS)

from ansible.module_utils.ckpt.criu import settings

Data = dict[str, Any]

MACHINE = "x86_64"
VARIANTS = ("stock", "patched")
DISTRO = "distro"
PACKAGE = "criu"
# of a program that no package brought
UNPACKAGED = "unpackaged"


def criu_plan(names: Data, node: Data, asked: Data) -> Data:
    """Returns what is to be built, deployed and linked on a node.

    - ``missing``: variants whose build the node lacks
    - ``to_build``: variants that no archive on the controller holds
    - ``distro``: the distribution's own build. ``version`` is empty without one. ``wanted`` tells whether it is still to be
      made one of the builds, under its ``digest``.
    - ``links``: variants, the distribution's own, the default, and the command that podman and runc find, with their targets
    - ``to_link``: those of them that lead elsewhere, each with ``name`` and ``target``
    - ``unlinked``: builds to which no link leads any more, the newest first
    - ``tried``: builds that are verified

    :param names: ``digests`` by variant, and ``archived`` variants, as printed by files/name_builds.py
    :param node: what ``ckpt_node_info`` tells of the front, the distribution's program and its package
    :param asked: ``root`` (of the builds), ``front``, ``program`` (the distribution's), ``platform``, ``variants``, ``current``.
        ``distro`` tells whether the distribution's own is offered, ``prebuilt`` whether finished builds were given.
    """
    digests, present = names["digests"], node["complete_builds"]
    distro = _distro(node, asked)
    links = _links(digests, distro, asked)
    # of a variant that is no longer asked for
    other_targets = [target for link, target in node["links"].items() if link not in links]
    return {
        "missing": [variant for variant, digest in digests.items() if digest not in present],
        "to_build": [] if asked["prebuilt"] else [one for one in asked["variants"] if one not in names["archived"]],
        "distro": distro,
        "links": links,
        "to_link": [
            {"name": link, "target": target} for link, target in links.items() if node["links"].get(link) != target
        ],
        "unlinked": [one for one in present if one not in [*links.values(), *other_targets]],
        "tried": [*asked["variants"], *([DISTRO] if _offers(distro, asked) else [])],
    }


def _distro(node: Data, asked: Data) -> Data:
    there = node["paths"][asked["program"]]["exists"]
    version = (node["packages"] or {}).get(PACKAGE, UNPACKAGED) if there else ""
    digest = hashlib.sha256(f"{DISTRO} {version} {asked['platform']}".encode()).hexdigest()[:12]
    # a name that packages only mention (on Ubuntu 24.04, which has no criu) is not offered
    can_be = there or PACKAGE in node["offered"]
    wanted = bool(asked["distro"]) and can_be and digest not in node["complete_builds"]
    return {"version": version, "digest": digest, "wanted": wanted}


def _offers(distro: Data, asked: Data) -> bool:
    return bool(distro["version"] and asked["distro"])


def _links(digests: dict[str, str], distro: Data, asked: Data) -> dict[str, str]:
    root = asked["root"]
    links = {f"{root}/{variant}": digest for variant, digest in digests.items()}
    if _offers(distro, asked):
        links[f"{root}/{DISTRO}"] = distro["digest"]
    return {**links, f"{root}/current": asked["current"], asked["front"]: f"{root}/current/bin/criu"}


def criu_trial(lines: Sequence[str], tried: Sequence[str], own: Sequence[str]) -> Data:
    """Returns ``messages`` of a trial, one for each build, and ``failed``, those of our own builds that did.

    The distribution's own build is often too old for the kernel; that is worth saying, and no fault of the node.

    :param lines: what files/checkpoint_trial.py printed. Over ssh a script has a terminal: what sudo says on standard error
        stands before its result.
    :param tried: builds that were tried
    :param own: those of them that are ours
    """
    results = json.loads(lines[-1])
    return {
        "messages": [f"{build}: {results[build]['message']}" for build in tried],
        "failed": [build for build in own if not results[build]["ok"]],
    }


def criu_problems(asked: Data, host: Data) -> list[str]:
    """Returns everything in the settings that cannot work, each with what to do about it.

    :param asked: variables of the role without their prefix, and ``hooks``, those that CRIU has
    :param host: ``name``, ``user_id``, ``machine`` and ``has_pool``, whether the context pool can be a service there
    """
    find = [_host_problems, _build_problems, _hook_problems, _env_problems, _pool_problems, _file_problems]
    return [text for problems in find for wrong, text in problems(asked, host) if wrong]


Rules = list[tuple[bool, str]]


def _host_problems(asked: Data, host: Data) -> Rules:
    name, machine = host["name"], host["machine"]
    return [
        (host["user_id"] != 0, f"criu needs root on {name}. Run with --become, or as root."),
        (machine != MACHINE, f"criu supports {MACHINE}, but {name} is {machine}. Leave this host out."),
    ]


def _build_problems(asked: Data, host: Data) -> Rules:
    variants, sha256 = list(asked["variants"]), asked["tarball_sha256"]
    return [
        (
            not variants or not set(variants) <= set(VARIANTS),
            f"criu_variants must be a choice of {' and '.join(VARIANTS)}, not {variants}.",
        ),
        (
            asked["current"] not in variants,
            f"criu_current is {asked['current']}, which criu_variants ({', '.join(variants)}) does not provide.",
        ),
        (
            len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"),
            f"criu_tarball_sha256 must be 64 hexadecimal digits, not {sha256}.",
        ),
    ]


def _hook_problems(asked: Data, host: Data) -> Rules:
    unknown = [hook for hook in asked["action_scripts"] if hook not in asked["hooks"]]
    known = ", ".join(asked["hooks"])
    return [(bool(unknown), f"criu_action_scripts knows the hooks {known}, not {', '.join(unknown)}.")]


def _env_problems(asked: Data, host: Data) -> Rules:
    env = asked["env"]
    # where the builds are is no setting of a node
    unknown = [name for name in env if not settings.NAME.fullmatch(name) or name == settings.ROOT]
    unsafe = [name for name, value in env.items() if not settings.SAFE_VALUE.fullmatch(str(value))]
    return [
        (
            bool(unknown),
            f"criu_env may hold CRIU_*, {settings.BUILD} and {settings.LIBCUDA} only, not {', '.join(unknown)}.",
        ),
        (
            bool(unsafe),
            "criu_env may hold values of letters, digits and _ . / : , = + - only, unlike those of "
            f"{', '.join(unsafe)}.",
        ),
    ]


def _pool_problems(asked: Data, host: Data) -> Rules:
    return [
        (
            bool(asked["context_pool_service"]) and not host["has_pool"],
            f"criu_context_pool_service needs systemd and the patched build on {host['name']}. "
            "Use persistence mode, or set it to false.",
        )
    ]


def _file_problems(asked: Data, host: Data) -> Rules:
    tarball, prebuilt = asked["tarball_file"], asked["prebuilt_dir"]
    descriptions = [os.path.join(variant, "BUILD.json") for variant in asked["variants"]]
    lacking = [name for name in descriptions if not os.path.isfile(os.path.join(prebuilt, name))]
    return [
        (
            bool(tarball) and not os.path.isfile(tarball),
            f"criu_tarball_file is {tarball}, which does not exist on the controller.",
        ),
        (
            bool(prebuilt) and bool(lacking),
            f"criu_prebuilt_dir is {prebuilt}, which lacks {' or '.join(lacking)} on the controller.",
        ),
    ]


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"criu_plan": criu_plan, "criu_problems": criu_problems, "criu_trial": criu_trial}
