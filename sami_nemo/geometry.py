"""Sizes and constants of a Mistral, a Mixtral or a Llama, in this product's names. Needs no torch.

`Geometry` is the table: each of its fields knows Hugging Face's name of the same thing and, where Megatron has one,
Megatron's. config_json.py reads it from a checkpoint.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_type_hints

Architecture = Literal["mistral", "mixtral", "llama"]
ARCHITECTURES = get_args(Architecture)
CLASSES = {"mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM", "llama": "LlamaForCausalLM"}
# How the weights are stored: transformers' name since 4.56, and the one before.
DTYPE_KEYS = ("dtype", "torch_dtype")
ACTIVATION = "silu"
# Of transformers' MistralConfig, MixtralConfig and LlamaConfig, for what config.json leaves out. Llama's heads have a key
# each where it is not said how many share one.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {
        "num_key_value_heads": 8,
        "max_positions": 131_072,
        "norm_epsilon": 1e-6,
        "rope_theta": 1e4,
        "window": 4096,
    },
    "mixtral": {
        "num_key_value_heads": 8,
        "num_experts": 8,
        "experts_per_token": 2,
        "max_positions": 131_072,
        "norm_epsilon": 1e-5,
        "rope_theta": 1e6,
        "window": None,
    },
    "llama": {"max_positions": 2048, "norm_epsilon": 1e-6, "rope_theta": 1e4, "window": None},
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary embedding reaches beyond the positions of pretraining. Fields are called as in `rope_scaling`."""

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position_embeddings: int | None = None
    """Positions before; of llama3 and yarn."""
    low_freq_factor: float | None = None
    """Of llama3: longer waves than `original_max_position_embeddings` by this are stretched by `factor`."""
    high_freq_factor: float | None = None
    """Of llama3: shorter waves than `original_max_position_embeddings` by this stay."""
    attention_factor: float | None = None
    """Of yarn: sines and cosines are multiplied by it."""
    beta_fast: float | None = None
    """Of yarn: waves that turn more often than this within the positions before stay."""
    beta_slow: float | None = None
    """Of yarn: waves that turn less often are stretched by `factor`."""
    truncate: bool | None = None
    """Of yarn: whether the bounds between both are whole channels."""

    def hf(self) -> dict[str, Any]:
        """As `rope_scaling` of a config.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


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
    rope_scaling: Annotated[RopeScaling | None, Named("rope_scaling")] = None
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

    @property
    def positions(self) -> int | None:
        """Longest sequence that attention sees whole and in places that it knows; None: not known."""
        known, scaling = self.max_positions, self.rope_scaling
        limits = [known, self.window]
        if known is not None and scaling is not None and scaling.rope_type == "linear":
            # Of the other forms `max_position_embeddings` is what is reached with them; so transformers and vLLM read it.
            limits[0] = int(known * scaling.factor)
        if scaling is not None and scaling.rope_type == "yarn":
            # vLLM keeps the angles of so many.
            assert scaling.original_max_position_embeddings is not None
            limits.append(int(scaling.original_max_position_embeddings * scaling.factor))
        return min((limit for limit in limits if limit is not None), default=None)

    def hf(self) -> dict[str, Any]:
        """As fields of a config.json that transformers 4 and 5 read alike."""
        values = {HF_NAMES[name]: getattr(self, name) for name in HF_NAMES if name not in ("rope_scaling", "dtype")}
        values["rope_scaling"] = None if self.rope_scaling is None else self.rope_scaling.hf()
        # The one activation that all engines compute.
        values["hidden_act"] = ACTIVATION
        # Those that the class does not have.
        absent = ("num_experts", "experts_per_token") if self.num_experts is None else ()
        for name in (*absent, *(("window",) if self.architecture == "llama" else ())):
            del values[HF_NAMES[name]]
        return values

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


def complete(found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of `Geometry` with the head's size derived from the others, and the names of sizes that are still missing."""
    if "head_dim" not in found and {"hidden_size", "num_attention_heads"} <= found.keys():
        found = {**found, "head_dim": found["hidden_size"] // found["num_attention_heads"]}
    experts = ("num_experts", "experts_per_token") if found["architecture"] == "mixtral" else ()
    return found, [name for name in (*SIZES, *experts) if name not in found]


def with_dtype(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The fields of a config.json, saying that the weights are stored as `dtype`: under the names that they use already."""
    keys = [key for key in DTYPE_KEYS if key in values] or [DTYPE_KEYS[0]]
    return {**values, **dict.fromkeys(keys, dtype)}
