#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restore a checkpoint, measure it, and prove that it is the same server."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_restore
short_description: Restore a checkpoint, measure it, and prove it
description:
  - Restores the server, polls its health every 5 ms while the restore runs, wakes it if it slept, and sends the canary prompt.
  - It counts as a success only if the command ended with 0 and the log shows no failed hook. Every process must be alive, every CUDA
    process must run, and the images must hold the GPU's bytes. The request counter, the canary's tokens and, where the server tells
    one, the digest of its memory must be those from before.
  - Files that are not what the dump wrote are refused before anything starts.
  - A restore that fails leaves no process of the server behind, and its port is free.
  - A restore onto a server that runs is refused, unless O(replace_running) asks for it.
notes:
  - A checkpoint is code that runs as root. Its images say what is in memory, which files are opened and whose rights the processes have.
    Nothing in them can tell a good one from a hostile one. Restore only what you or somebody you trust has taken, and bring it
    so that nobody can change it on its way.
  - The folder of the checkpoint must be one that no other user can exchange, else the restore is refused.
author: gpuckpt contributors
extends_documentation_fragment:
  - ckpt
  - ckpt.measurement
  - ckpt.record
attributes:
  check_mode:
    description: Checks the options and restores nothing.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  checkpoint:
    description: The checkpoint.
    type: dict
    required: true
    suboptions:
      dir:
        description: Folder of the checkpoint. It holds images of a process's memory, secrets included; keep it 0700.
        type: path
        required: true
      source:
        description:
          - V(store) and V(disk) keep the images in place, V(tar), V(tar.gz) and V(tar.zst) in one archive.
        type: str
        choices: [store, disk, tar, tar.gz, tar.zst]
        default: store
      untaken:
        description: Why the checkpoint could not be taken, as C(ckpt_start) or C(ckpt_checkpoint) said it. Where there is none, the
          restore fails with this cause instead of V(images_missing).
        type: dict
        suboptions:
          reason: {description: "The reason, from the closed list.", type: str, required: true}
          cause: {description: "The message.", type: str, required: true}
  flags:
    description: More options, for C(podman container restore) or C(criu restore). Without C(--keep) podman deletes the images
      within the measured time; the module then gives it a copy, so that the checkpoint survives.
    type: list
    elements: str
    default: []
  slimming:
    description: The slimming that the checkpoint was taken with; the wake-up is part of the measured time.
    type: str
    choices: [none, sleep1, sleep2, kv-drop, staged]
    default: none
  verify:
    description:
      - Which files are compared with the digests in C(checkpoint.json) before anything is started. V(metadata) are all but the page
        images, and archives. V(pages) are the page images too, if the checkpoint was taken with C(digests=pages).
      - The time for it lies before T0. The record says in C(stats.digests) how many seconds and bytes.
    type: str
    choices: [metadata, pages]
    default: metadata
  memory_digest:
    description:
      - Compare the server's own digest of its memory with that from before the checkpoint, if servers of its kind tell one (V(reference)).
      - The server is asked after T5, and reads all of its memory for it.
    type: bool
    default: true
  page_cache:
    description: State of the images in the page cache before the restore, brought about and proven (mincore).
      V(dropped) needs a checkpoint on a disk.
    type: str
    choices: [warm, dropped]
    default: warm
  resident_pool:
    description:
      - Run the build's C(gpuckpt-pool --no-contexts) during the restore, as C(gpuckpt-pool.service) does on a node that has it.
        The driver is initialised then before the clock starts; the pool is ended after the last token.
      - Needs V(patched) as O(criu.build). A pool that is not ready after 60 s, or ends early, fails the restore.
    type: bool
    default: false
  prefetch:
    description:
      - Start C(server.prefetch), the program that brings staged weights to the GPU, together with the restore and within the measured
        time. The server takes the memory over when it wakes. Needs V(staged) as O(slimming).
      - With O(resident_pool) that program takes the place of the pool, and has made its contexts before the clock starts.
      - If the server reads its weights itself all the same, no prefetch was measured, and the restore fails.
    type: bool
    default: false
  replace_running:
    description:
      - End a server of this name that runs, and restore in its place. Without it such a restore is refused
        (reason C(server_running)), and the server goes on serving.
    type: bool
    default: false
  stop_after:
    description: Stop the server after the measurement.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Restore in place and measure
  ckpt_restore:
    runtime: podman
    server: "{{ inference_server_spec }}"
    checkpoint:
      dir: /mnt/checkpoint-ram/golden
    flags: [--keep]
    criu: {build: patched, switches: {CRIU_MAPPED_RESTORE: 1}}
    stop_after: true
    record: {run_id: "{{ run_id }}", host: "{{ inventory_hostname }}", seq: 2, lane: podman-mapped, iteration: 1}
    record_path: "/var/lib/gpuckpt/runs/{{ run_id }}/records/000002-restore.json"
