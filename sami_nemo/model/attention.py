"""Attention over contrast groups: `core_attention` of the layer spec, in both layouts of contrast/batches.py.

In the shared-prefix layout one sequence holds many rows, each a prompt and all responses to it:

    | prompt | response 0 | response 1 | … | prompt | response 0 | …

A token sees the prompt of its row up to itself, and of the responses only its own. Lengths arrive as Megatron's
attention mask, a small tensor: it goes through pipelines, and comes back when activations are computed again.

Axes of tensor names: T positions of all rows, L of one row, C rows of a group, H heads, G heads of keys and values, D
channels of a head; row lengths are `[row, 1 + R]`, the prompt's and those of the R responses.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence


class ContrastAttention(MegatronModule):
    """Causal attention, or that of packed rows where their lengths are given."""

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        assert config.context_parallel_size == 1
        assert config.attention_dropout == 0.0, "a log-prob is not to be drawn"
        self.scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """
        Args:
            query: `[sequence, batch, head, channel]`; key and value with as many or fewer heads.
            attention_mask: row lengths, see the head of this file; None: every sequence is causal by itself.

        Returns:
            `[sequence, batch, head * channel]`.
        """
        assert attention_bias is None and packed_seq_params is None
        length, batch = query.shape[:2]
        # [batch, head, sequence, channel], as torch wants it.
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if attention_mask is None:
            attended = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=self.scale, enable_gqa=True
            )
        elif query.is_cuda:
            attended = flex_attended(query, key, value, attention_mask, self.scale)
        else:
            attended = attended_by_rows(query, key, value, attention_mask, self.scale)
        return attended.permute(2, 0, 1, 3).reshape(length, batch, -1)


def attended_by_rows(
    query: Tensor, key: Tensor, value: Tensor, row_lengths: Tensor, scale: float | None = None
) -> Tensor:
    """Group by group, so that nothing is computed between groups; padding behind the last row gives 0.

    Args:
        query: `[1, H, T, D]`; key and value with as many or fewer heads.
        row_lengths: `[row, 1 + R]`.
    """
    rows = [tuple(lengths) for lengths in row_lengths.tolist()]
    sizes = [sum(lengths) for lengths in rows]
    padding = query.shape[2] - sum(sizes)
    # Split once: the gradients of slices would be tensors of the whole sequence, one for each row.
    split = [tensor[0].transpose(0, 1).split([*sizes, padding])[:-1] for tensor in (query, key, value)]
    pieces = []
    # The rows of a group have the same responses.
    for _, numbers in itertools.groupby(range(len(rows)), key=lambda number: rows[number][1:]):
        members = list(numbers)
        queries, keys, values = ([parts[number] for number in members] for parts in split)
        pieces += _attended_together(queries, keys, values, tuple(rows[number] for number in members), scale)
    return torch.nn.functional.pad(torch.cat(pieces).transpose(0, 1)[None], (0, 0, 0, padding))


def _attended_together(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    rows: tuple[tuple[int, ...], ...],
    scale: float | None,
) -> list[Tensor]:
    """What rows with the same responses attend to: `[L, H, D]` of each, in parts.

    In one batch, as torch's CPU kernel shares out heads to threads: few heads of a single row leave threads idle.
    """
    prompt_queries, response_queries = zip(
        *(_parted(q, row) for q, row in zip(queries, rows, strict=True)), strict=True
    )
    prompt_keys, prompt_values = (
        _batched([_parted(tensor, row)[0] for tensor, row in zip(tensors, rows, strict=True)])
        for tensors in (keys, values)
    )
    prompts_CHLD = scaled_dot_product_attention(
        _batched(prompt_queries), prompt_keys, prompt_values, is_causal=True, scale=scale, enable_gqa=True
    )
    keys_CGLD, values_CGLD = _batched(keys), _batched(values)
    queries_CHLD = _batched(response_queries)
    constitutions, heads, length, channels = queries_CHLD.shape
    # Heads with the same keys follow one another as further queries, instead of copies of the keys for each.
    folded = queries_CHLD.reshape(constitutions, keys_CGLD.shape[1], -1, channels)
    mask = response_masks(rows).repeat(1, heads // keys_CGLD.shape[1], 1)[:, None]
    attended = scaled_dot_product_attention(folded, keys_CGLD, values_CGLD, attn_mask=mask, scale=scale)
    responses_CHLD = attended.view(constitutions, heads, length, channels)
    return [
        part.transpose(0, 1)
        for row, prompt_HLD, responses_HLD in zip(rows, prompts_CHLD, responses_CHLD, strict=True)
        for part in (prompt_HLD[:, : row[0]], responses_HLD)
    ]


def _parted(row_LHD: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    prompt, responses = row_LHD.split([lengths[0], sum(lengths[1:])])
    return prompt, responses


def _batched(tensors_LHD: Sequence[Tensor]) -> Tensor:
    """`[C, H, L, D]`, padded to the longest."""
    return pad_sequence(list(tensors_LHD), batch_first=True).transpose(1, 2)


# Every layer, and the backward pass of checkpointed ones, asks for the masks of the same few rows.
@functools.lru_cache(maxsize=256)
def response_masks(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """What the responses of several rows see of theirs: `[C, tokens of all responses, longest L]`."""
    longest = max(map(sum, rows))
    return torch.stack([torch.nn.functional.pad(response_mask(row), (0, longest - sum(row))) for row in rows])


def response_mask(lengths: tuple[int, ...]) -> Tensor:
    """What the responses of a row see of it: `[tokens of all responses, L]`, true where they see.

    Args:
        lengths: of the prompt and of each response.
    """
    prompt, *responses = lengths
    count = sum(responses)
    segment = torch.repeat_interleave(torch.arange(len(responses)), torch.tensor(responses))
    order = torch.arange(count)
    own = (segment[:, None] == segment[None, :]) & (order[:, None] >= order[None, :])
    return torch.cat([torch.ones(count, prompt, dtype=torch.bool), own], dim=1)


def row_and_segment(row_lengths: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Row of each of `length` positions, and part of the row: 0 for the prompt. Padding is a row of its own."""
    rows, parts = row_lengths.shape
    row = torch.arange(rows, device=row_lengths.device)[:, None].expand(rows, parts)
    part = torch.arange(parts, device=row_lengths.device)[None, :].expand(rows, parts)
    counts = row_lengths.reshape(-1)
    padding = (0, length - int(counts.sum()))
    row_T = torch.nn.functional.pad(row.reshape(-1).repeat_interleave(counts), padding, value=rows)
    part_T = torch.nn.functional.pad(part.reshape(-1).repeat_interleave(counts), padding, value=0)
    return row_T, part_T


