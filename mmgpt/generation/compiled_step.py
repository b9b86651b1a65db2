"""A decoding step as one compiled graph: fused small operations, no Python between the matrix products.

Decoding one token is a few dozen small operations a layer. Run apart, each costs several microseconds, more than the
products of a small model; torch.compile joins them. It takes a while at the first step, and again at the first step of
several rows.

Shape letters: B rows, V vocabulary.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.generation.decode import one_step
from mmgpt.model.cache import KVCache
from mmgpt.model.multimodal import MultimodalModel

Step = Callable[[MultimodalModel, KVCache, Tensor], Tensor]


def compiled_step(model: MultimodalModel) -> Step:
    """What does the work of `decode_one` for this model, compiled when it is first called.

    Raises:
        UserError: if there is no C++ compiler, which compiling for a CPU takes.
    """
    decoder, is_cpu = model.decoder, model.device.type == "cpu"
    if is_cpu and not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"):
        raise UserError("compile: no C++ compiler found (g++ or clang++, or set CXX); install one, or leave it out")

    def graph(
        ids_B: Tensor,
        lengths_B: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        token_shift_state: Sequence[Tensor],
    ) -> Tensor:
        cache = KVCache(keys, values, token_shift_state, lengths_B)
        return one_step(decoder, cache, ids_B, cache.size)

    # The decoder's modules are not looked through for changes at every step: they are only ever loaded once.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    options["cpp_wrapper"] = is_cpu
    if is_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
        # Said for the key of inductor's cache, which would else give a processor that is restricted to AVX2 the kernels
        # that it compiled for AVX-512 before: their logits are not numbers.
        options["cpp.simdlen"] = 256
    run = torch.compile(graph, dynamic=True, fullgraph=True, options=options)

    def step(model: MultimodalModel, cache: KVCache, ids_B: Tensor) -> Tensor:
        logits_BV: Tensor = run(ids_B, cache.lengths_B, cache.keys, cache.values, cache.token_shift_state)
        cache.lengths_B = cache.lengths_B + 1
        return logits_BV

    return step
