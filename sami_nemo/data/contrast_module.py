"""The Lightning data module of contrast groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from megatron.core import parallel_state
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader

from sami_nemo.config import TrainConfig
from sami_nemo.data.contrast_batches import Batch, MicroBatches, batch_length
from sami_nemo.data.records import ContrastGroup

# Of packed sequences on GPUs, whose attention is compiled for each length: few lengths, and at most so much padding.
GPU_LENGTHS = 512


class ContrastSampler(MegatronDataSampler):
    """Tells Megatron the batch sizes; `MicroBatches` has already dealt the groups to the ranks."""

    def transform_dataloader(self, dataloader: DataLoader[Batch], consumed_samples: int = 0) -> DataLoader[Batch]:
        return dataloader


class ContrastDataModule(pl.LightningDataModule):
    """Contrast groups in a given order, as micro-batches of this data-parallel rank.

    Args:
        groups: all with the same number of constitutions.
        order: indices into `groups`, a whole number of global batches.
        global_batch_size: groups per step over all data-parallel ranks.
        on_gpu: whether kernels are compiled for the lengths of sequences.
    """

    def __init__(
        self,
        groups: Sequence[ContrastGroup],
        order: Sequence[int],
        train: TrainConfig,
        global_batch_size: int,
        on_gpu: bool = False,
    ) -> None:
        super().__init__()
        assert len(order) % global_batch_size == 0, "the order must fill whole batches"
        self.groups = groups
        self.order = order
        self.train_config = train
        self.global_batch_size = global_batch_size
        self.multiple = train.tensor_parallel if train.sequence_parallel else 1
        if on_gpu and train.layout == "shared_prefix":
            self.multiple = math.lcm(self.multiple, GPU_LENGTHS)
        self.data_sampler = ContrastSampler(
            # Pipeline stages exchange the true lengths; this is only an upper limit.
            seq_len=max(batch_length([group], train.layout) for group in groups),
            micro_batch_size=train.micro_batch_size,
            global_batch_size=global_batch_size,
            output_log=False,
        )

    @property
    def steps(self) -> int:
        return len(self.order) // self.global_batch_size

    def step_groups(self, step: int) -> list[ContrastGroup]:
        """The groups of a step (from 0) over all ranks."""
        start = step * self.global_batch_size
        return [self.groups[index] for index in self.order[start : start + self.global_batch_size]]

    def step_tokens(self, step: int) -> int:
        """Tokens of all pairs of a prompt and a response, over all ranks: what a step amounts to in any layout."""
        return sum(
            len(prompt) + len(response)
            for group in self.step_groups(step)
            for prompt in group.prompt_ids
            for response in group.response_ids
        )

    def micro_batches(self) -> MicroBatches:
        train = self.train_config
        return MicroBatches(
            self.groups,
            self.order,
            train.layout,
            train.micro_batch_size,
            self.global_batch_size,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
            multiple=self.multiple,
            same_length=train.expert_parallel > 1 and train.moe_dispatcher == "allgather",
        )

    def _dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.micro_batches(), batch_size=None)

    train_dataloader = _dataloader
    test_dataloader = _dataloader
