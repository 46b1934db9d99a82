# SPDX-License-Identifier: GPL-3.0-or-later
"""What is fuzzed: every parser of data that comes from elsewhere, with the exceptions that it documents."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import client as http_client
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.ckpt.checkpoints import archive, manifest
from ansible.module_utils.ckpt.copies import parts, publication
from ansible.module_utils.ckpt.criu import images, remaps, settings
from ansible.module_utils.ckpt.criu import log as criu_log
from ansible.module_utils.ckpt.criu import stats as criu_stats
from ansible.module_utils.ckpt.criu.choice import Criu, parse_criu
from ansible.module_utils.ckpt.doctor import containers
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure import flows
from ansible.module_utils.ckpt.node import gpu as gpu_inspection
from ansible.module_utils.ckpt.node import inspection, packages, smi
from ansible.module_utils.ckpt.parsing import FormatError, parse_json
from ansible.module_utils.ckpt.runtimes import process
from ansible.module_utils.ckpt.runtimes.base import Evidence
from ansible.module_utils.ckpt.runtimes.podman import PodmanRuntime
from ansible.module_utils.ckpt.safety import claim
from ansible.module_utils.ckpt.server import client as http
from ansible.module_utils.ckpt.server import exchange
from ansible.module_utils.ckpt.server.spec import parse_server
from ansible.module_utils.ckpt.system import mounts, procfs
from ansible.module_utils.ckpt.system.commands import Commands, Result
from ansible.module_utils.ckpt.versions import version_in, version_tuple
from ckpt_lanes import ckpt_lanes
from ckpt_schedule import ckpt_schedule
from mutation import mutate, mutate_document

from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.store import RunFolder

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SEEDS = TESTS / "fuzz" / "seeds"
FIXTURES = TESTS / "fixtures"
SERVER: dict[str, Any] = {"name": "n", "kind": "reference", "model": "m", "port": 18080, "command": ["x"]}


@dataclass(frozen=True)
class Target:
    """A parser: how it is called with an input, what it may raise, and the samples that inputs are made of."""

    name: str
    call: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    samples: tuple[Path, ...]
    mutate: Callable[[Random, Sequence[bytes]], bytes] = mutate

    def seeds(self) -> list[Path]:
        """The samples, and what was found before and is kept."""
        return [*self.samples, *sorted((SEEDS / self.name).glob("*"))]


class Folder:
    """A scratch folder in memory, the same for all inputs."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gpuckpt-fuzz-", dir="/dev/shm"))

    def put(self, name: str, data: bytes) -> str:
        """Writes a file; returns its path."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def remove(self) -> None:
        """Removes it with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)


class Network:
    """Fake network: every connection answers the same bytes, in two pieces. The protocol above it is the real one."""

    answer = b""

    def connect(self, *_arguments: Any, **_options: Any) -> Network:
        """A connection that is made at once."""
        return self

    def makefile(self, *_arguments: Any) -> io.BufferedReader:
        """What is received."""
        middle = len(self.answer) // 2
        return io.BufferedReader(Pieces([self.answer[:middle], self.answer[middle:]]))

    def sendall(self, _data: bytes) -> None:
        """Nobody reads what is sent."""

    def settimeout(self, _seconds: float) -> None:
        """Nothing takes time here."""

    def setsockopt(self, *_arguments: Any) -> None:
        """There is no socket."""

    def close(self) -> None:
        """There is nothing to close."""


