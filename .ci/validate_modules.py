#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks the documentation and arguments of library/ with ansible-core's own validate-modules.

That tool wants a collection, so a throw-away one is laid out in build/. It has modules, module_utils and fragments of
documentation, with the imports and names of a collection. Exits 1 when a module has an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ansible_test

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "validate"
COLLECTION = TREE / "ansible_collections" / "gpuckpt" / "node"
TOOL = Path(ansible_test.__file__).parent / "_util/controller/sanity/validate-modules/validate.py"
INSIDE = "ansible_collections.gpuckpt.node.plugins.module_utils.ckpt"
FRAGMENT = re.compile(r"^(  - )(ckpt(?:\.\w+)?)$", re.MULTILINE)
# What the tool asks of Ansible's own collections: a version of the collection, and an author with an account on a certain
# host. It also wants the licence in its words; ours is an SPDX line.
NOT_OURS = re.compile("module-invalid-version-added|missing-gplv3-license|Invalid author")


def lay_out() -> list[str]:
    """Copies the modules and what they import into the collection; returns the modules' paths within it."""
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.copytree(
        ROOT / "module_utils", COLLECTION / "plugins" / "module_utils", ignore=shutil.ignore_patterns("*.pyc")
    )
    shutil.copytree(ROOT / "library", COLLECTION / "plugins" / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "doc_fragments", COLLECTION / "plugins" / "doc_fragments")
    for source in COLLECTION.rglob("*.py"):
        text = source.read_text(encoding="utf-8").replace("ansible.module_utils.ckpt", INSIDE)
        source.write_text(FRAGMENT.sub(r"\1gpuckpt.node.\2", text), encoding="utf-8")
    (COLLECTION / "galaxy.yml").write_text("namespace: gpuckpt\nname: node\nversion: 0.1.0\n", encoding="utf-8")
    return sorted(str(p.relative_to(COLLECTION)) for p in (COLLECTION / "plugins" / "modules").glob("*.py"))


def validate(modules: list[str]) -> dict[str, dict[str, list[dict[str, object]]]]:
    """Returns what the tool says of each module; raises SystemExit with its words when it breaks."""
    command = [sys.executable, str(TOOL), "--format", "json", "--arg-spec"]
    command += ["--collection", "ansible_collections/gpuckpt/node", "--collection-version", "0.1.0"]
    command += modules
    paths = [str(TREE), str(TOOL.parent)]
    environment = os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(TREE), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=COLLECTION, env=environment, capture_output=True, text=True)
    try:
        findings: dict[str, dict[str, list[dict[str, object]]]] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise SystemExit(f"validate-modules broke (status {done.returncode}):\n{done.stdout}\n{done.stderr}") from None
    return findings


def main() -> int:
    """Prints each error as library/<module>.py:<line>; returns the exit status."""
    modules = lay_out()
    if not modules:
        raise SystemExit("validate-modules: library/ has no module")
    failed = False
    for module, found in sorted(validate(modules).items()):
        for error in found["errors"]:
            text = f"{error['code']}: {error['msg']}"
            if not NOT_OURS.search(text):
                failed = True
                print(f"library/{Path(module).name}:{error['line']}: {text}")
    print(f"validate-modules: {len(modules)} modules read")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
