"""The Lightning data module of contrast groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronStep
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader

from sami_nemo.config.schema import Config
from sami_nemo.contrast.batches import Batch, MicroBatches, batch_length, deal_step, group_tokens
from sami_nemo.records import ContrastGroup

# Of packed sequences on GPUs, whose attention is compiled for each length: few lengths, and at most so much padding.
GPU_LENGTHS = 512


class ContrastSampler(MegatronDataSampler):
    """Tells Megatron how many micro-batches the coming step has; `MicroBatches` has dealt the groups to the ranks.

    Steps come in order, and again from the first: for a reference pass before training.

    Args:
        micro_batches: of each step, on every rank. None if a stage goes on behind its last step, whose model is run once
            more for the export: with one.
    """

    def __init__(self, micro_batches: Sequence[int], **megatron: Any) -> None:
        super().__init__(**megatron, micro_batch_size=1, output_log=False)
        self.micro_batches = micro_batches or [1]
        self.steps = 0

    @property
    def num_microbatches(self) -> int:
        return self.micro_batches[self.steps % len(self.micro_batches)]

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        started = super().on_megatron_step_start(step)
        self.steps += 1
        return started

    def transform_dataloader(self, dataloader: DataLoader[Batch], consumed_samples: int = 0) -> DataLoader[Batch]:
        return dataloader


class ContrastDataModule(pl.LightningDataModule):
    """Contrast groups in a given order, as micro-batches of this data-parallel rank.

    Args:
        groups: all with the same number of constitutions.
        order: indices into `groups`, a whole number of batches.
        batch_size: groups that are dealt together, over all data-parallel ranks.
        one_by_one: each micro-batch is a step of its own (for scoring); otherwise a batch is a step.
    """

    def __init__(
        self,
        config: Config,
        groups: Sequence[ContrastGroup],
        order: Sequence[int],
        batch_size: int,
        one_by_one: bool = False,
    ) -> None:
        super().__init__()
        assert len(order) % batch_size == 0, "the order must fill whole batches"
        train = config.train
        self.train_config = train
        self.groups = groups
        self.batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self.dealt = [self._deal(batch, config.data_parallel) for batch in self.batches]
        self.multiple = train.tensor_parallel if train.sequence_parallel else 1
        if config.hardware.accelerator == "gpu" and train.layout == "shared_prefix":
            self.multiple = math.lcm(self.multiple, GPU_LENGTHS)
        counts = [len(ranks[0]) for ranks in self.dealt]
        self.steps = sum(counts) if one_by_one else len(counts)
        self.data_sampler = ContrastSampler(
            [1] * self.steps if one_by_one else counts,
            # Pipeline stages exchange the true lengths.
            seq_len=max(batch_length([group], train.layout) for group in groups),
            global_batch_size=batch_size,
        )

    def _deal(self, batch: Sequence[int], ranks: int) -> list[list[list[int]]]:
        """Indices into `groups` by rank and micro-batch."""
        tokens = [group_tokens(self.groups[index], self.train_config.layout) for index in batch]
        dealt = deal_step(tokens, ranks, self.train_config.micro_batch_tokens)
        return [[[batch[i] for i in micro] for micro in micros] for micros in dealt]

    def step_groups(self, step: int) -> list[ContrastGroup]:
        """The groups of a step (from 0) over all ranks."""
        return [self.groups[index] for index in self.batches[step]]

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
            self.dealt,
            train.layout,
            parallel_state.get_data_parallel_rank(),
            multiple=self.multiple,
            same_length=train.expert_parallel > 1 and train.moe_dispatcher == "allgather",
        )

    def _dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.micro_batches(), batch_size=None)

    train_dataloader = _dataloader
    test_dataloader = _dataloader
