# SPDX-License-Identifier: GPL-3.0-or-later
"""The ranks of a group of PyTorch that talks over the CPU. Its connections outlive a checkpoint: CRIU restores them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from gpuckpt_vllm.ranks import MOST_BYTES, RankError

LIMIT_S = 60.0
LENGTH_BYTES = 2


class GlooRanks:
    """See ranks.Ranks."""

    def __init__(self, group: Any, limit_s: float = LIMIT_S) -> None:
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)
        self._group = group
        self._limit_s = limit_s

    def gather(self, word: bytes) -> list[bytes]:
        """What every rank says. Raises RankError when one says nothing in time."""
        said = [_packed(b"") for _ in range(self.size)]
        try:
            work = torch.distributed.all_gather(said, _packed(word), group=self._group, async_op=True)
            work.wait(timedelta(seconds=self._limit_s))
        except RuntimeError as error:
            raise RankError(f"a rank says nothing within {self._limit_s:g} s: {error}") from error
        return [_unpacked(bytes(tensor.tolist())) for tensor in said]


def _packed(word: bytes) -> torch.Tensor:
    framed = len(word).to_bytes(LENGTH_BYTES, "little") + word
    return torch.tensor(list(framed.ljust(MOST_BYTES + LENGTH_BYTES, b"\0")), dtype=torch.uint8)


def _unpacked(raw: bytes) -> bytes:
    return raw[LENGTH_BYTES:][: int.from_bytes(raw[:LENGTH_BYTES], "little")]
