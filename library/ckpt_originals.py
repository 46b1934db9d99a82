#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remember what a role is about to replace on a node, and put it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ckpt_originals
short_description: Remember files before they are replaced, and put them back
description:
  - With I(state=saved), records for each path whether it exists, and keeps a copy of a file or the target of a link.
    A path that was recorded before is left as first recorded, so it may run at every provision.
  - With I(state=restored), brings every recorded path back to what it was, and forgets the record. Parent folders that
    did not exist then and are empty now are removed.
options:
  name:
    description: Name of the record, by convention that of the role.
    type: str
    required: true
  paths:
    description: Absolute paths of files or links to remember. Needed with I(state=saved).
    type: list
    elements: path
    default: []
  state:
    description: Whether to remember or to put back.
    type: str
    choices: [saved, restored]
    default: saved
  folder:
    description: Where the records and copies are kept.
    type: path
    default: /var/lib/gpuckpt/rollback
attributes:
  check_mode:
    description: Tells what would be done and changes nothing.
    support: full
  diff_mode:
    description: Shows the state of each path before and after.
    support: full
author: gpuckpt maintainers
"""

EXAMPLES = r"""
- name: Remember what provisioning replaces
  ckpt_originals:
    name: criu
    paths: [/usr/local/sbin/criu, /etc/criu/runc.conf]

- name: Put it back
  ckpt_originals:
    name: criu
    state: restored
"""

RETURN = r"""
paths:
  description: State of each recorded path before the role changed it (absent, file, or link to a target).
  type: dict
  returned: always
  sample: {"/usr/local/sbin/criu": "absent"}
restored:
  description: Paths that were brought back, or would be in check mode.
  type: list
  elements: str
  returned: always
"""

import filecmp
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.paths import ORIGINALS

ABSENT = "absent"
FILE = "file"
LINK = "link to "


class Record:
    """What paths were before a role changed them; kept in ``<folder>/<name>.json`` with copies next to it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.manifest = folder / f"{name}.json"
        self.copies = folder / name
        content = json.loads(self.manifest.read_text()) if self.manifest.exists() else {}
        self.paths: dict[str, str] = content.get("paths", {})
        self.new_folders: list[str] = content.get("new_folders", [])

    def copy_of(self, path: str) -> Path:
        """The place of the copy of `path`."""
        return self.copies / path.lstrip("/")

    def remember(self, path: str) -> None:
        """Records the present state of `path`, and keeps a copy of a file."""
        self.paths[path] = state_of(path)
        # Before the copies make it: they may hold what only root may read.
        self.manifest.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.new_folders += [folder for folder in missing_parents(path) if folder not in self.new_folders]
        if self.paths[path] == FILE:
            copy_file(Path(path), self.copy_of(path))

    def write(self) -> None:
        """Writes the manifest atomically, readable by its owner only."""
        unfinished = self.manifest.with_suffix(".json.new")
        unfinished.write_text(json.dumps({"paths": self.paths, "new_folders": self.new_folders}, indent=1))
        unfinished.chmod(0o600)
        unfinished.replace(self.manifest)

    def differs(self, path: str) -> bool:
        """Whether `path` is no longer what was recorded."""
        if state_of(path) != self.paths[path]:
            return True
        return self.paths[path] == FILE and not filecmp.cmp(path, self.copy_of(path), shallow=False)

    def put_back(self, path: str) -> None:
        """Brings `path` to the recorded state."""
        before = self.paths[path]
        if before == FILE:
            remove(path)
            copy_file(self.copy_of(path), Path(path))
            return
        remove(path)
        if before.startswith(LINK):
            os.symlink(before.removeprefix(LINK), path)

    def forget(self) -> None:
        """Removes the manifest, the copies, and folders made since that are empty now."""
        shutil.rmtree(self.copies, ignore_errors=True)
        self.manifest.unlink()
        for folder in sorted(self.new_folders, key=len, reverse=True):
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)


def state_of(path: str) -> str:
    """Returns ``absent``, ``file`` or ``link to TARGET``; raises ValueError for anything else."""
    if os.path.islink(path):
        return LINK + os.readlink(path)
    if not os.path.exists(path):
        return ABSENT
    if not os.path.isfile(path):
        raise ValueError(
            f"{path} is neither a file nor a link; only these can be remembered. Move it away or name another path."
        )
    return FILE


def missing_parents(path: str) -> list[str]:
    """Returns the parent folders of `path` that do not exist."""
    return [str(parent) for parent in Path(path).parents if not parent.exists()]


def copy_file(source: Path, target: Path) -> None:
    """Copies contents, mode, times and owner, creating the parent folders of `target`."""
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.copy2(source, target)
    owner = source.stat()
    os.chown(target, owner.st_uid, owner.st_gid)


def remove(path: str) -> None:
    """Removes a file or link if it is there; raises ValueError for a folder."""
    if state_of(path) != ABSENT:
        os.unlink(path)


def save(module: AnsibleModule, record: Record, result: dict[str, Any]) -> None:
    """Records those paths which are not recorded yet."""
    fresh = [path for path in module.params["paths"] if path not in record.paths]
    result["changed"] = bool(fresh)
    for path in fresh:
        if module.check_mode:
            record.paths[path] = state_of(path)
        else:
            record.remember(path)
    if fresh and not module.check_mode:
        record.write()
    result["paths"] = record.paths


def restore(module: AnsibleModule, record: Record, result: dict[str, Any]) -> None:
    """Brings back every recorded path and forget the record."""
    result["paths"] = record.paths
    result["restored"] = [path for path in record.paths if record.differs(path)]
    result["changed"] = record.manifest.exists()
    result["diff"] = {
        "before": "".join(f"{path}: {state_of(path)}\n" for path in result["restored"]),
        "after": "".join(f"{path}: {record.paths[path]}\n" for path in result["restored"]),
    }
    if module.check_mode or not result["changed"]:
        return
    for path in result["restored"]:
        record.put_back(path)
    record.forget()


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "state": {"type": "str", "choices": ["saved", "restored"], "default": "saved"},
            "folder": {"type": "path", "default": ORIGINALS},
        },
        required_if=[("state", "saved", ["paths"])],
        supports_check_mode=True,
    )
    result: dict[str, Any] = {"changed": False, "paths": {}, "restored": []}
    try:
        record = Record(Path(module.params["folder"]), module.params["name"])
        act = save if module.params["state"] == "saved" else restore
        act(module, record, result)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"Cannot keep or put back the originals of {module.params['name']}: {error}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
