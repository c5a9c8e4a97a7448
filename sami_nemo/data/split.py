"""Held-out queries and the two halves that iterations alternate between (paper, section 4)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sami_nemo.data.records import Query
from sami_nemo.errors import DataError


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
