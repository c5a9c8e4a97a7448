"""The objective against values derived by hand, its gradient, and wrong variants that must not match."""

from __future__ import annotations

import math

import pytest
import torch

from sami_nemo.objective import kl_to_base, mutual_information_bound, response_logprobs, sami_loss

# Rows are constitutions, columns responses. Row by row the diagonal is ahead by 1 and by 3, column by column by 2 and
# by 2; a lead of d costs log(1 + exp(-d)).
MATRIX = [[0.0, -1.0], [-2.0, 2.0 - 1.0]]
BY_HAND = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3)) + 2 * math.log1p(math.exp(-2))) / 4


def test_value_by_hand() -> None:
    loss = sami_loss(torch.tensor(MATRIX, dtype=torch.float64))
    assert loss.item() == pytest.approx(BY_HAND, abs=1e-12)
    assert mutual_information_bound(torch.tensor(MATRIX)).item() == pytest.approx(math.log(2) - BY_HAND, abs=1e-6)


def test_paper_figure_5() -> None:
    """The same as two cross-entropies against the identity, row-wise and column-wise."""
    logprobs = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    rows = torch.nn.functional.cross_entropy(logprobs, labels)
    columns = torch.nn.functional.cross_entropy(logprobs.T, labels)
    assert torch.allclose(sami_loss(logprobs), (rows + columns) / 2)
    assert not torch.allclose(sami_loss(logprobs), rows), "one side alone is another loss"


@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_logprobs_carry_no_information(size: int) -> None:
    logprobs = torch.full((size, size), -1.5)
    assert sami_loss(logprobs).item() == pytest.approx(math.log(size), abs=1e-6)
    assert mutual_information_bound(logprobs).item() == pytest.approx(0.0, abs=1e-6)


def test_bound_saturates_at_log_c() -> None:
    assert mutual_information_bound(100 * torch.eye(3)).item() == pytest.approx(math.log(3), abs=1e-6)


def test_gradient_by_hand() -> None:
    """d loss / d L = (softmax over rows + softmax over columns) / 2C - identity / C."""
    logprobs = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    sami_loss(logprobs).backward()
    plain = logprobs.detach()
    expected = (plain.softmax(1) + plain.softmax(0)) / 6 - torch.eye(3, dtype=torch.float64) / 3
    assert logprobs.grad is not None and torch.allclose(logprobs.grad, expected)
    assert torch.autograd.gradcheck(sami_loss, (logprobs,))


def test_groups_are_independent() -> None:
    logprobs = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(2))
    assert sami_loss(logprobs).shape == (5,)
    assert torch.allclose(sami_loss(logprobs)[3], sami_loss(logprobs[3]))


def test_bf16_is_reduced_in_fp32() -> None:
    logprobs = torch.tensor(MATRIX, dtype=torch.bfloat16)
    assert sami_loss(logprobs).dtype == torch.float32
    assert sami_loss(logprobs).item() == pytest.approx(BY_HAND, abs=1e-6)


def test_a_group_is_square() -> None:
    with pytest.raises(AssertionError, match="square"):
        sami_loss(torch.zeros(2, 3))


def test_response_logprobs() -> None:
    token_logprobs = torch.tensor([[-9.0, -1.0, -2.0, -9.0], [-9.0, -4.0, -9.0, -9.0]])
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert response_logprobs(token_logprobs, mask).tolist() == [-1.5, -4.0]
    assert response_logprobs(token_logprobs, mask, "sum").tolist() == [-3.0, -4.0]
    wrong = token_logprobs.mean(dim=-1)
    assert response_logprobs(token_logprobs, mask).tolist() != wrong.tolist()


def test_non_finite_values_outside_the_response_do_not_spread() -> None:
    token_logprobs = torch.tensor([[float("-inf"), -1.0]], requires_grad=True)
    total = response_logprobs(token_logprobs, torch.tensor([[0.0, 1.0]]))
    total.sum().backward()
    assert total.tolist() == [-1.0]
    assert token_logprobs.grad is not None and token_logprobs.grad.tolist() == [[0.0, 1.0]]


def test_an_empty_response_is_refused() -> None:
    with pytest.raises(AssertionError, match="without tokens"):
        response_logprobs(torch.zeros(1, 3), torch.zeros(1, 3))


def test_kl_by_hand() -> None:
    model = torch.tensor([[-1.0, -2.0, -5.0]])
    base = torch.tensor([[-2.0, -2.0, -1.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    # Differences base - model: -1 and 0, so (e^-1 + 1 - 1 + 0) / 2.
    assert kl_to_base(model, base, mask).item() == pytest.approx(math.exp(-1) / 2, abs=1e-6)
    assert kl_to_base(model, model, mask).item() == 0.0
