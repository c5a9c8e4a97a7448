"""The SAMI objective (Fränken et al. 2024, equation 2 and figure 5). Plain torch.

SAMI raises a lower bound on the conditional mutual information I(y; c | x) between constitutions c and
responses y to a query x. For C constitutions and one response sampled under each, let

    L[j, k] = log-prob of response k under constitution j, divided by the length of response k.

The two-sided InfoNCE loss asks each constitution (row) which response it gave rise to, and each response
(column) which constitution it came from; both answers are the diagonal:

    loss  = 1/(2C) * sum_j ( logsumexp_k L[j, k] + logsumexp_k L[k, j] - 2 L[j, j] )
    bound = log C - loss        (nats; at most log C; 0 where constitutions make no difference)

Axes of tensor names: B contrast groups, C constitutions, R responses (R = C), T response tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["mean", "sum"]


def sami_loss(logprobs: Tensor) -> Tensor:
    """Two-sided InfoNCE loss of each contrast group.

    Args:
        logprobs: `[..., constitution, response]`, log-prob of each response under each constitution;
            response j was sampled under constitution j.

    Returns:
        `[...]`, nats, in float32 (or float64 for float64 input). Equal log-probs give log C.
    """
    constitutions, responses = logprobs.shape[-2:]
    assert constitutions == responses >= 2, f"a contrast group is square, at least 2 x 2, not {tuple(logprobs.shape)}"
    logprobs_BCR = logprobs if logprobs.dtype == torch.float64 else logprobs.float()
    diagonal_BC = logprobs_BCR.diagonal(dim1=-2, dim2=-1)
    over_responses_BC = diagonal_BC - logprobs_BCR.logsumexp(dim=-1)
    over_constitutions_BC = diagonal_BC - logprobs_BCR.logsumexp(dim=-2)
    return -(over_responses_BC + over_constitutions_BC).mean(dim=-1) / 2


def mutual_information_bound(logprobs: Tensor) -> Tensor:
    """Lower bound on I(y; c | x) of each contrast group (paper, equation 2).

    Args:
        logprobs: as for `sami_loss`.

    Returns:
        `[...]`, nats, at most log C; the estimate saturates there.
    """
    return math.log(logprobs.shape[-1]) - sami_loss(logprobs)


def response_logprobs(token_logprobs: Tensor, mask: Tensor, normalization: Normalization = "mean") -> Tensor:
    """Log-prob of each response from those of its tokens.

    Sum and count are taken apart and in float32, so that every parallel layout gives the same value.

    Args:
        token_logprobs: `[..., token]`.
        mask: `[..., token]`, 1 at tokens of the response and 0 at prompt and padding.
        normalization: "mean" divides by the number of response tokens (the paper's), "sum" does not.

    Returns:
        `[...]`, nats (per token for "mean").
    """
    counts = mask.sum(dim=-1)
    assert bool((counts > 0).all()), "a response without tokens has no log-prob"
    totals = torch.where(mask.bool(), token_logprobs, 0).float().sum(dim=-1)
    return totals / counts if normalization == "mean" else totals


def kl_to_base(token_logprobs: Tensor, base_token_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate of KL(model || base) per response token, from sampled responses.

    Uses exp(d) - d - 1 with d = log p_base - log p_model (the "k3" estimator of J. Schulman,
    "Approximating KL divergence"): never negative, and unbiased for tokens drawn from the model. The
    responses come from the previous iteration's model, so here it is an approximation.

    Args:
        token_logprobs: `[..., token]`, under the model in training.
        base_token_logprobs: `[..., token]`, under the base model; carries no gradient.
        mask: `[..., token]`, 1 at response tokens.

    Returns:
        `[...]`, nats per token.
    """
    difference = torch.where(mask.bool(), base_token_logprobs - token_logprobs, 0).float()
    return (difference.exp() - difference - 1).sum(dim=-1) / mask.sum(dim=-1)
