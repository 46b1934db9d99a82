# SPDX-License-Identifier: GPL-3.0-or-later
"""The sleep levels for vLLM, on a fake allocator: "device memory" is host memory here, copied by memmove.

Fakes stand for torch, for vLLM's allocator and for the CUDA runtime, none of which run without a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[3] / "roles" / "inference_server" / "files" / "vllm_plugin"
SIZE = 3 * 4096
HOST_TO_DEVICE = 1


@dataclass
class Allocation:
    """What vLLM keeps of one allocation; `handle` is (device, bytes, pointer, physical memory)."""

    handle: tuple[int, int, int, int]
    tag: str
    cpu_backup_tensor: Any = None
    is_asleep: bool = False


@dataclass
class FakeGpu:
    """Addresses stay, contents go when memory is released: as with the driver's virtual memory interface."""

    buffers: dict[int, ctypes.Array[ctypes.c_char]] = field(default_factory=dict)
    pointer_to_data: dict[int, Allocation] = field(default_factory=dict)
    mapped: set[int] = field(default_factory=set)
    registered: dict[int, int] = field(default_factory=dict)
    registrations: int = 0
    copy_status: int = 0
    slept: list[int] = field(default_factory=list)

    def allocate(self, tag: str, content: bytes) -> int:
        buffer = ctypes.create_string_buffer(content, len(content))
        pointer = ctypes.addressof(buffer)
        self.buffers[pointer] = buffer
        self.pointer_to_data[pointer] = Allocation((0, len(content), pointer, 0), tag)
        self.mapped.add(pointer)
        return pointer

    def unmap(self, handle: tuple[int, int, int, int]) -> None:
        assert handle[2] in self.mapped, "released twice"
        ctypes.memset(handle[2], 0xEE, handle[1])
        self.mapped.remove(handle[2])

    def map(self, handle: tuple[int, int, int, int]) -> None:
        assert handle[2] not in self.mapped, "mapped twice"
        self.mapped.add(handle[2])

    def cudaHostRegister(self, address: int, size: int, _flags: int) -> int:  # noqa: N802  (the runtime's name)
        self.registered[address] = size
        self.registrations += 1
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802  (the runtime's name)
        del self.registered[address]
        return 0

    def cudaMemcpyAsync(  # noqa: N802  (the runtime's name)
        self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int, _stream: ctypes.c_void_p
    ) -> int:
        on_host = source.value if kind == HOST_TO_DEVICE else to.value
        assert any(start <= on_host < start + length for start, length in self.registered.items()), "not pinned"
        ctypes.memmove(to, source, size.value)
        return self.copy_status

    def content(self, pointer: int) -> bytes:
        return ctypes.string_at(pointer, self.pointer_to_data[pointer].handle[1])


def module(name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(attributes)
    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGpu]:
    fake = FakeGpu()

    class CuMemBackend:
        """vLLM's own backend: it only notes what it was asked for."""

        def __init__(self) -> None:
            self._state = "RUNNING"

        def suspend(self, level: int = 1) -> None:
            fake.slept.append(level)

    factory = SimpleNamespace(_registry={"cumem": lambda: CuMemBackend})
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    cuda = SimpleNamespace(
        cudart=lambda: fake,
        empty_cache=lambda: None,
        current_device=lambda: 0,
        set_device=lambda _device: None,
        Stream=lambda: stream,
    )
    runtime = SimpleNamespace(lib=fake, cudaMemcpy=lambda to, source, size: ctypes.memmove(to, source, size))
    vllm = "vllm.device_allocator"
    for fake_module in (
        module("torch", cuda=cuda),
        module("vllm"),
        module(vllm, get_mem_allocator_instance=lambda: fake),
        module(f"{vllm}.cumem", create_and_map=fake.map, unmap_and_release=fake.unmap),
        module(
            f"{vllm}.sleep_mode_backend",
            CuMemBackend=CuMemBackend,
            SleepModeBackend=CuMemBackend,
            SleepModeBackendFactory=factory,
        ),
        module("vllm.distributed"),
        module("vllm.distributed.device_communicators"),
        module("vllm.distributed.device_communicators.cuda_wrapper", CudaRTLibrary=lambda: runtime),
        module("vllm.logger", init_logger=logging.getLogger),
    ):
        monkeypatch.setitem(sys.modules, fake_module.__name__, fake_module)
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("GPUCKPT_STAGING_DIR", str(tmp_path))
    yield fake
    for name in [name for name in sys.modules if name.startswith("gpuckpt_vllm")]:
        del sys.modules[name]


def backend() -> Any:
    plugin = importlib.import_module("gpuckpt_vllm")
    plugin.register()
    return plugin.SleepModeBackendFactory._registry["cumem"]()()


def contents(count: int) -> list[bytes]:
    return [bytes([index + 1]) * SIZE for index in range(count)]


def test_kv_drop_leaves_the_weights_where_they_are(gpu: FakeGpu) -> None:
    weights, cache = gpu.allocate("weights", b"w" * SIZE), gpu.allocate("kv_cache", b"k" * SIZE)
    sleeping = backend()
    sleeping.suspend(3)
    assert gpu.mapped == {weights}
    assert gpu.content(weights) == b"w" * SIZE
    sleeping.resume()
    assert gpu.mapped == {weights, cache}


def test_staged_weights_come_back_byte_for_byte(gpu: FakeGpu, tmp_path: Path) -> None:
    pointers = [gpu.allocate("weights", content) for content in contents(5)]
    gpu.allocate("kv_cache", b"k" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    assert gpu.mapped == set()
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [5 * SIZE]
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == contents(5)
    assert (gpu.registrations, gpu.registered) == (2, {}), (
        "buffers for the way out and for the way back, none left pinned"
    )


def test_weights_larger_than_all_buffers_come_back(gpu: FakeGpu) -> None:
    """An odd size, so that no piece boundary is an allocation's, and more pieces than there are buffers."""
    content = random.Random(4).randbytes((19 << 22) + 12345)
    pointers = [gpu.allocate("weights", content), gpu.allocate("weights", content[::-1])]
    sleeping = backend()
    sleeping.suspend(4)
    sleeping.resume()
    assert [gpu.content(pointer) for pointer in pointers] == [content, content[::-1]]


def test_a_copy_that_fails_is_an_error_and_leaves_nothing_pinned(gpu: FakeGpu) -> None:
    gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    gpu.copy_status = 719
    with pytest.raises(RuntimeError, match=r"copying the staged weights failed: CUDA runtime error 719"):
        sleeping.resume()
    assert gpu.registered == {}


def test_a_second_sleep_writes_a_file_of_its_own(gpu: FakeGpu, tmp_path: Path) -> None:
    pointer = gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    for _ in range(2):
        sleeping.suspend(4)
        sleeping.resume()
    assert len(list(tmp_path.iterdir())) == 2
    assert gpu.content(pointer) == b"w" * SIZE


def test_waking_by_tag_leaves_the_rest_asleep(gpu: FakeGpu) -> None:
    weights, cache = gpu.allocate("weights", b"w" * SIZE), gpu.allocate("kv_cache", b"k" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    sleeping.resume(["weights"])
    assert gpu.mapped == {weights}
    sleeping.resume(["kv_cache"])
    assert gpu.mapped == {weights, cache}


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_lost_weights_are_an_error_that_names_the_file(gpu: FakeGpu, tmp_path: Path, damage: str) -> None:
    gpu.allocate("weights", b"w" * SIZE)
    sleeping = backend()
    sleeping.suspend(4)
    (staged,) = tmp_path.iterdir()
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
