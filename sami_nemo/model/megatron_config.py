"""The NeMo configuration of a Hugging Face Mistral or Mixtral checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from nemo.collections.llm import MistralConfig7B, MixtralConfig
from nemo.collections.llm.gpt.model.base import GPTConfig

from sami_nemo.config import TrainConfig
from sami_nemo.errors import ConfigError
from sami_nemo.model.layer_specs import (
    HAVE_TRANSFORMER_ENGINE,
    local_block_spec,
    packed_layer_spec,
    transformer_engine_layer_spec,
)


def _rope_theta(hf_config: dict[str, Any]) -> float:
    # transformers 5 moved the base of the rotary embedding into rope_parameters.
    rope = hf_config.get("rope_parameters") or {}
    return float(rope.get("rope_theta", hf_config.get("rope_theta", 10_000.0)))


def nemo_config(hf_config: dict[str, Any], train: TrainConfig, sequence_length: int, on_gpu: bool) -> GPTConfig:
    """NeMo's Mistral or Mixtral configuration with the geometry of `hf_config` and the layout of `train`.

    Args:
        hf_config: config.json of the checkpoint.
        sequence_length: longest sequence in tokens that the model will see.
        on_gpu: use Transformer Engine and fused kernels where they are installed.

    Raises:
        ConfigError: sequences longer than the model's positions or its attention window, or a vocabulary
            that the tensor-parallel ranks cannot share evenly.
    """
    if hf_config["vocab_size"] % train.tensor_parallel:
        raise ConfigError(
            "train.tensor_parallel", train.tensor_parallel, f"must divide the vocabulary of {hf_config['vocab_size']}"
        )
    window = hf_config.get("sliding_window") or hf_config["max_position_embeddings"]
    if sequence_length > min(window, hf_config["max_position_embeddings"]):
        raise ConfigError("data.max_query_tokens", sequence_length, f"sequences exceed the model's {window} positions")

    moe = "num_local_experts" in hf_config
    fused = on_gpu and HAVE_TRANSFORMER_ENGINE
    fused_spec = packed_layer_spec if train.layout == "shared_prefix" else transformer_engine_layer_spec
    settings: dict[str, Any] = {
        "num_layers": hf_config["num_hidden_layers"],
        "hidden_size": hf_config["hidden_size"],
        "ffn_hidden_size": hf_config["intermediate_size"],
        "num_attention_heads": hf_config["num_attention_heads"],
        "num_query_groups": hf_config["num_key_value_heads"],
        "kv_channels": hf_config.get("head_dim") or hf_config["hidden_size"] // hf_config["num_attention_heads"],
        "layernorm_epsilon": hf_config["rms_norm_eps"],
        "rotary_base": _rope_theta(hf_config),
        "vocab_size": hf_config["vocab_size"],
        "share_embeddings_and_output_weights": hf_config.get("tie_word_embeddings", False),
        "seq_length": sequence_length,
        # Groups differ in length, so pipeline stages must tell each other the shapes.
        "variable_seq_lengths": train.pipeline_parallel > 1,
        "moe_token_dispatcher_type": train.moe_dispatcher,
        "params_dtype": torch.bfloat16 if train.precision == "bf16" else torch.float32,
        "tensor_model_parallel_size": train.tensor_parallel,
        "pipeline_model_parallel_size": train.pipeline_parallel,
        "bf16": train.precision == "bf16",
        "pipeline_dtype": torch.bfloat16 if train.precision == "bf16" else torch.float32,
        "expert_model_parallel_size": train.expert_parallel,
        "sequence_parallel": train.sequence_parallel,
        "transformer_layer_spec": fused_spec if fused else local_block_spec,
        "use_cpu_initialization": not on_gpu,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        "masked_softmax_fusion": fused,
        "apply_rope_fusion": fused,
        "cross_entropy_loss_fusion": False,
        "attention_softmax_in_fp32": True,
    }
    if train.activation_checkpointing:
        settings |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if not moe:
        # Sequences stay below the window, so it is never felt.
        return MistralConfig7B(**settings, window_size=None)
    return MixtralConfig(
        **settings,
        num_moe_experts=hf_config["num_local_experts"],
        moe_router_topk=hf_config["num_experts_per_tok"],
        moe_router_pre_softmax=False,  # Mixtral: softmax over the chosen experts
        moe_router_load_balancing_type="none",  # the paper trains without an auxiliary loss
        moe_aux_loss_coeff=0.0,
        moe_grouped_gemm=fused,
    )
