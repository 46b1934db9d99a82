#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Download one commit of a model from the hub into a folder, all or nothing; print {"changed": …} last.

    hub_model.py --repository OWNER/NAME --revision COMMIT [--token-file FILE] DEST

Needs huggingface_hub. Only what serving needs is fetched: configuration, tokenizer, safetensors. Each file is compared with
the digest that the hub has of it. Files that arrived whole before a failure wait for the next call in .DEST-COMMIT, next to DEST.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
MARK = "gpuckpt-model.json"


class HubError(Exception):
    """Something the user must fix; the text says what and how."""


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def is_complete(folder: Path, repository: str, revision: str) -> bool:
    """Says whether `folder` holds this commit already."""
    try:
        mark = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return False
    return (mark.get("repository"), mark.get("revision")) == (repository, revision)


def read_token(path: str) -> str | None:
    """Returns the token in a file, None without a file.

    :raises HubError: when the file cannot be read or is empty
    """
    if not path:
        return None
    try:
        token = Path(path).read_text().strip()
    except OSError as error:
        raise HubError(
            f"the token file {path} cannot be read ({error.strerror}); correct model_cache_token_file"
        ) from None
    if not token:
        raise HubError(f"the token file {path} is empty; write the token into it, and nothing else")
    return token


def wanted_files(repository: str, revision: str, token: str | None) -> dict[str, Any]:
    """Asks the hub which files of the commit serving needs; name → what the hub knows of the file."""
    from huggingface_hub import HfApi

    # Asked here, since snapshot_download takes a folder that is there for the model when the hub does not answer.
    known = HfApi(token=token).model_info(repository, revision=revision, files_metadata=True).siblings or []
    files = {file.rfilename: file for file in known if any(fnmatch(file.rfilename, pattern) for pattern in PATTERNS)}
    if "config.json" not in files:
        raise HubError("it has no config.json; name the repository of a model with weights as safetensors")
    return files


def differs(path: Path, file: Any) -> bool:
    """Says whether a file is another than the hub's: by SHA-256 where it is stored as a large file, else as git has it."""
    if not path.is_file():
        return True
    if file.lfs is not None:
        return bool(sha256_of(path) != file.lfs.sha256)
    content = path.read_bytes()
    return bool(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != file.blob_id)


def download(repository: str, revision: str, token: str | None, folder: Path) -> None:
    """Fetches the commit into `folder`, compares it, and writes what it is into gpuckpt-model.json.

    :raises HubError: when a file is not the hub's; it is deleted, so that it is fetched again
    """
    from huggingface_hub import snapshot_download

    files = wanted_files(repository, revision, token)
    snapshot_download(repository, revision=revision, token=token, local_dir=folder, allow_patterns=sorted(files))
    wrong = [name for name, file in sorted(files.items()) if differs(folder / name, file)]
    for name in wrong:
        (folder / name).unlink(missing_ok=True)
    if wrong:
        raise HubError(
            f"{', '.join(wrong)} did not arrive as the hub has it (another digest); provision again to fetch it anew"
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    mark = {
        "source": "hub",
        "repository": repository,
        "revision": revision,
        "sha256": {
            name: file.lfs.sha256 if file.lfs else sha256_of(folder / name) for name, file in sorted(files.items())
        },
    }
    (folder / MARK).write_text(json.dumps(mark, indent=1) + "\n")


def explain(error: Exception) -> str:
    """Says in one sentence what the hub's library raised, and how to fix it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ImportError):
        return f"{sys.executable} lacks huggingface_hub ({error}); install it there, or name another model_cache_python"
    if status in (401, 403):
        return (
            f"the hub refuses it (HTTP {status}); correct the name, or name a file with a token that may read it"
            " (model_cache_token_file)"
        )
    if status == 404:
        return "the hub has no such repository or commit; correct model_cache_repository and model_cache_revision"
    return f"{' '.join(str(error).split())}; what arrived whole is kept, provision again to go on"


def main() -> int:
    """Downloads the model unless it is there."""
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
    partial = dest.parent / f".{dest.name}-{arguments.revision}"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        download(arguments.repository, arguments.revision, read_token(arguments.token_file), partial)
        partial.chmod(0o755)
        partial.replace(dest)
    # the hub's library has a dozen exceptions of its own; a user wants the sentence
    except Exception as error:
        if not any(partial.iterdir()):
            partial.rmdir()
        text = str(error) if isinstance(error, HubError) else explain(error)
        print(f"hub_model: {arguments.repository} at {arguments.revision}: {text}", file=sys.stderr)
        return 1
    print(json.dumps({"changed": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