"""

RETURN = r"""
record:
  description:
    - The measurement, schema version 1. Moments in C(t) and C(phases) are seconds since T0 on the node's monotonic clock.
      Sizes in C(bytes) are bytes. Figures of C(stats) are as CRIU and podman give them (microseconds, pages).
    - T0 the command is started, T1 it returned, T2 every CUDA process runs, T3 first HTTP 200, T4 first token, T5 last token.
  returned: always, null where nothing was attempted
  type: dict
  sample: {"kind": "restore", "status": "ok", "t": {"T0": 0.0, "T1": 0.35, "T2": null, "T3": 0.36, "T4": 0.39, "T5": 0.43}}
outcome:
  description: What came of it in one line, for a reader who waits; times in seconds.
  returned: when O(record) is given
  type: str
  sample: "podman-mapped, iteration 1: first token after 0.386 s"
up_at_s:
  description: >-
    When the command had returned and the canary was answered whole, in seconds on the node's monotonic clock; the
    option C(bill.up_at_s) of C(ckpt_probe) takes it. Null after a failure.
  returned: always
  type: float
  sample: 81234.567
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
  sample: port_taken
actions:
  description: Commands that ran, in order.
  returned: always
  type: list
  elements: list
log_lines:
  description: Lines of CRIU's or the server's log that show the cause of a failure.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.ckpt.measure import flows, restore
from ansible.module_utils.ckpt.measure.options import RestoreOptions
from ansible.module_utils.ckpt.module import run_module
from ansible.module_utils.ckpt.vocabulary import LEVELS, PAGE_CACHE_STATES, SLIMMINGS, SOURCES

OPTIONS: dict[str, Any] = {
    "checkpoint": {
        "type": "dict",
        "required": True,
        "options": {
            "dir": {"type": "path", "required": True},
            "source": {"type": "str", "choices": list(SOURCES), "default": "store"},
            "untaken": {
                "type": "dict",
                "options": {"reason": {"type": "str", "required": True}, "cause": {"type": "str", "required": True}},
            },
        },
    },
    "flags": {"type": "list", "elements": "str", "default": []},
    "slimming": {"type": "str", "choices": list(SLIMMINGS), "default": "none"},
    "verify": {"type": "str", "choices": list(LEVELS), "default": "metadata"},
    "memory_digest": {"type": "bool", "default": True},
    "page_cache": {"type": "str", "choices": list(PAGE_CACHE_STATES), "default": "warm"},
    "resident_pool": {"type": "bool", "default": False},
    "prefetch": {"type": "bool", "default": False},
    "replace_running": {"type": "bool", "default": False},
    "stop_after": {"type": "bool", "default": False},
}


def flow(operation: flows.Operation, options: RestoreOptions) -> dict[str, Any]:
    """Runs the flow; returns what the result holds next to the record."""
    restore.run(operation, options)
    return {}


def main() -> None:
    """Entry point."""
    run_module("restore", OPTIONS, restore.begin, flow)


if __name__ == "__main__":
    main()
