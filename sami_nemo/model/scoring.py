"""Log-probs of contrast groups without a loss: for the held-out bound, the proxy judge and the KL penalty's reference.

Axes of tensor names: B contrast groups, C constitutions, R responses, N = B*C*R pairs in that order, T tokens of a
response, n tokens of all responses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from sami_nemo.contrast.batches import Batch
from sami_nemo.model.loss import by_pair, diagonal_pairs, group_logprobs
from sami_nemo.objective import Normalization


@dataclass
class GroupScore:
    """What one model thinks of one contrast group."""

    logprobs_CR: Tensor
    token_logprobs_CT: Tensor
    """Of each response under its own constitution, 0 outside the response."""


@dataclass
class ScoreReduction(MegatronLossReduction[Batch, dict[str, Tensor]]):
    """Collects log-probs instead of a loss. Filled on the last pipeline stage only."""

    normalization: Normalization
    scores: dict[int, GroupScore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def forward(self, batch: Batch, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        token_logprobs_NT = by_pair(forward_out, batch)
        logprobs_BCR = group_logprobs(token_logprobs_NT, batch, self.normalization)
        tokens_BCT = diagonal_pairs(token_logprobs_NT, batch)
        for row, index in enumerate(batch.group_index_B):
            self.scores[index] = GroupScore(logprobs_BCR[row].cpu(), tokens_BCT[row].cpu())
        return forward_out.new_zeros(()), {}

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        return torch.zeros(())
