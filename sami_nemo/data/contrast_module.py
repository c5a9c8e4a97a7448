"""The Lightning data module of contrast groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from megatron.core import parallel_state
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader

from sami_nemo.config import TrainConfig
from sami_nemo.data.contrast_batches import Batch, MicroBatches, group_length
from sami_nemo.data.records import ContrastGroup


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
    """

    def __init__(
        self, groups: Sequence[ContrastGroup], order: Sequence[int], train: TrainConfig, global_batch_size: int
    ) -> None:
        super().__init__()
        assert len(order) % global_batch_size == 0, "the order must fill whole batches"
        self.groups = groups
        self.order = order
        self.train_config = train
        self.global_batch_size = global_batch_size
        self.data_sampler = ContrastSampler(
            # Pipeline stages exchange the true lengths; this is only an upper limit.
            seq_len=max(group_length(group) for group in groups),
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
        """Tokens, without padding, of the sequences of a step over all ranks."""
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
            train.micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
            multiple=train.tensor_parallel if train.sequence_parallel else 1,
        )

    def _dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.micro_batches(), batch_size=None)

    train_dataloader = _dataloader
    test_dataloader = _dataloader
