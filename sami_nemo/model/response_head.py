"""Log-probs of response tokens from hidden states, without logits of anything else.

The output projection is computed at the positions that predict a response token, in chunks, and once more in the backward
pass: logits of more than one chunk never exist. Vocabulary-parallel, as Megatron splits the projection.

Where the ranks do not divide the vocabulary, the last parts end in rows of no token. Their logits count as minus infinity,
so they have no share in any log-prob, and their gradients are 0.

Axes of tensor names: n predicted tokens, H hidden channels, V this rank's part of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce, get_rank, get_world_size

# Logits in memory together, over the rank's vocabulary: 64 MiB in float32.
CHUNK_LOGITS = 2**24


def token_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: int, group: ProcessGroup | None = None
) -> Tensor:
    """Log-prob of each label.

    Args:
        hidden: `[n, H]`, where each label is predicted from.
        weight: `[V, H]`, this rank's rows of the output projection.
        labels: `[n]`, of the whole vocabulary.
        vocabulary: tokens of all ranks together. Rows behind them belong to none.
        group: the tensor-parallel ranks, if there are several. The gradient of `hidden` is then this rank's part, which
            the caller sums.

    Returns:
        `[n]`, nats, float32; equal on all ranks.
    """
    return _TokenLogprobs.apply(hidden, weight, labels, vocabulary, group)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nH: Tensor,
        weight_VH: Tensor,
        labels_n: Tensor,
        vocabulary: int,
        group: ProcessGroup | None,
    ) -> Tensor:
        ctx.group, ctx.vocabulary = group, vocabulary
        parts = []
        for rows in _chunks(hidden_nH, weight_VH):
            logits_nV = _logits(hidden_nH[rows], weight_VH, vocabulary, group)
            largest_n = logits_nV.amax(dim=1)
            _over_ranks(largest_n, ReduceOp.MAX, group)
            total_n = (logits_nV - largest_n[:, None]).exp().sum(dim=1)
            mine_n, label_n = _own_labels(labels_n[rows], weight_VH, group)
            chosen_n = torch.where(mine_n, logits_nV.gather(1, label_n[:, None])[:, 0], 0.0)
            _over_ranks(total_n, ReduceOp.SUM, group)
            _over_ranks(chosen_n, ReduceOp.SUM, group)
            parts.append(torch.stack([chosen_n, largest_n + total_n.log()]))
        chosen_n, normaliser_n = torch.cat(parts, dim=1)
        ctx.save_for_backward(hidden_nH, weight_VH, labels_n, normaliser_n)
        return chosen_n - normaliser_n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (gradient_n,) = gradients
        hidden_nH, weight_VH, labels_n, normaliser_n = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden_nH)
        # Megatron's own buffer, if there is one, spares a copy of the size of the vocabulary for each micro-batch; its
        # fused linear layers do the same. Else in float32: many chunks are added.
        in_place = hasattr(weight_VH, "main_grad")
        weight_gradient = weight_VH.main_grad if in_place else torch.zeros_like(weight_VH, dtype=torch.float32)
        for rows in _chunks(hidden_nH, weight_VH):
            logits_nV = _logits(hidden_nH[rows], weight_VH, ctx.vocabulary, ctx.group)
            # d log p(label) / d logits = [label] - p
            delta_nV = (logits_nV - normaliser_n[rows, None]).exp_().neg_()
            mine_n, label_n = _own_labels(labels_n[rows], weight_VH, ctx.group)
            delta_nV.scatter_add_(1, label_n[:, None], mine_n[:, None].float())
            delta_nV = (delta_nV * gradient_n[rows, None]).to(weight_VH.dtype)
            hidden_gradient[rows] = delta_nV @ weight_VH
            weight_gradient += delta_nV.t() @ hidden_nH[rows]
        return hidden_gradient, None if in_place else weight_gradient.to(weight_VH.dtype), None, None, None


def _chunks(hidden_nH: Tensor, weight_VH: Tensor) -> list[slice]:
    size = max(1, CHUNK_LOGITS // len(weight_VH))
    return [slice(first, first + size) for first in range(0, len(hidden_nH), size)]


def _logits(hidden_nH: Tensor, weight_VH: Tensor, vocabulary: int, group: ProcessGroup | None) -> Tensor:
    logits_nV = (hidden_nH @ weight_VH.t()).float()
    # A rank may have no token at all.
    logits_nV[:, max(0, vocabulary - _first_row(weight_VH, group)) :] = -torch.inf
    return logits_nV


def _first_row(weight_VH: Tensor, group: ProcessGroup | None) -> int:
    """Where this rank's part of the vocabulary begins."""
    return len(weight_VH) * (get_rank(group) if group is not None else 0)


def _own_labels(labels_n: Tensor, weight_VH: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Which labels are in this rank's part of the vocabulary, and their rows there (0 for the others)."""
    first = _first_row(weight_VH, group)
    mine_n = (labels_n >= first) & (labels_n < first + len(weight_VH))
    return mine_n, torch.where(mine_n, labels_n - first, 0)


def _over_ranks(values: Tensor, operation: Any, group: ProcessGroup | None) -> None:
    if group is not None and get_world_size(group) > 1:
        all_reduce(values, operation, group)
