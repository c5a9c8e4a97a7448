"""What config.json of a Mistral or Mixtral says, in this product's names. It is read here and nowhere else; no torch.

`Geometry` is the table: each of its fields knows Hugging Face's name of the same thing and, where Megatron has one,
Megatron's. What a file leaves out is what transformers takes for that architecture; sizes are never guessed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from sami_nemo.errors import CheckpointError

Architecture = Literal["mistral", "mixtral"]
ARCHITECTURES = get_args(Architecture)
CLASSES = ("MistralForCausalLM", "MixtralForCausalLM")
# How the weights are stored: transformers' name since 4.56, and the one before.
DTYPE_KEYS = ("dtype", "torch_dtype")
# Of transformers' MistralConfig and MixtralConfig, for what config.json leaves out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"max_positions": 131_072, "norm_epsilon": 1e-6, "rope_theta": 1e4, "window": 4096},
    "mixtral": {"max_positions": 131_072, "norm_epsilon": 1e-5, "rope_theta": 1e6, "window": None},
}


@dataclass(frozen=True)
class Named:
    """What a field of `Geometry` is called elsewhere."""

    hf: str
    megatron: str | None = None
    """None: it has no counterpart, or not always."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes and constants of a model. A field without a default is a size: config.json has to state it."""

    architecture: Annotated[Architecture, Named("model_type")]
    num_layers: Annotated[int, Named("num_hidden_layers", "num_layers")]
    hidden_size: Annotated[int, Named("hidden_size", "hidden_size")]
    ffn_hidden_size: Annotated[int, Named("intermediate_size", "ffn_hidden_size")]
    """Of the feed-forward block, or of one expert."""
    num_attention_heads: Annotated[int, Named("num_attention_heads", "num_attention_heads")]
    num_key_value_heads: Annotated[int, Named("num_key_value_heads", "num_query_groups")]
    head_dim: Annotated[int, Named("head_dim", "kv_channels")]
    vocab_size: Annotated[int, Named("vocab_size", "vocab_size")]
    tied_embeddings: Annotated[bool, Named("tie_word_embeddings", "share_embeddings_and_output_weights")] = False
    """Whether the output projection is the token embedding."""
    num_experts: Annotated[int | None, Named("num_local_experts")] = None
    """None: a dense model."""
    experts_per_token: Annotated[int, Named("num_experts_per_tok")] = 1
    max_positions: Annotated[int | None, Named("max_position_embeddings")] = None
    """Longest sequence that it was trained for; None: not known."""
    window: Annotated[int | None, Named("sliding_window")] = None
    """Positions that attention looks back on; None: all."""
    norm_epsilon: Annotated[float, Named("rms_norm_eps", "layernorm_epsilon")] = 1e-5
    rope_theta: Annotated[float, Named("rope_theta", "rotary_base")] = 1e4
    rope_scaling: Annotated[str | None, Named("rope_scaling")] = None
    """How positions beyond `max_positions` are reached: "yarn", for instance."""
    activation: Annotated[str, Named("hidden_act")] = "silu"
    dtype: Annotated[str | None, Named(DTYPE_KEYS[0])] = None
    """Of the stored weights, as torch calls it."""

    @property
    def query_size(self) -> int:
        """Channels of all query heads; as many as the context has."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Channels of all key heads; the values have as many."""
        return self.num_key_value_heads * self.head_dim

    def hf(self) -> dict[str, Any]:
        """As fields of a config.json that is written here."""
        values = {name: getattr(self, name) for name in HF_NAMES if name not in ("rope_scaling", "dtype")}
        assert self.rope_scaling is None, "this project makes no models with stretched positions"
        if self.num_experts is None:
            del values["num_experts"], values["experts_per_token"]
        return {HF_NAMES[name]: value for name, value in values.items()}

    def megatron(self) -> dict[str, Any]:
        """The arguments of Megatron's configuration that have the same meaning."""
        return {named.megatron: getattr(self, name) for name, named in NAMES.items() if named.megatron is not None}


