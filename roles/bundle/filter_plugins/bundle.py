# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter of the role bundle: why a bundle cannot be made as it is asked for."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]

MACHINE = "x86_64"
SMALLEST_PART_MIB = 1


def bundle_problems(asked: Data, here: Data) -> list[str]:
    """Returns everything that keeps a bundle from being made here, each with what to do about it.

    :param asked: ``python``, ``part_mib``, ``components``, ``tarball`` (of CRIU, empty where it is to be fetched)
    :param here: ``python_serves``, ``machine`` (as that Python tells it), ``has_tarball``, ``has_collections``, ``has_dpkg``.
        ``lacking`` are the packages still to be installed. ``root_refused`` tells why root cannot be had, None if it can.
    """
    return _general(asked, here) + (_of_criu(asked, here) if "criu" in asked["components"] else [])


def _general(asked: Data, here: Data) -> list[str]:
    rules = [
        (
            not here["python_serves"],
            f"bundle_python ({asked['python']}) must be Python 3.11 or newer with pip and packaging. Run make setup.",
        ),
        (
            int(asked["part_mib"]) < SMALLEST_PART_MIB,
            f"bundle_part_mib is {asked['part_mib']}; it must be at least {SMALLEST_PART_MIB}.",
        ),
        (
            "collections" in asked["components"] and not here["has_collections"],
            "The collections are missing. Run make setup.",
        ),
    ]
    return [message for wrong, message in rules if wrong]


def _of_criu(asked: Data, here: Data) -> list[str]:
    lacking, refused = here["lacking"], here["root_refused"]
    rules = [
        (
            asked["tarball"] and not here["has_tarball"],
            f"bundle_criu_tarball is {asked['tarball']}, which does not exist. Leave it empty to have the tarball fetched.",
        ),
        (
            here["machine"] not in ("", MACHINE),
            f"CRIU is built for {MACHINE}, and this machine is {here['machine']}. Make the component criu on another one.",
        ),
        (
            lacking and not here["has_dpkg"],
            "CRIU is built with packages of Debian or Ubuntu, and this machine has no dpkg-query. "
            "Make the component criu on one of these.",
        ),
        (
            refused is not None,
            "Packages are missing that CRIU is built with, and root is needed to install them "
            f"({_last_line(refused or '')}). Run bundle.yml as root or with --ask-become-pass, or: "
            f"apt-get install --no-install-recommends {' '.join(lacking)}",
        ),
    ]
    return [message for wrong, message in rules if wrong]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filter by name."""
        return {"bundle_problems": bundle_problems}
