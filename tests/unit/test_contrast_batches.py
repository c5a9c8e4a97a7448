"""Layout, masks and dealing of contrast groups."""

from __future__ import annotations

import itertools

import torch

from sami_nemo.data.contrast_batches import MicroBatches, collate, group_length, training_order
from sami_nemo.data.records import Constitution, ContrastGroup, Query


def make_group(name: str, prompts: list[list[int]], responses: list[list[int]]) -> ContrastGroup:
    return ContrastGroup(
        query=Query(name, "?", "test"),
        constitutions=tuple(Constitution(str(j), ("s",)) for j in range(len(prompts))),
        prompt_ids=tuple(map(tuple, prompts)),
        response_ids=tuple(map(tuple, responses)),
        responses=("",) * len(prompts),
    )


GROUP = make_group("a", [[1, 2, 3], [1, 4]], [[10], [11, 12]])


def test_sequences_labels_and_masks_by_hand() -> None:
    batch = collate([GROUP], [7], length=6)
    # constitution 0 x response 0, 0 x 1, 1 x 0, 1 x 1
    assert batch["tokens"].tolist() == [
        [1, 2, 3, 10, 0, 0],
        [1, 2, 3, 11, 12, 0],
        [1, 4, 10, 0, 0, 0],
        [1, 4, 11, 12, 0, 0],
    ]
    # The position before a response token predicts it.
    assert batch["mask"].tolist() == [
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
    ]
    assert (batch["labels"] * batch["mask"]).tolist() == [
        [0, 0, 10, 0, 0, 0],
        [0, 0, 11, 12, 0, 0],
        [0, 10, 0, 0, 0, 0],
        [0, 11, 12, 0, 0, 0],
    ]
    assert batch["group_index"].tolist() == [7]
    assert batch["shape"].tolist() == [1, 2, 2]
    assert group_length(GROUP) == 5


def test_ranks_share_a_step_without_overlap_and_pad_alike() -> None:
    groups = [make_group(str(i), [[1] * (i + 1)] * 2, [[5]] * 2) for i in range(8)]
    order = training_order(8, seed=0, iteration=1)
    ranks = [list(MicroBatches(groups, order, 2, rank, 2)) for rank in range(2)]
    dealt = [torch.cat([a["group_index"], b["group_index"]]).tolist() for a, b in zip(*ranks, strict=True)]
    assert list(itertools.chain(*dealt)) == order
    assert all(a["tokens"].shape == b["tokens"].shape for a, b in zip(*ranks, strict=True))


def test_lengths_are_rounded_up() -> None:
    [batch] = MicroBatches([GROUP], [0], 1, 0, 1, multiple=4)
    assert batch["tokens"].shape == (4, 8)


def test_order_depends_on_seed_and_iteration_alone() -> None:
    assert training_order(50, 1, 1) == training_order(50, 1, 1)
    assert training_order(50, 1, 1) != training_order(50, 1, 2)
    assert training_order(50, 1, 1) != training_order(50, 2, 1)
    assert sorted(training_order(50, 1, 1)) == list(range(50))
