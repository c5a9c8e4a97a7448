"""What tokens of packed rows see, by hand and against attention with a whole mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sami_nemo.model import attention
from sami_nemo.model.attention import attended_by_rows, block_mask, response_mask, row_and_segment

# Two rows: a prompt of 3 with responses of 1 and 2, a prompt of 2 with responses of 2 and 1; then padding.
ROWS = torch.tensor([[3, 1, 2], [2, 2, 1]])
LENGTH = 13


def visible(row_lengths: Tensor, length: int) -> Tensor:
    """Position by position, as the definition says."""
    places = []
    for row, (prompt, *responses) in enumerate(row_lengths.tolist()):
        places += [(row, 0)] * prompt
        for part, response in enumerate(responses, start=1):
            places += [(row, part)] * response
    places += [(-1, 0)] * (length - len(places))
    sees = torch.zeros(length, length, dtype=torch.bool)
    for i, (row, part) in enumerate(places):
        for j, (other_row, other_part) in enumerate(places[: i + 1]):
            sees[i, j] = row == other_row and other_part in (0, part)
    return sees


def test_responses_see_their_prompt_and_themselves() -> None:
    assert response_mask((2, 1, 2)).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_rows_and_parts_by_hand() -> None:
    row_T, part_T = row_and_segment(ROWS, LENGTH)
    assert row_T.tolist() == [0] * 6 + [1] * 5 + [2] * 2
    assert part_T.tolist() == [0, 0, 0, 1, 2, 2, 0, 0, 1, 1, 2, 0, 0]


@pytest.mark.parametrize(
    "rows", [ROWS, torch.tensor([[3, 1, 2], [2, 1, 2]])], ids=["two groups", "two rows of a group"]
)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["heads", "grouped heads"])
def test_equals_attention_under_the_whole_mask(heads: tuple[int, int], rows: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, reference = [], []
    for count in (heads[0], heads[1], heads[1]):
        tensor = torch.randn(1, count, LENGTH, 8, generator=generator, dtype=torch.float64)
        ours.append(tensor.clone().requires_grad_())
        reference.append(tensor.clone().requires_grad_())
    weights = torch.randn(1, heads[0], LENGTH, 8, generator=generator, dtype=torch.float64)
    weights[:, :, 11:] = 0  # padding gives nothing that counts
    found = attended_by_rows(*ours, rows, scale=0.3)
    expected = scaled_dot_product_attention(*reference, attn_mask=visible(rows, LENGTH), scale=0.3, enable_gqa=True)
    assert torch.allclose(found[:, :, :11], expected[:, :, :11], atol=1e-12)
    assert not found[:, :, 11:].any()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert all(torch.allclose(a.grad, b.grad, atol=1e-12) for a, b in zip(ours, reference, strict=True))


def test_one_that_saw_the_other_response_would_be_noticed() -> None:
    """The wrong variant: plain causal attention over the packed row."""
    query, key, value = torch.randn(3, 1, 2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind()
    packed = attended_by_rows(query, key, value, ROWS[:1])
    causal = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.allclose(packed[:, :, :4], causal[:, :, :4], atol=1e-6)
    assert (packed[:, :, 4:] - causal[:, :, 4:]).abs().max() > 0.01


def test_the_gpu_s_mask_says_the_same() -> None:
    from torch.nn.attention.flex_attention import create_mask

    mask = block_mask(ROWS, LENGTH)
    dense = create_mask(mask.mask_mod, None, None, LENGTH, LENGTH, device="cpu")[0, 0]
    assert torch.equal(dense[:11], visible(ROWS, LENGTH)[:11])


def test_flex_attention_under_the_mask_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its uncompiled form, which runs anywhere. tests/gpu has the compiled one."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, LENGTH, 8, generator=generator) for heads in (6, 2, 2)]
    found = attention.flex_attended(*tensors, ROWS, scale=0.3)
    expected = attended_by_rows(*tensors, ROWS, scale=0.3)
    assert torch.allclose(found[:, :, :11], expected[:, :, :11], atol=1e-5)
