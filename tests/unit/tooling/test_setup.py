# SPDX-License-Identifier: GPL-3.0-or-later
"""Set-up takes collections of the pinned versions, or none."""

import importlib.util
import json
import zipfile

import pytest
from project import ROOT


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("fetch_collections", ROOT / "requirements" / "fetch_collections.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TARGET", tmp_path / "collections")
    return module


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "ansible-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("containers/podman", "other/thing"):
            manifest = {"collection_info": {"version": "1.2.3"}}
            archive.writestr(f"ansible_collections/{name}/MANIFEST.json", json.dumps(manifest))
            archive.writestr(f"ansible_collections/{name}/plugins/modules/a.py", "")
            archive.writestr(f"ansible_collections/{name}/tests/unit/b.py", "")
    return path


def test_only_what_is_pinned_is_unpacked_without_its_tests(fetch, wheel):
    fetch.unpack(wheel, {"containers.podman": "1.2.3"})
    files = {str(path.relative_to(fetch.TARGET)) for path in fetch.TARGET.rglob("*") if path.is_file()}
    inside = "ansible_collections/containers/podman"
    assert files == {f"{inside}/MANIFEST.json", f"{inside}/plugins/modules/a.py"}
    assert fetch.installed("containers.podman") == "1.2.3"


def test_another_version_is_refused_by_name(fetch, wheel):
    with pytest.raises(ValueError, match=r"carries containers\.podman 1\.2\.3, requirements\.yml wants 9\.9\.9"):
        fetch.unpack(wheel, {"containers.podman": "9.9.9"})
    assert fetch.installed("containers.podman") is None


def test_the_installed_collections_are_the_pinned_ones():
    spec = importlib.util.spec_from_file_location("fetch_collections", ROOT / "requirements" / "fetch_collections.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {name: module.installed(name) for name in module.wanted()} == module.wanted()
