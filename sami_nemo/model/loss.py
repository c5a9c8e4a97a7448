"""SAMI's loss of a micro-batch, in the form that NeMo calls: from token log-probs to nats.

Axes of tensor names: B contrast groups, C constitutions, R responses, N = B*C*R pairs in that order, T tokens of a
response, n tokens of all responses.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from sami_nemo.config.schema import TrainConfig
from sami_nemo.contrast.batches import Batch
from sami_nemo.objective import Normalization, kl_to_base, mutual_information_bound, response_logprobs, sami_loss

BaseLogprobs = dict[int, Tensor]
"""Token log-probs of each group's own responses under the base model, by group index: `[C, T]`."""


def by_pair(token_logprobs_n: Tensor, batch: Batch) -> Tensor:
    """Token log-probs of every pair of a constitution and a response: `[N, T]`, 0 behind the response."""
    shape = batch.mask_NT.shape
    return token_logprobs_n.new_zeros(shape.numel()).scatter(0, batch.slots_n, token_logprobs_n).view(shape)


def diagonal_pairs(values_NT: Tensor, batch: Batch) -> Tensor:
    """The pairs of each group whose response was sampled under their constitution: `[B, C, T]`."""
    return values_NT.view(*batch.shape, -1).diagonal(dim1=1, dim2=2).movedim(-1, 1)


def group_logprobs(token_logprobs_NT: Tensor, batch: Batch, normalization: Normalization) -> Tensor:
    """The matrix of response log-probs of each group in a micro-batch: `[B, C, R]`, nats."""
    return response_logprobs(token_logprobs_NT, batch.mask_NT, normalization).view(batch.shape)


class SamiLossReduction(MegatronLossReduction[Batch, dict[str, Tensor]]):
    """SAMI's loss of a micro-batch, and its mean over the micro-batches and data-parallel ranks of a step.

    Every group weighs the same: micro-batches weigh as much as they hold.
    """

    def __init__(self, train: TrainConfig, base_logprobs: BaseLogprobs) -> None:
        super().__init__()
        self.train_config = train
        self.base_logprobs = base_logprobs

    def forward(self, batch: Batch, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        token_logprobs_NT = by_pair(forward_out, batch)
        logprobs_BCR = group_logprobs(token_logprobs_NT, batch, self.train_config.logprob_normalization)
        loss = sami_loss(logprobs_BCR).mean()
        measures = {"bound": mutual_information_bound(logprobs_BCR.detach()).mean()}
        if self.train_config.kl_beta:
            kl = self._kl(batch, token_logprobs_NT)
            loss = loss + self.train_config.kl_beta * kl
            measures["kl"] = kl.detach()
        weighted = {name: value * batch.weight for name, value in {"loss": loss.detach(), **measures}.items()}
        return loss * batch.weight, weighted

    def _kl(self, batch: Batch, token_logprobs_NT: Tensor) -> Tensor:
        base = [self.base_logprobs[index] for index in batch.group_index_B]
        base_BCT = torch.zeros_like(diagonal_pairs(batch.mask_NT, batch))
        for row, base_CT in enumerate(base):
            # A group's padding may differ between the reference pass and training; what counts is inside both.
            width = min(base_CT.shape[-1], base_BCT.shape[-1])
            base_BCT[row, :, :width] = base_CT[:, :width]
        model_BCT = diagonal_pairs(token_logprobs_NT, batch)
        mask_BCT = diagonal_pairs(batch.mask_NT, batch)
        return kl_to_base(model_BCT, base_BCT, mask_BCT).mean()

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = list(losses_reduced_per_micro_batch[0])
        values = torch.stack([torch.stack([m[name] for m in losses_reduced_per_micro_batch]).mean() for name in names])
        group = parallel_state.get_data_parallel_group()
        torch.distributed.all_reduce(values, group=group)
        return dict(zip(names, values / torch.distributed.get_world_size(group), strict=True))