def flex_attended(query: Tensor, key: Tensor, value: Tensor, row_lengths: Tensor, scale: float | None) -> Tensor:
    """The same on GPUs: FlexAttention skips the blocks that nothing is seen of."""
    # Compiled functions and block masks live as long as the process; both are made once per shape and batch.
    return _compiled_flex_attention()(
        query, key, value, block_mask=_block_mask_of(row_lengths, query.shape[2]), scale=scale, enable_gqa=True
    )


@functools.cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # One kernel for each length of a packed sequence, of which GPU_LENGTHS leaves few; beyond 8 torch would give up.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, dynamic=False)


# The latest batches' masks by where their row lengths lie: layers share one, also when they are computed again, and a
# pipeline has several under way. The lengths are kept with the mask, so that no other tensor comes to lie there.
_BLOCK_MASKS: dict[tuple[int, int], tuple[Tensor, Any]] = {}
_BLOCK_MASKS_KEPT = 64


def _block_mask_of(row_lengths: Tensor, length: int) -> Any:
    key = (row_lengths.data_ptr(), length)
    if key not in _BLOCK_MASKS:
        while len(_BLOCK_MASKS) >= _BLOCK_MASKS_KEPT:
            del _BLOCK_MASKS[next(iter(_BLOCK_MASKS))]
        _BLOCK_MASKS[key] = (row_lengths, block_mask(row_lengths, length))
    return _BLOCK_MASKS[key][1]


def block_mask(row_lengths: Tensor, length: int) -> Any:
    """FlexAttention's form of the same visibility."""
    from torch.nn.attention.flex_attention import create_block_mask

    row_T, part_T = row_and_segment(row_lengths, length)

    def sees(batch: Tensor, head: Tensor, position: Tensor, other: Tensor) -> Tensor:
        same_row = row_T[position] == row_T[other]
        same_part = (part_T[other] == 0) | (part_T[position] == part_T[other])
        return same_row & same_part & (position >= other)

    return create_block_mask(sees, None, None, length, length, device=str(row_lengths.device))
