"""Which responses are compared: those to the held-out queries under the desired constitution (paper, section 5).

The response of an iteration's model meets that of the base model and, if there is one, of the instruct baseline. The
statements of the constitution stand in the same order for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sami_nemo.config.schema import Config
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import INSTRUCT, RunDir, read_json, read_jsonl

Opponent = Literal["base", "instruct"]
OPPONENTS: dict[Opponent, int] = {"base": 0, "instruct": INSTRUCT}


@dataclass(frozen=True)
class Comparison:
    """One query, answered by the judged model and by an opponent under the same constitution."""

    query_id: str
    source: str
    query: str
    constitution: str
    opponent: Opponent
    response: str
    opponent_response: str


def opponents(config: Config, iteration: int) -> list[Opponent]:
    """Whom the model of `iteration` is compared with: the base model not with itself."""
    found: list[Opponent] = []
    if iteration:
        found.append("base")
    if config.evaluate.instruct is not None:
        found.append("instruct")
    return found


def desired_id(run: RunDir) -> str:
    """Id of the constitution of the principles themselves."""
    return read_json(run.queries / "constitutions.json")["desired"]["id"]


def evaluation_groups(run: RunDir, iteration: int) -> dict[str, ContrastGroup]:
    """What a model answered to the held-out queries, by query."""
    rows = read_jsonl(run.groups(iteration) / "evaluation.jsonl")
    return {group.query.id: group for group in map(ContrastGroup.from_json, rows)}


def desired_index(group: ContrastGroup, desired: str) -> int:
    """Place of the desired constitution in a group."""
    return [constitution.id for constitution in group.constitutions].index(desired)


def comparisons(config: Config, run: RunDir, iteration: int) -> list[Comparison]:
    """All comparisons of an iteration's model, over the queries that both sides have answered."""
    desired, mine = desired_id(run), evaluation_groups(run, iteration)
    found = []
    for opponent in opponents(config, iteration):
        theirs = evaluation_groups(run, OPPONENTS[opponent])
        for query_id, group in mine.items():
            if query_id in theirs:
                index = desired_index(group, desired)
                other = theirs[query_id]
                found.append(
                    Comparison(
                        query_id=query_id,
                        source=group.query.source,
                        query=group.query.text,
                        constitution=group.constitutions[index].text,
                        opponent=opponent,
                        response=group.responses[index],
                        opponent_response=other.responses[desired_index(other, desired)],
                    )
                )
    return found


def verdict(
    comparison: Comparison, score: float | None, count_tokens: Callable[[str], int], **details: Any
) -> dict[str, Any]:
    """A row of judge/verdicts.jsonl.

    Args:
        score: 1 if the judged model won, 0 if the opponent did, 0.5 for a draw of two orders; null if the judge's
            reply could not be read, or there is none.
        count_tokens: length of a text in the judged model's tokens.
    """
    return {
        "query_id": comparison.query_id,
        "source": comparison.source,
        "opponent": comparison.opponent,
        "score": score,
        "response_tokens": count_tokens(comparison.response),
        "opponent_tokens": count_tokens(comparison.opponent_response),
        **details,
    }
