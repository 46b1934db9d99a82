# SPDX-License-Identifier: GPL-3.0-or-later
"""The tmpfs that holds the images."""

from __future__ import annotations

import os
import stat

from ..copies import fetch, publish
from ..golden import history, wanted
from ..node.inspection import mount_at
from ..safety import leftovers
from . import CheckContext, Verdict, check, fail, ok, skip, warn

PROVISION = "ansible-playbook provision.yml"
WANTED_OPTIONS = {"nosuid", "nodev", "noexec"}
GIB = 1024**3


@check(
    "store",
    "store",
    "checkpoint store",
    "Images on a disk restore at the disk's speed; images are secrets and must not be open to others.",
)
def store(context: CheckContext) -> Verdict:
    """The store is a tmpfs, closed to others, with its options."""
    path = context.store_path
    mount = mount_at(context.node, path)
    if mount is None:
        return fail(f"nothing is mounted on {path}", "Run provision.yml (role checkpoint_store).", PROVISION)
    if mount.fstype != "tmpfs":
        return warn(
            f"{path} is {mount.fstype}", "Mount a tmpfs there if restores shall not be bound by the disk.", PROVISION
        )
    mode = stat.S_IMODE(os.stat(context.node.path(path)).st_mode)
    if mode & 0o077:
        return fail(
            f"{path} has mode {mode:04o}", "Close it: images hold prompts, weights and keys.", f"chmod 0700 {path}"
        )
    missing = sorted(WANTED_OPTIONS - mount.options)
    if missing:
        return warn(f"mounted without {', '.join(missing)}", "Run provision.yml (role checkpoint_store).", PROVISION)
    huge = next((option for option in sorted(mount.options) if option.startswith("huge=")), "huge=never")
    return ok(f"tmpfs {mode:04o}, {', '.join(sorted(WANTED_OPTIONS))}, {huge}")


@check("store-space", "store", "space in the store", "A dump into a full tmpfs fails half way.")
def space(context: CheckContext) -> Verdict:
    """There is room for images."""
    if mount_at(context.node, context.store_path) is None:
        return skip("nothing is mounted")
    sizes = os.statvfs(context.node.path(context.store_path))
    free, total = sizes.f_bavail * sizes.f_frsize, sizes.f_blocks * sizes.f_frsize
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < GIB:
        return warn(
            text, "Delete old checkpoints, or give it more (checkpoint_store_size_mib).", f"ls {context.store_path}"
        )
    return ok(text)


@check(
    "leftovers",
    "store",
    "what benchmarks left",
    "Checkpoints of a benchmark that was broken off fill the store, which is memory, and nothing else names them.",
)
def left(context: CheckContext) -> Verdict:
    """No checkpoint of a broken-off benchmark lies here."""
    there = []
    for made in leftovers.noted(context.node.path(leftovers.NOTES)):
        there += [f"{folder} (run {made.run_id})" for folder in made.checkpoints if context.node.exists(folder)]
    if not there:
        return ok("nothing")
    return warn(
        f"checkpoints of benchmarks that are under way or were broken off: {', '.join(there)}",
        "The next provision.yml or bench.yml removes what belongs to no run under way.",
        PROVISION,
    )


@check(
    "golden",
    "store",
    "golden checkpoints",
    "A server whose golden checkpoint does not fit is started cold, which takes as long as ever.",
)
def golden(context: CheckContext) -> Verdict:
    """Every server that is described has a golden checkpoint that fits this node."""
    served = [wanted.load(name) for name in wanted.names()]
    if not served:
        return skip("no server is described (checkpoint.yml)")
    found = history.overview(served)
    said = "; ".join(history.in_words(one) for one in found)
    if any(one["misfits"] for one in found):
        return warn(said, "Make it anew, or stop that server: it is made then.", "ansible-playbook checkpoint.yml")
    return ok(said)


@check(
    "copies",
    "store",
    "copies of golden checkpoints",
    "A publication that is not finished is fetched by nobody, and half of a fetch takes room.",
)
def copies(context: CheckContext) -> Verdict:
    """No publication and no fetch of a described server was broken off."""
    served = [wanted.load(name) for name in wanted.names()]
    if not served:
        return skip("no server is described (checkpoint.yml, fetch.yml)")
    begun = [server.name for server in served if context.node.exists(publish.journal_path(server.name))]
    halves = {server.name: size for server in served if (size := fetch.incoming_bytes(server))}
    left = [f"{name} is published in part (publish.yml goes on)" for name in begun]
    left += [f"{name} is fetched in part, {size >> 20} MiB (fetch.yml goes on)" for name, size in halves.items()]
    if left:
        return warn("; ".join(left), "Run it again, or give it up (forget.yml).", "ansible-playbook fetch.yml")
    return ok("nothing was broken off")
