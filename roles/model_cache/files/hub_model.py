#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Download one commit of a model from the hub into a folder, all or nothing; print {"changed": …} last.

    hub_model.py --repository OWNER/NAME --revision COMMIT [--token-file FILE] DEST

Needs huggingface_hub. Only what serving needs is fetched: configuration, tokenizer, safetensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
MARK = "gpuckpt-model.json"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def is_complete(folder: Path, repository: str, revision: str) -> bool:
    """Say whether `folder` holds this commit already."""
    try:
        mark = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return False
    return (mark.get("repository"), mark.get("revision")) == (repository, revision)


def download(repository: str, revision: str, token: str | None, folder: Path) -> None:
    """Fetch the commit into `folder` and write what it is into gpuckpt-model.json."""
    from huggingface_hub import snapshot_download

    snapshot_download(repository, revision=revision, token=token, local_dir=folder, allow_patterns=PATTERNS)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    files = {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    mark = {"source": "hub", "repository": repository, "revision": revision, "sha256": files}
    (folder / MARK).write_text(json.dumps(mark, indent=1) + "\n")


def main() -> int:
    """Download the model unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--token-file", default="")
    parser.add_argument("dest", type=Path)
    arguments = parser.parse_args()
    dest = arguments.dest
    if is_complete(dest, arguments.repository, arguments.revision):
        print(json.dumps({"changed": False}))
        return 0
    if dest.exists():
        print(f"hub_model: {dest} holds another model; remove it or name another folder", file=sys.stderr)
        return 1
    token = Path(arguments.token_file).read_text().strip() if arguments.token_file else None
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        download(arguments.repository, arguments.revision, token, scratch)
        scratch.chmod(0o755)
        scratch.replace(dest)
    # the hub's library has a dozen exceptions of its own; a user wants the sentence
    except Exception as error:
        print(f"hub_model: {arguments.repository} at {arguments.revision}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps({"changed": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
