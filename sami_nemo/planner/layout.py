"""How a training step is spread over devices, and the number formats of its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sami_nemo.config.schema import Config, TrainConfig
from sami_nemo.planner.batch import Batch, group_tokens, longest_batch


@dataclass(frozen=True)
class Layout:
    """The part of `TrainConfig` that memory and speed depend on, for a given number of devices."""

    devices: int
    devices_per_node: int
    tensor: int
    pipeline: int
    expert: int
    micro_batch: int
    """Contrast groups of the greatest length per forward pass of a rank."""
    checkpointing: bool
    precision: Literal["bf16", "fp32"]
    masters: Literal["fp32", "bf16"]
    gradients: Literal["fp32", "bf16"]
    optimizer: Literal["adamw", "rmsprop"]
    sequence_parallel: bool
    distributed_optimizer: bool = True
    dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    kl: bool = False
    """Whether a KL penalty asks for a reference pass."""

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.devices // (self.tensor * self.pipeline)

    @property
    def expert_data(self) -> int:
        """Replicas of an expert. Experts keep the tensor-parallel size; their ranks are taken from the data-parallel."""
        return self.data // self.expert

    @property
    def sequence_shards(self) -> int:
        """Ranks that share what lies between the tensor-parallel regions: norms and residuals."""
        return self.tensor if self.sequence_parallel else 1

    @property
    def weight_bytes(self) -> int:
        return 2 if self.precision == "bf16" else 4

    @property
    def gradient_bytes(self) -> int:
        return 2 if self.gradients == "bf16" else 4

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.devices_per_node)

    def micro_batches(self, batch: Batch) -> int:
        """Of each data-parallel rank in a step."""
        return batch.groups // (self.data * self.micro_batch)

    def keys(self, longest: int) -> str:
        """As overrides of a command line, without what equals a single-device run.

        Args:
            longest: tokens of the longest contrast group.
        """
        tokens = "null" if self.micro_batch == 1 else self.micro_batch * longest
        words = [
            f"train.tensor_parallel={self.tensor}",
            f"train.pipeline_parallel={self.pipeline}",
            f"train.expert_parallel={self.expert}",
            f"train.sequence_parallel={str(self.sequence_parallel).lower()}",
            f"train.micro_batch_tokens={tokens}",
            f"train.activation_checkpointing={str(self.checkpointing).lower()}",
        ]
        return " ".join(words)


def layout_of(config: Config) -> Layout:
    """The layout that a configuration states."""
    return make_layout(config.train, config.hardware.nodes * config.hardware.devices_per_node, config)


def make_layout(train: TrainConfig, devices: int, config: Config) -> Layout:
    """The layout of `train` on another number of the configuration's devices."""
    return Layout(
        devices=devices,
        devices_per_node=config.hardware.devices_per_node,
        tensor=train.tensor_parallel,
        pipeline=train.pipeline_parallel,
        expert=train.expert_parallel,
        micro_batch=max(1, (train.micro_batch_tokens or 0) // group_tokens(longest_batch(config))),
        checkpointing=train.activation_checkpointing,
        precision=train.precision,
        masters=train.master_weights,
        gradients=train.gradient_type,
        optimizer=train.optimizer,
        sequence_parallel=train.sequence_parallel,
        distributed_optimizer=train.distributed_optimizer,
        dispatcher=train.moe_dispatcher,
        kl=train.kl_beta > 0,
    )
