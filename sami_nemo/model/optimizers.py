from __future__ import annotations

from typing import Any
import torch
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig
from nemo.lightning.pytorch.optim import MegatronOptimizerModule

from sami_nemo.config import TrainConfig


class SamiOptimizerModule(MegatronOptimizerModule):
    def __init__(self, train: TrainConfig) -> None:
        config = OptimizerConfig(
            optimizer="adam",
            lr=train.lr,
            weight_decay=train.weight_decay,
            adam_beta1=train.adam_beta1,
            adam_beta2=train.adam_beta2,
            adam_eps=train.eps,
            clip_grad=train.clip_grad,
            bf16=train.precision == "bf16",
            use_distributed_optimizer=train.distributed_optimizer,
        )
        super().__init__(config)
