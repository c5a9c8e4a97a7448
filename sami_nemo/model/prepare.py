"""Stage `model`: the base model exists, is whole, and is the one that the configuration describes."""

from __future__ import annotations

from pathlib import Path

from sami_nemo.config import Config, ModelConfig
from sami_nemo.config_checks import HF_GEOMETRY
from sami_nemo.errors import CheckpointError, ConfigError
from sami_nemo.model import random_model, sealed, smollm2
from sami_nemo.model.locate import download
from sami_nemo.model.upcycle import upcycle
from sami_nemo.run_dir import RunDir, read_json

# Of random weights and routers. Not the seed of the run: runs that differ in it start from the same base model.
MODEL_SEED = 0
DENSE_SMOLLM2 = "smollm2-135m"


def main(config: Config, run_dir: RunDir, iteration: int) -> None:
    directory = ensure_model(config.model)
    print(f"base model: {directory.resolve()}")
    if config.evaluate.instruct is not None:
        print(f"instruct baseline: {download(config.evaluate.instruct, field='evaluate.instruct').resolve()}")


def ensure_model(model: ModelConfig) -> Path:
    """Make or fetch the base model if it is not there, and check it.

    Returns:
        Its directory.

    Raises:
        CheckpointError: it cannot be had, is damaged, or is not what `model` says.
        ConfigError: `model.prepare` needs a field that is null.
    """
    if model.prepare == "smollm2":
        prepare_smollm2(Path(model.path), _experts(model))
    elif model.prepare == "random":
        sealed.place(Path(model.path), lambda directory: random_model.build(directory, _geometry(model), MODEL_SEED))
    directory = download(model.path)
    verify_model(directory, model)
    return directory


def prepare_smollm2(target: Path, num_experts: int | None) -> None:
    """SmolLM2-135M-Instruct at `target`; with `num_experts` upcycled from the dense one, which is put beside it."""
    if num_experts is None:
        sealed.place(target, smollm2.build)
        return
    dense = target.parent / DENSE_SMOLLM2
    if not target.exists():
        sealed.place(dense, smollm2.build)
    sealed.place(target, lambda directory: upcycle(dense, directory, num_experts, MODEL_SEED))


def verify_model(directory: Path, model: ModelConfig) -> None:
    """Compare config.json with `model`, and look for weights and tokenizer.

    Raises:
        CheckpointError: the first difference.
    """
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            "model.path", directory, "no config.json; give the directory of a Hugging Face checkpoint"
        )
    found = read_json(config_file)
    if found.get("model_type") != model.architecture:
        remedy = f"model.architecture says {model.architecture}; only mistral and mixtral are supported"
        raise CheckpointError(f"model_type in {config_file}", found.get("model_type"), remedy)
    for field, name in HF_GEOMETRY.items():
        expected = getattr(model, field)
        if expected is not None and found.get(name) != expected:
            remedy = f"model.{field} says {expected}; correct it, or set it to null to read it from the checkpoint"
            raise CheckpointError(f"{name} in {config_file}", found.get(name), remedy)
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            "model.path", directory, "no *.safetensors; convert the checkpoint, other formats are pickle"
        )
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(
            "model.path", directory, "no tokenizer.json or tokenizer.model; copy the model's tokenizer"
        )


def _experts(model: ModelConfig) -> int | None:
    if model.architecture == "mistral":
        return None
    return _required(model, "num_experts")


def _geometry(model: ModelConfig) -> random_model.Geometry:
    return random_model.Geometry(
        architecture=model.architecture,
        num_layers=_required(model, "num_layers"),
        hidden_size=_required(model, "hidden_size"),
        num_attention_heads=_required(model, "num_attention_heads"),
        num_key_value_heads=_required(model, "num_key_value_heads"),
        num_experts=_experts(model),
    )


def _required(model: ModelConfig, field: str) -> int:
    value = getattr(model, field)
    if value is None:
        raise ConfigError(f"model.{field}", "null", f"model.prepare={model.prepare} needs a number")
    assert isinstance(value, int)
    return value


if __name__ == "__main__":
    from sami_nemo.launch import stage_entry

    stage_entry.run(main, "train")
