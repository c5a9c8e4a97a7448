"""Held-out queries and the two halves that iterations alternate between (paper, section 4)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sami_nemo.config.schema import Config
from sami_nemo.errors import DataError
from sami_nemo.records import Query


@dataclass(frozen=True)
class Split:
    """Disjoint parts of the data."""

    evaluation: list[Query]
    halves: tuple[list[Query], list[Query]]


def split_queries(queries: Sequence[Query], evaluation: int, selection: Literal["random", "first"], seed: int) -> Split:
    """Split once, by a seed.

    Args:
        evaluation: number of held-out queries. With `first`: shared evenly between the sources, the first of each.

    Raises:
        DataError: too few queries to hold out and train on.
    """
    if len(queries) < evaluation + 2:
        raise DataError(
            "data.evaluation_queries",
            evaluation,
            f"needs at least {evaluation + 2} usable queries, found {len(queries)}",
        )
    shuffled = list(queries)
    random.Random(seed).shuffle(shuffled)
    held_out = shuffled[:evaluation] if selection == "random" else _first_of_each_source(queries, evaluation)
    ids = {query.id for query in held_out}
    rest = [query for query in shuffled if query.id not in ids]
    return Split(held_out, (rest[0::2], rest[1::2]))


def split_for_run(config: Config, queries: Sequence[Query], account: str = "") -> Split:
    """The split of a run, in whose halves every iteration finds as many queries as it trains on.

    Args:
        account: what became of the rows that the queries are from, for errors.

    Raises:
        DataError: too few queries, even if none were lost to the filters of responses.
    """
    data = config.data
    needed = [1, 1]
    for iteration in range(1, config.iterations + 1):
        half = half_index(iteration)
        needed[half] = max(needed[half], needed_groups(config, iteration))
    # Of an odd number the first half gets the odd one.
    room = len(queries) - max(2 * needed[0] - 1, 2 * needed[1])
    found = f" ({account})" if account else ""
    training = f"{config.iterations} iterations train on up to {max(needed)} queries of one half"
    if room < 1:
        remedy = f"{training}, and it has {len(queries)} in all{found}; give more, or lower train.batch_size or train.batches"
        raise DataError("data.source", data.source, remedy)
    if data.evaluation_queries > room:
        remedy = f"there are {len(queries)} queries{found}, and {training}; set at most {room}, or give more queries"
        raise DataError("data.evaluation_queries", data.evaluation_queries, remedy)
    try:
        return split_queries(queries, data.evaluation_queries, data.evaluation_selection, config.seed)
    except DataError as error:
        raise DataError(error.field, error.value, f"{error.remedy}{found}") from None


def _first_of_each_source(queries: Sequence[Query], count: int) -> list[Query]:
    by_source: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_source[query.source].append(query)
    share, extra = divmod(count, len(by_source))
    chosen = []
    for position, (source, members) in enumerate(by_source.items()):
        wanted = share + (position < extra)
        if len(members) < wanted:
            raise DataError(
                "data.evaluation_queries", count, f"{source} has {len(members)} queries, {wanted} are needed"
            )
        chosen += members[:wanted]
    return chosen


def half_index(iteration: int) -> int:
    """The half of the queries that `iteration` (1-based) trains on: the halves alternate (paper, section 4)."""
    assert iteration >= 1
    return (iteration - 1) % 2


def needed_groups(config: Config, iteration: int) -> int:
    """Contrast groups that `iteration` trains on."""
    return config.training_steps(iteration) * config.train.batch_size
