"""Several engines: together they answer every request once, and the merge finds whatever is not so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.errors import DataError
from sami_nemo.generate.merge import check_responses
from sami_nemo.generate.requests import Request, RequestPlan, share
from sami_nemo.records import Constitution, Query


def plan(queries: int) -> RequestPlan:
    constitutions = [Constitution(name, (name,)) for name in ("a", "b")]
    requests = [Request(Query(str(i), "text", "test"), c, (i,)) for i in range(queries) for c in constitutions]
    return RequestPlan(tuple(requests), queries, ("one that was too long",))


def rows(requests: tuple[Request, ...]) -> list[dict[str, object]]:
    return [{"query": {"id": r.query.id}, "constitution": {"id": r.constitution.id}} for r in requests]


@pytest.mark.parametrize(("queries", "engines"), [(7, 3), (8, 2), (2, 5), (1, 1)])
def test_shares_are_the_whole_in_order(queries: int, engines: int) -> None:
    whole = plan(queries)
    shares = [share(whole, k, engines) for k in range(engines)]
    assert tuple(request for part in shares for request in part.requests) == whole.requests
    sizes = [part.queries for part in shares]
    assert sum(sizes) == queries and max(sizes) - min(sizes) <= 1
    # Constitutions of a query stay together: their prompts share a head.
    assert all(len(part.requests) == 2 * part.queries for part in shares)


def test_all_answered_once() -> None:
    requests = plan(3).requests
    check_responses(Path("run"), "training", requests, rows(requests))


@pytest.mark.parametrize(
    ("change", "count", "query", "constitution"),
    [
        (lambda answered: answered[:2] + answered[3:], 5, "1", "a"),
        (lambda answered: answered[:3] + answered[2:], 7, "1", "b"),
        (lambda answered: answered[:-1], 5, "2", "b"),
        (lambda answered: [*answered, answered[0]], 7, "(none)", "(none)"),
        (lambda answered: [answered[1], answered[0], *answered[2:]], 6, "0", "a"),
    ],
    ids=["missing", "double", "last missing", "one more", "swapped"],
)
def test_what_is_missing_or_double_is_named(
    change: Callable[[list[Any]], list[Any]], count: int, query: str, constitution: str
) -> None:
    requests = plan(3).requests
    with pytest.raises(DataError) as error:
        check_responses(Path("run"), "training", requests, change(rows(requests)))
    assert f"{count} responses to 6 requests" in error.value.remedy
    assert f"to query {query} under {constitution};" in error.value.remedy
