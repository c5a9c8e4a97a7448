"""Where this rank's parameters belong in the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from sami_nemo.checkpoint.hf_map import Layout, hf_map
from sami_nemo.errors import CheckpointError


@dataclass(frozen=True)
class Placed:
    """A parameter of this rank and the Hugging Face tensors that it is a part of."""

    name: str
    parameter: Tensor
    hf_names: tuple[str, ...]
    layout: Layout
    rank: int
    """Tensor-parallel (for experts: expert-tensor-parallel) rank."""
    ranks: int
    exported: bool
    """Whether this rank is the one that gives its part to an export."""


def place_parameters(model: torch.nn.Module) -> list[Placed]:
    """Place every parameter of Megatron's (unwrapped) GPTModel.

    Raises:
        CheckpointError: a parameter that the table does not know.
    """
    config: Any = model.config
    table = hf_map(config.geometry)
    first_layer = get_transformer_layer_offset(config)
    first_expert = parallel_state.get_expert_model_parallel_rank() * (
        (config.num_moe_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
    )
    dense = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_rank() == 0,
    )
    expert = (
        parallel_state.get_expert_tensor_parallel_rank(),
        parallel_state.get_expert_tensor_parallel_world_size(),
        parallel_state.get_expert_data_parallel_rank() == 0,
    )
    tied = config.share_embeddings_and_output_weights
    placed = []
    for name, parameter in model.named_parameters():
        for entry in table:
            numbers = entry.match(name)
            if numbers is None:
                continue
            layer = None if numbers[0] is None else numbers[0] + first_layer
            names = entry.hf_names(layer, None if numbers[1] is None else numbers[1] + first_expert)
            rank, ranks, first = expert if entry.expert() else dense
            # Under pipeline parallelism the last stage has a copy of tied embeddings.
            copy = tied and names == ("lm_head.weight",)
            placed.append(
                Placed(
                    name,
                    parameter,
                    ("model.embed_tokens.weight",) if copy else names,
                    entry.layout,
                    rank,
                    ranks,
                    exported=first and not copy and (entry.layout.sharded or rank == 0),
                )
            )
            break
        else:
            raise CheckpointError(
                name, "parameter", "has no Hugging Face counterpart; is the model a Mistral or Mixtral?"
            )
    return placed
