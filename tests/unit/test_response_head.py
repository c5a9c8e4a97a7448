"""Log-probs in chunks equal log-softmax over whole logits, values and gradients. Vocabulary-parallel: tests/distributed."""

from __future__ import annotations

import pytest
import torch

from sami_nemo.model import response_head
from sami_nemo.model.response_head import token_logprobs


@pytest.mark.parametrize("chunk", [1, 3, 1000], ids=["one by one", "uneven", "at once"])
def test_equals_log_softmax(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_head, "CHUNK_LOGITS", chunk * 50)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 16, generator=generator), torch.randn(50, 16, generator=generator)
    labels = torch.tensor([0, 49, 3, 3, 17, 20, 1])
    scales = torch.randn(7, generator=generator)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    found = token_logprobs(*ours, labels, 50)
    expected = (theirs[0] @ theirs[1].t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)
    (found * scales).sum().backward()
    (expected * scales).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


def test_no_more_than_a_chunk_of_logits_is_kept() -> None:
    """Of 4,000 tokens over 32,000 words, logits would be 512 MB; what is saved are inputs and one number per token."""
    hidden, weight = torch.randn(4000, 4, requires_grad=True), torch.randn(32_000, 4, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.nbytes) or tensor, lambda t: t):
        token_logprobs(hidden, weight, torch.zeros(4000, dtype=torch.long), 32_000)
    assert sum(saved) < 1_000_000


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    assert token_logprobs(hidden, weight, torch.tensor([0]), 2).item() == 0.0
    assert token_logprobs(hidden, weight, torch.tensor([1]), 2).item() == -2000.0


def test_the_gradient_of_the_weights_is_added_to_megatrons_buffer() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, labels = torch.randn(7, 16, generator=generator), torch.tensor([0, 49, 3, 3, 17, 20, 1])
    weight, alone = (torch.nn.Parameter(torch.full((50, 16), 0.1)) for _ in range(2))
    weight.main_grad = torch.ones(50, 16)  # type: ignore[attr-defined]
    token_logprobs(hidden, weight, labels, 50).sum().backward()
    token_logprobs(hidden, alone, labels, 50).sum().backward()
    assert weight.grad is None and alone.grad is not None
    assert torch.allclose(weight.main_grad, 1 + alone.grad, atol=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("buffer", [False, True], ids=["own gradient", "Megatron's buffer"])
def test_rows_of_no_token_have_no_share_and_no_gradient(buffer: bool) -> None:
    """Three rows behind the tokens, which need not be 0; counted as tokens, they would change every log-prob."""
    generator = torch.Generator().manual_seed(0)
    hidden, rows = torch.randn(7, 16, generator=generator), torch.randn(53, 16, generator=generator)
    labels = torch.tensor([0, 49, 3, 3, 17, 20, 1])
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    padded, tokens = torch.nn.Parameter(rows.clone()), torch.nn.Parameter(rows[:50].clone())
    if buffer:
        padded.main_grad = torch.zeros(53, 16)  # type: ignore[attr-defined]
    found, expected = token_logprobs(ours, padded, labels, 50), token_logprobs(theirs, tokens, labels, 50)
    found.sum().backward()
    expected.sum().backward()
    gradient = padded.main_grad if buffer else padded.grad  # type: ignore[attr-defined]
    assert ours.grad is not None and theirs.grad is not None and tokens.grad is not None
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert torch.allclose(gradient[:50], tokens.grad, atol=1e-6)
    assert not gradient[50:].any()
    assert not torch.allclose(token_logprobs(hidden, rows, labels, 53), expected, atol=1e-3)
