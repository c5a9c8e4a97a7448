"""Whether a checkpoint is whole, and what its sizes ask of the settings. Needs no torch.

Asked before a run begins, as far as the checkpoint or its sizes are known there, and in stage `model`, where it is there.
"""

from __future__ import annotations

from pathlib import Path

from sami_nemo.checkpoint.headers import INDEX, SINGLE, check_weights, read_headers
from sami_nemo.config.schema import Config
from sami_nemo.config_json import check_files, read_geometry
from sami_nemo.errors import ConfigError
from sami_nemo.geometry import Geometry

# The one model that is neither trained nor scored: of any architecture that vLLM serves.
WRITER = "principles.model"
# Channels of a head that vLLM's attention on CPUs has kernels for.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_checkpoint(directory: Path, field: str) -> None:
    """A directory is a whole checkpoint, by its headers.

    Args:
        field: the configuration key that names it.

    Raises:
        CheckpointError: something is missing, damaged, or not what can be trained.
    """
    check_files(directory, field)
    if field != WRITER:
        check_weights(directory, read_geometry(directory, field), field)
    elif any((directory / name).is_file() for name in (SINGLE, INDEX)):
        read_headers(directory, field)


def check_experts(config: Config, geometry: Geometry) -> None:
    experts, chosen = geometry.num_experts, geometry.experts_per_token
    if experts is None:
        return
    if chosen > experts:
        raise ConfigError(
            "model.experts_per_token", chosen, f"the model has {experts} experts; choose as many or fewer"
        )
    if experts % config.train.expert_parallel:
        remedy = f"must divide the {experts} experts of the model"
        raise ConfigError("train.expert_parallel", config.train.expert_parallel, remedy)


def check_heads(config: Config, geometry: Geometry) -> None:
    hidden, heads, shared = geometry.hidden_size, geometry.num_attention_heads, geometry.num_key_value_heads
    if heads % shared:
        raise ConfigError("model.num_key_value_heads", shared, f"must divide the {heads} attention heads of the model")
    if config.model.prepare == "random" and hidden % heads:
        raise ConfigError("model.hidden_size", hidden, f"must be a multiple of the {heads} attention heads")
    if config.hardware.accelerator == "cpu" and geometry.head_dim not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        remedy = f"vLLM samples on CPUs with heads of {sizes} channels; take another model"
        raise ConfigError("model.head_dim", geometry.head_dim, remedy)


def check_tensor_parallel(config: Config, geometry: Geometry) -> None:
    size = config.train.tensor_parallel
    for name, count in (
        ("attention heads", geometry.num_attention_heads),
        ("key-value heads", geometry.num_key_value_heads),
        ("feed-forward channels", geometry.ffn_hidden_size),
    ):
        if count % size:
            raise ConfigError("train.tensor_parallel", size, f"must divide the {count} {name} of the model")


def check_pipeline_parallel(config: Config, geometry: Geometry) -> None:
    stages = config.train.pipeline_parallel
    if geometry.num_layers % stages:
        remedy = f"must divide the {geometry.num_layers} layers of the model"
        raise ConfigError("train.pipeline_parallel", stages, remedy)


def check_engine_model(config: Config, geometry: Geometry) -> None:
    """GPUs of an engine share the heads evenly, and requests are no longer than the model knows."""
    generate, heads, positions = config.generate, geometry.num_attention_heads, geometry.positions
    if heads % generate.tensor_parallel:
        remedy = f"must divide the {heads} attention heads of the model"
        raise ConfigError("generate.tensor_parallel", generate.tensor_parallel, remedy)
    if positions is not None and generate.max_model_len > positions:
        remedy = f"the model sees {positions} positions at a time; lower it"
        raise ConfigError("generate.max_model_len", generate.max_model_len, remedy)


MODEL_CHECKS = (check_experts, check_heads, check_tensor_parallel, check_pipeline_parallel, check_engine_model)
