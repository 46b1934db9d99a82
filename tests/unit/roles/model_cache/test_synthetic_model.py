# SPDX-License-Identifier: GPL-3.0-or-later
"""Models with random weights, and what the comparison makes of them.

Fakes stand for torch (numpy underneath), transformers and safetensors, which no controller has. The names and shapes of the
parameters are those that transformers 5.24 gives its Qwen2ForCausalLM and LlamaForCausalLM.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from project import ROOT

ROLE = ROOT / "roles" / "model_cache"
sys.path.insert(0, str(ROLE / "files"))

import check_model  # noqa: E402
import synthetic_model  # noqa: E402

TINY = synthetic_model.ARCHITECTURES["qwen2-tiny"][1]


class Values(np.ndarray):
    """An array that has the one method of a tensor that is used; its type stays float32."""

    def to(self, _dtype: str) -> Values:
        return self


def tensor(values: Any) -> Values:
    return np.asarray(values, dtype=np.float32).view(Values)


class Config(SimpleNamespace):
    """A configuration of transformers: what it was given."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(vars(self)))


class CausalLM:
    """A model of transformers: its parameters' names and shapes alone."""

    biased: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        self.config = config

    def named_parameters(self) -> Iterator[tuple[str, SimpleNamespace]]:
        for name, shape in self.shapes():
            yield name, SimpleNamespace(shape=shape)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        key_value = hidden // config.num_attention_heads * config.num_key_value_heads
        matrices = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        yield "model.embed_tokens.weight", (config.vocab_size, hidden)
        for layer in range(config.num_hidden_layers):
            for name, shape in matrices.items():
                yield f"model.layers.{layer}.{name}.weight", shape
                if name.endswith(self.biased):
                    yield f"model.layers.{layer}.{name}.bias", shape[:1]
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"model.layers.{layer}.{name}.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        if not config.tie_word_embeddings:
            yield "lm_head.weight", (config.vocab_size, hidden)


class Qwen2ForCausalLM(CausalLM):
    biased = ("q_proj", "k_proj", "v_proj")


def save_file(tensors: dict[str, Values], path: Path, metadata: dict[str, str]) -> None:
    with path.open("wb") as stream:
        stream.write(json.dumps([metadata, {name: tensors[name].shape for name in sorted(tensors)}]).encode())
        for name in sorted(tensors):
            stream.write(tensors[name].tobytes())


@pytest.fixture(autouse=True)
def _libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = {
        "bfloat16": "bfloat16",
        "device": lambda _name: nullcontext(),
        "set_num_threads": lambda _count: None,
        "Generator": lambda: SimpleNamespace(manual_seed=np.random.default_rng),
        "randn": lambda shape, generator: tensor(generator.standard_normal(shape)),
        "ones": lambda shape, dtype: tensor(np.ones(shape)),
        "zeros": lambda shape, dtype: tensor(np.zeros(shape)),
        "exp": np.exp,
    }
    transformers = {
        "Qwen2Config": Config,
        "LlamaConfig": Config,
        "Qwen2ForCausalLM": Qwen2ForCausalLM,
        "LlamaForCausalLM": type("LlamaForCausalLM", (CausalLM,), {}),
    }
    modules = {
        "torch": torch,
        "transformers": transformers,
        "safetensors": {},
        "safetensors.torch": {"save_file": save_file},
    }
    for name, attributes in modules.items():
        fake = ModuleType(name)
        fake.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, fake)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}\n"))
    monkeypatch.setattr(synthetic_model, "make_tokenizer", lambda _size: tokenizer)
    monkeypatch.setitem(synthetic_model.ARCHITECTURES, "llama-tiny", (synthetic_model.LLAMA, TINY))


