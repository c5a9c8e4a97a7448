"""The geometry of the configured base model: what config.json says, or will say once this project has made it."""

from __future__ import annotations

from pathlib import Path

from sami_nemo.base_model import random_model, smollm2, upcycle
from sami_nemo.config.schema import ModelConfig
from sami_nemo.config_json import geometry_of, read_config
from sami_nemo.errors import ConfigError
from sami_nemo.geometry import ARCHITECTURES, HF_NAMES, Geometry, complete

# What a configuration can state of its model.
STATED = tuple(name for name in ModelConfig.model_fields if name in HF_NAMES and name != "architecture")


def base_geometry(model: ModelConfig, directory: Path | None = None) -> Geometry | None:
    """The geometry of the base model, as its config.json, `model.prepare` or the configuration alone tell it.

    Args:
        directory: where the checkpoint is, if not in `model.path`: in the cache of the hub, for instance.

    Returns:
        None if that is not known: of a model on the hub whose sizes the configuration does not state.

    Raises:
        ConfigError: the configuration states something else, or the model cannot be made so.
        CheckpointError: config.json cannot be read.
    """
    if model.architecture != "mixtral" and model.num_experts is not None:
        remedy = f"a {model.architecture} has no experts; set null or model.architecture=mixtral"
        raise ConfigError("model.num_experts", model.num_experts, remedy)
    directory = directory or Path(model.path)
    if (directory / "config.json").is_file():
        values = read_config(directory, "model.path")
        origin, way_out = f"{directory}/config.json says", ", or set null to read it there"
        _check_architecture(model, values.get("model_type"), origin)
        found = geometry_of(values, directory)
    elif model.prepare != "none":
        origin, way_out = f"model.prepare={model.prepare} makes a model with", ""
        found = random_geometry(model) if model.prepare == "random" else smollm2_geometry(model)
        _check_architecture(model, found.architecture, origin)
    else:
        return stated_geometry(model)
    for name in STATED:
        stated, value = getattr(model, name), getattr(found, name)
        if stated is not None and stated != value:
            raise ConfigError(f"model.{name}", stated, f"{origin} {HF_NAMES[name]} = {value}; correct it{way_out}")
    return found


def _check_architecture(model: ModelConfig, found: object, origin: str) -> None:
    if found != model.architecture:
        way_out = "correct it" if found in ARCHITECTURES else f"only {', '.join(ARCHITECTURES)} work"
        raise ConfigError("model.architecture", model.architecture, f"{origin} model_type = {found}; {way_out}")


def stated_geometry(model: ModelConfig) -> Geometry | None:
    """What the configuration alone states, if it states every size: constants that are no sizes are not known yet."""
    stated = {name: getattr(model, name) for name in STATED if getattr(model, name) is not None}
    values, missing = complete({"architecture": model.architecture, **stated})
    return None if missing else Geometry(**values)


def smollm2_geometry(model: ModelConfig) -> Geometry:
    """Of SmolLM2, or of its mixture.

    Raises:
        ConfigError: the number of its experts is null.
    """
    experts = experts_of(model)
    return smollm2.GEOMETRY if experts is None else upcycle.mixture(smollm2.GEOMETRY, experts)


def random_geometry(model: ModelConfig) -> Geometry:
    """Of a random model.

    Raises:
        ConfigError: a size that it needs is null.
    """
    return random_model.geometry(
        architecture=model.architecture,
        num_layers=_required(model, "num_layers"),
        hidden_size=_required(model, "hidden_size"),
        num_attention_heads=_required(model, "num_attention_heads"),
        num_key_value_heads=_required(model, "num_key_value_heads"),
        num_experts=experts_of(model),
    )


def experts_of(model: ModelConfig) -> int | None:
    """Experts of a model that is made here; None: a dense one."""
    return None if model.architecture != "mixtral" else _required(model, "num_experts")


def _required(model: ModelConfig, field: str) -> int:
    value = getattr(model, field)
    if value is None:
        raise ConfigError(f"model.{field}", "null", f"model.prepare={model.prepare} needs a number")
    assert isinstance(value, int)
    return value
