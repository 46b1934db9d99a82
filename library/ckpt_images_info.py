#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Size and soundness of the images of a checkpoint."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_images_info
short_description: Tell size and soundness of the images of a checkpoint
description:
  - Adds up CRIU's image files by kind.
  - Checks the inventory's magic numbers, and the size of every pages image against the pagemaps that point into it.
  - Reads only.
author: gpuckpt contributors
attributes:
  check_mode:
    description: Reads only, so that check mode is the same.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  path:
    description: Folder of CRIU's images, or of a checkpoint that holds a folder C(images).
    type: path
    required: true
  strict:
    description: Fail if the images are missing or damaged.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Look at a checkpoint
  ckpt_images_info:
    path: /mnt/checkpoint-ram/golden
    strict: true
"""

RETURN = r"""
bytes:
  description: Bytes by kind of image (pages, pagemap, core, mm, files, rootfs, tree, cgroup, network, other).
  returned: always
  type: dict
  sample: {"pages": 296194048, "core": 4460, "mm": 3712}
total_bytes:
  description: Bytes of all image files.
  returned: always
  type: int
pagemap_bytes:
  description: Bytes of memory that the pagemaps expect in the pages images.
  returned: always
  type: int
whole:
  description: Whether the checkpoint can be restored as far as its files tell.
  returned: always
  type: bool
warnings_found:
  description: What is wrong with the images, one sentence each.
  returned: always
  type: list
  elements: str
reason:
  description: V(images_missing) or V(images_truncated), null if the images are whole.
  returned: always
  type: str
"""

import os
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.criu import images


def describe(path: str) -> dict[str, Any]:
    """The result for a folder of images."""
    nested = os.path.join(path, "images")
    report = images.inspect(nested if os.path.isdir(nested) else path)
    found = asdict(report)
    return {
        "changed": False,
        "bytes": found["bytes_by_kind"],
        "total_bytes": report.total_bytes,
        "pagemap_bytes": report.pagemap_bytes,
        "whole": not report.errors,
        "warnings_found": report.errors,
        "reason": ("images_missing" if report.missing else "images_truncated") if report.errors else None,
    }


def main() -> None:
    """Entry point."""
    options = {"path": {"type": "path", "required": True}, "strict": {"type": "bool", "default": False}}
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    result = describe(module.params["path"])
    if result["reason"] and module.params["strict"]:
        module.fail_json(msg=f"{'; '.join(result['warnings_found'])}. Take the checkpoint again.", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