def weights(architecture: str, seed: int = 1) -> dict[str, Values]:
    return synthetic_model.make_weights(synthetic_model.make_config(architecture), seed)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Calls the program; returns its exit status and what it printed last."""

    def call(architecture: str, seed: int = 1) -> tuple[int, Any]:
        program = ["synthetic_model.py", f"--architecture={architecture}", f"--seed={seed}", str(tmp_path / "model")]
        monkeypatch.setattr(sys, "argv", program)
        status = synthetic_model.main()
        return status, json.loads(capsys.readouterr().out or "null")

    return call


# Totals: what the hub says of meta-llama/Llama-3.1-8B and Qwen/Qwen2-1.5B.
@pytest.mark.parametrize(
    ("architecture", "model", "parameters"),
    [("llama-3.1-8b", "LlamaForCausalLM", 8_030_261_248), ("qwen2-1.5b", "Qwen2ForCausalLM", 1_543_714_304)],
)
def test_a_model_has_the_size_of_the_real_one(architecture: str, model: str, parameters: int) -> None:
    config = synthetic_model.make_config(architecture)
    assert config.architectures == [model]
    assert config.hidden_size // config.num_attention_heads == 128
    shapes = dict(getattr(sys.modules["transformers"], model)(config).shapes())
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


def test_a_llama_turns_positions_and_ends_texts_as_the_real_one_could() -> None:
    config = synthetic_model.make_config("llama-3.1-8b")
    assert (config.rope_theta, config.tie_word_embeddings, config.max_position_embeddings) == (500_000.0, False, 32768)
    assert config.eos_token_id == config.vocab_size - 1 == 128255


def test_the_role_offers_every_architecture() -> None:
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    offered = specs["main"]["options"]["model_cache_architecture"]["choices"]
    assert {*offered, "llama-tiny"} == set(synthetic_model.ARCHITECTURES)


def test_tied_embeddings_have_no_head_of_their_own() -> None:
    assert "lm_head.weight" not in weights("qwen2-tiny")


def test_a_head_of_its_own_is_made_as_the_embedding_is() -> None:
    made = weights("llama-tiny")
    head, embedding = made["lm_head.weight"], made["model.embed_tokens.weight"]
    assert not np.array_equal(head, embedding)
    for matrix in (head, embedding):
        lengths = np.log(np.linalg.norm(matrix, axis=1))
        assert np.std(lengths) == pytest.approx(synthetic_model.EMBEDDING_LOG_SPREAD, rel=0.1)
        expected = synthetic_model.EMBEDDING_STD * math.sqrt(matrix.shape[1])
        assert np.exp(np.mean(lengths)) == pytest.approx(expected, rel=0.1)


def test_norms_are_ones_biases_are_none_and_matrices_keep_what_goes_through_them() -> None:
    for name, values in weights("qwen2-tiny").items():
        if name.endswith("norm.weight"):
            assert np.all(values == 1), name
        elif name.endswith("bias"):
            assert np.all(values == 0), name
        elif "embed" not in name:
            expected = synthetic_model.MATRIX_GAIN / math.sqrt(values.shape[1])
            assert np.std(values) == pytest.approx(expected, rel=0.1), name


def test_a_tensor_depends_on_its_name_and_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    several = weights("llama-tiny")
    monkeypatch.setattr(synthetic_model, "THREADS", 1)
    one = weights("llama-tiny")
    assert {name: values.tobytes() for name, values in one.items()} == {
        name: values.tobytes() for name, values in several.items()
    }
    other = weights("llama-tiny", seed=2)
    matrices = [name for name, values in one.items() if values.ndim == 2]
    assert [name for name in matrices if np.array_equal(one[name], other[name])] == []
    assert len({one[name].tobytes()[:64] for name in matrices}) == len(matrices)


def test_a_model_appears_whole_and_once(make: Callable[..., Any], tmp_path: Path) -> None:
    assert make("llama-tiny") == (0, {"changed": True})
    mark = json.loads((tmp_path / "model" / "gpuckpt-model.json").read_text())
    assert (mark["architecture"], mark["seed"]) == ("llama-tiny", 1)
    assert sorted(mark["sha256"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert make("llama-tiny") == (0, {"changed": False})
    assert make("qwen2-tiny")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_new_model_is_not_read_again(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("llama-tiny")
    digests = json.loads((tmp_path / "model" / "gpuckpt-model.json").read_text())["sha256"]
    read: list[str] = []
    monkeypatch.setattr(check_model, "sha256_of", lambda path: read.append(path.name))
    assert check_model.problems(tmp_path / "model", digests) == []
    assert read == []


@pytest.mark.parametrize("damage", ["one byte", "cut short", "missing", "another was meant"])
def test_damage_is_noticed(make: Callable[..., Any], tmp_path: Path, damage: str) -> None:
    make("llama-tiny")
    digests = json.loads((tmp_path / "model" / "gpuckpt-model.json").read_text())["sha256"]
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "one byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut short":
        path.write_bytes(content[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        digests[path.name] = "0" * 64
    (problem,) = check_model.problems(tmp_path / "model", digests)
    assert problem.startswith("model.safetensors ")
