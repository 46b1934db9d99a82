#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a small model of Llama's architecture with random weights in GGUF format, the same for the same seed.

    synthetic_gguf.py FILE [--seed 1]

The file appears whole or not at all. 57 million parameters in 16 bits are about 115 MB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, HIDDEN = 512, 8, 8, 1408
WORDS, CONTEXT = 31744, 1024
# that of published models: what each layer adds stays small next to what goes through
DEVIATION = 0.02
Array = np.ndarray


def tokens() -> tuple[list[str], list[int]]:
    """The vocabulary: three that have a meaning, each byte, and words that have none; with their types."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{number}" for number in range(WORDS)]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    types += [gguf.TokenType.BYTE] * len(pieces) + [gguf.TokenType.NORMAL] * len(words)
    return special + pieces + words, types


def write(path: Path, seed: int) -> None:
    """Writes the model."""
    names, types = tokens()
    draw = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return (draw.standard_normal(shape, dtype=np.float32) * DEVIATION).astype(np.float16)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random-100m")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(names))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * len(names))
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", weights(len(names), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("output.weight", weights(len(names), WIDTH))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{norm}.weight", np.ones(WIDTH, dtype=np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}.{part}.weight", weights(WIDTH, WIDTH))
        for part in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"{block}.{part}.weight", weights(HIDDEN, WIDTH))
        writer.add_tensor(f"{block}.ffn_down.weight", weights(WIDTH, HIDDEN))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a small random model in GGUF format.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    new = options.file.with_name(f".{options.file.name}.new")
    write(new, options.seed)
    new.rename(options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
