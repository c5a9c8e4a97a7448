"""Contrast groups as micro-batches of token tensors: the plain layout of N_c * N_c sequences a group.

Axes of tensor names: B contrast groups, C constitutions, R responses, N = B*C*R sequences in that order,
S positions of a sequence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from sami_nemo.data.records import ContrastGroup

Batch = dict[str, Tensor]


def group_length(group: ContrastGroup) -> int:
    """Tokens of the longest of the group's sequences."""
    return max(map(len, group.prompt_ids)) + max(map(len, group.response_ids))


def collate(groups: Sequence[ContrastGroup], indices: Sequence[int], length: int) -> Batch:
    """Token tensors of `groups`, padded on the right to `length`.

    Padding stands behind everything that counts, so causal attention needs no further mask.

    Returns:
        tokens_NS; labels_NS, the token that follows each position; mask_NS, 1 where that label belongs to
        the response; position_ids_NS; group_index_B; shape, the sizes (B, C, R).
    """
    constitutions, responses = len(groups[0].prompt_ids), len(groups[0].response_ids)
    count = len(groups) * constitutions * responses
    tokens_NS = torch.zeros(count, length, dtype=torch.long)
    labels_NS = torch.zeros(count, length, dtype=torch.long)
    mask_NS = torch.zeros(count, length)
    sequences = ((prompt, response) for g in groups for prompt in g.prompt_ids for response in g.response_ids)
    for n, (prompt, response) in enumerate(sequences):
        ids = torch.tensor((*prompt, *response))
        tokens_NS[n, : len(ids)] = ids
        labels_NS[n, : len(ids) - 1] = ids[1:]
        mask_NS[n, len(prompt) - 1 : len(ids) - 1] = 1
    return {
        "tokens": tokens_NS,
        "labels": labels_NS,
        "mask": mask_NS,
        "position_ids": torch.arange(length).expand(count, length).contiguous(),
        "group_index": torch.tensor(indices),
        "shape": torch.tensor((len(groups), constitutions, responses)),
    }


def training_order(groups: int, seed: int, iteration: int) -> list[int]:
    """The order in which an iteration takes its groups."""
    order = list(range(groups))
    random.Random(f"{seed}/{iteration}").shuffle(order)
    return order


class MicroBatches(IterableDataset[Batch]):
    """This data-parallel rank's micro-batches, step after step.

    Micro-batch m of a step holds the groups [m*D*b + d*b, m*D*b + (d+1)*b) of that step for rank d of D and
    micro-batch size b. All ranks pad their micro-batch m to the same length, which expert parallelism with
    the all-gather dispatcher needs.

    Args:
        order: indices into `groups`, a whole number of global micro-batches.
        multiple: sequence lengths are rounded up to a multiple of it (tensor-parallel size under sequence
            parallelism).
    """

    def __init__(
        self,
        groups: Sequence[ContrastGroup],
        order: Sequence[int],
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        multiple: int = 1,
    ) -> None:
        self.groups = groups
        self.order = order
        self.micro_batch_size = micro_batch_size
        self.rank = data_parallel_rank
        self.global_micro_batch = micro_batch_size * data_parallel_size
        self.multiple = multiple
        assert len(order) % self.global_micro_batch == 0, "the order must fill whole micro-batches"

    def __len__(self) -> int:
        return len(self.order) // self.global_micro_batch

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.order), self.global_micro_batch):
            everyone = self.order[start : start + self.global_micro_batch]
            longest = max(group_length(self.groups[i]) for i in everyone)
            mine = everyone[self.rank * self.micro_batch_size : (self.rank + 1) * self.micro_batch_size]
            yield collate([self.groups[i] for i in mine], mine, -(-longest // self.multiple) * self.multiple)
