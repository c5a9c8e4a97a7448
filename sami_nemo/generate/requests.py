"""What is asked of a model: queries x constitutions, as token ids. Needs neither torch nor vLLM."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sami_nemo.config.schema import Config
from sami_nemo.errors import ConfigError
from sami_nemo.queries.split import needed_groups
from sami_nemo.records import Constitution, Query

if TYPE_CHECKING:
    from sami_nemo.prompts.tokenization import PromptTokenizer


@dataclass(frozen=True)
class Request:
    """One query under one constitution."""

    query: Query
    constitution: Constitution
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class RequestPlan:
    """The requests of one response file, all constitutions of a query after one another."""

    requests: tuple[Request, ...]
    queries: int
    """Queries that were taken, those that are too long included."""
    too_long: tuple[str, ...]
    """Ids of queries left out because a prompt and a whole response do not fit into generate.max_model_len."""


def training_queries(config: Config, half: Sequence[Query], iteration: int) -> list[Query]:
    """The queries sampled for `iteration`, `generate.oversample` times as many as it trains on if the half has them.

    An iteration goes on behind the queries of earlier ones on the same half and starts over at its end, so that
    queries come back only when all were taken.

    Args:
        half: all queries of half number `half_index(iteration)`.
    """

    def sampled(iteration: int) -> int:
        return min(math.ceil(needed_groups(config, iteration) * config.generate.oversample), len(half))

    start = sum(sampled(earlier) for earlier in range(iteration - 2, 0, -2))
    return [half[(start + i) % len(half)] for i in range(sampled(iteration))]


def plan_requests(
    config: Config,
    queries: Sequence[Query],
    constitutions_of: Callable[[Query], tuple[Constitution, ...]],
    tokenizer: PromptTokenizer,
) -> RequestPlan:
    """Every query under each of its constitutions.

    A query with one prompt that is too long is left out as a whole: a group without all its responses is of no use.

    Raises:
        ConfigError: no query is short enough.
    """
    budget = config.generate.max_model_len - config.generate.max_tokens
    requests: list[Request] = []
    too_long: list[str] = []
    for query in queries:
        asked = [
            Request(query, constitution, tokenizer.encode_generation_prompt(constitution, query))
            for constitution in constitutions_of(query)
        ]
        if max(len(request.prompt_ids) for request in asked) > budget:
            too_long.append(query.id)
        else:
            requests.extend(asked)
    if not requests:
        remedy = (
            f"none of {len(queries)} prompts fits with a response of {config.generate.max_tokens} tokens; "
            "raise it, or lower data.max_query_tokens or generate.max_tokens"
        )
        raise ConfigError("generate.max_model_len", config.generate.max_model_len, remedy)
    return RequestPlan(tuple(requests), len(queries), tuple(too_long))


def share(plan: RequestPlan, engine: int, engines: int) -> RequestPlan:
    """The part of one of several engines: queries in a row, with all their constitutions, so that prefixes are shared.

    Args:
        engine: 0 <= engine < engines. With more engines than queries some have nothing to do.
    """
    queries = list(dict.fromkeys(request.query.id for request in plan.requests))
    first, end = (len(queries) * k // engines for k in (engine, engine + 1))
    mine = set(queries[first:end])
    requests = tuple(request for request in plan.requests if request.query.id in mine)
    return RequestPlan(requests, len(mine), ())


def requests_sha256(requests: Sequence[Request]) -> str:
    """Hex SHA-256 of what is asked, in its order."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps([request.query.id, request.constitution.id, request.prompt_ids]).encode())
    return digest.hexdigest()
