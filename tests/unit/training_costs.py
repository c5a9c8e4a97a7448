"""Runs on a rank: measures real training steps on the CPU, bytes of tensors and floating-point operations.

Memory is measured in the second step, when optimizer states exist, and operations in the third: to tell modules apart,
torch's counter hooks onto tensors, which keeps those of checkpointed layers alive.
"""

from __future__ import annotations

import random
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sami_nemo.config.files import load_config
from sami_nemo.contrast.data_module import ContrastDataModule
from sami_nemo.model.optimizers import unchained
from sami_nemo.model.trainer import backend, build_model, build_trainer
from sami_nemo.records import Constitution, ContrastGroup, Query
from sami_nemo.run_dir import write_json

STEPS = 3


def storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Identity and bytes of a tensor's memory."""
    memory = tensor.untyped_storage()
    return memory._cdata, memory.nbytes()


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage(leaf)[0] for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                key, size = storage(leaf)
                # Views of what was there before are no new memory.
                if key not in self.sizes and key not in given:
                    self.sizes[key] = size
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(leaf.untyped_storage(), self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


# torch does not count its flash attention on CPUs. Under a causal mask it leaves out half of the scores.
def attention_flops(query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False, **_: Any) -> float:
    """Operations of `_scaled_dot_product_flash_attention_for_cpu`, from the shapes of its tensors."""
    return sdpa_flop_count(query, key, value) * (0.5 if is_causal else 1)


def attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, out: Any, logsumexp: Any, dropout: float, is_causal: bool, **_: Any
) -> float:
    """Operations of its backward pass."""
    return sdpa_backward_flop_count(gradient, query, key, value) * (0.5 if is_causal else 1)


ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


class Measure(pl.Callback):
    """Measures the second and the third step."""

    def __init__(self) -> None:
        self.report: dict[str, float] = {}
        self.live, self.flops = LiveBytes(), FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            self.report |= state_bytes(trainer)
            self.live.__enter__()
        if trainer.global_step == 2:
            self.flops.__enter__()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 1:
            self.live.__exit__(None, None, None)
            self.report["activations"] = self.live.peak
        if trainer.global_step == 2:
            self.flops.__exit__(None, None, None)
            self.report["flops"] = self.flops.get_total_flops()


def state_bytes(trainer: Any) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer state, every memory once."""
    seen: set[int] = set()

    def new(tensors: list[torch.Tensor]) -> int:
        memories = dict(storage(tensor) for tensor in tensors)
        fresh = sum(size for key, size in memories.items() if key not in seen)
        seen.update(memories)
        return fresh

    wrapped = [chunk.module for chunk in trainer.strategy.model]
    inner = [part.optimizer for part in unchained(trainer.optimizers[0])]
    updated = [p for each in inner for group in each.param_groups for p in group["params"]]
    states = [value for each in inner for state in each.state.values() for value in state.values()]
    return {
        "weights": new([parameter for each in wrapped for parameter in each.parameters()]),
        "gradients": new([buffer.grad_data for each in wrapped for buffer in each.buffers]),
        "optimizer": new(updated + [value for value in states if torch.is_tensor(value) and value.numel() > 1]),
    }


def groups(count: int, size: int, prompt: int, response: int) -> list[ContrastGroup]:
    """Contrast groups of random tokens."""
    draw = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(5, 1000) for _ in range(length))

    return [
        ContrastGroup(
            Query(str(number), "?", "test"),
            tuple(Constitution(str(j), ("s",)) for j in range(size)),
            tuple(ids(prompt) for _ in range(size)),
            tuple(ids(response) for _ in range(size)),
            ("",) * size,
        )
        for number in range(count)
    ]


def measure_steps(path: Path, prompt: int, response: int) -> None:
    """Writes report.json beside the configuration. Prompts and responses of all groups have these lengths."""
    config = load_config(path)
    train = config.train
    with backend(config):
        chosen = groups(STEPS * train.batch_size, train.constitutions_per_query, prompt, response)
        model = build_model(config, Path(config.model.path), prompt + response)
        measure = Measure()
        trainer = build_trainer(config, max_steps=STEPS, callbacks=[measure])
        trainer.fit(model, ContrastDataModule(config, chosen, list(range(len(chosen))), train.batch_size))
    write_json(path.with_name("report.json"), measure.report)
