"""The contrast groups of a step, at their longest, and how many tokens that is. Knows nothing of memory or time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import load_principles
from sami_nemo.prompts.templates import PROMPT_ROOM


@dataclass(frozen=True)
class Batch:
    """The contrast groups of a step."""

    groups: int
    """Over all data-parallel ranks."""
    constitutions: int
    prompt: int
    """Tokens of the longest prompt."""
    response: int
    """Tokens of the longest response."""
    layout: Literal["shared_prefix", "plain"]
    """Every prompt once with all responses to it, or every response behind every prompt."""

    @property
    def length(self) -> int:
        """Tokens of a prompt with a response."""
        return self.prompt + self.response


def longest_batch(config: Config) -> Batch:
    """A step whose sequences are all as long as the settings allow: the worst case for memory and time."""
    prompt = config.data.max_query_tokens + PROMPT_ROOM
    train = config.train
    return Batch(train.batch_size, train.constitutions_per_query, prompt, config.generate.max_tokens, train.layout)


def group_tokens(batch: Batch) -> int:
    """Positions that the model computes for one contrast group, when all are as long as the longest."""
    if batch.layout == "plain":
        return batch.constitutions**2 * batch.length
    return batch.constitutions * batch.prompt + head_positions(batch)


def head_positions(batch: Batch) -> int:
    """Positions of one contrast group that predict a response token: only they meet the vocabulary."""
    return batch.constitutions**2 * batch.response


def evaluation_constitutions(config: Config) -> int:
    """Constitutions of a held-out query."""
    if config.evaluate.constitutions_per_query is not None:
        return config.evaluate.constitutions_per_query
    principles = config.principles
    # A writer is asked for two principles and two antitheses.
    return load_principles(principles.file).count if principles.source == "file" and principles.file else 4


def scoring_batch(config: Config) -> Batch:
    """All held-out queries with their constitutions, at the longest."""
    batch = longest_batch(config)
    constitutions = evaluation_constitutions(config)
    return replace(batch, groups=config.data.evaluation_queries, constitutions=constitutions)