def vocabulary_part(tokens: int, ranks: int) -> int:
    """Rows of embedding and output projection on each of `ranks` tensor-parallel ranks, which hold equally many.

    Where `ranks` does not divide the vocabulary of `tokens`, the last parts are filled up with rows of no token: as few as
    that takes, so that a vocabulary that does divide, or is not shared, stays as it is.
    """
    return -(-tokens // ranks)


NAMES: dict[str, Named] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Geometry, include_extras=True).items()
}
HF_NAMES = {name: named.hf for name, named in NAMES.items()}
SIZES = tuple(each.name for each in dataclasses.fields(Geometry) if each.default is dataclasses.MISSING)
"""What has to be stated of any model."""


def read_geometry(checkpoint: Path, source: str = "model.path") -> Geometry:
    """The geometry of a checkpoint that is trained, scored or sampled from.

    Args:
        source: the configuration key that `checkpoint` comes from, for errors.

    Raises:
        CheckpointError: config.json is missing or damaged, leaves out a size, or is of another architecture.
    """
    values = read_config(checkpoint, source)
    classes = values.get("architectures") or []
    if not set(classes) & set(CLASSES):
        raise CheckpointError(source, checkpoint, f"is {classes}; only {' and '.join(CLASSES)} work")
    return geometry_of(values, checkpoint, source)


def geometry_of(values: dict[str, Any], checkpoint: Path, source: str = "model.path") -> Geometry:
    """The geometry that the fields of a config.json describe.

    Raises:
        CheckpointError: a size is missing, or the architecture is another.
    """
    architecture = str(values.get("model_type"))
    if architecture not in ARCHITECTURES:
        remedy = f"its config.json says model_type = {architecture}; only {' and '.join(ARCHITECTURES)} work"
        raise CheckpointError(source, checkpoint, remedy)
    found = {name: values[hf] for name, hf in HF_NAMES.items() if values.get(hf) is not None}
    found = DEFAULTS[architecture] | found | _rope(values)
    if HF_NAMES["window"] in values:
        # Null is an answer here: attention without a window.
        found["window"] = values[HF_NAMES["window"]]
    found["dtype"] = next((values[key] for key in DTYPE_KEYS if values.get(key) is not None), None)
    if architecture == "mistral":
        found |= {"num_experts": None, "experts_per_token": 1}
    found, missing = complete(found)
    if missing:
        raise CheckpointError(
            source, checkpoint, f"its config.json lacks {', '.join(HF_NAMES[name] for name in missing)}"
        )
    return Geometry(**found)


def complete(found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of `Geometry` with the head's size derived from the others, and the names of sizes that are still missing."""
    if "head_dim" not in found and {"hidden_size", "num_attention_heads"} <= found.keys():
        found = {**found, "head_dim": found["hidden_size"] // found["num_attention_heads"]}
    experts = ("num_experts", "experts_per_token") if found["architecture"] == "mixtral" else ()
    return found, [name for name in (*SIZES, *experts) if name not in found]


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary embedding: transformers 5 puts both into `rope_parameters`."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    found: dict[str, Any] = {"rope_scaling": None if kind == "default" else kind}
    if "rope_theta" in rope:
        found["rope_theta"] = float(rope["rope_theta"])
    return found


def with_dtype(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The fields of a config.json, saying that the weights are stored as `dtype`: under the names that they use already."""
    keys = [key for key in DTYPE_KEYS if key in values] or [DTYPE_KEYS[0]]
    return {**values, **dict.fromkeys(keys, dtype)}


def check_files(checkpoint: Path, source: str) -> None:
    """A directory holds what every checkpoint has: config.json, weights and a tokenizer.

    Raises:
        CheckpointError: the first that is missing.
    """
    read_config(checkpoint, source)
    if not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(source, checkpoint, "no *.safetensors; convert the checkpoint, other formats are pickle")
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(source, checkpoint, "no tokenizer.json or tokenizer.model; copy the model's tokenizer")


def read_config(checkpoint: Path, source: str) -> dict[str, Any]:
    """The fields of a checkpoint's config.json.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = checkpoint / "config.json"
    if not path.is_file():
        raise CheckpointError(source, checkpoint, "no config.json; give the directory of a Hugging Face checkpoint")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(source, checkpoint, f"its config.json cannot be read as JSON ({error})") from None
    if not isinstance(values, dict) or not values:
        raise CheckpointError(source, checkpoint, "its config.json is not a JSON object with the model's sizes")
    return values