class Pieces(io.RawIOBase):
    """What comes of a connection, a piece at a time."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._pieces and not self._pieces[0]:
            self._pieces.pop(0)
        part = self._pieces[0][: len(buffer)] if self._pieces else b""
        if part:
            self._pieces[0] = self._pieces[0][len(part) :]
        buffer[: len(part)] = part
        return len(part)


def asking() -> Callable[[bytes], object]:
    """All that the client asks of a server, whose answer is always the given bytes."""
    client, network = http.Client(parse_server(SERVER, "process")), Network()

    class OverFakeNetwork(http_client.HTTPConnection):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._create_connection = network.connect

    library = SimpleNamespace(HTTPConnection=OverFakeNetwork, HTTPException=http_client.HTTPException)
    exchange.load = lambda: library

    def ask_all(data: bytes) -> None:
        network.answer = data
        client.healthy()
        for ask in (client.counter, lambda: client.complete(client.spec.canary), lambda: client.post("/sleep")):
            try:
                ask()
            except CkptError:
                continue

    return ask_all


def stream_of(data: bytes) -> None:
    """The content of an answer without HTTP around it, which takes most of the time of `asking`."""
    json.dumps(http.metric_total(text_of(data), "gpuckpt_requests_total"), allow_nan=False)
    for event in http._events(http._lines(iter([data[:99], data[99:]]))):
        json.dumps(http.event_tokens(event)).encode()


def text_of(data: bytes) -> str:
    """What a command printed, as Commands decodes it."""
    return data.decode("utf-8", "replace")


def log_of_criu(data: bytes) -> None:
    text = text_of(data)
    lines = criu_log.parse(text)
    for plan in (criu_log.DUMP_PHASES, criu_log.RESTORE_PHASES):
        criu_log.phases(lines, plan)
    criu_log.script_phases(lines)
    criu_log.kernel_cache(text)
    json.dumps(criu_log.spans(text), allow_nan=False)
    criu_log.silent_failures(text)
    flows.explain(Evidence(text), "", "criu_failed", "it failed")


def option(function: Callable[[Any], object]) -> Callable[[bytes], object]:
    """A function of a document that Python has read already, as options of modules and filters arrive."""

    def call(data: bytes) -> object:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return function(document) if isinstance(document, dict) else None

    return call


def podman_answers(data: bytes) -> None:
    text = text_of(data)
    runtime = PodmanRuntime(parse_server({**SERVER, "image": "i"}, "podman"), Criu(), Commands())
    runtime.command_stats(Result([], 0, text, "", 0, 0))
    runtime._parse_instance(text)


def nvidia_answers(data: bytes) -> None:
    text = text_of(data)
    gpu_inspection.parse_gpus(text)
    gpu_inspection.kernel_module(text)
    gpu_inspection.linker_folders(text)
    gpu_inspection.cdi_library_versions(text)
    for row in smi.parse_rows(text):
        smi.whole_number(row[0])
    version_tuple(version_in(text))
    version_tuple(text)


def package_answers(data: bytes) -> None:
    """What dpkg and apt print."""
    text = text_of(data)
    packages.versions(text)
    packages.candidates(text)
    load_script(ROOT / "roles" / "nvidia_driver" / "filter_plugins" / "nvidia_driver.py").nvidia_driver_offers(text)


def settings_of_criu(data: bytes) -> None:
    """A file of settings; what is taken of it can be written again."""
    found = settings.parse(text_of(data))
    assert settings.parse(settings.render(found.values)).values == found.values


def seccomp_profile(data: bytes) -> None:
    """A profile as the doctor reads it, and as the role changes it."""
    with suppress(FormatError):
        containers.io_uring_answers(parse_json(data))
    derive = load_script(ROOT / "roles" / "seccomp_profile" / "filter_plugins" / "deny_syscalls.py").deny_syscalls
    json.dumps(derive(text_of(data), ["io_uring_setup"], "here"))


def tar_listing(data: bytes) -> None:
    images.listing(text_of(data))


@cache
def load_script(path: Path) -> ModuleType:
    """A program of a role as a module."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def targets_in(folder: Folder) -> Iterator[Target]:
    """All targets; files that a parser reads are written to the folder."""
    criu, podman = FIXTURES / "criu-4.2.1", FIXTURES / "podman-4.3.1"
    yield Target("http", asking(), (), ())
    contents = (SEEDS / "samples" / "stream", SEEDS / "samples" / "metrics")
    yield Target("stream", stream_of, (FormatError,), contents)
    yield Target("criu-log", log_of_criu, (), (SEEDS / "samples" / "spans.log", *sorted(criu.glob("failed-*.log"))))
    yield Target("stats", criu_stats.decode, (FormatError,), (criu / "stats-dump", criu / "stats-restore"))
    yield Target("criu-settings", settings_of_criu, (), (SEEDS / "samples" / "criu.env",))
    yield from _image_targets(folder)
    yield _archive_target(folder, criu)
    yield from _document_targets(folder, podman)
    yield Target("nvidia", nvidia_answers, (), ())
    yield Target("packages", package_answers, (), (SEEDS / "samples" / "packages",))
    yield Target("tar-listing", tar_listing, (), (podman / "tar-list.txt",))
    yield from _proc_targets(folder)
    yield from _report_targets(folder)


