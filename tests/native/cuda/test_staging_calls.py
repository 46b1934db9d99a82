# SPDX-License-Identifier: GPL-3.0-or-later
"""The staging library knows every call of CUDA's header that can use memory of the GPU.

A header with a new one fails here: the call would pass the library's gate by, and use memory that is put aside.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT
from wheels import wheel_at_index

STAGING = ROOT / "native/staging"
HEADER = ("nvidia-cuda-runtime", "13.5.37", "nvidia/cu13/include/cuda.h")
# The names that programs are linked with, those of per-thread default streams, and those of older programs
VIEWS = [[], ["-DCUDA_API_PER_THREAD_DEFAULT_STREAM"], ["-D__CUDA_API_VERSION_INTERNAL"]]
DECLARATION = re.compile(r"\bCUresult\s+(\w+)\s*\(([^;{}]*?)\)\s*;", re.S)
USES_MEMORY = re.compile(
    r"\b(CUstream|CUdeviceptr|CUDA_MEMCPY\w*|CUgraphExec|CUlaunchConfig|CUgraphNodeParams|CUDA_\w+_NODE_PARAMS\w*)\b"
    r"|^(cuLaunch|cuMemcpy|cuMemset)"
)
# Calls that need no gate, and why
FREE = {
    "only asks, waits, or makes a stream": r"cuStream(Create|Destroy|Copy|Set|Get|Is|Query|Synchronize)\w*"
    r"|cuGreenCtxStreamCreate|cuOccupancy\w+|cuGraph\w*Get\w+|cuTexRefGet\w+|cuMemGetAccess|cuMemGetLocationInfo"
    r"|cuMemRangeGetAttributes?",
    "orders work that has passed the gate": r"cuEventRecord\w*|cuStreamWaitEvent(_ptsz)?|cuGraphExecEvent\w+"
    r"|cuGraph\w*ExternalSemaphores\w+",
    "runs the program's own code": r"cuStreamAddCallback(_ptsz)?|cuLaunchHostFunc\w*|cuGraph\w*HostNode\w*",
    "is about memory that is never ours": r"cu(Module|Library)Get\w+|cuMemHostGetDevicePointer\w*|cuMemAllocManaged"
    r"|cuMem(AddressReserve|AddressFree|Map|Unmap|SetAccess)|cuMemPool(Export|Import)Pointer"
    r"|cuIpc(Open|Close)MemHandle\w*|cuExternalMemoryGetMappedBuffer|cuGraphics\w+",
    "ends something": r"cuGraphExecDestroy",
}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUDA's header, out of the wheel that is pinned above."""
    name, version, member = HEADER
    file = tmp_path_factory.mktemp("cuda") / "cuda.h"
    file.write_bytes(wheel_at_index(name, version).read(member))
    return file


@pytest.fixture(scope="module")
def declared(header: Path) -> dict[str, str]:
    """The parameters of every function, by the name that the driver's library exports."""
    found: dict[str, str] = {}
    for view in VIEWS:
        text = subprocess.run(["gcc", "-E", "-P", *view, header], check=True, capture_output=True, text=True).stdout
        found.update((name, " ".join(parameters.split())) for name, parameters in DECLARATION.findall(text))
    assert len(found) > 600
    return found


def table() -> dict[str, int]:
    """The calls that pass the gate, with the number of their parameters."""
    lines = re.findall(
        r"^(?:CALL|BEGINS_CAPTURE|ENDS_CAPTURE)\((\w+), (\d+)\)$", (STAGING / "calls.h").read_text(), re.M
    )
    assert len(lines) == len({name for name, _ in lines}), "each stands there once"
    return {name: int(count) for name, count in lines}


def own() -> set[str]:
    """The functions that the library has a version of its own of."""
    return set(re.findall(r"FUNCTION\((cu\w+)\)", (STAGING / "entries.h").read_text()))


