# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role nvidia_driver: which packages a plan takes, and what stands against it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

Data = dict[str, Any]

REPOSITORY_KEYS = ("uris", "suites", "signed_by")


def nvidia_driver_choice(planned: Data, packages: Sequence[str], branch: int) -> dict[str, list[str]]:
    """Returns the packages of a plan, each list in the order of its settings.

    - ``wanted``: all that are installed
    - ``own``: the driver's, without the headers, which come and go with their kernel
    - ``held``: names of the driver's own
    - ``asked``: names of those in the settings
    - ``pinned``: those in the settings that come with a version
    - ``versions``: those of the branch among the pinned. A pin reaches every package of that version.

    :param planned: what ``ckpt_driver_plan`` returned
    :param packages: names, with or without ``=version``
    """
    plan, extra = planned["plan"], planned["observed"]["precompiled"]
    own = [*packages, *([extra] if plan["modules"] == "precompiled" else [])]
    pinned = [package for package in packages if all(_name_and_version(package))]
    versions = [_name_and_version(package)[1] for package in pinned]
    return {
        "wanted": [*([plan["headers"]] if plan["headers"] else []), *own],
        "own": own,
        "held": _once(_name_and_version(package)[0] for package in own),
        "asked": _once(_name_and_version(package)[0] for package in packages),
        "pinned": pinned,
        "versions": _once(version for version in versions if version.startswith(f"{branch}.")),
    }


def _name_and_version(package: str) -> tuple[str, str]:
    name, _, version = package.partition("=")
    return name, version


def _once(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def nvidia_driver_kernel_changed(before: Data, planned: Data) -> list[str]:
    """Returns that another kernel runs than the one for which a module was built, as a list of one sentence or none.

    :param before: what ``ckpt_driver_plan`` returned when the role began
    :param planned: what it returned last
    """
    old, new = before["observed"]["kernel"], planned["observed"]["kernel"]
    told = f"The kernel changed from {old} to {new}; hold the kernel packages, or provision again."
    return [told] if old != new else []


def nvidia_driver_offers(text: str) -> list[str]:
    """Returns what a repository has in the words of apt, ``name=version``, from what ``apt-cache madison`` printed."""
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    return _once(f"{row[0]}={row[1]}" for row in rows if len(row) >= 3 and row[0] and row[1])


def nvidia_driver_problems(planned: Data, asked: Data, tried: Data) -> list[str]:
    """Returns everything that stands against the plan, each with what to do about it.

    :param planned: what ``ckpt_driver_plan`` returned
    :param asked: variables of the role without their prefix. ``key`` is the path of the repository's key on the controller,
        and ``key_exists`` tells whether it is there. ``on_controller`` tells whether the node is the controller.
    :param tried: ``fetched`` (result of ``apt-get update``) and ``offered`` (what ``apt-cache madison`` printed). Both are
        empty before the repository was tried.
    """
    find = [_package_problems, _reboot_problems, _repository_problems, _trial_problems, _container_problems]
    return [
        *planned["plan"]["problems"],
        *(text for problems in find for text in problems(planned["plan"], asked, tried)),
    ]


def _package_problems(plan: Data, asked: Data, tried: Data) -> Iterator[str]:
    if plan["install"] and not asked["packages"]:
        yield f"nvidia_driver_packages is empty; name the packages of branch {asked['branch']}, with their versions."


def _reboot_problems(plan: Data, asked: Data, tried: Data) -> Iterator[str]:
    if not plan["reboot"] or (asked["allow_reboot"] and not asked["on_controller"]):
        return
    fix = (
        "this is the controller, which is never rebooted: install the driver by hand and reboot, "
        "or provision it from another machine."
        if asked["on_controller"]
        else "set nvidia_driver_allow_reboot."
    )
    yield f"The GPU is held by another kernel module, so the new driver needs a reboot; {fix}"


def _repository_problems(plan: Data, asked: Data, tried: Data) -> Iterator[str]:
    repository: Collection[str] = asked["repository"]
    lacking = [key for key in REPOSITORY_KEYS if key not in repository]
    if repository and lacking:
        yield f"nvidia_driver_repository lacks {', '.join(lacking)}."
    if "signed_by" in repository and not asked["key_exists"]:
        yield (
            f"The controller has no file {asked['key']}; "
            "name the key of the repository in nvidia_driver_repository.signed_by."
        )


def _trial_problems(plan: Data, asked: Data, tried: Data) -> Iterator[str]:
    fetched = tried["fetched"]
    if fetched.get("rc", 0) != 0:
        # apt's notices explain nothing
        said = " ".join(line for line in fetched.get("stderr_lines", []) if not line.startswith("N:"))
        yield (
            f"The repository {' '.join(asked['repository']['uris'])} cannot be used with the key {asked['key']}: {said} "
            "Fix uris and suites, or name the key that signs it in signed_by."
        )
    offers = nvidia_driver_offers(tried["offered"])
    names = {_name_and_version(offer)[0] for offer in offers}
    # a package that the repository does not have in any version may come from another one
    lacking = [
        package
        for package in asked["packages"]
        if all(_name_and_version(package)) and package not in offers and _name_and_version(package)[0] in names
    ]
    if lacking:
        yield (
            f"The repository has no {', '.join(lacking)}; of these packages it has {', '.join(offers)}. "
            "Fix nvidia_driver_packages."
        )


def _container_problems(plan: Data, asked: Data, tried: Data) -> Iterator[str]:
    if asked["cdi_path"] and not asked["libs_dir"]:
        yield "nvidia_driver_cdi_path needs nvidia_driver_libs_dir: the specification mounts those libraries."


def nvidia_driver_wrong(planned: Data, before: Data, seen: Data) -> list[str]:
    """Returns why the driver does not serve, each with what to do about it.

    :param planned: what ``ckpt_driver_plan`` returned last
    :param before: what it returned when the role began
    :param seen: result of asking nvidia-smi for the version of the driver of each GPU
    """
    return [*nvidia_driver_kernel_changed(before, planned), *_unserved(planned, seen), *planned["plan"]["problems"]]


def _unserved(planned: Data, seen: Data) -> Iterator[str]:
    if seen.get("rc", 1) != 0:
        yield f"nvidia-smi failed: {seen.get('stdout', '')}{seen.get('stderr', '')}"
        return
    loaded = (planned["observed"]["driver"] or {}).get("version", "")
    libraries = _once(iter(seen["stdout_lines"]))
    if libraries != [loaded]:
        yield (
            f"The kernel module is {loaded}, the libraries are {', '.join(libraries)}; "
            "load the module that belongs to them: reboot, or unload nvidia and load it again."
        )


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {
            "nvidia_driver_kernel_changed": nvidia_driver_kernel_changed,
            "nvidia_driver_choice": nvidia_driver_choice,
            "nvidia_driver_problems": nvidia_driver_problems,
            "nvidia_driver_wrong": nvidia_driver_wrong,
            "nvidia_driver_offers": nvidia_driver_offers,
        }
