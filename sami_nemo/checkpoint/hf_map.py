"""Which Hugging Face tensors a Megatron parameter holds, and how it cuts them for tensor parallelism.

One table for Mistral and Mixtral, in the naming of Megatron's own modules and of Transformer Engine's.
`{layer}` counts over all pipeline stages, `{expert}` over all expert-parallel ranks; a module's own names count
from zero on each rank.

Axes: O output features, I input features, G query groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sami_nemo.geometry import Geometry, vocabulary_part


class Readable(Protocol):
    """A tensor on disk that is read by slicing, as `safe_open(...).get_slice` returns."""

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor: ...
    def get_shape(self) -> list[int]: ...


def _part(size: int, rank: int, ranks: int) -> slice:
    assert size % ranks == 0, f"{size} does not divide by {ranks}"
    return slice(size // ranks * rank, size // ranks * (rank + 1))


def _joined(parts: Sequence[Tensor], dimension: int = 0) -> Tensor:
    """The parts of all ranks together; of one rank without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dimension)


class Layout(Protocol):
    """How one Megatron parameter is made of Hugging Face tensors."""

    @property
    def sharded(self) -> bool:
        """Whether tensor-parallel ranks hold different parts."""

    def read(self, tensors: Sequence[Readable], rank: int, ranks: int) -> Tensor:
        """The parameter of one tensor-parallel rank."""

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The Hugging Face tensors, from the parameters of all tensor-parallel ranks."""


@dataclass(frozen=True)
class Whole:
    """Every rank holds the tensor."""

    sharded: bool = False

    def read(self, tensors: Sequence[Readable], rank: int, ranks: int) -> Tensor:
        return tensors[0][tuple(slice(None) for _ in tensors[0].get_shape())]

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        return [shards[0]]


@dataclass(frozen=True)
class Columns:
    """Ranks hold equal parts of the input features."""

    sharded: bool = True

    def read(self, tensors: Sequence[Readable], rank: int, ranks: int) -> Tensor:
        return tensors[0][(slice(None), _part(tensors[0].get_shape()[1], rank, ranks))]

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        return [_joined(shards, dimension=1)]


@dataclass(frozen=True)
class Vocabulary:
    """Ranks hold equally many rows. Behind those of the tokens there are zeros where the ranks do not divide them."""

    tokens: int
    sharded: bool = True

    def read(self, tensors: Sequence[Readable], rank: int, ranks: int) -> Tensor:
        part = vocabulary_part(self.tokens, ranks)
        # The last rank takes all that is left: a tensor that has not a row for each token gives a part of another size.
        stop = None if rank == ranks - 1 else part * (rank + 1)
        rows = tensors[0][(slice(part * rank, stop), slice(None))]
        padding = min(part, max(0, part * (rank + 1) - self.tokens))
        return functional.pad(rows, (0, 0, 0, padding)) if padding else rows

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        return [_joined(shards)[: self.tokens]]


@dataclass(frozen=True)
class GateUp:
    """Gate and up projection, stacked in each rank's part."""

    sharded: bool = True

    def read(self, tensors: Sequence[Readable], rank: int, ranks: int) -> Tensor:
        return torch.cat([tensor[(_part(tensor.get_shape()[0], rank, ranks), slice(None))] for tensor in tensors])

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        halves = [shard.chunk(2) for shard in shards]
        return [_joined([half[which] for half in halves]) for which in range(2)]


