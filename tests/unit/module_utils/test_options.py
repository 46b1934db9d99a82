# SPDX-License-Identifier: GPL-3.0-or-later
"""Options, and what is built from them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ckpt.checkpoints.manifest import Layout, Manifest, is_checkpoint, load, sealed
from ansible.module_utils.ckpt.criu import settings
from ansible.module_utils.ckpt.criu.choice import Criu, parse_criu
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure import restore
from ansible.module_utils.ckpt.runtimes import podman as podman_module
from ansible.module_utils.ckpt.runtimes.podman import PodmanRuntime, with_devices
from ansible.module_utils.ckpt.server.spec import parse_server
from ansible.module_utils.ckpt.system import procfs
from ansible.module_utils.ckpt.system.commands import Commands, Result

SERVER: dict[str, Any] = {"name": "reference", "kind": "reference", "model": "m", "port": 18080, "command": ["a"]}
# the params of ckpt_restore where nothing but what is required is given
RESTORE: dict[str, Any] = {
    "runtime": "process",
    "checkpoint": {"dir": "/store/golden", "source": "store", "untaken": None},
    "flags": [],
    "slimming": "none",
    "verify": "metadata",
    "memory_digest": True,
    "page_cache": "warm",
    "resident_pool": False,
    "prefetch": False,
    "replace_running": False,
    "stop_after": False,
}


class Recorded(Commands):
    """Fake of the commands: answers from a list, remembers what was asked."""

    def __init__(self, *outputs: tuple[int, str]) -> None:
        super().__init__()
        self._outputs = list(outputs)

    def run(self, argv: Any, timeout_s: float = 0, env: Any = None) -> Result:
        self.actions.append(list(argv))
        rc, stdout = self._outputs.pop(0)
        return Result(list(argv), rc, stdout, "", 0.0, 0.0)


def test_a_server_gets_its_defaults() -> None:
    spec = parse_server(SERVER, "process")
    assert spec.base_url == "http://127.0.0.1:18080"
    assert spec.shares_gpu_memory, "unless the user says that it does not"
    assert spec.counter_metric == "gpuckpt_requests_total"
    assert spec.health_timeout_s == 300.0
    vllm = parse_server({**SERVER, "kind": "vllm"}, "process")
    assert vllm.canary.extra == {"return_token_ids": True}
    assert vllm.counter_metric == "vllm:request_success_total"
    command = parse_server({**SERVER, "kind": "command", "host": "0.0.0.0"}, "process")
    assert (command.counter_metric, command.canary.extra, command.question) == ("", {}, None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"port": "x"}, "server.port"),
        ({"port": 70000}, "server.port"),
        ({"name": "../etc"}, "server.name"),
        ({"cwd": "relative"}, "server.cwd"),
        ({"gpu": "yes"}, "server.gpu"),
        ({"shares_gpu_memory": "no"}, "server.shares_gpu_memory"),
        ({"unshared_by": ["stagd"]}, "server.unshared_by has stagd; the slimming modes are none, "),
        ({"unshared_by": "staged"}, "server.unshared_by must be a list"),
        ({"canary": {"promt": "x"}}, "server.canary"),
        ({"env": ["A=1"]}, "server.env"),
        ({"health_timeout_s": -1}, "server.health_timeout_s"),
        ({"colour": 1}, "server.colour"),
        ({"kind": "sglang"}, "reference, vllm, command"),
        ({"kind": {"reference": 1}}, "server.kind"),
        ({"question": {"path": "/a", "body": {}}}, "server.question must have path, body and field"),
        ({"question": {"path": "a", "body": {}, "field": "x"}}, "server.question.path"),
        ({"question": {"path": "/a", "body": "text", "field": "x"}}, "server.question.body"),
        ({"question": {"path": "/a", "body": {}, "field": "x..y"}}, "server.question.field"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(CkptError, match=word):
        parse_server({**SERVER, **change}, "process")


def test_an_empty_environment_may_be_an_empty_list() -> None:
    assert parse_server({**SERVER, "env": []}, "process").env == {}


def test_memory_of_several_gpus_is_shared_until_a_slimming_ends_that() -> None:
    spec = parse_server({**SERVER, "unshared_by": ["staged"]}, "process")
    assert spec.shares_while("none")
    assert not spec.shares_while("staged")
    assert not parse_server({**SERVER, "shares_gpu_memory": False}, "process").shares_while("none")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]", "::1"])
def test_the_development_interface_listens_on_loopback(host: str) -> None:
    assert parse_server({**SERVER, "host": host}, "process").host == host


@pytest.mark.parametrize(
    "outside",
    [
        {"host": "0.0.0.0"},
        {"host": "[::]"},
        {"host": "::"},
        {"host": "192.0.2.1"},
        {"host": "example.org"},
        {"command": ["a", "--host", "0.0.0.0"]},
        {"command": ["a", "--host=::"]},
    ],
)
def test_others_reach_the_development_interface_only_where_it_is_asked_for(outside: dict[str, Any]) -> None:
    develops = {"VLLM_SERVER_DEV_MODE": "1"}
    vllm = {**SERVER, **outside, "kind": "vllm"}
    for server in ({**SERVER, **outside}, {**vllm, "env": develops}):
        with pytest.raises(CkptError, match="which asks for no password"):
            parse_server(server, "process")
        assert parse_server({**server, "expose_development": True}, "process").expose_development
    for environment in ({}, {"VLLM_SERVER_DEV_MODE": "0"}):
        assert parse_server({**vllm, "env": environment}, "process").env == environment


@pytest.mark.parametrize(
    ("change", "runtime", "says"),
    [
        ({"env": {"A B": "secret"}}, "process", "'A B' is no name"),
        ({"env": {"#A": "secret"}}, "process", "'#A' is no name"),
        ({"env": {"A\n": "secret"}}, "process", "is no name"),
        ({"env": {"A": "sec\nret"}, "image": "i"}, "podman", "server.env.A must be one line"),
        ({"capabilities": ["net-admin"]}, "process", "'net-admin', which is no name of a capability"),
        ({"name": "reference\n"}, "process", "server.name"),
    ],
)
def test_what_cannot_be_handed_on_is_named_and_not_shown(change: dict[str, Any], runtime: str, says: str) -> None:
    with pytest.raises(CkptError, match=re.escape(says)) as caught:
        parse_server({**SERVER, **change}, runtime)
    assert "sec" not in str(caught.value)


def test_a_long_text_is_a_value_of_a_process() -> None:
    assert parse_server({**SERVER, "env": {"A": "two\nlines"}}, "process").env == {"A": "two\nlines"}
    assert parse_server({**SERVER, "capabilities": ["CAP_SYS_NICE", "all"]}, "process").capabilities == [
        "sys_nice",
        "all",
    ]


def test_podman_needs_an_image() -> None:
    with pytest.raises(CkptError, match=r"server\.image"):
        parse_server(SERVER, "podman")


def test_a_container_has_one_root() -> None:
    assert parse_server({**SERVER, "rootfs": "/mnt/root"}, "podman").rootfs == "/mnt/root"
    with pytest.raises(CkptError, match="exclude each other"):
        parse_server({**SERVER, "rootfs": "/mnt/root", "image": "i"}, "podman")
    with pytest.raises(CkptError, match=r"server\.rootfs must be an absolute path"):
        parse_server({**SERVER, "rootfs": "root"}, "podman")


def test_a_pattern_of_devices_becomes_every_device_node() -> None:
    found = with_devices(["--network=host", "--device=/dev/[nz]*o", "--device=nvidia.com/gpu=all"])
    assert found[0] == "--network=host"
    assert found[-1] == "--device=nvidia.com/gpu=all"
    assert "--device=/dev/zero" in found
    # a folder matches, too
    assert "--device=/dev/net" not in with_devices(["--device=/dev/n*"])
    with pytest.raises(CkptError, match="no device matches /dev/gpuckpt"):
        with_devices(["--device=/dev/gpuckpt*"])


def test_switches_are_checked_all_at_once() -> None:
    with pytest.raises(CkptError) as caught:
        parse_criu({"build": "mine", "switches": {"LD_PRELOAD": "x", "CRIU_A": "1; rm -rf /"}})
    for word in ("criu.build", "LD_PRELOAD", "CRIU_A"):
        assert word in caught.value.message


def test_lane_switches_win_over_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = tmp_path / "criu.env"
    defaults.write_text(
        "# text\nCRIU_MAPPED_RESTORE=1\nCRIU_FREEZE_POLL_MS='1'\nGPUCKPT_LIBCUDA=/opt/libcuda.so.1\nOTHER=2\n"
    )
    monkeypatch.setattr(settings, "DEFAULTS_FILE", str(defaults))
    criu = parse_criu({"build": "patched", "switches": {"CRIU_MAPPED_RESTORE": 0}})
    assert criu.effective_switches() == {"CRIU_MAPPED_RESTORE": "0", "CRIU_FREEZE_POLL_MS": "1"}
    environment = criu.environment()
    assert environment["CRIU_LIBS_DIR"] == "/opt/gpuckpt/criu/patched/lib/criu"
    # no switch, and CRIU needs it all the same
    assert environment["GPUCKPT_LIBCUDA"] == "/opt/libcuda.so.1"
    assert environment["CRIU_MAPPED_RESTORE"] == "0"


@pytest.mark.parametrize("build", ["stock", "distro", "current"])
def test_a_resident_pool_belongs_to_the_patched_build(build: str) -> None:
    params = {**RESTORE, "server": SERVER, "criu": {"build": build}, "resident_pool": True}
    with pytest.raises(CkptError, match="resident_pool: true needs build: patched") as caught:
        restore.begin("restore", params)
    assert caught.value.reason == "bad_input"
    operation, options = restore.begin("restore", {**params, "resident_pool": False})
    assert (operation.criu.build, options.resident_pool) == (build, False)
    operation, options = restore.begin("restore", {**params, "criu": {"build": "patched"}})
    assert (operation.criu.build, options.resident_pool) == ("patched", True)


@pytest.mark.parametrize(
    ("slimming", "program", "words"),
    [("kv-drop", ["/bin/fetch"], "needs slimming: staged"), ("staged", [], "needs server.prefetch, the program")],
)
def test_only_staged_weights_can_be_prefetched(slimming: str, program: list[str], words: str) -> None:
    params = {**RESTORE, "prefetch": True, "criu": {"build": "patched"}}
    with pytest.raises(CkptError) as caught:
        restore.begin("restore", {**params, "server": {**SERVER, "prefetch": program}, "slimming": slimming})
    assert caught.value.reason == "bad_input"
    assert words in caught.value.message
    restore.begin("restore", {**params, "server": {**SERVER, "prefetch": ["/bin/fetch"]}, "slimming": "staged"})


def podman_runtime(*outputs: tuple[int, str], name: str = "reference") -> tuple[PodmanRuntime, Recorded]:
    commands = Recorded(*outputs)
    spec = parse_server({**SERVER, "name": name, "image": "i"}, "podman")
    return PodmanRuntime(spec, Criu(), commands), commands


def test_a_container_of_ours_is_known_by_its_label(podman: Path) -> None:
    runtime, commands = podman_runtime((0, (podman / "inspect-running.json").read_text()))
    container = runtime.instance()
    assert container.exists
    assert container.running
    assert container.details["managed"]
    assert container.details["userdata"].endswith("/userdata")
    assert commands.actions == [["podman", "container", "inspect", "reference"]]


def test_a_container_with_the_images_label_only_is_refused(podman: Path) -> None:
    container = json.loads((podman / "inspect-running.json").read_text())
    container[0]["Config"]["Labels"] = {"io.gpuckpt.managed": "true"}
    runtime, _ = podman_runtime((0, json.dumps(container)))
    with pytest.raises(CkptError, match="left alone"):
        runtime.stop()


def test_what_runs_is_not_asked_for_again_before_it_is_ended(podman: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = (podman / "inspect-running.json").read_text()
    monkeypatch.setattr(PodmanRuntime, "require_port_given_back", lambda self: None)
    container = json.loads(running)[0]
    gone = (125, "")
    # a stop looks at what it leaves, which podman may not know yet
    for verb, command, look in (("stop", ["stop"], [gone]), ("remove", ["rm", "--force"], [])):
        runtime, commands = podman_runtime((0, running), (0, ""), *look, gone)
        runtime.instance()
        getattr(runtime, verb)()
        assert commands.actions[1] == ["podman", *command, "--time", "0", container["Id"]]
        assert len(commands.actions) == 2 + len(look)
        # what was ended is asked for again
        assert not runtime.instance().exists
    runtime, commands = podman_runtime((0, running), (125, "Error: busy"), (125, "Error: busy"))
    with pytest.raises(CkptError, match="podman cannot clean up after it"):
        runtime.remove()
    assert len(commands.actions) == 3


@pytest.mark.parametrize(("status", "told"), [("exited", False), ("stopping", True), ("running", True)])
def test_a_stopped_container_is_asked_for_again(
    podman: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, told: bool
) -> None:
    monkeypatch.setattr(podman_module, "EXITS", str(tmp_path / "exits"))
    stopped = json.loads((podman / "inspect-running.json").read_text())
    stopped[0]["State"] |= {"Running": False, "Pid": 0, "Status": status}
    said = (0, json.dumps(stopped))
    identity = stopped[0]["Id"]
    runtime, commands = podman_runtime(said, said, said, (0, ""))
    runtime.instance()
    runtime.stop()
    asked = ["podman", "container", "inspect", "reference"]
    assert commands.actions == [asked, asked, asked, ["podman", "container", "cleanup", identity]]
    # podman waits without end for an exit status that a killed monitor has not written
    exits = tmp_path / "exits" / identity
    assert (exits.read_text() if exits.exists() else "") == ("137" if told else "")


def test_no_container(podman: Path) -> None:
    runtime, _ = podman_runtime((125, ""))
    assert not runtime.instance().exists


@pytest.mark.parametrize(("text", "empty"), [("", True), ("no json {", True), ("warning\n", True)])
def test_stats_that_podman_did_not_print(text: str, empty: bool) -> None:
    runtime, _ = podman_runtime()
    assert (runtime.command_stats(Result([], 125, text, "", 0, 0)) == {}) is empty


def test_stats_that_podman_printed(podman: Path) -> None:
    runtime, _ = podman_runtime()
    result = Result([], 0, f"a line\n{(podman / 'print-stats.json').read_text()}", "", 0, 0)
    assert runtime.command_stats(result)["container_statistics"][0]["criu_statistics"]["pages_written"] == 72359


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "golden"), "store")
    task = procfs.Task(pid=70, nspid=7, ppid=1, comm="a", state="S", starttime=3)
    manifest = Manifest("golden", "process", "reference", "2026-01-01T00:00:00+00:00", tasks=[task.as_dict()])
    manifest.write(layout)
    assert load(layout) == manifest
    assert load(layout).identities == {(7, "a")}
    assert is_checkpoint(layout.folder)


def test_manifests_that_are_none(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "store")
    with pytest.raises(CkptError) as caught:
        load(layout)
    assert caught.value.reason == "images_missing"
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(CkptError) as caught:
        load(layout)
    assert caught.value.reason == "images_truncated"
    (tmp_path / "checkpoint.json").write_text('{"schema_version": 99}')
    with pytest.raises(CkptError, match="another version"):
        load(layout)


def test_a_manifest_with_another_byte_is_damaged(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "store")
    Manifest("golden", "process", "reference", "2026-01-01T00:00:00+00:00").write(layout)
    whole = Path(layout.manifest).read_text()
    for position in range(len(whole) - 1):
        Path(layout.manifest).write_text(f"{whole[:position]}{chr(ord(whole[position]) ^ 1)}{whole[position + 1 :]}")
        with pytest.raises(CkptError):
            load(layout)


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"counter": "4"},
        {"tasks": {}},
        {"tasks": [{"pid": 1}]},
        {"tasks": [procfs.Task(-1, 7, 1, "a", "S", 3).as_dict()]},
        {"canary_tokens": [1]},
        {"images_total": 1.5},
        {"tcp_established": 1},
    ],
)
def test_a_manifest_with_odd_keys_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    layout = Layout(str(tmp_path), "store")
    whole = asdict(Manifest("golden", "process", "reference", "2026-01-01T00:00:00+00:00"))
    (tmp_path / "checkpoint.json").write_text(json.dumps(sealed({**whole, **change})))
    with pytest.raises(CkptError, match=next(iter(change))) as caught:
        load(layout)
    assert caught.value.reason == "images_truncated"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"host": "127.0.0.1/x"}, "server.host"),
        ({"health_path": "//other"}, "server.health_path"),
        ({"name": "a\n"}, "server.name"),
        ({"name": 5}, "server.name must be a string"),
        ({"port": float("inf")}, "no number"),
        ({"port": 80.5}, "server.port"),
        ({"port": 10**30}, "too large"),
        ({"command": ["a", {}]}, "server.command"),
        ({"command": ["a\0"]}, "NUL"),
        ({"model": "\ud800"}, "surrogates"),
        ({"env": {"A=B": "c"}}, "A=B"),
        ({"canary": {"max_tokens": "x"}}, "server.canary"),
        ({"canary": {"extra": [1]}}, "server.canary"),
        ({"sleep": {"m": {"before": ["ab"], "after": []}}}, "server.sleep"),
        ({"sleep": {"m": {"before": []}}}, "server.sleep"),
        ({"sleep": {"m": {"before": [["x", None]], "after": []}}}, "server.sleep"),
    ],
)
def test_a_value_that_would_fail_later_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(CkptError, match=word) as caught:
        parse_server({**SERVER, **change}, "process")
    assert caught.value.reason == "bad_input"


@pytest.mark.parametrize(
    "option",
    [{"switches": ["CRIU_A"]}, {"home": "relative"}, {"home": "/a\n"}, {"home": 3}, {"build": ["x"]}],
)
def test_an_option_criu_that_is_none(option: dict[str, Any]) -> None:
    with pytest.raises(CkptError, match=f"criu.{next(iter(option))}"):
        parse_criu(option)


def test_a_build_whose_description_is_damaged(tmp_path: Path) -> None:
    criu = Criu("stock", home=str(tmp_path))
    Path(criu.files.binary).parent.mkdir(parents=True)
    Path(criu.files.binary).write_text("#!/bin/sh\n")
    Path(criu.files.binary).chmod(0o755)
    for text in ("[", "[3]", '{"criu_version": 4}'):
        Path(criu.files.description).write_text(text)
        with pytest.raises(CkptError, match=r"BUILD\.json") as caught:
            criu.require(Commands())
        assert caught.value.reason == "criu_missing"


@pytest.mark.parametrize(
    ("host", "place"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("localhost", "localhost")]
)
def test_requests_go_to_an_address_in_brackets_where_it_is_of_ipv6(host: str, place: str) -> None:
    assert parse_server({**SERVER, "host": host, "port": 18080}, "process").base_url == f"http://{place}:18080"


@pytest.mark.parametrize("host", ["[::1", "::1]", "[]", "a:b:c/", "::1%lo", "[localhost]"])
def test_what_is_no_address_of_ipv6_is_refused(host: str) -> None:
    with pytest.raises(CkptError, match=r"server\.host"):
        parse_server({**SERVER, "host": host}, "process")
