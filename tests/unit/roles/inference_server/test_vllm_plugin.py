# SPDX-License-Identifier: GPL-3.0-or-later
"""The sleep levels for vLLM and the program that prefetches weights, on a fake driver (fake_memory.c).

Fakes also stand for torch and for vLLM's allocator, none of which run without a GPU. The files, the processes, the socket and the
descriptors that change hands are real.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.ckpt.criu.choice import parse_criu
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure import prefetch as prefetch_module
from ansible.module_utils.ckpt.system.commands import Commands
from project import ROOT

PLUGIN = ROOT / "roles" / "inference_server" / "files" / "vllm_plugin"
SIZE = 3 * 4096
UUID = "0123456789abcdef0123456789abcdef"
CONTEXT = 0xC0FFEE
STACK_BYTES = 1024


@dataclass
class Allocation:
    """What vLLM keeps of one allocation; `handle` is (device, bytes, pointer, where the handle of the memory is)."""

    handle: tuple[int, int, int, int]
    tag: str
    cpu_backup_tensor: Any = None
    is_asleep: bool = False


@dataclass
class FakeGpu:
    """vLLM's allocator on the fake driver: addresses stay, contents go when memory is released."""

    library: Any
    driver: Any = None
    pointer_to_data: dict[int, Allocation] = field(default_factory=dict)
    words: list[ctypes.c_uint64] = field(default_factory=list)
    mapped: set[int] = field(default_factory=set)
    slept: list[int] = field(default_factory=list)

    def allocate(self, tag: str, content: bytes) -> int:
        pointer = int(self.driver.reserve(len(content)))
        self.words.append(ctypes.c_uint64())
        self.pointer_to_data[pointer] = Allocation((0, len(content), pointer, ctypes.addressof(self.words[-1])), tag)
        self.map(self.pointer_to_data[pointer].handle)
        ctypes.memmove(pointer, content, len(content))
        return pointer

    def unmap(self, handle: tuple[int, int, int, int]) -> None:
        _, size, pointer, word = handle
        assert pointer in self.mapped, "released twice"
        self.mapped.remove(pointer)
        memory = ctypes.c_uint64.from_address(word).value
        assert self.library.cuMemUnmap(ctypes.c_uint64(pointer), ctypes.c_size_t(size)) == 0
        assert self.library.cuMemRelease(ctypes.c_uint64(memory)) == 0

    def map(self, handle: tuple[int, int, int, int]) -> None:
        device, size, pointer, word = handle
        assert pointer not in self.mapped, "mapped twice"
        self.mapped.add(pointer)
        memory = self.driver.create(size, device)
        ctypes.c_uint64.from_address(word).value = memory
        self.driver.map(pointer, size, memory, device)

    def content(self, pointer: int) -> bytes:
        return ctypes.string_at(pointer, self.pointer_to_data[pointer].handle[1])


