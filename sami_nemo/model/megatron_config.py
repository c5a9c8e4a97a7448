"""NeMo's configuration of a Mistral, a Mixtral or a Llama that is trained on contrast groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.collections.llm.gpt.model.base import GPTConfig
from torch.nn import functional

from sami_nemo.config.schema import TrainConfig
from sami_nemo.errors import ConfigError
from sami_nemo.geometry import Geometry, vocabulary_part
from sami_nemo.model.contrast_gpt import ContrastGPTModel
from sami_nemo.model.layer_specs import (
    HAVE_TRANSFORMER_ENGINE,
    local_block_spec,
    packed_layer_spec,
    transformer_engine_layer_spec,
)
from sami_nemo.model.rotary import softmax_scale


@dataclass
class ContrastConfig(GPTConfig):
    """What the architectures have in common. NeMo's own class, but that it builds `ContrastGPTModel`."""

    geometry: Geometry | None = None
    """Of the checkpoint that the weights come from."""
    normalization: str = "RMSNorm"
    activation_func: Callable[[torch.Tensor], torch.Tensor] = functional.silu
    gated_linear_unit: bool = True
    position_embedding_type: str = "rope"
    add_bias_linear: bool = False
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0

    def configure_model(
        self,
        tokenizer: Any,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> ContrastGPTModel:
        """This pipeline stage's part of the model.

        The vocabulary is the checkpoint's, whatever `tokenizer` says, with as many rows more as make equal parts.
        """
        assert self.geometry is not None
        ranks = self.tensor_model_parallel_size
        first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
        return ContrastGPTModel(
            self,
            transformer_layer_spec=self.transformer_layer_spec(self),
            vocab_size=vocabulary_part(self.geometry.vocab_size, ranks) * ranks,
            max_sequence_length=self.seq_length,
            pre_process=first if pre_process is None else pre_process,
            post_process=last if post_process is None else post_process,
            share_embeddings_and_output_weights=self.share_embeddings_and_output_weights,
            position_embedding_type=self.position_embedding_type,
            rotary_base=self.rotary_base,
            vp_stage=vp_stage,
        )


def nemo_config(geometry: Geometry, train: TrainConfig, sequence_length: int, on_gpu: bool) -> ContrastConfig:
    """NeMo's configuration with the geometry of a checkpoint and the layout of `train`.

    Args:
        sequence_length: longest sequence in tokens that the model will see.
        on_gpu: use Transformer Engine and fused kernels where they are installed.

    Raises:
        ConfigError: sequences longer than the model's positions or its attention window.
    """
    # Sequences stay below the window, so it is never felt.
    if geometry.positions is not None and sequence_length > geometry.positions:
        remedy = f"sequences exceed the model's {geometry.positions} positions"
        raise ConfigError("data.max_query_tokens", sequence_length, remedy)
    fused = on_gpu and HAVE_TRANSFORMER_ENGINE
    fused_spec = packed_layer_spec if train.layout == "shared_prefix" else transformer_engine_layer_spec
    return ContrastConfig(
        geometry=geometry,
        **geometry.megatron(),
        seq_length=sequence_length,
        transformer_layer_spec=fused_spec if fused else local_block_spec,
        use_cpu_initialization=not on_gpu,
        attention_softmax_in_fp32=True,
        softmax_scale=softmax_scale(geometry),
        **_layout(train),
        **_kernels(fused),
        **_mixture(geometry, fused),
    )


def _layout(train: TrainConfig) -> dict[str, Any]:
    """Number formats, and the ranks that share the model."""
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    settings: dict[str, Any] = {
        "bf16": train.precision == "bf16",
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": train.tensor_parallel,
        "pipeline_model_parallel_size": train.pipeline_parallel,
        "expert_model_parallel_size": train.expert_parallel,
        "sequence_parallel": train.sequence_parallel,
        # Groups differ in length, so pipeline stages must tell each other the shapes.
        "variable_seq_lengths": train.pipeline_parallel > 1,
        # Of mixtures; Megatron checks it for all models.
        "moe_token_dispatcher_type": train.moe_dispatcher,
    }
    if train.activation_checkpointing:
        settings |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return settings


def _kernels(fused: bool) -> dict[str, Any]:
    """Which operations are computed together."""
    return {
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        "masked_softmax_fusion": fused,
        "apply_rope_fusion": fused,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
        "cross_entropy_loss_fusion": False,
    }


def _mixture(geometry: Geometry, fused: bool) -> dict[str, Any]:
    """Mixtral's router and experts; nothing for a dense model."""
    if geometry.num_experts is None:
        return {}
    return {
        "num_moe_experts": geometry.num_experts,
        "moe_router_topk": geometry.experts_per_token,
        "moe_router_pre_softmax": False,  # Mixtral: softmax over the chosen experts
        "moe_router_load_balancing_type": "none",  # the paper trains without an auxiliary loss
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": fused,
    }
