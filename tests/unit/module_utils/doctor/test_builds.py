# SPDX-License-Identifier: GPL-3.0-or-later
import hashlib
import json
import re

import pytest
from ansible.module_utils.ckpt import doctor
from ansible.module_utils.ckpt.criu import builds as criu_builds
from ansible.module_utils.ckpt.criu.folder import HOME
from ansible.module_utils.ckpt.criu.settings import DEFAULTS_FILE, OVERRIDES_FILE
from ansible.module_utils.ckpt.doctor import criu  # noqa: F401  registers its checks
from project import ROOT

BINARY = b"\x7fELF getenv CRIU_MAPPED_RESTORE\0"
PLUGIN = b"\x7fELF CRIU_CUDA_BACKEND\0CRIU_CUDA_BACKENDS\0"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def build(name, **changes):
    manifest = {"binary_sha256": digest(BINARY), "plugin_sha256": digest(PLUGIN)} | changes
    return {
        f"{HOME}/{name}/libexec/criu": BINARY,
        f"{HOME}/{name}/lib/criu/cuda_plugin.so": PLUGIN,
        f"{HOME}/{name}/BUILD.json": json.dumps(manifest),
    }


@pytest.fixture
def node(make_node, tmp_path):
    def make(files, links, check=(0, "Looks good.\n")):
        root = str(tmp_path)
        outputs = {}
        for name in {path.split("/")[4] for path in files}:
            start = f"env CRIU_LIBS_DIR={root}{HOME}/{name}/lib/criu {root}{HOME}/{name}/libexec/criu"
            outputs |= {f"{start} --version": (0, "Version: 4.2.1\n"), f"{start} check": check}
        made = make_node(files, outputs)
        for name, target in links.items():
            (tmp_path / HOME.lstrip("/") / name).symlink_to(target)
        return made

    return make


def examined(node):
    return [criu_builds.examine(node, one) for one in criu_builds.find(node)]


def finding(node, name):
    return next(one for one in doctor.examine(doctor.CheckContext(node), ["criu"]) if one.id == name)


def test_a_link_to_a_link_names_the_same_build(node):
    (one,) = examined(node(build("0123"), {"patched": "0123", "current": "patched"}))
    assert one.names == ["current", "patched"]
    assert (one.path, one.version, one.check, one.problems) == (f"{HOME}/0123", "4.2.1", "ok", [])


def test_switches_are_those_that_the_program_or_its_plugin_reads(node):
    (one,) = examined(node(build("0123"), {"current": "0123"}))
    assert one.switches == ["CRIU_MAPPED_RESTORE", "CRIU_CUDA_BACKEND"]


def test_another_plugin_than_was_built_is_told(node):
    made = node(build("0123", plugin_sha256="00"), {"current": "0123"})
    assert examined(made)[0].problems == ["the plugin is another than the one that was built"]
    assert finding(made, "criu-builds").state == "fail"


def test_an_unfinished_build_is_told(node):
    files = build("0123")
    del files[f"{HOME}/0123/BUILD.json"]
    assert "not finished" in finding(node(files, {"current": "0123"}), "criu-builds").detail


def test_a_link_to_nowhere_and_no_current_are_told(node):
    detail = finding(node(build("0123"), {"stock": "0123", "patched": "4567"}), "criu-builds").detail
    assert f"{HOME}/patched leads nowhere" in detail
    assert f"{HOME}/current is missing" in detail


@pytest.mark.parametrize(("links", "state"), [({"current": "0123"}, "fail"), ({"distro": "0123"}, "warn")])
def test_a_failing_criu_check_matters_most_for_the_build_in_use(node, links, state):
    complaint = "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds"
    found = finding(node(build("0123"), links, (1, f"{complaint}\n")), "criu-check")
    assert found.state == state
    assert complaint in found.detail


@pytest.mark.parametrize(
    ("files", "state", "detail"),
    [
        ({}, "warn", "does not exist"),
        ({DEFAULTS_FILE: "CRIU_MAPED_RESTORE=1\n"}, "warn", "unknown: CRIU_MAPED_RESTORE"),
        ({DEFAULTS_FILE: "CRIU_MAPPED_RESTORE=1\n"}, "ok", "CRIU_MAPPED_RESTORE=1"),
        ({DEFAULTS_FILE: "CRIU_MAPPED_RESTORE=1\n# text\nexport CRIU_X=1\n"}, "warn", "leaves out: export CRIU_X=1"),
        ({DEFAULTS_FILE: "CRIU_CONFIG_FILE=/etc/criu/runc.conf\n"}, "ok", "CRIU_CONFIG_FILE=/etc/criu/runc.conf"),
        ({DEFAULTS_FILE: "", OVERRIDES_FILE: ""}, "warn", "overrides"),
    ],
)
def test_settings_of_the_front(make_node, files, state, detail):
    found = finding(make_node(files), "criu-settings")
    assert found.state == state
    assert detail in found.detail


def test_every_switch_that_the_sources_read_is_known_and_documented():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "native").glob("c*/*.c"))
    read = set(re.findall(r'"(CRIU_(?:MAPPED|RESTORE|DRIVER|FREEZE|CUDA|HW)_\w+)"', sources))
    assert read == set(criu_builds.SWITCHES)
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("native.md", "native-cuda.md"))
    assert [name for name in criu_builds.SWITCHES if name not in pages] == []