@dataclass(frozen=True)
class QKV:
    """Query, key and value projection, interleaved by query group: its queries, then its key, then its value."""

    query_groups: int
    head_size: int
    sharded: bool = True

    def read(self, tensors: Sequence[Readable], rank: int, ranks: int) -> Tensor:
        groups = self.query_groups // ranks
        parts_GOI = []
        for tensor in tensors:
            rows, columns = tensor.get_shape()
            part = tensor[(_part(rows, rank, ranks), slice(None))]
            parts_GOI.append(part.view(groups, rows // self.query_groups, columns))
        return torch.cat(parts_GOI, dim=1).flatten(0, 1)

    def join(self, shards: Sequence[Tensor]) -> list[Tensor]:
        groups = self.query_groups // len(shards)
        split: list[list[Tensor]] = [[], [], []]
        for shard in shards:
            rows_GOI = shard.view(groups, -1, shard.shape[-1])
            queries = rows_GOI.shape[1] - 2 * self.head_size
            for which, part in enumerate(rows_GOI.split((queries, self.head_size, self.head_size), dim=1)):
                split[which].append(part.flatten(0, 1))
        return [_joined(parts) for parts in split]


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    megatron: tuple[str, ...]
    """Names in Megatron's own modules and in Transformer Engine's."""
    hf: tuple[str, ...]
    layout: Layout

    def expert(self) -> bool:
        return "{expert}" in self.hf[0]

    def match(self, name: str) -> tuple[int | None, int | None] | None:
        """The module's own layer and expert numbers if `name` is a parameter of this entry."""
        for pattern in self.megatron:
            expression = re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)")
            found = re.fullmatch(expression.replace(r"\{expert\}", r"(?P<expert>\d+)"), name)
            if found:
                numbers = found.groupdict()
                layer, expert = numbers.get("layer"), numbers.get("expert")
                return (None if layer is None else int(layer)), (None if expert is None else int(expert))
        return None

    def hf_names(self, layer: int | None, expert: int | None) -> tuple[str, ...]:
        return tuple(name.format(layer=layer, expert=expert) for name in self.hf)


def hf_map(geometry: Geometry) -> tuple[Entry, ...]:
    """The table for a model of this geometry."""
    decoder, layer = "decoder.layers.{layer}.", "model.layers.{layer}."
    vocabulary = Vocabulary(geometry.vocab_size)
    attention, experts = layer + "self_attn.", layer + "block_sparse_moe.experts.{expert}."
    return (
        Entry(("embedding.word_embeddings.weight",), ("model.embed_tokens.weight",), vocabulary),
        Entry(("decoder.final_layernorm.weight",), ("model.norm.weight",), Whole()),
        Entry(("output_layer.weight",), ("lm_head.weight",), vocabulary),
        Entry(
            (decoder + "input_layernorm.weight", decoder + "self_attention.linear_qkv.layer_norm_weight"),
            (layer + "input_layernorm.weight",),
            Whole(),
        ),
        Entry(
            (decoder + "self_attention.linear_qkv.weight",),
            (attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"),
            QKV(geometry.num_key_value_heads, geometry.head_dim),
        ),
        Entry((decoder + "self_attention.linear_proj.weight",), (attention + "o_proj.weight",), Columns()),
        Entry(
            (decoder + "pre_mlp_layernorm.weight", decoder + "mlp.linear_fc1.layer_norm_weight"),
            (layer + "post_attention_layernorm.weight",),
            Whole(),
        ),
        Entry(
            (decoder + "mlp.linear_fc1.weight",),
            (layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"),
            GateUp(),
        ),
        Entry((decoder + "mlp.linear_fc2.weight",), (layer + "mlp.down_proj.weight",), Columns()),
        Entry((decoder + "mlp.router.weight",), (layer + "block_sparse_moe.gate.weight",), Whole()),
        Entry(
            (
                decoder + "mlp.experts.local_experts.{expert}.linear_fc1.weight",
                decoder + "mlp.experts.linear_fc1.weight{expert}",
            ),
            (experts + "w1.weight", experts + "w3.weight"),
            GateUp(),
        ),
        Entry(
            (
                decoder + "mlp.experts.local_experts.{expert}.linear_fc2.weight",
                decoder + "mlp.experts.linear_fc2.weight{expert}",
            ),
            (experts + "w2.weight",),
            Columns(),
        ),
    )
