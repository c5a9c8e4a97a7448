"""The NeMo model class: log-probs of response tokens in the forward step, SAMI's loss (loss.py) in the reduction.

Axes of tensor names: n tokens of all responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from nemo.collections import llm
from torch import Tensor

from sami_nemo.config.schema import TrainConfig
from sami_nemo.contrast.batches import Batch
from sami_nemo.model.loss import BaseLogprobs, SamiLossReduction
from sami_nemo.model.megatron_config import ContrastConfig
from sami_nemo.model.optimizers import SamiOptimizerModule
from sami_nemo.model.scoring import ScoreReduction


class SamiModel(llm.GPTModel):
    """A Mistral or Mixtral that is trained with SAMI's objective.

    Args:
        config: NeMo's configuration, see `nemo_config`.
        train: optimisation settings.
        load_weights: called with the Megatron module as soon as it is built, before the optimizer copies
            its parameters.
    """

    def __init__(
        self, config: ContrastConfig, train: TrainConfig, load_weights: Callable[[torch.nn.Module], None]
    ) -> None:
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
        assert isinstance(batch, Batch)
        return batch.to("cuda")

    def forward_step(self, batch: Batch) -> Tensor:
        """Log-prob of each response token on the last pipeline stage (`[n]`, nats), else the hidden states."""
        return self.module(
            batch.tokens,
            batch.position_ids,
            batch.row_lengths,
            predicts_n=batch.predicts_n,
            labels_n=batch.labels_n,
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
