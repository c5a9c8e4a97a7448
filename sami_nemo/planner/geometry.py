"""The sizes of a model that all of the planner's numbers follow from. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sami_nemo.config import ModelConfig
from sami_nemo.model.hf_config import read_geometry


@dataclass(frozen=True)
class ModelGeometry:
    """Mistral's or Mixtral's sizes; every one is known."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Of the feed-forward block, or of one expert."""
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    num_experts: int | None
    """None: a dense model."""
    experts_per_token: int

    @property
    def query_size(self) -> int:
        """Channels of all query heads; as many as the context has."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Channels of all key heads; the values have as many."""
        return self.num_key_value_heads * self.head_dim


def model_geometry(model: ModelConfig) -> ModelGeometry | None:
    """The sizes that the configuration states, or those of config.json if `model.path` is a directory here.

    Returns:
        None if a size is not known: of a hub model that is not on this machine, for instance.

    Raises:
        ConfigError: configuration and config.json differ.
    """
    found = read_geometry(model)
    layers, hidden, ffn = found.num_layers, found.hidden_size, found.ffn_hidden_size
    heads, key_value_heads, vocabulary = found.num_attention_heads, found.num_key_value_heads, found.vocab_size
    if layers is None or hidden is None or ffn is None or heads is None or key_value_heads is None:
        return None
    if vocabulary is None or (found.num_experts is not None and found.experts_per_token is None):
        return None
    return ModelGeometry(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        # Mistral's and Mixtral's own default.
        head_dim=found.head_dim or hidden // heads,
        vocab_size=vocabulary,
        tied_embeddings=bool(found.tied_embeddings),
        num_experts=found.num_experts,
        experts_per_token=found.experts_per_token or 1,
    )
