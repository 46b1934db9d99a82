#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name the builds of CRIU that belong on a platform, and tell of which an archive lies here.

Prints a JSON object: `digests` by variant, and `archived`, the variants whose archive is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True, help="folder of the project")
    parser.add_argument("--platform", required=True, help="as native/build.sh names it")
    parser.add_argument("--tarball-sha256", required=True)
    parser.add_argument("--archives", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--prebuilt", default="", help="folder of finished builds, one a variant; these belong then")
    parser.add_argument("variants", nargs="+")
    return parser.parse_args()


def digest_of(variant: str, asked: argparse.Namespace) -> str:
    """Returns the digest of the build that belongs. Raises OSError, ValueError, KeyError or CalledProcessError."""
    if asked.prebuilt:
        return str(json.loads(Path(asked.prebuilt, variant, "BUILD.json").read_text(encoding="utf-8"))["digest"])
    program = asked.project / "native" / "build.sh"
    options = ["--variant", variant, "--tarball-sha256", asked.tarball_sha256, "--platform", asked.platform]
    return subprocess.run([program, "digest", *options], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> None:
    """Prints what was found."""
    asked = arguments()
    digests = {variant: digest_of(variant, asked) for variant in asked.variants}
    archived = [one for one, digest in digests.items() if (asked.archives / f"criu-{one}-{digest}.tar.gz").is_file()]
    json.dump({"digests": digests, "archived": archived}, sys.stdout)


if __name__ == "__main__":
    main()
