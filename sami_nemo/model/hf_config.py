"""What config.json of the base model says, or will say once this project has made it. Needs neither torch nor NeMo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_nemo.config import ModelConfig
from sami_nemo.errors import CheckpointError, ConfigError
from sami_nemo.model import random_model, smollm2, upcycle

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
ARCHITECTURES = ("mistral", "mixtral")
CLASSES = ("MistralForCausalLM", "MixtralForCausalLM")


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
    max_positions: int | None
    """Longest sequence that the model knows; null also where its positions are stretched (`rope_scaling`)."""


def read_geometry(model: ModelConfig, directory: Path | None = None) -> Geometry:
    """The stated geometry, with nulls filled from config.json: that of a checkpoint, or of one that is still to be made.

    Args:
        directory: where the checkpoint is, if not in `model.path`: in the cache of the hub, for instance.

    Raises:
        ConfigError: the two differ, or the model cannot be made so.
        CheckpointError: config.json cannot be read.
    """
    if model.architecture == "mistral" and model.num_experts is not None:
        remedy = "a mistral has no experts; set null or model.architecture=mixtral"
        raise ConfigError("model.num_experts", model.num_experts, remedy)
    directory = directory or Path(model.path)
    if (directory / "config.json").is_file():
        hf_config = _read_json(directory, "model.path")
        origin, way_out = f"{directory}/config.json says", ", or set null to read it there"
    else:
        hf_config, origin, way_out = _config_to_be(model), f"model.prepare={model.prepare} makes a model with", ""
    if hf_config and (kind := hf_config.get("model_type")) != model.architecture:
        way_out = "correct it" if kind in ARCHITECTURES else f"only {' and '.join(ARCHITECTURES)} are supported"
        remedy = f"{origin} model_type = {kind}; {way_out}"
        raise ConfigError("model.architecture", model.architecture, remedy)
    sizes = {}
    for field, hf_name in HF_GEOMETRY.items():
        stated, found = getattr(model, field), _hf_size(hf_config, hf_name)
        if hf_config and stated is not None and stated != found:
            raise ConfigError(f"model.{field}", stated, f"{origin} {hf_name} = {found}; correct it{way_out}")
        sizes[field] = stated if found is None else found
    stretched = hf_config.get("rope_scaling") is not None
    return Geometry(**sizes, max_positions=None if stretched else hf_config.get("max_position_embeddings"))


def _hf_size(hf_config: dict[str, Any], name: str) -> Any:
    """A size in config.json, with transformers' defaults for two that older files leave out."""
    found = hf_config.get(name)
    if found is None and hf_config and name == "tie_word_embeddings":
        return False
    if found is None and name == "head_dim" and {"hidden_size", "num_attention_heads"} <= hf_config.keys():
        return hf_config["hidden_size"] // hf_config["num_attention_heads"]
    return found


def _config_to_be(model: ModelConfig) -> dict[str, Any]:
    """config.json of a model that `model.prepare` makes; empty where nothing is known, as of a hub name."""
    if model.prepare == "random":
        return random_model.config_fields(random_geometry(model))
    if model.prepare == "smollm2":
        experts = experts_of(model)
        return smollm2.CONFIG if experts is None else smollm2.CONFIG | upcycle.mixtral_fields(experts)
    return {}


def random_geometry(model: ModelConfig) -> random_model.Geometry:
    """What a random model is made from.

    Raises:
        ConfigError: a size that it needs is null.
    """
    return random_model.Geometry(
        architecture=model.architecture,
        num_layers=_required(model, "num_layers"),
        hidden_size=_required(model, "hidden_size"),
        num_attention_heads=_required(model, "num_attention_heads"),
        num_key_value_heads=_required(model, "num_key_value_heads"),
        num_experts=experts_of(model),
    )


def experts_of(model: ModelConfig) -> int | None:
    """Experts of a model that is made here; None: a dense one."""
    return None if model.architecture == "mistral" else _required(model, "num_experts")


def _required(model: ModelConfig, field: str) -> int:
    value = getattr(model, field)
    if value is None:
        raise ConfigError(f"model.{field}", "null", f"model.prepare={model.prepare} needs a number")
    assert isinstance(value, int)
    return value


def read_hf_config(checkpoint: Path, field: str = "model.path") -> dict[str, Any]:
    """config.json of a checkpoint that is trained or scored.

    Args:
        field: the key that `checkpoint` comes from.

    Raises:
        CheckpointError: it is missing, or of another architecture than Mistral or Mixtral.
    """
    hf_config = _read_json(checkpoint, field)
    architectures = hf_config.get("architectures") or []
    if not set(architectures) & set(CLASSES):
        raise CheckpointError(field, checkpoint, f"is {architectures}; only {' and '.join(CLASSES)} work")
    return hf_config


def check_files(checkpoint: Path, field: str) -> None:
    """A directory holds what every checkpoint has: config.json, weights and a tokenizer.

    Raises:
        CheckpointError: the first that is missing.
    """
    _read_json(checkpoint, field)
    if not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(field, checkpoint, "no *.safetensors; convert the checkpoint, other formats are pickle")
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(field, checkpoint, "no tokenizer.json or tokenizer.model; copy the model's tokenizer")


def _read_json(checkpoint: Path, field: str) -> dict[str, Any]:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise CheckpointError(field, checkpoint, "no config.json; give the directory of a Hugging Face checkpoint")
    try:
        hf_config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(field, checkpoint, f"its config.json cannot be read as JSON ({error})") from None
    if not isinstance(hf_config, dict) or not hf_config:
        raise CheckpointError(field, checkpoint, "its config.json is not a JSON object with the model's sizes")
    return hf_config