def _image_targets(folder: Folder) -> Iterator[Target]:
    def checkpoint(data: bytes) -> None:
        folder.put("checkpoint/pagemap-1.img", data)
        folder.put("checkpoint/inventory.img", data[:64])
        images.require_whole(str(folder.path / "checkpoint"))

    def files_of(data: bytes) -> None:
        folder.put("remaps/files.img", data)
        remaps.size_of(str(folder.path / "remaps"), "/tmp/held")
        remaps.linked_back(str(folder.path / "remaps"))

    def links_of(data: bytes) -> None:
        folder.put("links/remap-fpath.img", data)
        remaps.linked_back(str(folder.path / "links"))

    folder.put("checkpoint/pstree.img", b"")
    samples = SEEDS / "samples"
    folder.put("remaps/remap-fpath.img", (samples / "remap-fpath.img").read_bytes())
    folder.put("links/files.img", (samples / "files.img").read_bytes())
    yield Target("pagemap", checkpoint, (CkptError,), (samples / "pagemap-short.img", samples / "pagemap.img"))
    yield Target("files-image", files_of, (CkptError,), (samples / "files.img",))
    yield Target("remap-image", links_of, (CkptError,), (samples / "remap-fpath.img",))


def _archive_target(folder: Folder, criu: Path) -> Target:
    def unpack(data: bytes) -> None:
        shutil.rmtree(folder.path / "unpacked", ignore_errors=True)
        archive.unpack(Commands(), folder.put("checkpoint.tar", data), str(folder.path / "unpacked"))

    for name in ("inventory.img", "stats-dump"):
        folder.put(f"packed/{name}", (criu / name).read_bytes())
    sample = folder.path / "samples" / "checkpoint.tar"
    sample.parent.mkdir()
    archive.pack(Commands(), str(folder.path / "packed"), str(sample))
    return Target("archive", unpack, (CkptError,), (sample,))


def _document_targets(folder: Folder, podman: Path) -> Iterator[Target]:
    def checkpoint(data: bytes) -> None:
        with suppress(ValueError, RecursionError):
            content = json.loads(data)
            if isinstance(content, dict) and content.pop(manifest.DIGEST, None) is not None:
                # what passes for ours goes on to what its fields hold
                data = json.dumps(manifest.sealed(content)).encode()
        folder.put("golden/checkpoint.json", data)
        proof = manifest.load(manifest.Layout(str(folder.path / "golden"), "store"))
        # what a restore takes from it
        json.dumps([sorted(proof.identities), proof.plain_processes])
        proof.write(manifest.Layout(str(folder.path / "written"), "store"))

    def published(data: bytes) -> None:
        with suppress(ValueError, RecursionError):
            content = json.loads(data)
            if isinstance(content, dict) and content.pop(manifest.DIGEST, None) is not None:
                data = json.dumps(manifest.sealed(content)).encode()
        found = publication.parse(data)
        # what a fetch takes from it
        pieces = parts.cut(found.files, found.part_bytes)
        assert len(pieces) == len(found.parts)
        json.dumps(found.document())

    def index_of_links(data: bytes) -> None:
        folder.put("kept/index.json", data)
        remaps._index(str(folder.path / "kept"))

    def claim_file(data: bytes) -> None:
        descriptor = os.memfd_create("claim")
        try:
            os.write(descriptor, data)
            held = claim._read(descriptor)
            if held is not None:
                (str(held), held.silent_s(), held.holder.lives(), json.dumps(held.as_dict()).encode())
        finally:
            os.close(descriptor)

    def build(data: bytes) -> None:
        folder.put("build/current/BUILD.json", data)
        Criu(home=str(folder.path / "build")).require(Commands())

    def state(data: bytes) -> None:
        folder.put("instance/n.json", data)
        process._read_state(str(folder.path / "instance/n.json"))

    binary = Path(folder.put("build/current/libexec/criu", b"#!/bin/sh\necho Version: 4.2.1\n"))
    binary.chmod(0o755)
    samples = SEEDS / "samples"
    make = mutate_document
    yield Target("manifest", checkpoint, (CkptError,), (samples / "checkpoint.json",), make)
    yield Target("publication", published, (FormatError,), (samples / "publication.json",), make)
    yield Target("links-index", index_of_links, (CkptError,), (samples / "index.json",), make)
    yield Target("claim", claim_file, (CkptError,), (samples / "claim.json",), make)
    yield Target("build", build, (CkptError,), (samples / "BUILD.json",), make)
    yield Target("instance", state, (CkptError,), (samples / "instance.json",), make)
    yield Target(
        "podman-info",
        lambda data: containers.named_runtime(text_of(data)),
        (FormatError,),
        (samples / "podman-info.json",),
        make,
    )
    yield Target(
        "containers-conf",
        lambda data: containers.default_nofile([text_of(data)]),
        (FormatError,),
        (samples / "containers.conf",),
    )
    yield Target("seccomp", seccomp_profile, (AnsibleFilterError,), (samples / "seccomp.json",), make)
    yield Target("option-criu", option(parse_criu), (CkptError,), (samples / "option-criu.json",), make)
    server = option(lambda document: parse_server(document, "podman"))
    yield Target("option-server", server, (CkptError,), (samples / "option-server.json",), make)
    yield Target("podman", podman_answers, (FormatError,), (podman / "inspect-running.json",), make)
    schedule = option(lambda document: ckpt_schedule(**{key: document.get(key) for key in SCHEDULE_KEYS}))
    yield Target("schedule", schedule, (AnsibleFilterError,), (samples / "schedule.json",), make)
    lanes = option(lambda document: ckpt_lanes(document.get("lanes"), document.get("lane_filter", "")))
    yield Target("lanes", lanes, (AnsibleFilterError,), (samples / "lanes.json",), make)


