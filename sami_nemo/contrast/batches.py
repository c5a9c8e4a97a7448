"""Contrast groups as micro-batches of token tensors, in one of two layouts.

plain           N_c * N_c sequences a group: every response behind every prompt, padded to one length. The reference.
shared prefix   one sequence for a whole micro-batch, N_c rows a group: a prompt and all responses to it, packed without
                padding. Responses do not see one another (model/attention.py) and their positions go on behind the
                prompt, so log-probs are those of the plain layout, from N_c P + N_c^2 R instead of N_c^2 (P + R)
                positions for prompts of P and responses of R tokens.

Either way several groups share a micro-batch, up to a budget of tokens, and a batch says where the
model predicts a response token, which token that is, and to which pair of constitution and response it belongs.

Axes of tensor names: B contrast groups, C constitutions, R responses, N = B*C*R pairs in that order, S positions of a
sequence, T tokens of a response, n predicted tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from sami_nemo.records import ContrastGroup

Layout = Literal["shared_prefix", "plain"]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what the model computes, and what the loss makes of it. Padding stands where nothing sees it."""

    tokens: Tensor
    """`[sequence, S]`, ids."""
    position_ids: Tensor
    """`[sequence, S]`."""
    row_lengths: Tensor | None
    """`[row, 1 + R]`, tokens of each packed row's prompt and responses; None: the plain layout."""
    predicts_n: Tensor
    """Where each response token is predicted from: indices into the positions of all sequences, position by position
    (s * sequences + sequence, as Megatron lays out hidden states)."""
    labels_n: Tensor
    """The tokens that are predicted."""
    slots_n: Tensor
    """Where they belong: indices into `[N, T]`."""
    mask_NT: Tensor
    """1 where a response has a token."""
    group_index_B: tuple[int, ...]
    """Which groups these are, in the data module's order of groups."""
    shape: tuple[int, int, int]
    """B, C, R."""
    weight: float
    """Of the micro-batch in the mean over a step's micro-batches."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """On another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """In memory that a GPU copies from while it computes; called by torch's data loader."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class _Arranged:
    """The part of a batch that differs between the layouts."""

    tokens: Tensor
    position_ids: Tensor
    predicts_n: Tensor
    row_lengths: Tensor | None = None


def group_length(group: ContrastGroup) -> int:
    """Tokens of the longest of the group's prompts with the longest of its responses."""
    return max(map(len, group.prompt_ids)) + max(map(len, group.response_ids))


def group_tokens(group: ContrastGroup, layout: Layout) -> int:
    """Positions that the model computes for the group, without padding."""
    prompts, responses = sum(map(len, group.prompt_ids)), sum(map(len, group.response_ids))
    constitutions = len(group.prompt_ids)
    if layout == "plain":
        return len(group.response_ids) * prompts + constitutions * responses
    return prompts + constitutions * responses


def batch_length(groups: Sequence[ContrastGroup], layout: Layout) -> int:
    """Positions of a sequence that holds `groups`: of the longest plain one, or of all rows together."""
    if layout == "plain":
        return max(map(group_length, groups))
    return sum(group_tokens(group, layout) for group in groups)


def collate(
    groups: Sequence[ContrastGroup], indices: Sequence[int], length: int, layout: Layout, weight: float = 1.0
) -> Batch:
    """Token tensors of `groups`, padded on the right to `length`.

    Args:
        indices: of the groups, `Batch.group_index_B`.
        weight: of the micro-batch in the mean over a step's micro-batches.
    """
    constitutions, responses = len(groups[0].prompt_ids), len(groups[0].response_ids)
    arrange = _plain if layout == "plain" else _shared_prefix
    arranged = arrange(groups, length)
    lengths = [len(r) for group in groups for _ in range(constitutions) for r in group.response_ids]
    mask_NT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    return Batch(
        **vars(arranged),
        labels_n=torch.tensor([t for g in groups for _ in range(constitutions) for r in g.response_ids for t in r]),
        slots_n=mask_NT.flatten().nonzero()[:, 0],
        mask_NT=mask_NT,
        group_index_B=tuple(indices),
        shape=(len(groups), constitutions, responses),
        weight=weight,
    )


def _plain(groups: Sequence[ContrastGroup], length: int) -> _Arranged:
    pairs = [(prompt, response) for g in groups for prompt in g.prompt_ids for response in g.response_ids]
    tokens_NS = torch.zeros(len(pairs), length, dtype=torch.long)
    predicts: list[int] = []
    for n, (prompt, response) in enumerate(pairs):
        ids = torch.tensor((*prompt, *response))
        tokens_NS[n, : len(ids)] = ids
        predicts += [(len(prompt) - 1 + t) * len(pairs) + n for t in range(len(response))]
    position_ids = torch.arange(length).expand(len(pairs), length).contiguous()
    return _Arranged(tokens_NS, position_ids, torch.tensor(predicts))


