"""Hugging Face checkpoint to Megatron: each rank reads its own slices."""

from __future__ import annotations

from pathlib import Path

import torch

from sami_nemo.checkpoint.headers import read_headers
from sami_nemo.checkpoint.placement import place_parameters
from sami_nemo.checkpoint.safetensors_io import open_slices
from sami_nemo.errors import CheckpointError


def load_hf_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Fill the parameters of Megatron's GPTModel on this rank, in their dtype; collective.

    Raises:
        CheckpointError: a tensor that is missing, has another shape, that no rank has a place for, or that is not finite in
            the type of the parameters.
    """
    index = read_headers(checkpoint)
    used: set[str] = set()
    with open_slices(checkpoint) as slices, torch.no_grad():
        for placed in place_parameters(model):
            missing = [name for name in placed.hf_names if name not in index]
            if missing:
                raise CheckpointError("model.path", checkpoint, f"lacks {', '.join(missing)}")
            used.update(placed.hf_names)
            value = placed.layout.read([slices(name) for name in placed.hf_names], placed.rank, placed.ranks)
            if value.shape != placed.parameter.shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(placed.parameter.shape)}"
                raise CheckpointError("model.path", checkpoint, f"{placed.hf_names[0]} gives {placed.name} {shapes}")
            placed.parameter.copy_(value)
            if not torch.isfinite(placed.parameter).all():
                remedy = f"is not finite as {placed.parameter.dtype}; train.precision=fp32 holds larger numbers"
                raise CheckpointError("model.path", f"{checkpoint}: {placed.hf_names[0]}", remedy)
    _refuse_unused(index.keys() - used, checkpoint)


def _refuse_unused(unused_here: set[str], checkpoint: Path) -> None:
    everywhere: list[set[str]] = [set()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, unused_here)
    unused = set.intersection(*everywhere)
    if unused:
        names = ", ".join(sorted(unused)[:3])
        raise CheckpointError(
            "model.path", checkpoint, f"holds {len(unused)} tensors that the model has no place for ({names}, …)"
        )
