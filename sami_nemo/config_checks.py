"""Combinations of settings that cannot work, found before anything starts. Needs neither torch nor NeMo.

`config.py` checks each field by itself; here several fields, and the files they name, are checked together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_nemo.config import ClusterConfig, Config, JobConfig, ModelConfig
from sami_nemo.errors import ConfigError

# Our names of a model's geometry, and those of a Hugging Face config.json.
HF_GEOMETRY = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "ffn_hidden_size": "intermediate_size",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
}

# Tokens of a prompt besides its query. The longest of the paper's constitutions (Table 4) takes about 100, and so do the
# prompt with its example block and a chat template; the rest is for longer principles and smaller vocabularies. Prompts
# that are too long all the same are counted and left out while sampling.
PROMPT_ROOM = 300


@dataclass(frozen=True)
class Geometry:
    """Sizes of the base model; null where neither the configuration nor a local config.json states them."""

    num_layers: int | None
    hidden_size: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    num_experts: int | None
    experts_per_token: int | None
    ffn_hidden_size: int | None
    head_dim: int | None
    vocab_size: int | None
    tied_embeddings: bool | None


def check_config(config: Config) -> None:
    """Refuse settings that do not go together.

    Raises:
        ConfigError: the first such combination, with one field to change, its value and what to do.
    """
    geometry = read_geometry(config.model)
    for check in CHECKS:
        check(config, geometry)


def read_geometry(model: ModelConfig) -> Geometry:
    """The stated geometry, with nulls filled from config.json if `model.path` is a directory on this machine.

    Raises:
        ConfigError: the two differ, or config.json cannot be read.
    """
    hf_config = _read_hf_config(Path(model.path) / "config.json")
    architecture = hf_config.get("model_type", model.architecture)
    if architecture != model.architecture:
        raise ConfigError(
            "model.architecture", model.architecture, f"{model.path}/config.json says model_type = {architecture}"
        )
    sizes = {}
    for field, hf_name in HF_GEOMETRY.items():
        stated, found = getattr(model, field), _hf_size(hf_config, hf_name)
        if hf_config and stated is not None and stated != found:
            remedy = (
                f"{model.path}/config.json says {hf_name} = {found}; correct one of them, or set null to read it there"
            )
            raise ConfigError(f"model.{field}", stated, remedy)
        sizes[field] = stated if found is None else found
    return Geometry(**sizes)


def _hf_size(hf_config: dict[str, Any], name: str) -> Any:
    """A size in config.json, with transformers' defaults for two that older files leave out."""
    found = hf_config.get(name)
    if found is None and hf_config and name == "tie_word_embeddings":
        return False
    if found is None and name == "head_dim" and {"hidden_size", "num_attention_heads"} <= hf_config.keys():
        return hf_config["hidden_size"] // hf_config["num_attention_heads"]
    return found


def _read_hf_config(path: Path) -> dict[str, Any]:
    """A hub name, or a model still to be prepared, has no such file yet: nothing is known then."""
    if not path.is_file():
        return {}
    try:
        hf_config = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError("model.path", path.parent, f"its config.json is not JSON ({error})") from None
    if not isinstance(hf_config, dict):
        raise ConfigError("model.path", path.parent, "its config.json is not a JSON object")
    return hf_config


def check_experts(config: Config, geometry: Geometry) -> None:
    stated, architecture = config.model.num_experts, config.model.architecture
    if architecture == "mistral" and stated is not None:
        raise ConfigError(
            "model.num_experts", stated, "a mistral has no experts; set null or model.architecture=mixtral"
        )
    expert_parallel, experts = config.train.expert_parallel, geometry.num_experts
    if architecture == "mistral" and expert_parallel > 1:
        raise ConfigError("train.expert_parallel", expert_parallel, f"{config.model.name} has no experts; set 1")
    if experts is not None and experts % expert_parallel:
        raise ConfigError("train.expert_parallel", expert_parallel, f"must divide the {experts} experts of the model")


def check_tensor_parallel(config: Config, geometry: Geometry) -> None:
    size = config.train.tensor_parallel
    heads = {
        "attention heads": geometry.num_attention_heads,
        "key-value heads": geometry.num_key_value_heads,
    }
    for name, count in heads.items():
        if count is not None and count % size:
            raise ConfigError("train.tensor_parallel", size, f"must divide the {count} {name} of the model")


def check_sequence_parallel(config: Config, geometry: Geometry) -> None:
    train = config.train
    if train.sequence_parallel and train.tensor_parallel == 1:
        remedy = "it splits sequences over the tensor-parallel ranks; set false, or train.tensor_parallel above 1"
        raise ConfigError("train.sequence_parallel", train.sequence_parallel, remedy)
    if config.model.architecture == "mixtral" and train.tensor_parallel > 1 and not train.sequence_parallel:
        remedy = f"experts with train.tensor_parallel={train.tensor_parallel} need it in Megatron; set true"
        raise ConfigError("train.sequence_parallel", train.sequence_parallel, remedy)


def check_pipeline_parallel(config: Config, geometry: Geometry) -> None:
    stages = config.train.pipeline_parallel
    if geometry.num_layers is not None and geometry.num_layers % stages:
        raise ConfigError(
            "train.pipeline_parallel", stages, f"must divide the {geometry.num_layers} layers of the model"
        )
    if config.model.architecture == "mixtral" and stages > 1 and config.train.moe_dispatcher == "allgather":
        remedy = "cannot follow sequences of varying length through a pipeline; use alltoall"
        raise ConfigError("train.moe_dispatcher", config.train.moe_dispatcher, remedy)


def check_context_parallel(config: Config, geometry: Geometry) -> None:
    if config.train.context_parallel > 1:
        remedy = "context parallelism is not supported; set 1 and split sequences with train.sequence_parallel"
        raise ConfigError("train.context_parallel", config.train.context_parallel, remedy)