def guarded(declared: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Every function that uses memory of the GPU, with the number of its parameters."""
    free = re.compile("|".join(FREE.values()))
    for name, parameters in declared.items():
        # of the first CUDA, when addresses had 32 bits
        if "CUdeviceptr_v1" in parameters or re.search(r"CUDA_MEMCPY\w*_v1", parameters):
            continue
        if (USES_MEMORY.search(name) or USES_MEMORY.search(parameters)) and not free.fullmatch(name):
            yield name, parameters.count(",") + 1


def test_every_call_that_uses_memory_of_the_gpu_passes_the_gate(declared: dict[str, str]) -> None:
    known = table()
    missing = {name: count for name, count in guarded(declared) if name not in known and name not in own()}
    assert missing == {}, "add them to native/staging/calls.h, or here with a reason"


def test_the_table_has_the_right_numbers_of_parameters(declared: dict[str, str]) -> None:
    numbers = {name: parameters.count(",") + 1 for name, parameters in declared.items()}
    assert table() == {name: numbers[name] for name in table()}


def test_own_functions_are_those_of_the_header(declared: dict[str, str]) -> None:
    assert own() - declared.keys() == set()


def test_captures_are_seen(declared: dict[str, str]) -> None:
    text = (STAGING / "calls.h").read_text()
    begin = {name for name in table() if re.match(r"cuStreamBegin(Rec|C)apture", name)}
    assert begin == set(re.findall(r"^BEGINS_CAPTURE\((\w+),", text, re.M))
    assert {name for name in table() if name.startswith("cuStreamEndCapture")} == set(
        re.findall(r"^ENDS_CAPTURE\((\w+),", text, re.M)
    )


def test_the_library_needs_no_newer_c_library_than_the_programs_have(patched_build) -> None:
    """It is loaded into containers, too."""
    library: Path = patched_build.home / "lib/libgpuckpt_staging.so"
    symbols = subprocess.run(["objdump", "-T", library], check=True, capture_output=True, text=True).stdout
    versions = {tuple(map(int, found)) for found in re.findall(r"\bGLIBC_(\d+)\.(\d+)\b", symbols)}
    assert max(versions) <= (2, 34)
    assert "stdc++" not in subprocess.run(["ldd", library], check=True, capture_output=True, text=True).stdout


# What our own declarations of CUDA's types and numbers have to agree with
LAYOUT = """
#include <stddef.h>
#include <stdio.h>
#define SHOW(_what) printf(#_what "=%ld\\n", (long)(_what))
int main(void)
{
	SHOW(sizeof(CUdeviceptr));
	SHOW(sizeof(CUmemGenericAllocationHandle));
	SHOW(sizeof(CUuuid));
	SHOW(sizeof(CUmemAllocationProp));
	SHOW(offsetof(CUmemAllocationProp, type));
	SHOW(offsetof(CUmemAllocationProp, location));
	SHOW(offsetof(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable));
	SHOW(sizeof(CUmemAccessDesc));
	SHOW(offsetof(CUmemAccessDesc, location.id));
	SHOW(offsetof(CUmemAccessDesc, flags));
	NUMBERS
	return 0;
}
"""


def shown(folder: Path, include: str, flags: list[str], numbers: str) -> str:
    """What a program prints that takes the types and numbers from one header."""
    source, program = folder / "layout.c", folder / "layout"
    source.write_text(f"#include {include}\n{LAYOUT.replace('NUMBERS', numbers)}")
    subprocess.run(["gcc", "-w", *flags, source, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def test_types_and_numbers_are_those_of_the_header(header: Path, tmp_path: Path) -> None:
    ours = (STAGING / "cuda_types.h").read_text() + (ROOT / "native/cuda/gpuckpt_cuda_abi.h").read_text()
    names = sorted(set(re.findall(r"^\t(CU(?:DA)?_[A-Z0-9_]+) = \d+,", ours, re.M)))
    assert len(names) > 25
    numbers = "\n".join(f"\tSHOW({name});" for name in names)
    flags = [f"-I{STAGING}", f"-I{ROOT / 'native/cuda'}"]
    theirs = shown(tmp_path, f'"{header}"', [], numbers)
    assert shown(tmp_path, '"cuda_types.h"', flags, numbers) == theirs


def parameters_of(text: str) -> dict[str, int]:
    """Functions that we call ourselves, with the number of parameters in our declaration."""
    found = re.findall(r"FUNCTION\((cu\w+), \(([^()]*)\)\)", text)
    return {name: 0 if parameters == "void" else parameters.count(",") + 1 for name, parameters in found}


def test_functions_that_we_call_have_the_headers_parameters(declared: dict[str, str]) -> None:
    ours = parameters_of((STAGING / "driver.h").read_text())
    assert len(ours) > 40
    theirs = {name: 0 if declared[name] in ("", "void") else declared[name].count(",") + 1 for name in ours}
    assert ours == theirs
