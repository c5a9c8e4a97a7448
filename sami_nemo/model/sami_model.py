"""The NeMo model class: response log-probs in the forward step, SAMI's loss in the reduction.

Axes of tensor names: B contrast groups, C constitutions, R responses, N = B*C*R pairs in that order, T tokens of a
response, n tokens of all responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import GPTConfig
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from sami_nemo.config.schema import TrainConfig
from sami_nemo.contrast.batches import Batch
from sami_nemo.model.optimizers import SamiOptimizerModule
from sami_nemo.objective import kl_to_base, mutual_information_bound, response_logprobs, sami_loss

BaseLogprobs = dict[int, Tensor]
"""Token log-probs of each group's own responses under the base model, by group index: `[C, T]`."""


def by_pair(token_logprobs_n: Tensor, batch: Batch) -> Tensor:
    """Token log-probs of every pair of a constitution and a response: `[N, T]`, 0 behind the response."""
    mask_NT = batch["mask"]
    return token_logprobs_n.new_zeros(mask_NT.numel()).scatter(0, batch["slots"], token_logprobs_n).view(mask_NT.shape)


def diagonal_pairs(values_NT: Tensor, shape: Tensor) -> Tensor:
    """The pairs of each group whose response was sampled under their constitution: `[B, C, T]`."""
    groups, constitutions, responses = shape.tolist()
    return values_NT.view(groups, constitutions, responses, -1).diagonal(dim1=1, dim2=2).movedim(-1, 1)


def group_logprobs(token_logprobs_NT: Tensor, batch: Batch, normalization: str) -> Tensor:
    """The matrix of response log-probs of each group in a micro-batch: `[B, C, R]`, nats."""
    logprobs_N = response_logprobs(token_logprobs_NT, batch["mask"], normalization)  # type: ignore[arg-type]
    return logprobs_N.view(batch["shape"].tolist())


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
        weighted = {name: value * batch["weight"] for name, value in {"loss": loss.detach(), **measures}.items()}
        return loss * batch["weight"], weighted

    def _kl(self, batch: Batch, token_logprobs_NT: Tensor) -> Tensor:
        base = [self.base_logprobs[int(index)] for index in batch["group_index"]]
        base_BCT = torch.zeros_like(diagonal_pairs(batch["mask"], batch["shape"]))
        for row, base_CT in enumerate(base):
            # A group's padding may differ between the reference pass and training; what counts is inside both.
            width = min(base_CT.shape[-1], base_BCT.shape[-1])
            base_BCT[row, :, :width] = base_CT[:, :width]
        model_BCT = diagonal_pairs(token_logprobs_NT, batch["shape"])
        mask_BCT = diagonal_pairs(batch["mask"], batch["shape"])
        return kl_to_base(model_BCT, base_BCT, mask_BCT).mean()

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = list(losses_reduced_per_micro_batch[0])
        values = torch.stack([torch.stack([m[name] for m in losses_reduced_per_micro_batch]).mean() for name in names])
        group = parallel_state.get_data_parallel_group()
        torch.distributed.all_reduce(values, group=group)
        return dict(zip(names, values / torch.distributed.get_world_size(group), strict=True))


@dataclass
class GroupScore:
    """What one model thinks of one contrast group."""

    logprobs_CR: Tensor
    token_logprobs_CT: Tensor
    """Of each response under its own constitution, 0 outside the response."""


@dataclass
class ScoreReduction(MegatronLossReduction[Batch, dict[str, Tensor]]):
    """Collects log-probs instead of a loss. Filled on the last pipeline stage only."""

    normalization: str
    scores: dict[int, GroupScore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def forward(self, batch: Batch, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        token_logprobs_NT = by_pair(forward_out, batch)
        logprobs_BCR = group_logprobs(token_logprobs_NT, batch, self.normalization)
        tokens_BCT = diagonal_pairs(token_logprobs_NT, batch["shape"])
        for row, index in enumerate(batch["group_index"].tolist()):
            self.scores[index] = GroupScore(logprobs_BCR[row].cpu(), tokens_BCT[row].cpu())
        return forward_out.new_zeros(()), {}

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        return torch.zeros(())


class SamiModel(llm.GPTModel):
    """A Mistral or Mixtral that is trained with SAMI's objective.

    Args:
        config: NeMo's configuration, see `nemo_config`.
        train: optimisation settings.
        load_weights: called with the Megatron module as soon as it is built, before the optimizer copies
            its parameters.
    """

    def __init__(self, config: GPTConfig, train: TrainConfig, load_weights: Callable[[torch.nn.Module], None]) -> None:
        super().__init__(config, optim=SamiOptimizerModule(train))
        self.train_config = train
        self.load_weights = load_weights
        self.base_logprobs: BaseLogprobs = {}
        self._score_reduction: ScoreReduction | None = None

    def score_with(self, reduction: ScoreReduction) -> None:
        """Let `trainer.test` collect log-probs in `reduction`."""
        self._score_reduction = reduction

    def configure_model(self, vp_stage: int | None = None) -> None:
        built = hasattr(self, "module")
        super().configure_model(vp_stage)
        if not built:
            self.load_weights(self.module)

    def data_step(self, dataloader_iter: Iterator[Any]) -> Batch:
        """The next micro-batch, on this rank's device."""
        batch = next(dataloader_iter)
        batch = batch[0] if isinstance(batch, tuple) else batch
        return {name: tensor.cuda(non_blocking=True) for name, tensor in batch.items()}

    def forward_step(self, batch: Batch) -> Tensor:
        """Log-prob of each response token on the last pipeline stage (`[n]`, nats), else the hidden states."""
        return self.module(
            batch["tokens"],
            batch["position_ids"],
            batch.get("row_lengths"),
            predicts_n=batch["predicts"],
            labels_n=batch["labels"],
        )

    @property
    def training_loss_reduction(self) -> SamiLossReduction:
        return SamiLossReduction(self.train_config, self.base_logprobs)

    def test_step(self, batch: Batch, batch_idx: int | None = None) -> Tensor:
        return self.forward_step(batch)

    @property
    def test_loss_reduction(self) -> ScoreReduction:
        assert self._score_reduction is not None, "call score_with before trainer.test"
        return self._score_reduction
