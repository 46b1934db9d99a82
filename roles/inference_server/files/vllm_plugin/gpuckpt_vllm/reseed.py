# SPDX-License-Identifier: GPL-3.0-or-later
"""New random numbers in vLLM's workers after a restore, for requests that name no seed (`--worker-extension-cls`).

vLLM 0.25.1 seeds each worker once, with `--seed`. After that a request without a seed of its own draws from the worker's
random numbers. These are those of NumPy in model runner V2, and the default ones of the GPU in V1. Two servers
restored from one checkpoint would answer alike. Numbers of requests come from the kernel, and differ anyway.
"""

from importlib import import_module


class Reseed:
    """What vLLM makes a base class of its workers; `/collective_rpc` calls its method in each of them."""

    def gpuckpt_reseed(self, seed: int | str) -> None:
        """Seeds anew, with the same number in all workers, as vLLM itself does when they start.

        Those that share a model have to draw the same tokens.
        """
        # NumPy takes no more than 32 bits
        import_module("vllm.utils.torch_utils").set_random_seed(int(seed) % (1 << 32))