def check_devices(config: Config, geometry: Geometry) -> None:
    train, hardware = config.train, config.hardware
    devices = hardware.nodes * hardware.devices_per_node
    model_parallel = train.tensor_parallel * train.pipeline_parallel
    if devices % model_parallel:
        remedy = (
            f"{hardware.nodes} nodes x {hardware.devices_per_node} devices must be a multiple of tensor x pipeline "
            f"parallel = {model_parallel}"
        )
        raise ConfigError("hardware.devices_per_node", hardware.devices_per_node, remedy)
    # Experts keep the tensor-parallel size, so their ranks are taken from the data-parallel ones.
    if config.data_parallel % train.expert_parallel:
        remedy = f"must divide the {config.data_parallel} data-parallel ranks (devices / tensor / pipeline parallel)"
        raise ConfigError("train.expert_parallel", train.expert_parallel, remedy)


def check_batch(config: Config, geometry: Geometry) -> None:
    if config.train.batch_size % config.data_parallel:
        remedy = f"must be a multiple of {config.data_parallel}: so many data-parallel ranks share a step"
        raise ConfigError("train.batch_size", config.train.batch_size, remedy)


def check_precision(config: Config, geometry: Geometry) -> None:
    train = config.train
    if train.precision == "fp32" and train.master_weights == "bf16":
        remedy = "weights in fp32 are their own masters; set fp32, or train.precision=bf16"
        raise ConfigError("train.master_weights", train.master_weights, remedy)
    if train.precision == "fp32" and train.gradients == "bf16":
        remedy = "weights in fp32 have gradients in fp32; set null or fp32, or train.precision=bf16"
        raise ConfigError("train.gradients", train.gradients, remedy)
    if train.precision == "bf16" and train.master_weights == "bf16" and train.gradients == "fp32":
        remedy = "weights updated in place take gradients of their own type; set null or bf16, or masters in fp32"
        raise ConfigError("train.gradients", train.gradients, remedy)


def check_constitutions(config: Config, geometry: Geometry) -> None:
    from sami_nemo.constitution.principles import load_principles

    principles = config.principles
    # A writer is asked for two principles and two antitheses.
    available, origin = 4, f"principles.source={principles.source}"
    if principles.source == "file":
        if principles.file is None:
            raise ConfigError("principles.file", "null", "give a principles file, or another principles.source")
        available, origin = load_principles(principles.file).count, principles.file
    elif principles.model is None:
        raise ConfigError("principles.model", "null", "give the model that writes the principles")
    for section in ("train", "evaluate"):
        asked = getattr(config, section).constitutions_per_query
        if asked is not None and asked > available:
            remedy = f"{origin} gives {available} constitutions; lower it or add variants"
            raise ConfigError(f"{section}.constitutions_per_query", asked, remedy)


def check_judge(config: Config, geometry: Geometry) -> None:
    judge = config.judge
    if judge.method == "endpoint" and judge.model is None:
        raise ConfigError("judge.model", "null", "give the endpoint's name of the judge")
    prices = judge.dollars_per_million_input_tokens + judge.dollars_per_million_output_tokens
    if judge.budget_dollars is not None and prices == 0:
        remedy = "a budget needs prices: set judge.dollars_per_million_input_tokens and _output_tokens"
        raise ConfigError("judge.budget_dollars", judge.budget_dollars, remedy)


def check_generation(config: Config, geometry: Geometry) -> None:
    generate, hardware = config.generate, config.hardware
    size, heads = generate.tensor_parallel, geometry.num_attention_heads
    if heads is not None and heads % size:
        raise ConfigError("generate.tensor_parallel", size, f"must divide the {heads} attention heads of the model")
    if hardware.accelerator == "gpu" and size > hardware.devices_per_node:
        remedy = f"one engine runs on one node, which has {hardware.devices_per_node} GPUs"
        raise ConfigError("generate.tensor_parallel", size, remedy)
    needed = config.data.max_query_tokens + PROMPT_ROOM + generate.max_tokens
    if generate.max_model_len < needed:
        remedy = (
            f"set at least {needed}: data.max_query_tokens={config.data.max_query_tokens}, generate.max_tokens="
            f"{generate.max_tokens}, and {PROMPT_ROOM} for constitution and template"
        )
        raise ConfigError("generate.max_model_len", generate.max_model_len, remedy)


def check_time_limits(config: Config, geometry: Geometry) -> None:
    """A job is asked to save its state ahead of its time limit, so it needs more time than that."""
    signal = config.cluster.signal_seconds
    for section in ClusterConfig.model_fields:
        job = getattr(config.cluster, section)
        if not isinstance(job, JobConfig) or job.time is None:
            continue
        field, seconds = f"cluster.{section}.time", slurm_seconds(job.time)
        if seconds is None:
            remedy = "no time limit in Slurm's form: minutes, hours:minutes:seconds or days-hours:minutes:seconds"
            raise ConfigError(field, job.time, remedy)
        if seconds <= 2 * signal:
            remedy = f"give more than twice cluster.signal_seconds={signal}, after which a job saves its state"
            raise ConfigError(field, job.time, remedy)


def slurm_seconds(time: str) -> int | None:
    """A time limit of Slurm in seconds; None if it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        return None
    days, *parts = (0 if part is None else int(part) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, parts[:2]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


CHECKS: tuple[Callable[[Config, Geometry], None], ...] = (
    check_experts,
    check_tensor_parallel,
    check_sequence_parallel,
    check_pipeline_parallel,
    check_context_parallel,
    check_devices,
    check_batch,
    check_precision,
    check_constitutions,
    check_judge,
    check_generation,
    check_time_limits,
)
