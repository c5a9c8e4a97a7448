"""AdamW and RMSprop under Megatron's optimizers, with fp32 masters or on bf16 weights in place.

Megatron builds AdamW with fp32 masters. Two things are added here:

- RMSprop, the paper's choice for mixtral-8x7b (Table 1), which Megatron lacks: torch's own takes the place of
  the inner AdamW, so it works on whatever Megatron gives that one, shards of masters included.
- bf16 weights without masters, as the paper's code trains: with and without the distributed optimizer.
  At small learning rates most bf16 weights are too coarse to move, so learning rates do not carry over
  between the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core import tensor_parallel
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import FP32Optimizer, MegatronOptimizer
from nemo.lightning.megatron_parallel import MegatronParallel
from nemo.lightning.pytorch.optim import MegatronOptimizerModule

from sami_nemo.config.schema import TrainConfig


class SamiOptimizerModule(MegatronOptimizerModule):
    """NeMo's optimizer module for the optimizers of `TrainConfig`. The learning rate is constant."""

    def __init__(self, train: TrainConfig) -> None:
        super().__init__(
            OptimizerConfig(
                optimizer="adam",
                lr=train.lr,
                weight_decay=train.weight_decay,
                adam_beta1=train.adam_beta1,
                adam_beta2=train.adam_beta2,
                adam_eps=train.eps,
                # Without a limit the norm is still measured, for the logs.
                clip_grad=train.clip_grad or float("inf"),
                bf16=train.precision == "bf16",
                use_distributed_optimizer=train.distributed_optimizer,
            )
        )
        self.train_config = train

    def optimizers(self, model: MegatronParallel) -> list[Any]:
        in_place = self.train_config.precision == "bf16" and self.train_config.master_weights == "bf16"
        with _without_masters() if in_place else contextlib.nullcontext():
            optimizers = super().optimizers(model)
        if in_place:
            # Megatron's own insists on fp32 gradients.
            megatron_optimizer.optimizer.clip_grad_by_total_norm_fp32 = _clip_by_total_norm
        for optimizer in unchained(optimizers[0]):
            if self.train_config.optimizer == "rmsprop":
                _use_rmsprop(optimizer, self.train_config)
            elif isinstance(optimizer.optimizer, torch.optim.AdamW):
                _in_one_pass(optimizer.optimizer)
        return optimizers


def unchained(optimizer: Any) -> list[MegatronOptimizer]:
    """Megatron's optimizers below NeMo's wrapper: one, or for mixtures of experts one for the dense
    parameters and one for the experts; those without parameters on this rank are left out."""
    megatron = optimizer.mcore_optimizer
    parts = megatron.chained_optimizers if isinstance(megatron, ChainedOptimizer) else [megatron]
    return [part for part in parts if part.optimizer is not None]


def _in_one_pass(adamw: torch.optim.AdamW) -> None:
    """Megatron takes torch's AdamW where there is neither Apex nor Transformer Engine, in its form of a pass per operation."""
    for group in adamw.param_groups:
        group["fused"] = True


def _use_rmsprop(optimizer: MegatronOptimizer, train: TrainConfig) -> None:
    groups = optimizer.optimizer.param_groups
    # Shards of the distributed optimizer are views, which torch's constructor refuses; its step does not.
    rmsprop = torch.optim.RMSprop(
        [torch.zeros(1)], lr=train.lr, alpha=train.rmsprop_alpha, eps=train.eps, weight_decay=train.weight_decay
    )
    for group in groups:
        for name, value in rmsprop.defaults.items():
            group.setdefault(name, value)
    rmsprop.param_groups = groups
    optimizer.optimizer = rmsprop


class Bf16WeightsOptimizer(FP32Optimizer):
    """Updates bf16 parameters in place. Gradients must be reduced in bf16."""

    def __init__(self, optimizer: Any, config: OptimizerConfig, grad_scaler: None, init_state_fn: Any) -> None:
        super().__init__(optimizer, config, init_state_fn)


class Bf16WeightsDistributedOptimizer(DistributedOptimizer):
    """Megatron's distributed optimizer on shards of the bf16 parameters themselves.

    The shards take the path of Megatron's fp32 parameters, which have no masters either.
    """

    @classmethod
    def _build_model_and_main_param_groups(
        cls, gbuf_ranges: Any, param_gbuf_map: Any, opt_group_ranges: Any, config: OptimizerConfig
    ) -> tuple[list[Any], list[Any], list[Any], list[Any], list[Any]]:
        parameters_of_groups, shards_of_groups = [], []
        for group_range in opt_group_ranges:
            shards = []
            for parameter in group_range["params"]:
                buffer, dtype, bucket = param_gbuf_map[parameter]
                own = gbuf_ranges[buffer][dtype][bucket]["param_map"][parameter]["param"]
                shard = parameter.detach().view(-1)[own.start : own.end]
                tensor_parallel.copy_tensor_model_parallel_attributes(shard, parameter)
                if hasattr(parameter, "shared"):
                    shard.shared = parameter.shared
                shards.append(shard)
            parameters_of_groups.append(list(group_range["params"]))
            shards_of_groups.append(shards)
            group_range["orig_group"]["params"] = shards
        empty: list[Any] = [[] for _ in opt_group_ranges]
        return empty, parameters_of_groups, empty, shards_of_groups, empty

    def _copy_model_grads_to_main_grads(self) -> None:
        for parameters, shards in zip(self.model_fp32_groups, self.shard_fp32_groups, strict=True):
            for parameter, shard in zip(parameters, shards, strict=True):
                own = self._get_model_param_range_map(parameter)["param"]
                shard.grad = parameter.main_grad.view(-1)[own.start : own.end]


def _clip_by_total_norm(parameters: Any, max_norm: float, total_norm: float, use_decoupled_grad: bool = False) -> None:
    """Scale gradients of any dtype so that their norm over all ranks is at most `max_norm`."""
    coefficient = max_norm / (float(total_norm) + 1e-6)  # Megatron's guard against a norm of zero
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if coefficient < 1 and gradients:
        torch._foreach_mul_(gradients, coefficient)


@contextlib.contextmanager
def _without_masters() -> Iterator[None]:
    """Let Megatron build the two classes above in place of its mixed-precision ones."""
    mixed, distributed = (
        megatron_optimizer.Float16OptimizerWithFloat16Params,
        megatron_optimizer.DistributedOptimizer,
    )
    megatron_optimizer.Float16OptimizerWithFloat16Params = Bf16WeightsOptimizer
    megatron_optimizer.DistributedOptimizer = Bf16WeightsDistributedOptimizer
    try:
        yield
    finally:
        megatron_optimizer.Float16OptimizerWithFloat16Params = mixed
        megatron_optimizer.DistributedOptimizer = distributed
