"""Layouts, masks and dealing of contrast groups, by hand."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from sami_nemo.contrast.batches import (
    Layout,
    MicroBatches,
    batch_length,
    collate,
    deal,
    deal_step,
    group_length,
    group_tokens,
    training_order,
)
from sami_nemo.records import Constitution, ContrastGroup, Query

LAYOUTS: tuple[Layout, ...] = ("shared_prefix", "plain")


def make_group(name: str, prompts: list[list[int]], responses: list[list[int]]) -> ContrastGroup:
    return ContrastGroup(
        query=Query(name, "?", "test"),
        constitutions=tuple(Constitution(str(j), ("s",)) for j in range(len(prompts))),
        prompt_ids=tuple(map(tuple, prompts)),
        response_ids=tuple(map(tuple, responses)),
        responses=("",) * len(prompts),
    )


GROUP = make_group("a", [[1, 2, 3], [1, 4]], [[10], [11, 12]])


def test_plain_sequences_by_hand() -> None:
    batch = collate([GROUP], [7], length=6, layout="plain")
    # constitution 0 x response 0, 0 x 1, 1 x 0, 1 x 1
    assert batch.tokens.tolist() == [
        [1, 2, 3, 10, 0, 0],
        [1, 2, 3, 11, 12, 0],
        [1, 4, 10, 0, 0, 0],
        [1, 4, 11, 12, 0, 0],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 4
    # Hidden states lie position by position: position s of sequence n is s * 4 + n.
    assert batch.predicts_n.tolist() == [2 * 4 + 0, 2 * 4 + 1, 3 * 4 + 1, 1 * 4 + 2, 1 * 4 + 3, 2 * 4 + 3]
    assert batch.row_lengths is None


def test_packed_rows_by_hand() -> None:
    batch = collate([GROUP, GROUP], [7, 3], length=24, layout="shared_prefix")
    row_0, row_1 = [1, 2, 3, 10, 11, 12], [1, 4, 10, 11, 12]
    assert batch.tokens.tolist() == [row_0 + row_1 + row_0 + row_1 + [0, 0]]
    # Both responses go on behind the prompt.
    positions = [0, 1, 2, 3, 3, 4, 0, 1, 2, 2, 3]
    assert batch.position_ids.tolist() == [positions * 2 + [0, 0]]
    # The prompt's last token predicts the first of each response: at 2 in row 0, at 7 in row 1.
    one = [2, 2, 4, 7, 7, 9]
    assert batch.predicts_n.tolist() == one + [11 + index for index in one]
    assert batch.row_lengths.tolist() == [[3, 1, 2], [2, 1, 2]] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_predicted_is_the_same_in_both_layouts(layout: Layout) -> None:
    batch = collate([GROUP], [7], length=12, layout=layout)
    assert batch.labels_n.tolist() == [10, 11, 12, 10, 11, 12]
    assert batch.mask_NT.tolist() == [[1, 0], [1, 1], [1, 0], [1, 1]]
    # Into the four pairs with room for two tokens each.
    assert batch.slots_n.tolist() == [0, 2, 3, 4, 6, 7]
    assert batch.group_index_B == (7,)
    assert batch.shape == (1, 2, 2)


def test_lengths_and_tokens_by_hand() -> None:
    assert group_length(GROUP) == 5
    # Each of 5 prompt tokens twice and each of 3 response tokens twice; or the prompts once.
    assert group_tokens(GROUP, "plain") == 16
    assert group_tokens(GROUP, "shared_prefix") == 11
    assert batch_length([GROUP, GROUP], "plain") == 5
    assert batch_length([GROUP, GROUP], "shared_prefix") == 22


def test_hands_are_nearly_equal() -> None:
    # 9 | 8, then 7 to the lighter, 6 to the other, 5 to the first of two equal ones, 4 to the one with room.
    assert deal([4, 9, 8, 5, 7, 6], 2, room=3) == [[1, 5, 3], [2, 4, 0]]
    # With room, the light ones stay together: 9 | 3, then 2 and 1 to the lighter.
    assert deal([9, 2, 3, 1], 2, room=4) == [[0], [2, 1, 3]]
    draw = random.Random(0)
    tokens = [draw.randrange(100, 900) for _ in range(64)]
    hands = deal(tokens, 8, room=8)
    assert sorted(itertools.chain(*hands)) == list(range(64))
    assert {len(hand) for hand in hands} == {8}
    loads = [sum(tokens[i] for i in hand) for hand in hands]
    in_order = [sum(tokens[i : i + 8]) for i in range(0, 64, 8)]
    assert max(loads) - min(loads) < (max(in_order) - min(in_order)) / 10


def test_micro_batches_are_packed_up_to_the_budget() -> None:
    # One rank. Null: the longest of 10 tokens sets the budget, 5 + 2 and 4 + 3 go into another two.
    assert deal_step([5, 10, 4, 3, 2], 1, None) == [[[1], [0, 4], [2, 3]]]
    assert deal_step([5, 10, 4, 3, 2], 1, 24) == [[[1, 0, 2, 3, 4]]]
    # A group that exceeds the budget stands alone; the others are as long as it may be.
    assert deal_step([5, 10, 4, 3, 2], 1, 1) == deal_step([5, 10, 4, 3, 2], 1, None)


def test_ranks_have_equally_many_groups_and_micro_batches() -> None:
    draw = random.Random(1)
    tokens = [draw.randrange(100, 900) for _ in range(32)]
    for ranks, budget in ((1, None), (4, None), (4, 2500), (8, 10**6), (32, 1)):
        dealt = deal_step(tokens, ranks, budget)
        assert sorted(i for micros in dealt for micro in micros for i in micro) == list(range(32))
        assert {sum(map(len, micros)) for micros in dealt} == {32 // ranks}
        assert len({len(micros) for micros in dealt}) == 1
        loads = [[sum(tokens[i] for i in micro) for micro in micros] for micros in dealt]
        assert all(load == sorted(load, reverse=True) and load[-1] > 0 for load in loads)
        assert max(map(max, loads)) <= max(budget or 0, *tokens)
        # No rank has more than 2 x 2,500 tokens, and each more than 2,500.
        assert budget != 2500 or len(loads[0]) == 2


def micro_batches(
    groups: list[ContrastGroup], order: list[int], rank: int, layout: Layout = "shared_prefix", **options: Any
) -> MicroBatches:
    """Steps of 8 groups on two ranks."""
    steps = []
    for start in range(0, len(order), 8):
        batch = order[start : start + 8]
        dealt = deal_step([group_tokens(groups[i], layout) for i in batch], 2, None)
        steps.append([[[batch[i] for i in micro] for micro in micros] for micros in dealt])
    return MicroBatches(groups, steps, layout, rank, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_share_each_step_without_overlap(layout: Layout) -> None:
    groups = [make_group(str(i), [[1] * (i + 1)] * 2, [[5]] * 2) for i in range(16)]
    order = training_order(16, seed=0, iteration=1)
    ranks = [micro_batches(groups, order, rank, layout=layout) for rank in range(2)]
    for step in range(2):
        both = [list(itertools.chain(*rank.steps[step][number])) for number, rank in enumerate(ranks)]
        assert sorted(itertools.chain(*both)) == sorted(order[8 * step : 8 * step + 8])
        tokens = [sum(group_tokens(groups[i], layout) for i in mine) for mine in both]
        # Nearer than by the largest group.
        assert abs(tokens[0] - tokens[1]) < group_tokens(groups[-1], layout)
    for rank in ranks:
        batches = list(rank)
        assert len(batches) == len(rank)
        dealt = [micro for number in range(2) for micro in rank.steps[number][rank.rank]]
        assert [list(batch.group_index_B) for batch in batches] == dealt


def test_every_group_weighs_the_same() -> None:
    """The mean of a step's micro-batches, by their weights, is the mean of its groups."""
    groups = [make_group(str(i), [[1] * (i * i + 1)] * 2, [[5]] * 2) for i in range(8)]
    batches = list(micro_batches(groups, list(range(8)), rank=0))
    sizes = [len(batch.group_index_B) for batch in batches]
    assert sum(sizes) == 4 and len(set(sizes)) > 1
    values = [sum(batch.group_index_B) / len(batch.group_index_B) for batch in batches]
    weighted = [value * batch.weight for value, batch in zip(values, batches, strict=True)]
    mine = [i for batch in batches for i in batch.group_index_B]
    assert sum(weighted) / len(batches) == pytest.approx(sum(mine) / 4)
    # Without the weights it is not.
    assert sum(values) / len(batches) != pytest.approx(sum(mine) / 4)


