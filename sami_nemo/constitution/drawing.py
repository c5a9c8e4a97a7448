"""Constitutions drawn from principles (paper, section 3: one statement of each principle, uniformly)."""

from __future__ import annotations

import dataclasses
import itertools
import random

from sami_nemo.constitution.principles import PrincipleSet, Statement, constitution
from sami_nemo.errors import ConfigError
from sami_nemo.records import Constitution


def draw_constitutions(principles: PrincipleSet, n: int, seed: int, query_id: str) -> tuple[Constitution, ...]:
    """`n` distinct constitutions for a query, uniformly without replacement, statements in random order.

    The same for the same seed and query, whatever else is drawn.

    Raises:
        ConfigError: `n` is larger than the number of distinct constitutions.
    """
    if n > principles.count:
        raise ConfigError(
            "train.constitutions_per_query", n, f"the principles give only {principles.count} distinct constitutions"
        )
    draw = random.Random(f"{seed}/{query_id}")
    # Each number below `count` stands for one combination, so that none is ever enumerated; a repeat is drawn again.
    numbers: dict[int, None] = {}
    while len(numbers) < n:
        numbers[draw.randrange(principles.count)] = None
    return tuple(_shuffled(_combination(principles, number), draw) for number in numbers)


def draw_with_desired(principles: PrincipleSet, n: int, seed: int, query_id: str) -> tuple[Constitution, ...]:
    """Like `draw_constitutions`, with the desired one among them: judges compare the responses to it."""
    drawn = draw_constitutions(principles, n, seed, query_id)
    desired = principles.desired
    if any(constitution.id == desired.id for constitution in drawn):
        return drawn
    order = random.Random(f"{seed}/{query_id}/desired").sample(desired.statements, len(desired.statements))
    return (dataclasses.replace(desired, statements=tuple(order)), *drawn[1:])


def all_constitutions(principles: PrincipleSet, seed: int, query_id: str) -> tuple[Constitution, ...]:
    """Every distinct constitution, in the principles' order, statements in random order."""
    draw = random.Random(f"{seed}/{query_id}")
    combinations = itertools.product(*(principle.statements for principle in principles.principles))
    return tuple(_shuffled(list(combination), draw) for combination in combinations)


def _combination(principles: PrincipleSet, number: int) -> list[Statement]:
    """The digits of `number` in the mixed base of the principles' statement counts."""
    chosen = []
    for principle in principles.principles:
        number, digit = divmod(number, len(principle.statements))
        chosen.append(principle.statements[digit])
    return chosen


def _shuffled(chosen: list[Statement], draw: random.Random) -> Constitution:
    return constitution(chosen, draw.sample(range(len(chosen)), len(chosen)))
