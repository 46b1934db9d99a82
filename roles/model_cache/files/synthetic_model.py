#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a model of a known architecture with random weights: the size and the work of the real one, without a hub.

The weights depend on the seed alone, so every node makes the same file. Their spread is chosen so that greedy decoding
wanders over the vocabulary. A model whose answer is one token over and over would not notice damaged memory.

    synthetic_model.py --architecture qwen2-1.5b --seed 1 DEST

Needs torch, transformers, tokenizers and safetensors. DEST appears in one step, with DEST/gpuckpt-model.json written last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Family:
    """What models of one kind share, whatever their size."""

    # classes of transformers
    config: str
    model: str
    rope_theta: float
    # lm_head is the matrix of the embeddings
    tied: bool


QWEN2 = Family("Qwen2Config", "Qwen2ForCausalLM", rope_theta=1_000_000.0, tied=True)
LLAMA = Family("LlamaConfig", "LlamaForCausalLM", rope_theta=500_000.0, tied=False)

ARCHITECTURES = {
    "llama-3.1-8b": (
        LLAMA,
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "qwen2-1.5b": (
        QWEN2,
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
    ),
    "qwen2-tiny": (
        QWEN2,
        {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
        },
    ),
}
MAX_POSITIONS = 32768
END_OF_TEXT = "<|endoftext|>"
# Standard deviation of matrices over 1/sqrt(columns), and of embeddings: see the module's text.
MATRIX_GAIN = 2.0
EMBEDDING_STD = 0.02
# Rows of the embedding differ in length (log-normal), so that the best token leads by more than rounding errors.
EMBEDDING_LOG_SPREAD = 0.6
# A row for each token. Logits come from lm_head, so where it is a matrix of its own, its rows differ as the embedding's do.
ROW_PER_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
# Tensors in the making. Each is twice its size for a while (float32): 8 GB for sixteen of the largest model.
THREADS = 16
MARK = "gpuckpt-model.json"
# Of check_model.py: name of a file → SHA-256, size in bytes and time of change in ns when it was last compared.
STAMP = ".gpuckpt-compared.json"


def make_config(architecture: str) -> Any:
    """Returns the transformers configuration of an architecture; its last token ends a text."""
    import transformers

    family, shape = ARCHITECTURES[architecture]
    last = shape["vocab_size"] - 1
    return getattr(transformers, family.config)(
        **shape,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=family.rope_theta,
        tie_word_embeddings=family.tied,
        bos_token_id=last,
        eos_token_id=last,
        architectures=[family.model],
        dtype="bfloat16",
    )


def make_tensor(name: str, shape: tuple[int, ...], seed: int) -> Any:
    """Returns one tensor (bfloat16), from a generator of its own."""
    import torch

    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.zeros(shape, dtype=torch.bfloat16)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(key)
    values = torch.randn(shape, generator=generator)
    if name in ROW_PER_TOKEN:
        values *= EMBEDDING_STD * torch.exp(EMBEDDING_LOG_SPREAD * torch.randn((shape[0], 1), generator=generator))
    else:
        values *= MATRIX_GAIN / shape[1] ** 0.5
    return values.to(torch.bfloat16)


def make_weights(config: Any, seed: int) -> dict[str, Any]:
    """Returns the named tensors, the same whatever the order and the number of threads."""
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    # Normals come from one thread a tensor, with the interpreter's lock released. The tensors are what is shared out, and
    # torch's own threads would only be in the way. The largest begin, so that none is left to the end.
    torch.set_num_threads(1)
    largest_first = sorted(shapes, key=lambda name: -math.prod(shapes[name]))
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        made = pool.map(lambda name: make_tensor(name, shapes[name], seed), largest_first)
        return dict(zip(largest_first, made))


def make_tokenizer(vocab_size: int) -> Any:
    """Returns a tokenizer of bytes: 256 entries that encode any text, filler up to the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    filler = [f"w{number}" for number in range(vocab_size - 1 - len(alphabet))]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *filler, END_OF_TEXT])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, model_max_length=MAX_POSITIONS
    )


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_model(architecture: str, seed: int, folder: Path) -> None:
    """Writes configuration, tokenizer and weights into `folder`, and what they are into gpuckpt-model.json."""
    from safetensors.torch import save_file

    config = make_config(architecture)
    config.save_pretrained(folder)
    make_tokenizer(config.vocab_size).save_pretrained(folder)
    save_file(make_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    compared = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        state = path.stat()
        compared[path.name] = [sha256_of(path), state.st_size, state.st_mtime_ns]
    # To read gigabytes again at once would compare the page cache with itself; a later change is noticed by size and time.
    (folder / STAMP).write_text(json.dumps(compared, indent=1) + "\n")
    digests = {name: digest for name, (digest, *_) in compared.items()}
    mark = {"source": "synthetic", "architecture": architecture, "seed": seed, "sha256": digests}
    (folder / MARK).write_text(json.dumps(mark, indent=1) + "\n")


def is_complete(folder: Path, architecture: str, seed: int) -> bool:
    """Says whether `folder` holds this model already; sizes and digests are the verify phase's to compare."""
    try:
        mark = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return False
    return bool(mark.get("architecture") == architecture and mark.get("seed") == seed)


def main() -> int:
    """Writes the model unless it is there; prints {"changed": …}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("dest", type=Path)
    arguments = parser.parse_args()
    dest = arguments.dest
    if is_complete(dest, arguments.architecture, arguments.seed):
        print(json.dumps({"changed": False}))
        return 0
    if dest.exists() and any(dest.iterdir()):
        print(f"synthetic_model: {dest} holds another model; remove it or name another folder", file=sys.stderr)
        return 1
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        write_model(arguments.architecture, arguments.seed, scratch)
        scratch.chmod(0o755)
        if dest.exists():
            dest.rmdir()
        scratch.replace(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps({"changed": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