def _shared_prefix(groups: Sequence[ContrastGroup], length: int) -> _Arranged:
    tokens: list[int] = []
    positions: list[int] = []
    predicts: list[int] = []
    rows: list[list[int]] = []
    for group in groups:
        for prompt in group.prompt_ids:
            last = len(tokens) + len(prompt) - 1
            tokens += prompt
            positions += range(len(prompt))
            for response in group.response_ids:
                # The prompt's last token predicts the first of every response.
                predicts += [last, *range(len(tokens), len(tokens) + len(response) - 1)]
                tokens += response
                positions += range(len(prompt), len(prompt) + len(response))
            rows.append([len(prompt), *map(len, group.response_ids)])
    padding = [0] * (length - len(tokens))
    return _Arranged(
        torch.tensor([tokens + padding]),
        torch.tensor([positions + padding]),
        torch.tensor(predicts),
        torch.tensor(rows),
    )


def training_order(groups: int, seed: int, iteration: int) -> list[int]:
    """The order in which an iteration takes its groups."""
    order = list(range(groups))
    random.Random(f"{seed}/{iteration}").shuffle(order)
    return order


def deal(tokens: Sequence[int], hands: int, room: int) -> list[list[int]]:
    """Share out what weighs `tokens` in `hands` of nearly equal weight.

    The heaviest goes first, each to the lightest hand that has room; ties go to the first.

    Args:
        room: things that a hand can hold.

    Returns:
        Indices into `tokens`, of each hand from heavy to light; none is empty if there are as many.
    """
    assert len(tokens) <= hands * room, "there must be room for all"
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        lightest = min((hand for hand in dealt if len(hand) < room), key=lambda hand: sum(tokens[i] for i in hand))
        lightest.append(index)
    return dealt


def deal_step(tokens: Sequence[int], ranks: int, budget: int | None) -> list[list[list[int]]]:
    """Deal the groups of a step to the data-parallel ranks, and those of a rank to its micro-batches.

    All ranks get equally many groups and have equally many micro-batches, as few as the budget allows: they wait for one
    another where experts are exchanged.

    Args:
        tokens: of each group.
        budget: most tokens of a micro-batch, which a single group may exceed; None: those of the longest group.

    Returns:
        Indices into `tokens` by rank and micro-batch. Micro-batches come from heavy to light on all ranks.
    """
    assert len(tokens) % ranks == 0, "ranks must have equally many groups"
    most = max(budget or 0, *tokens)
    each = len(tokens) // ranks
    hands = deal(tokens, ranks, room=each)
    for count in range(1, each + 1):
        dealt = [deal([tokens[i] for i in hand], count, room=each) for hand in hands]
        step = [[[hand[i] for i in micro] for micro in micros] for hand, micros in zip(hands, dealt, strict=True)]
        loads = [[sum(tokens[i] for i in micro) for micro in micros] for micros in step]
        if max(max(load) for load in loads) <= most:
            break
    return [sorted(micros, key=lambda micro: -sum(tokens[i] for i in micro)) for micros in step]


class MicroBatches(IterableDataset[Batch]):
    """One data-parallel rank's micro-batches, step after step.

    Args:
        steps: indices into `groups` by step, rank and micro-batch, see `deal_step`.
        rank: whose.
        multiple: sequence lengths are rounded up to a multiple of it (tensor-parallel size under sequence
            parallelism).
        same_length: all ranks pad a micro-batch to the same length, which expert parallelism with the all-gather
            dispatcher needs.
    """

    def __init__(
        self,
        groups: Sequence[ContrastGroup],
        steps: Sequence[list[list[list[int]]]],
        layout: Layout,
        rank: int,
        multiple: int = 1,
        same_length: bool = False,
    ) -> None:
        self.groups = groups
        self.steps = steps
        self.layout = layout
        self.rank = rank
        self.multiple = multiple
        self.same_length = same_length

    def __len__(self) -> int:
        return sum(len(step[self.rank]) for step in self.steps)

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            groups_of_rank = sum(map(len, step[self.rank]))
            for together in zip(*step, strict=True):
                mine = together[self.rank]
                longest = max(self._length(micro) for micro in (together if self.same_length else [mine]))
                length = -(-longest // self.multiple) * self.multiple
                # A step's loss is the mean over its micro-batches: so every group weighs the same.
                weight = len(mine) * len(step[self.rank]) / groups_of_rank
                yield collate([self.groups[i] for i in mine], mine, length, self.layout, weight)

    def _length(self, micro_batch: Sequence[int]) -> int:
        return batch_length([self.groups[i] for i in micro_batch], self.layout)
