# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plugin takes of vLLM is there, in the source of the release that is pinned.

A release that renames it fails here, not on a user's node. Only the source files that are looked at are fetched: the wheel
is a ZIP archive, and the configured index gives parts of a file.
"""

from __future__ import annotations

import ast
import tomllib
import zipfile
from functools import cache

import pytest
from project import ROOT
from wheels import wheel_at_index

PROFILE = ROOT / "roles" / "bundle" / "files" / "trees" / "vllm.toml"


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    name, version = tomllib.loads(PROFILE.read_text())["tree"]["requirement"].split("==")
    return wheel_at_index(name, version)


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def names(source: str) -> set[str]:
    """Everything that a source defines: `name`, `Class.name`, and `Class.self.name` for what its methods assign."""
    found: set[str] = set()
    for node in _tree(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        found |= {target.id for target in _targets(node) if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef):
                    found.add(f"{node.name}.{inner.name}")
                for target in _targets(inner):
                    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                        found.add(f"{node.name}.{target.value.id}.{target.attr}")
                    elif isinstance(target, ast.Name):
                        found.add(f"{node.name}.{target.id}")
    return found


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return [one for target in node.targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def parameters(source: str, method: str) -> list[str]:
    """The parameters of `Class.method`, in their order."""
    owner, name = method.split(".")
    for node in _tree(source).body:
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == name:
                    return [one.arg for one in (*inner.args.args, *inner.args.kwonlyargs)]
    return []


COMMUNICATORS = "vllm/distributed/device_communicators"
TAKEN = {
    f"{COMMUNICATORS}/custom_all_reduce.py": [
        *("CustomAllreduce.create_shared_buffer", "CustomAllreduce.free_shared_buffer", "CustomAllreduce.all_reduce"),
        *("CustomAllreduce.custom_all_reduce", "CustomAllreduce.register_graph_buffers"),
        *("CustomAllreduce.self.rank_data", "CustomAllreduce.self.buffer_ptrs", "CustomAllreduce.self.meta_ptrs"),
        *("CustomAllreduce.self.max_size", "CustomAllreduce.self.disabled", "CustomAllreduce.self.device"),
    ],
    f"{COMMUNICATORS}/cuda_communicator.py": [
        *("CudaCommunicator.self.pynccl_comm", "CudaCommunicator.self.ca_comm", "CudaCommunicator.self.symm_mem_comm"),
        *("CudaCommunicator.self.fi_ar_comm", "CudaCommunicator.all_gather"),
    ],
    f"{COMMUNICATORS}/base_device_communicator.py": [
        *("DeviceCommunicatorBase.self.device_group", "DeviceCommunicatorBase.self.all2all_manager"),
        *("DeviceCommunicatorBase.self.rank_in_group", "DeviceCommunicatorBase.self.cpu_group"),
    ],
    f"{COMMUNICATORS}/all2all.py": ["AgRsAll2AllManager"],
    f"{COMMUNICATORS}/pynccl_allocator.py": ["is_symmetric_memory_enabled"],
    f"{COMMUNICATORS}/pynccl.py": [
        *("PyNcclCommunicator.self.comm", "PyNcclCommunicator.self.unique_id", "PyNcclCommunicator.self.nccl"),
        *(
            "PyNcclCommunicator.self.available",
            "PyNcclCommunicator.self.disabled",
            "PyNcclCommunicator.self.world_size",
        ),
        *("PyNcclCommunicator.self.rank", "PyNcclCommunicator.self.device", "PyNcclCommunicator.all_gather"),
    ],
    f"{COMMUNICATORS}/pynccl_wrapper.py": [
        *("NCCLLibrary.ncclGetUniqueId", "NCCLLibrary.ncclCommInitRank", "NCCLLibrary.ncclCommDestroy"),
        *("NCCLLibrary.ncclCommAbort", "NCCLLibrary.ncclAllReduce", "ncclDataTypeEnum.from_torch"),
        *("ncclRedOpTypeEnum.from_torch", "buffer_type", "cudaStream_t", "ncclUniqueId._fields_"),
    ],
    "vllm/distributed/parallel_state.py": [
        *("_groups", "get_world_group", "GroupCoordinator.make_sibling_device_group"),
        *("GroupCoordinator.self.device_group", "GroupCoordinator.self.device_communicator"),
        *("GroupCoordinator.self.cpu_group", "GroupCoordinator.self.unique_name", "GroupCoordinator.self.world_size"),
    ],
    "vllm/device_allocator/sleep_mode_backend.py": [
        *(
            "CuMemBackend.suspend",
            "CuMemBackend.resume",
            "SleepModeBackendFactory._registry",
            "SleepModeBackend.self._state",
        ),
    ],
    "vllm/device_allocator/cumem.py": [
        *(
            "CuMemAllocator.get_instance",
            "CuMemAllocator.self.allocator_and_pools",
            "CuMemAllocator.self.pointer_to_data",
        ),
        *("CuMemAllocator.self.python_malloc_callback", "CuMemAllocator.self.python_free_callback"),
        *("get_pluggable_allocator", "create_and_map", "unmap_and_release", "CuMemAllocator.default_tag"),
    ],
    "vllm/platforms/interface.py": [
        "Platform.get_global_graph_pool",
        "Platform.get_device_communicator_cls",
        "Platform.is_cuda",
    ],
    # what keeps the answers of the measurement apart from earlier ones
    "vllm/entrypoints/openai/completion/protocol.py": ["CompletionRequest.cache_salt"],
    "vllm/v1/worker/gpu_worker.py": ["Worker.sleep", "Worker.wake_up"],
}


@pytest.mark.parametrize("file", TAKEN)
def test_what_the_plugin_takes_is_there(wheel: zipfile.ZipFile, file: str) -> None:
    assert set(TAKEN[file]) - names(wheel.read(file).decode()) == set()


def test_methods_that_are_replaced_are_called_as_ours_are(wheel: zipfile.ZipFile) -> None:
    source = wheel.read(f"{COMMUNICATORS}/custom_all_reduce.py").decode()
    assert parameters(source, "CustomAllreduce.__init__") == ["self", "group", "device", "max_size", "symm_mem_enabled"]
    assert parameters(source, "CustomAllreduce.create_shared_buffer") == ["size_in_bytes", "group", "uncached"]
    assert parameters(source, "CustomAllreduce.free_shared_buffer") == ["pointers", "group", "rank"]
    assert parameters(source, "CustomAllreduce.all_reduce") == ["self", "inp", "out", "registered"]
    assert "self.create_shared_buffer(" in source, "through the instance, which is ours"
    wrapper = wheel.read(f"{COMMUNICATORS}/pynccl_wrapper.py").decode()
    assert parameters(wrapper, "NCCLLibrary.ncclCommInitRank") == ["self", "world_size", "unique_id", "rank"]
    assert parameters(wrapper, "NCCLLibrary.ncclAllReduce")[1:] == [
        *("sendbuff", "recvbuff", "count", "datatype", "op", "comm", "stream"),
    ]


def test_the_communicator_looks_its_classes_up_when_it_is_made(wheel: zipfile.ZipFile) -> None:
    """Ours are put in their modules' places just then."""
    source = wheel.read(f"{COMMUNICATORS}/cuda_communicator.py").decode()
    [made] = [
        inner
        for node in _tree(source).body
        if isinstance(node, ast.ClassDef) and node.name == "CudaCommunicator"
        for inner in node.body
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"
    ]
    imported = {alias.name for node in ast.walk(made) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {"CustomAllreduce", "PyNcclCommunicator"} <= imported


def test_memory_without_a_tag_is_that_of_the_graphs(wheel: zipfile.ZipFile) -> None:
    assert 'default_tag: str = "default"' in wheel.read("vllm/device_allocator/cumem.py").decode()


def body(source: str, path: str) -> str:
    """The source of `function` or `Class.method`."""
    nodes: list[ast.stmt] = _tree(source).body
    found: ast.stmt | None = None
    for name in path.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next(node for node in nodes if isinstance(node, kinds) and node.name == name)
        nodes = found.body
    assert found is not None
    return ast.unparse(found)


def read(wheel: zipfile.ZipFile, path: str) -> str:
    return wheel.read(f"vllm/{path}").decode()


def test_workers_take_the_method_that_seeds_them_anew(wheel: zipfile.ZipFile) -> None:
    assert "'--worker-extension-cls'" in body(read(wheel, "engine/arg_utils.py"), "EngineArgs.add_cli_args")
    taken = body(read(wheel, "v1/worker/worker_base.py"), "WorkerWrapperBase.init_worker")
    assert "worker_class.__bases__ + (worker_extension_cls,)" in taken
    # the worker has no attribute of that name, or vLLM would not start
    for path in ("v1/worker/worker_base.py", "v1/worker/gpu_worker.py"):
        assert "gpuckpt" not in read(wheel, path)


def test_a_request_calls_it_in_all_workers(wheel: zipfile.ZipFile) -> None:
    router = read(wheel, "entrypoints/serve/dev/rpc/api_router.py")
    asked = body(router, "collective_rpc")
    assert "@router.post('/collective_rpc')" in asked
    assert "body.get('method')" in asked
    assert "args=tuple(args)" in asked
    # in development mode alone, which vars/vllm.yml sets
    assert "if envs.VLLM_SERVER_DEV_MODE:" in body(read(wheel, "entrypoints/openai/api_server.py"), "build_app")
    assert ".dev.rpc.api_router" in body(read(wheel, "entrypoints/serve/__init__.py"), "register_vllm_dev_api_routers")
    # every engine of a data parallel server, too
    engines = body(read(wheel, "v1/engine/core_client.py"), "DPLBAsyncMPClient.call_utility_async")
    assert "for engine in self.core_engines" in engines


def test_what_is_drawn_comes_from_what_is_seeded(wheel: zipfile.ZipFile) -> None:
    seeded = body(read(wheel, "utils/torch_utils.py"), "set_random_seed")
    for source in ("random.seed(seed)", "np.random.seed(seed)", "torch.manual_seed(seed)", "manual_seed_all(seed)"):
        assert source in seeded
    # all workers alike: their rank is not in it
    for method in ("init_device", "compile_or_warm_up_model"):
        assert "set_random_seed(self.model_config.seed)" in body(
            read(wheel, "v1/worker/gpu_worker.py"), f"Worker.{method}"
        )
    # model runner V2 draws a seed for each request, V1 from the GPU's default generator
    assert "np.random.randint(" in body(read(wheel, "v1/worker/gpu/sample/states.py"), "SamplingStates.add_request")
    assert ".exponential_()" in read(wheel, "v1/sample/ops/topk_topp_sampler.py")


def test_identities_of_requests_are_the_kernels(wheel: zipfile.ZipFile) -> None:
    assert "random_uuid()" in body(read(wheel, "v1/engine/input_processor.py"), "InputProcessor.assign_request_id")
    assert "uuid.uuid4()" in body(read(wheel, "utils/__init__.py"), "random_uuid")