def test_ranks_pad_alike_only_where_they_must() -> None:
    groups = [make_group(str(i), [[1] * (i + 1)] * 2, [[5]] * 2) for i in range(8)]
    for same in (True, False):
        ranks = [list(micro_batches(groups, list(range(8)), rank, same_length=same)) for rank in range(2)]
        lengths = [[batch.tokens.shape[1] for batch in rank] for rank in ranks]
        own = [[int(batch.row_lengths.sum()) for batch in rank if batch.row_lengths is not None] for rank in ranks]
        assert lengths == ([[max(pair) for pair in zip(*own, strict=True)]] * 2 if same else own)


def test_lengths_are_rounded_up() -> None:
    [batch] = MicroBatches([GROUP], [[[[0]]]], "plain", 0, multiple=4)
    assert batch.tokens.shape == (4, 8)
    [batch] = MicroBatches([GROUP], [[[[0]]]], "shared_prefix", 0, multiple=4)
    assert batch.tokens.shape == (1, 12)


def test_order_depends_on_seed_and_iteration_alone() -> None:
    assert training_order(50, 1, 1) == training_order(50, 1, 1)
    assert training_order(50, 1, 1) != training_order(50, 1, 2)
    assert training_order(50, 1, 1) != training_order(50, 2, 1)
    assert sorted(training_order(50, 1, 1)) == list(range(50))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_moves_as_a_whole(layout: Layout) -> None:
    batch = collate([GROUP], [7], length=12, layout=layout)
    moved = batch.to("meta")
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta" and getattr(moved, name).shape == value.shape, name
        else:
            assert getattr(moved, name) == value, name
