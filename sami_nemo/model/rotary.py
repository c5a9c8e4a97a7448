"""The rotary embedding of positions beyond those of pretraining (`rope_scaling`).

Megatron has constants where checkpoints have values, so angles come from transformers: its functions are what the values
mean, and the export is verified against them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sami_nemo.geometry import Geometry


def stretched_frequencies(geometry: Geometry) -> Tensor:
    """Radians per position, `[head_dim / 2]`, in the place of Megatron's `inv_freq`."""
    return rotation(geometry)[0]


def softmax_scale(geometry: Geometry) -> float | None:
    """What scores are multiplied by; None: Megatron's own, one by the root of the head's size.

    Yarn multiplies sines and cosines of queries and keys by a factor: scores by its square.
    """
    if geometry.rope_scaling is None:
        return None
    magnitude = rotation(geometry)[1]
    return None if magnitude == 1.0 else magnitude**2 / geometry.head_dim**0.5


def rotation(geometry: Geometry) -> tuple[Tensor, float]:
    """Frequencies, and what sines and cosines are multiplied by."""
    assert geometry.rope_scaling is not None
    config = AutoConfig.for_model(**geometry.hf())
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[geometry.rope_scaling.rope_type](config, torch.device("cpu"))
    return frequencies, float(magnitude)
