# SPDX-License-Identifier: GPL-3.0-or-later
"""One rank of a server with two groups of GPUs, on the fake driver: lets go of what it shares, and makes it anew.

PyTorch, vLLM and NCCL are FAKES here. What is tested is the plugin's own code between them (groups.py, communicator.py).
The processes, the memory and the descriptors that change hands are real.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from rank import SIZE, Group

CONTEXT = 0xC0FFEE
NCCL_BYTES = 128


class FakeNccl:
    """Counts what a rank asks of NCCL; FAKE_NCCL_REFUSES names a call that fails."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.made = 0

    def _refuse(self, name: str) -> None:
        if os.environ.get("FAKE_NCCL_REFUSES") == name:
            raise RuntimeError(f"{name} failed")

    def ncclGetUniqueId(self) -> Any:
        return SimpleNamespace(internal=os.urandom(NCCL_BYTES))

    def ncclCommInitRank(self, count: int, unique_id: Any, rank: int) -> str:
        self._refuse("ncclCommInitRank")
        self.made += 1
        name = f"{bytes(unique_id.internal).hex()[:8]}"
        self.live.add(name)
        return name

    def ncclCommDestroy(self, comm: str) -> None:
        self._refuse("ncclCommDestroy")
        self.live.remove(comm)

    def ncclCommAbort(self, comm: str) -> None:
        self.live.discard(comm)


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_ubyte * NCCL_BYTES)]


def module(name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(attributes)
    sys.modules[name] = made
    return made


def install_fakes(group: Group) -> Any:
    """Fakes of the modules that the plugin imports; returns that of vLLM's parallel state."""
    torch = module(
        "torch",
        cuda=SimpleNamespace(synchronize=lambda: None, is_current_stream_capturing=lambda: False),
        accelerator=SimpleNamespace(device_index=lambda index: nullcontext()),
        device=lambda name: name,
        Tensor=object,
    )
    names: dict[Any, str] = {}
    torch.distributed = SimpleNamespace(
        distributed_c10d=SimpleNamespace(_world=SimpleNamespace(pg_names=names)),
        destroy_process_group=lambda one: setattr(one, "is_destroyed", True),
    )
    base = "vllm.distributed.device_communicators"
    logger = SimpleNamespace(info=lambda *a: None, error=lambda *a: None, warning=lambda *a: None)
    for name in ("vllm", "vllm.distributed"):
        module(name)
    module(
        base,
        custom_all_reduce=module(f"{base}.custom_all_reduce", CustomAllreduce=type("CustomAllreduce", (), {})),
        pynccl=module(f"{base}.pynccl", PyNcclCommunicator=type("PyNcclCommunicator", (), {})),
    )
    module(f"{base}.cuda_communicator", CudaCommunicator=type("CudaCommunicator", (), {}))
    module(f"{base}.pynccl_allocator", is_symmetric_memory_enabled=lambda: os.environ.get("FAKE_SYMMETRIC") == "1")
    module("vllm.logger", init_logger=lambda name: logger)
    state = module(
        "vllm.distributed.parallel_state", _groups={}, get_world_group=lambda: SimpleNamespace(cpu_group=None)
    )
    sys.modules["vllm.distributed"].parallel_state = state  # type: ignore[attr-defined]
    module("gpuckpt_vllm.gloo", GlooRanks=lambda one: group)
    return state


class ProcessGroupNCCL:
    """What PyTorch keeps for a group; it has a communicator once it was used."""

    def __init__(self, connected: bool) -> None:
        self.connected = connected

    def _is_initialized(self) -> bool:
        return self.connected


class ProcessGroup:
    """A group of PyTorch."""

    def __init__(self, connected: bool) -> None:
        self.backend = ProcessGroupNCCL(connected)
        self.is_destroyed = False

    def _get_backend(self, device: Any) -> ProcessGroupNCCL:
        return self.backend


class Coordinator:
    """vLLM's coordinator of a group."""

    world_size = 2

    def __init__(self, name: str, communicator: Any, connected: bool) -> None:
        self.unique_name = name
        self.device_communicator = communicator
        self.device_group = ProcessGroup(connected)

    def make_sibling_device_group(self) -> ProcessGroup:
        return ProcessGroup(connected=False)


def make_communicator(group: Group, nccl: FakeNccl) -> Any:
    """A communicator of the plugin's own classes, around fakes of their bases."""
    from gpuckpt_vllm import communicator as ours
    from gpuckpt_vllm.peers import PeerMemory, map_all

    made = object.__new__(ours.CheckpointCommunicator)
    made.cpu_group, made.symm_mem_comm, made.fi_ar_comm, made.all2all_manager = None, None, None, None
    made.ca_comm = object.__new__(ours.FixedAllReduce)
    made.ca_comm.memories = [PeerMemory(SIZE, group.rank, group.size)]
    map_all(made.ca_comm.memories, group)
    made.pynccl_comm = comm = object.__new__(ours.LatePynccl)
    comm.available, comm.disabled, comm.rank, comm.world_size = True, False, group.rank, group.size
    comm.nccl, comm.device, comm.unique_id = nccl, SimpleNamespace(index=0), UniqueId()
    comm._warm_up = lambda made: None
    comm.reconnect(group)
    comm.comm  # noqa: B018  (connects)
    return made


def main() -> None:
    rank, size, descriptor = (int(word) for word in sys.argv[1:])
    group = Group(rank, size, socket.socket(fileno=descriptor))
    state = install_fakes(group)
    from gpuckpt_vllm import communicator as ours
    from gpuckpt_vllm.driver import driver

    ours.NCCL_DELAY_S = 60.0
    driver().use_context(CONTEXT)
    nccl = FakeNccl()
    coordinators = [Coordinator(name, make_communicator(group, nccl), name == "tp:0") for name in ("tp:0", "ep:0")]
    alone = Coordinator("pp:0", None, connected=False)
    alone.world_size = 1
    for one in (*coordinators, alone):
        state._groups[one.unique_name] = lambda one=one: one
    from gpuckpt_vllm.groups import Groups

    groups = Groups()
    addresses = [one.device_communicator.ca_comm.memories[0].addresses for one in coordinators]
    for line in sys.stdin:
        word, *arguments = line.split()
        told: dict[str, Any] = {}
        try:
            if word in ("release", "rebuild"):
                getattr(groups, word)()
            elif word == "set":
                os.environ[arguments[0]] = arguments[1] if len(arguments) > 1 else ""
            elif word == "use-nccl":
                told["comms"] = [one.device_communicator.nccl.comm for one in coordinators]
            elif word == "end":
                os._exit(1)
        except Exception as error:
            told["error"] = f"{type(error).__name__}: {error}"
        told["mapped"] = Path("/proc/self/maps").read_text().count("fake GPU memory")
        told["live"], told["made"] = len(nccl.live), nccl.made
        told["destroyed"] = [one.device_group.is_destroyed for one in coordinators]
        told["same"] = addresses == [one.device_communicator.ca_comm.memories[0].addresses for one in coordinators]
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