SCHEDULE_KEYS = ("lanes", "iterations", "seed", "warmup", "done")


def _proc_targets(folder: Folder) -> Iterator[Target]:
    proc = str(folder.path / "proc")
    node = inspection.Node(str(folder.path))
    os.makedirs(f"{proc}/7/fd")
    os.symlink("socket:[1]", f"{proc}/7/fd/3")
    files = {
        "stat": "7/stat",
        "status": "7/status",
        "tcp": "7/net/tcp",
        "mountinfo": "7/mountinfo",
        "meminfo": "meminfo",
        "smaps": "7/smaps",
    }
    samples = SEEDS / "samples"
    for name, place in files.items():
        folder.put(f"proc/{place}", (samples / name).read_bytes())

    def read(place: str) -> Callable[[bytes], object]:
        def call(data: bytes) -> None:
            path = folder.put(f"proc/{place}", data)
            for shared in ("net/tcp", "self/mountinfo"):
                folder.put(f"proc/{shared}", data)
            (procfs.read_task(7, proc), procfs.process_of(7, proc), list(mounts.of_process(7, proc)))
            for mapping in procfs.mappings(7, True, proc):
                json.dumps([mapping.bounds, mapping.kib, mapping.file]).encode("utf-8", "surrogateescape")
            connections = procfs.open_tcp_connections([7], proc)
            (procfs.one_ended(connections), procfs.port_holder(80, proc), procfs.tree(7, proc))
            (inspection.mounts(node), inspection.memory_bytes(node), inspection.capabilities(node))
            mounts.layers_at("/", path)

        return call

    for name, place in files.items():
        yield Target(f"proc-{name}", read(place), (), (samples / name,))


def _report_targets(folder: Folder) -> Iterator[Target]:
    program = load_script(ROOT / "roles" / "bundle" / "files" / "gpuckpt_bundle.py")
    published = ROOT / "reports" / "published" / "cpu-reference-128mib"
    run = folder.path / "run"
    folder.put("run/manifest.json", (published / "manifest.json").read_bytes())
    sample = Path(folder.put("samples/records.jsonl", (published / "records.jsonl").read_bytes()[:20000]))

    def bundle(data: bytes) -> None:
        folder.put("bundle/bundle.json", data)
        program.verify(folder.path / "bundle", [])
        program.unfit(program.read_manifest(folder.path / "bundle"), ["criu"], "x86_64", "2.36", "3.11")

    def records(data: bytes) -> None:
        folder.put("run/records.jsonl", data)
        RunFolder(run).records()

    def incoming(data: bytes) -> None:
        folder.put("run/records.jsonl", b"")
        folder.put("run/incoming/localhost/000001-restore.json", data)
        RunFolder(run).ingest()

    samples = SEEDS / "samples"
    yield Target("bundle", bundle, (program.BundleError,), (samples / "bundle.json",), mutate_document)
    yield Target("records", records, (ReportError,), (sample,))
    yield Target("incoming", incoming, (ReportError,), (samples / "record.json",), mutate_document)


def all_targets(folder: Folder) -> dict[str, Target]:
    """Every target by its name."""
    return {target.name: target for target in targets_in(folder)}