def module(name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(attributes)
    return made


@pytest.fixture
def gpu(fake_driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGpu]:
    monkeypatch.setenv("GPUCKPT_LIBCUDA", str(fake_driver))
    monkeypatch.setenv("GPUCKPT_FAKE_UUID", UUID)
    monkeypatch.setenv("GPUCKPT_STAGING_DIR", str(tmp_path))
    library = ctypes.CDLL(str(fake_driver))
    library.cuCtxSetCurrent(ctypes.c_void_p(CONTEXT))
    library.cuCtxSetLimit(0, ctypes.c_size_t(STACK_BYTES))
    fake = FakeGpu(library)

    class CuMemBackend:
        """vLLM's own backend: it only notes what it was asked for."""

        def __init__(self) -> None:
            self._state = "RUNNING"

        def suspend(self, level: int = 1) -> None:
            fake.slept.append(level)

    factory = SimpleNamespace(_registry={"cumem": lambda: CuMemBackend})
    cuda = SimpleNamespace(
        empty_cache=lambda: None, synchronize=lambda: None, mem_get_info=lambda: (3, 4), memory_reserved=lambda: 0
    )
    distributed = SimpleNamespace(is_initialized=lambda: False)
    vllm = "vllm.device_allocator"
    for fake_module in (
        module("torch", cuda=cuda, distributed=distributed),
        module("vllm.platforms", current_platform=SimpleNamespace(is_cuda=lambda: False)),
        module("vllm"),
        module(vllm, get_mem_allocator_instance=lambda: fake),
        module(f"{vllm}.cumem", create_and_map=fake.map, unmap_and_release=fake.unmap),
        module(f"{vllm}.sleep_mode_backend", CuMemBackend=CuMemBackend, SleepModeBackendFactory=factory),
        module("vllm.logger", init_logger=logging.getLogger),
    ):
        monkeypatch.setitem(sys.modules, fake_module.__name__, fake_module)
    monkeypatch.syspath_prepend(str(PLUGIN))
    fake.driver = importlib.import_module("gpuckpt_vllm.driver").driver()
    yield fake
    for name in [name for name in sys.modules if name.startswith("gpuckpt_vllm")]:
        del sys.modules[name]


def backend() -> Any:
    importlib.import_module("gpuckpt_vllm").register()
    factory = sys.modules["vllm.device_allocator.sleep_mode_backend"].SleepModeBackendFactory
    return factory._registry["cumem"]()()


def contents(count: int) -> list[bytes]:
    return [bytes([index + 1]) * SIZE for index in range(count)]


def weights_file(folder: Path) -> Path:
    (path,) = folder.glob("*.bin")
    return path


def test_kv_drop_leaves_the_weights_where_they_are(gpu: FakeGpu) -> None:
    weights, cache = gpu.allocate("weights", b"w" * SIZE), gpu.allocate("kv_cache", b"k" * SIZE)
    sleeping = backend()
    sleeping.suspend(3)
    assert gpu.mapped == {weights}
    assert gpu.content(weights) == b"w" * SIZE
    sleeping.resume()
    assert gpu.mapped == {weights, cache}


@pytest.mark.parametrize("level", [1, 3, 4])
def test_the_stacks_of_kernels_are_released_and_come_back(gpu: FakeGpu, level: int) -> None:
    gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    for _ in range(2):
        sleeping.suspend(level)
        assert gpu.driver.limit(0) == 0
        sleeping.suspend(3)  # a second sleep does not take 0 for what was there before
        sleeping.resume()
        assert gpu.driver.limit(0) == STACK_BYTES


def test_staged_weights_come_back_byte_for_byte(gpu: FakeGpu, tmp_path: Path) -> None:
    pointers = [gpu.allocate("weights", content) for content in contents(5)]
    gpu.allocate("kv_cache", b"k" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    assert gpu.mapped == set()
    assert weights_file(tmp_path).stat().st_size == 5 * SIZE
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == contents(5)
    assert gpu.library.fake_pinned() == 0


def test_weights_larger_than_all_buffers_come_back(gpu: FakeGpu) -> None:
    """An odd size, so that no piece boundary is an allocation's, and more pieces than there are buffers."""
    content = random.Random(4).randbytes((19 << 22) + 12345)
    pointers = [gpu.allocate("weights", content), gpu.allocate("weights", content[::-1])]
    sleeping = backend()
    sleeping.suspend(4)
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == [content, content[::-1]]


def test_a_copy_that_fails_is_an_error_and_leaves_nothing_pinned(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    monkeypatch.setenv("GPUCKPT_FAKE_REFUSE", "cuMemcpyHtoDAsync_v2")
    with pytest.raises(RuntimeError, match=r"cuMemcpyHtoDAsync_v2 failed: CUDA_ERROR_LAUNCH_FAILED \(719\)"):
        sleeping.resume()
    assert gpu.library.fake_pinned() == 0


def test_a_second_sleep_writes_a_file_of_its_own(gpu: FakeGpu, tmp_path: Path) -> None:
    pointer = gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    for _ in range(2):
        sleeping.suspend(4)
        sleeping.resume()
    assert len(list(tmp_path.glob("*.bin"))) == 2
    assert gpu.content(pointer) == b"w" * SIZE


def test_waking_by_tag_leaves_the_rest_asleep(gpu: FakeGpu) -> None:
    weights, cache = gpu.allocate("weights", b"w" * SIZE), gpu.allocate("kv_cache", b"k" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    sleeping.resume(["weights"])
    assert gpu.mapped == {weights}
    sleeping.resume(["kv_cache"])
    assert gpu.mapped == {weights, cache}
    assert gpu.content(weights) == b"w" * SIZE


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_lost_weights_are_an_error_that_names_the_file(gpu: FakeGpu, tmp_path: Path, damage: str) -> None:
    gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    staged = weights_file(tmp_path)
    if damage == "remove":
        staged.unlink()
    else:
        staged.write_bytes(b"short")
    with pytest.raises(RuntimeError, match=str(staged)):
        sleeping.resume()


def test_without_a_folder_nothing_is_released(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = gpu.allocate("weights", b"w" * SIZE)
    monkeypatch.delenv("GPUCKPT_STAGING_DIR")
    with pytest.raises(RuntimeError, match="GPUCKPT_STAGING_DIR"):
        backend().suspend(4)
    assert gpu.mapped == {weights}


@pytest.mark.parametrize("level", [1, 2])
def test_the_levels_of_vllm_are_its_own(gpu: FakeGpu, level: int) -> None:
    backend().suspend(level)
    assert gpu.slept == [level]


def test_the_copy_of_level_1_is_put_back(gpu: FakeGpu) -> None:
    pointer = gpu.allocate("weights", b"w" * SIZE)
    data = gpu.pointer_to_data[pointer]
    backup = ctypes.create_string_buffer(b"w" * SIZE, SIZE)
    sleeping = backend()
    gpu.unmap(data.handle)
    data.is_asleep = True
    data.cpu_backup_tensor = SimpleNamespace(
        data_ptr=lambda: ctypes.addressof(backup), numel=lambda: SIZE, element_size=lambda: 1
    )
    sleeping.resume()
    assert gpu.content(pointer) == b"w" * SIZE
    assert data.cpu_backup_tensor is None


# --- prefetching: a second process, the real program ---

Prefetch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def prefetch(gpu: FakeGpu) -> Iterator[Prefetch]:
    started: list[subprocess.Popen[str]] = []

    def start(weights: Path, *options: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-I", str(PLUGIN / "gpuckpt_vllm" / "prefetch.py"), *options, str(weights)]
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def stage(gpu: FakeGpu, folder: Path, count: int) -> tuple[Any, list[int], Path]:
    pointers = [gpu.allocate("weights", content) for content in contents(count)]
    sleeping = backend()
    sleeping.suspend(4)
    return sleeping, pointers, weights_file(folder)


def own_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("fake GPU memory")


@pytest.mark.parametrize("count", [3, 150])  # more than one message can carry
def test_prefetched_weights_are_mapped_and_not_read(
    gpu: FakeGpu, tmp_path: Path, prefetch: Prefetch, count: int
) -> None:
    sleeping, pointers, weights = stage(gpu, tmp_path, count)
    before = own_mappings()
    helper = prefetch(weights)
    assert helper.stdout
    assert helper.stdout.readline().startswith("ready start=")
    weights.write_bytes(b"")  # whoever reads it now is found out
    gpu.mapped |= set(pointers)  # the allocator's own view: vLLM maps nothing itself
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == contents(count)
    assert own_mappings() == before + count
    said, complaint = helper.communicate()
    assert (said.split()[0], complaint, helper.returncode) == ("taken", "", 0)
    assert [gpu.content(pointer) for pointer in pointers] == contents(count), "the memory outlives who made it"
    assert [path.name for path in tmp_path.glob("*.socket")] == []
    for pointer in pointers:
        gpu.unmap(gpu.pointer_to_data[pointer].handle)  # it is the allocator's, to release like its own
    assert own_mappings() == before


def test_an_engine_that_wakes_early_waits(gpu: FakeGpu, tmp_path: Path, prefetch: Prefetch) -> None:
    sleeping, pointers, weights = stage(gpu, tmp_path, 2)
    helper = prefetch(weights)
    socket_path = weights.with_suffix(".socket")
    while not socket_path.exists():
        time.sleep(0.001)
    gpu.mapped |= set(pointers)
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == contents(2)
    assert "taken" in helper.communicate()[0]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("GPUCKPT_FAKE_UUID", "f" * 32, "not among those of this node"),
        ("GPUCKPT_FAKE_REFUSE", "cuMemCreate", "cuMemCreate failed"),
        ("GPUCKPT_LIBCUDA", "/nonexistent/libcuda.so.1", "/nonexistent/libcuda.so.1"),
    ],
)
def test_where_prefetching_fails_the_engine_reads_the_file(
    gpu: FakeGpu,
    tmp_path: Path,
    prefetch: Prefetch,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    value: str,
    words: str,
) -> None:
    sleeping, pointers, weights = stage(gpu, tmp_path, 2)
    with monkeypatch.context() as patched:
        patched.setenv(setting, value)
        helper = prefetch(weights)
        said, complaint = helper.communicate()
    assert (helper.returncode, said) == (1, "")
    assert words in complaint
    assert f"the engine reads {weights} itself" in complaint
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == contents(2)


def test_a_handover_that_breaks_off_is_made_up_for(
    gpu: FakeGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sleeping, pointers, weights = stage(gpu, tmp_path, 2)
    handover = importlib.import_module("gpuckpt_vllm.handover")
    with handover.listen(weights) as listening:
        breaking_off = threading.Thread(target=lambda: listening.accept()[0].close())
        breaking_off.start()
        sleeping.resume()
        breaking_off.join()
    assert "only 0 of 2 allocations were handed over" in caplog.text
    assert [gpu.content(pointer) for pointer in pointers] == contents(2)


def test_memory_that_cannot_be_mapped_is_made_up_for(
    gpu: FakeGpu, tmp_path: Path, prefetch: Prefetch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sleeping, pointers, weights = stage(gpu, tmp_path, 2)
    helper = prefetch(weights)
    assert helper.stdout
    helper.stdout.readline()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setenv("GPUCKPT_FAKE_REFUSE", "cuMemImportFromShareableHandle")
    sleeping.resume()
    assert "cuMemImportFromShareableHandle failed" in caplog.text
    assert [gpu.content(pointer) for pointer in pointers] == contents(2)
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2 + 2, "own memory, and the fake's copies"


def test_one_file_is_prefetched_once_at_a_time(gpu: FakeGpu, tmp_path: Path, prefetch: Prefetch) -> None:
    _, _, weights = stage(gpu, tmp_path, 1)
    first = prefetch(weights)
    assert first.stdout
    first.stdout.readline()
    second = prefetch(weights)
    assert "another process offers" in second.communicate()[1]
    first.kill()
    first.wait()
    third = prefetch(weights)  # the socket that the killed one left is no hindrance
    assert third.stdout
    assert third.stdout.readline().startswith("ready ")


# --- the module's side: the same program, run during a restore ---


def fetched(spec: Any, weights: Path, standby: bool, take: Callable[[], None]) -> dict[str, tuple[float, float]]:
    with prefetch_module.ready(spec, parse_criu({}), [str(weights)], Commands(), standby=standby) as [one]:
        began = one.begin()
        take()
        spans = dict(one.finish().spans)
    assert began <= spans["prefetch-context"][0]
    return dict(spans)


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch, fake_driver: Path) -> SimpleNamespace:
    monkeypatch.setattr(
        prefetch_module,
        "system_environment",
        lambda _extra: {"GPUCKPT_LIBCUDA": str(fake_driver), "GPUCKPT_FAKE_UUID": UUID},
    )
    return SimpleNamespace(prefetch=[sys.executable, "-I", str(PLUGIN / "gpuckpt_vllm" / "prefetch.py")])


@pytest.mark.parametrize("standby", [False, True])
def test_a_restore_with_a_prefetch_has_its_spans(
    gpu: FakeGpu, tmp_path: Path, spec: SimpleNamespace, standby: bool
) -> None:
    sleeping, pointers, weights = stage(gpu, tmp_path, 2)

    def take() -> None:
        while not weights.with_suffix(".socket").exists():
            time.sleep(0.001)
        sleeping.resume()

    spans = fetched(spec, weights, standby, take)
    assert spans["prefetch-context"][1] == spans["prefetch-copy"][0]
    assert spans["prefetch-copy"][0] < spans["prefetch-copy"][1]
    assert [gpu.content(pointer) for pointer in pointers] == contents(2)


@pytest.mark.parametrize("standby", [False, True])
def test_weights_that_nobody_took_fail_the_restore(
    gpu: FakeGpu, tmp_path: Path, spec: SimpleNamespace, standby: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_module, "END_LIMIT_S", 0.5)
    _, _, weights = stage(gpu, tmp_path, 1)
    with pytest.raises(CkptError, match="were not prefetched, the server read them itself") as caught:
        fetched(spec, weights, standby, lambda: None)
    assert caught.value.reason == "runtime_failed"


def test_a_prefetch_that_cannot_initialise_is_told_before_the_clock_starts(
    gpu: FakeGpu, tmp_path: Path, spec: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_module, "system_environment", lambda _extra: {"GPUCKPT_LIBCUDA": "/nonexistent"})
    with pytest.raises(CkptError, match="cannot initialise the GPUs: prefetch: /nonexistent"):
        fetched(spec, tmp_path / "weights-1.bin", True, lambda: None)


def test_a_standby_that_dies_before_it_is_told_the_file_fails_the_restore(
    gpu: FakeGpu, tmp_path: Path, spec: SimpleNamespace
) -> None:
    weights = str(tmp_path / "weights-1.bin")
    with prefetch_module.ready(spec, parse_criu({}), [weights], Commands(), standby=True) as [one]:
        assert one.program.process
        one.program.process.kill()
        one.program.process.wait()
        one.begin()
        with pytest.raises(CkptError, match="the program that prefetches ended without a word"):
            one.finish()


def test_a_checkpoint_without_staged_weights_is_refused(spec: SimpleNamespace) -> None:
    with (
        pytest.raises(CkptError, match="names no staged weights") as caught,
        prefetch_module.ready(spec, parse_criu({}), [], Commands(), standby=False),
    ):
        pass
    assert caught.value.reason == "images_missing"


def test_the_weights_of_a_checkpoint_are_those_that_were_not_there_before(tmp_path: Path) -> None:
    (tmp_path / "weights-1.bin").touch()
    (tmp_path / "weights-1.json").touch()
    assert prefetch_module.staged_files(SimpleNamespace(staging_dir=str(tmp_path))) == {str(tmp_path / "weights-1.bin")}
    assert prefetch_module.staged_files(SimpleNamespace(staging_dir=None)) == set()
