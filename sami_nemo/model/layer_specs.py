"""Which modules a transformer layer is made of: Transformer Engine's on GPUs, Megatron's own elsewhere."""

from __future__ import annotations

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from sami_nemo.model.attention import ContrastAttention

try:
    import transformer_engine  # noqa: F401

    HAVE_TRANSFORMER_ENGINE = True
except ImportError:
    HAVE_TRANSFORMER_ENGINE = False


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm as a Megatron layer norm that also works under sequence parallelism.

    megatron-core's wrapper refuses sequence parallelism. All that is needed is to mark the weight: each
    rank then sees a part of the sequence, and Megatron sums the gradients of marked weights over the
    tensor-parallel group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def local_block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage in Megatron's own modules: for CPUs."""
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=False, normalization=config.normalization
    )
    assert isinstance(layer.submodules, TransformerLayerSubmodules)
    _attend_with(ContrastAttention, layer)
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=RMSNorm
    )


def transformer_engine_layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> ModuleSpec:
    """One layer in Transformer Engine's modules: for GPUs, in the plain layout."""
    return get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm
    )


def packed_layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> ModuleSpec:
    """The same, but for attention: for GPUs, in the shared-prefix layout."""
    layer = transformer_engine_layer_spec(config, vp_stage)
    _attend_with(ContrastAttention, layer)
    return layer


def _attend_with(core_attention: type, layer: ModuleSpec) -> None:
    layer.submodules.self_attention.submodules.core_attention = core_attention
