"""Megatron's GPTModel, with positions that may start over and an output projection of responses only."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from sami_nemo.model.response_head import token_logprobs
from sami_nemo.model.rotary import stretched_frequencies


class ContrastGPTModel(GPTModel):
    """Adds no state to Megatron's class. Built by `ContrastConfig`.

    Axes of tensor names: n predicted tokens.
    """

    def __init__(self, config: Any, **megatron: Any) -> None:
        super().__init__(config, **megatron)
        if config.geometry.rope_scaling is not None:
            self.rotary_pos_emb.inv_freq = stretched_frequencies(config.geometry)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        predicts_n: Tensor | None = None,
        labels_n: Tensor | None = None,
        **megatron: Any,
    ) -> Tensor:
        """
        Args:
            input_ids, position_ids: `[sequence, position]`.
            attention_mask: lengths of packed rows, see model/attention.py; None: the plain layout.
            predicts_n: where response tokens are predicted from, indices into hidden states `[position, sequence]`. Without
                it, this is Megatron's forward pass, whose logits have columns of no token where the vocabulary is padded.
            labels_n: the tokens.

        Returns:
            `[n]`, log-probs of the tokens in nats, on the last pipeline stage; hidden states on the others.
        """
        if predicts_n is None or labels_n is None:
            return super().forward(input_ids, position_ids, attention_mask, **megatron)
        inputs = self.embedding(input_ids=input_ids, position_ids=position_ids) if self.pre_process else None
        # Angles of all positions, which Megatron keeps, picked by each token's own. In the plain layout all sequences count
        # alike.
        angles = self.rotary_pos_emb(self.max_sequence_length)[position_ids[0]]
        hidden = self.decoder(hidden_states=inputs, attention_mask=attention_mask, rotary_pos_emb=angles)
        if not self.post_process:
            return hidden
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return self._logprobs(hidden, weight, predicts_n, labels_n)

    def _logprobs(self, hidden: Tensor, weight: Tensor, predicts_n: Tensor, labels_n: Tensor) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        # Every rank has the gradient of its part of the vocabulary: both functions sum them on the way back.
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        hidden_nH = hidden.reshape(-1, hidden.shape[-1])[predicts_n]
        shared = torch.distributed.get_world_size(group) > 1
        return token_logprobs(hidden_nH, weight, labels_n, self.config.geometry.vocab_size, group if shared else None)
