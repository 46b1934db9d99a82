# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read off the node: processes, page cache, commands; real ones where that needs no root."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints import footprint
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.runtimes.process import number_in_use
from ansible.module_utils.ckpt.server.client import event_tokens, metric_total
from ansible.module_utils.ckpt.system import pagecache, procfs
from ansible.module_utils.ckpt.system.commands import Commands
from project import ROOT


def test_a_tree_of_processes() -> None:
    script = "import subprocess, sys; subprocess.Popen(['sleep', '60']).wait()"
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        try:
            deadline = time.monotonic() + 60
            # a child has its parent's name until it has become its program
            while [task.comm for task in procfs.tree(parent.pid)][1:] != ["sleep"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            tree = procfs.tree(parent.pid)
            assert [task.ppid for task in tree] == [os.getpid(), parent.pid]
            assert tree[0].identity == (parent.pid, tree[0].comm)
        finally:
            for task in reversed(procfs.tree(parent.pid)):
                os.kill(task.pid, 9)
    assert procfs.tree(parent.pid) == []
    assert procfs.wait_gone([parent.pid], 5) == []


def test_wait_gone_names_what_stays() -> None:
    assert procfs.wait_gone([os.getpid()], 0.05) == [os.getpid()]


def test_a_number_that_a_dead_process_holds_is_blamed_on_its_parent() -> None:
    alive = number_in_use(os.getpid())
    assert "end that process" in alive
    with subprocess.Popen(["sleep", "60"]) as child:
        child.kill()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert f"by sleep, which ended, but its parent (process {os.getpid()}) does not collect it" in number_in_use(
            child.pid
        )
    assert number_in_use(child.pid).endswith("is in use; restore again.")


def test_port_holder_on_ipv6_alone() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        assert f"(pid {os.getpid()})" in str(procfs.port_holder(port))
    assert procfs.port_holder(port) is None


def test_port_holder_and_open_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"(pid {os.getpid()})" in str(procfs.port_holder(port))
        assert not any(f":{port} ->" in row for row in procfs.open_tcp_connections([os.getpid()]))
        with socket.create_connection(("127.0.0.1", port)):
            rows = procfs.open_tcp_connections([os.getpid()])
            # the other end waits to be accepted, in nobody's hands
            assert procfs.one_ended(rows) == rows
            with listener.accept()[0]:
                assert procfs.one_ended(procfs.open_tcp_connections([os.getpid()])) == []
        assert any(row.startswith("127.0.0.1:") and row.endswith(f"127.0.0.1:{port}") for row in rows)
    assert procfs.port_holder(port) is None


def test_an_ipv4_peer_of_an_ipv6_socket_is_recognised() -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])),
        listener.accept()[0],
    ):
        rows = procfs.open_tcp_connections([os.getpid()])
        assert len(rows) == 2
        assert procfs.one_ended(rows) == []


def test_a_footprint_grows_with_what_the_process_holds() -> None:
    stock = footprint.Redump(as_memory=False)
    before = footprint.dump_bytes([os.getpid()], stock)
    private = bytearray(os.urandom(32 << 20))
    shared = [mmap.mmap(-1, 16 << 20) for _ in range(2)]
    shared[0].write(os.urandom(8 << 20))
    assert footprint.dump_bytes([os.getpid()], stock) - before > 32 << 20
    assert private


def test_low_addresses_have_zeros_in_front_in_maps_only() -> None:
    assert procfs.Mapping(7, "00400000-00401000", "r-xp", "", {}).file == "/proc/7/map_files/400000-401000"


@pytest.mark.parametrize(
    ("name", "is_image"),
    [
        ("/mnt/checkpoint-ram/a/images/pages-12.img", True),
        ("/pages-1.img (deleted)", True),
        ("/mapped-base-618edcb7b59b57b4.img", True),
        ("/pages-1.img.old", False),
        ("/pages-.img", False),
        ("/lib/pages-1.imgs", False),
        ("[heap]", False),
    ],
)
def test_names_of_page_images(name: str, is_image: bool) -> None:
    assert footprint.is_page_image(name) == is_image


def test_page_cache_is_dropped_and_proven(disk: Path) -> None:
    image = disk / "pages-1.img"
    image.write_bytes(os.urandom(8 << 20))
    assert pagecache.prepare("warm", [str(image)]) == 1.0
    assert pagecache.prepare("dropped", [str(image)]) == 0.0
    image.read_bytes()[:1]
    assert pagecache.resident_fraction([str(image)]) == 1.0


def test_page_cache_on_a_tmpfs_cannot_be_dropped() -> None:
    path = Path("/dev/shm") / f"gpuckpt-test-{os.getpid()}"
    path.write_bytes(bytes(1 << 20))
    try:
        with pytest.raises(CkptError, match="tmpfs") as caught:
            pagecache.prepare("dropped", [str(path)])
        assert caught.value.reason == "bad_input"
    finally:
        path.unlink()


def test_a_missing_program_is_a_result() -> None:
    commands = Commands()
    assert commands.run(["/no/such/program"]).rc == 127
    assert commands.actions == [["/no/such/program"]]


def test_a_command_that_hangs_is_killed() -> None:
    started = time.monotonic()
    with pytest.raises(CkptError, match="did not end within") as caught:
        Commands().run(["sleep", "60"], timeout_s=0.2)
    assert caught.value.reason == "timeout"
    # nothing that a user can raise is told where there is nothing
    assert "raise" not in caught.value.message
    assert time.monotonic() - started < 10


def test_output_that_is_no_utf8_is_kept() -> None:
    assert Commands().run(["printf", r"a\377b"]).stdout == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    ("event", "tokens"),
    [
        ({"choices": [{"text": " a"}]}, [" a"]),
        ({"choices": [{"text": ""}]}, []),
        ({"choices": [{"text": "", "token_ids": [5, 7]}]}, ["5", "7"]),
        ({"choices": []}, []),
        ({"usage": {}}, []),
    ],
)
def test_tokens_of_an_event(event: dict[str, object], tokens: list[str]) -> None:
    assert event_tokens(event) == tokens


def test_counters_are_added_up_over_their_labels() -> None:
    text = (
        "# TYPE vllm:request_success_total counter\n"
        'vllm:request_success_total{finished_reason="stop"} 2.0\n'
        'vllm:request_success_total{finished_reason="length"} 5.0\n'
        "vllm:request_success_total_created 1.7e9\n"
    )
    assert metric_total(text, "vllm:request_success_total") == 7
    assert metric_total(text, "gpuckpt_requests_total") is None


IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import ckpt
for module in pkgutil.walk_packages(ckpt.__path__, "ckpt."):
    if module.name != "ckpt.module":  # the frame of Ansible's modules
        importlib.import_module(module.name)
print(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"ckpt", "__main__"}))
"""


def test_a_node_needs_no_more_than_pythons_standard_library() -> None:
    program = [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(ROOT / "module_utils")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
