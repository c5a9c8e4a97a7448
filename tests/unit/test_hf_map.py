"""The table, in the naming of Megatron's own modules and of Transformer Engine's; cuts by hand."""

from __future__ import annotations

import pytest
import torch

from sami_nemo.base_model import random_model
from sami_nemo.checkpoint.hf_map import QKV, Columns, GateUp, Layout, Vocabulary, Whole, hf_map
from sami_nemo.geometry import vocabulary_part

TABLE = hf_map(random_model.geometry(hidden_size=8, num_attention_heads=4, num_key_value_heads=2))


def names_of(megatron: str) -> tuple[str, ...]:
    [found] = [entry.hf_names(*numbers) for entry in TABLE if (numbers := entry.match(megatron))]
    return found


@pytest.mark.parametrize(
    ("megatron", "hf"),
    [
        ("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        ("decoder.layers.3.input_layernorm.weight", "model.layers.3.input_layernorm.weight"),
        ("decoder.layers.3.self_attention.linear_qkv.layer_norm_weight", "model.layers.3.input_layernorm.weight"),
        ("decoder.layers.3.pre_mlp_layernorm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("decoder.layers.3.mlp.linear_fc1.layer_norm_weight", "model.layers.3.post_attention_layernorm.weight"),
        ("decoder.layers.3.mlp.router.weight", "model.layers.3.block_sparse_moe.gate.weight"),
        (
            "decoder.layers.3.mlp.experts.local_experts.5.linear_fc2.weight",
            "model.layers.3.block_sparse_moe.experts.5.w2.weight",
        ),
        ("decoder.layers.3.mlp.experts.linear_fc2.weight5", "model.layers.3.block_sparse_moe.experts.5.w2.weight"),
    ],
)
def test_names(megatron: str, hf: str) -> None:
    assert names_of(megatron) == (hf,)


def test_fused_names() -> None:
    experts = "model.layers.0.block_sparse_moe.experts.7."
    assert names_of("decoder.layers.0.mlp.experts.linear_fc1.weight7") == (experts + "w1.weight", experts + "w3.weight")
    assert names_of("decoder.layers.12.self_attention.linear_qkv.weight") == tuple(
        f"model.layers.12.self_attn.{projection}_proj.weight" for projection in "qkv"
    )


class Slices:
    """A tensor that is read as safetensors slices are."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        return self.tensor[index]

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)


def test_qkv_is_interleaved_by_query_group() -> None:
    # Two groups of two query heads of size 2: rows 0-3 are the queries of group 0, rows 4-7 of group 1.
    queries, keys, values = (torch.arange(rows)[:, None] + start for rows, start in ((8, 0), (4, 100), (4, 200)))
    rows = QKV(2, 2).read([Slices(queries), Slices(keys), Slices(values)], 0, 1)[:, 0].tolist()
    assert rows == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]
    assert rows != torch.cat([queries, keys, values])[:, 0].tolist()


def test_gate_and_up_are_stacked_in_each_part() -> None:
    gate, up = torch.arange(4)[:, None], torch.arange(4)[:, None] + 10
    assert GateUp().read([Slices(gate), Slices(up)], 1, 2)[:, 0].tolist() == [2, 3, 12, 13]


@pytest.mark.parametrize(
    ("ranks", "parts"),
    [
        (1, [[1, 2, 3, 4, 5]]),
        (2, [[1, 2, 3], [4, 5, 0]]),
        (4, [[1, 2], [3, 4], [5, 0], [0, 0]]),
        (5, [[1], [2], [3], [4], [5]]),
        (8, [[1], [2], [3], [4], [5], [0], [0], [0]]),
    ],
)
def test_the_vocabulary_is_filled_up_to_equal_parts(ranks: int, parts: list[list[int]]) -> None:
    tokens = torch.arange(1, 6, dtype=torch.bfloat16)[:, None].expand(5, 3).contiguous()
    shards = [Vocabulary(5).read([Slices(tokens)], rank, ranks) for rank in range(ranks)]
    assert [shard[:, 0].tolist() for shard in shards] == parts
    assert {shard.dtype for shard in shards} == {torch.bfloat16}
    # What training might have made of rows of no token stays behind.
    for shard in shards:
        shard[shard == 0] = 9
    assert [torch.equal(joined, tokens) for joined in Vocabulary(5).join(shards)] == [True]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [5, 6])
def test_other_rows_than_tokens_do_not_go_unnoticed(tokens: int, ranks: int) -> None:
    """A rank's part has another size then, as no padding may hide it."""
    part = vocabulary_part(tokens, ranks)
    for rows in range(1, 13):
        held = [Vocabulary(tokens).read([Slices(torch.ones(rows, 3))], rank, ranks) for rank in range(ranks)]
        assert ({len(shard) for shard in held} == {part}) == (rows == tokens)


def test_embedding_and_output_projection_are_padded_and_nothing_else() -> None:
    padded = {entry.hf for entry in TABLE if isinstance(entry.layout, Vocabulary)}
    assert padded == {("model.embed_tokens.weight",), ("lm_head.weight",)}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("layout", "shapes"),
    [
        (Whole(), [(3,)]),
        (Vocabulary(6), [(6, 5)]),
        (Vocabulary(7), [(7, 5)]),
        (Columns(), [(5, 6)]),
        (GateUp(), [(4, 3), (4, 3)]),
        (QKV(2, 2), [(8, 3), (4, 3), (4, 3)]),
    ],
)
def test_join_undoes_read(layout: Layout, shapes: list[tuple[int, ...]], ranks: int) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    shards = [layout.read([Slices(tensor) for tensor in tensors], rank, ranks) for rank in range(ranks)]
    assert all(torch.equal(a, b) for a, b in zip(layout.join(shards), tensors, strict=True))
