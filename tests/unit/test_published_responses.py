"""Statistics of the judge on real responses: 150 TL;DR posts answered by mistral-7b, its SAMI iteration 3, and instruct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sami_nemo.config.compose import compose
from sami_nemo.endpoint import Reply
from sami_nemo.evaluate.comparisons import Comparison
from sami_nemo.evaluate.judge import ask_in_orders, verdicts
from sami_nemo.evaluate.win_rates import win_rate
from sami_nemo.run_dir import read_jsonl


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def comparisons(shared_data: Path) -> list[Comparison]:
    """SAMI's iteration 3 against the base model, from the published files."""
    folder = shared_data / "tldr" / "published_responses"
    posts = {row["id"]: row["post"] for row in read_jsonl(shared_data / "tldr" / "posts.jsonl")}
    mine = {row["id"]: row for row in read_jsonl(folder / "iter3-mistral-mistral.jsonl")}
    base = {row["id"]: row for row in read_jsonl(folder / "base-mistral-mistral.jsonl")}
    assert mine.keys() == base.keys() and len(mine) == 150
    return [
        Comparison(str(i), "tldr", posts[i], row["constitution"], "base", row["response"], base[i]["response"])
        for i, row in mine.items()
    ]


def shorter_is_better(comparisons: list[Comparison], both_orders: bool) -> list[dict]:
    """Verdicts of a judge that knows nothing but length, and that writes like one."""
    config = compose(["recipe=sami_mistral", f"judge.both_orders={both_orders}"])
    questions = [question for c in comparisons for question in ask_in_orders(c, config, "0")]
    replies = []
    for question in questions:
        text = question.messages[0]["content"]
        a, _, rest = text.partition("Summary A: ")[2].partition("\nSummary B: ")
        b = rest.partition("\nFIRST, provide")[0]
        assert {a, b} == {question.comparison.response, question.comparison.opponent_response}
        choice = "A" if words(a) < words(b) else "B"
        replies.append(Reply(f"Comparison: one is shorter.\nFinal Response: {choice}", 1, 1))
    return verdicts(questions, replies, words)


def test_lengths(comparisons: list[Comparison]) -> None:
    """SAMI with these principles shortens summaries (the paper's figure 3)."""
    mine = np.array([words(c.response) for c in comparisons])
    base = np.array([words(c.opponent_response) for c in comparisons])
    assert mine.mean() < base.mean()
    rows = shorter_is_better(comparisons, both_orders=False)
    assert [row["response_tokens"] for row in rows] == mine.tolist()
    assert [row["opponent_tokens"] for row in rows] == base.tolist()


def test_strata_and_rates_against_numpy(comparisons: list[Comparison]) -> None:
    rows = shorter_is_better(comparisons, both_orders=False)
    mine = np.array([words(c.response) for c in comparisons])
    base = np.array([words(c.opponent_response) for c in comparisons])
    # Equal lengths: B, whoever stands there.
    decided = mine != base
    scores = np.array([row["score"] for row in rows])
    assert (scores[decided] == (mine < base)[decided]).all()
    rate = win_rate(rows)
    assert rate["n"] == 150 and rate["mean"] == pytest.approx(scores.mean())
    assert rate["sem"] == pytest.approx(scores.std(ddof=1) / np.sqrt(150))
    longer = mine > base
    assert rate["strata"]["longer"]["n"] == longer.sum() > 0
    corrected = (scores[longer].mean() + scores[~longer].mean()) / 2
    assert rate["corrected"]["mean"] == pytest.approx(corrected)
    # The correction takes away most of what length alone gives this judge.
    assert abs(rate["corrected"]["mean"] - 0.5) < abs(rate["mean"] - 0.5)


def test_positions_are_shuffled_and_both_orders_agree(comparisons: list[Comparison]) -> None:
    one = shorter_is_better(comparisons, both_orders=False)
    first = [row["orders"][0]["model_first"] for row in one]
    assert 50 < sum(first) < 100
    both = shorter_is_better(comparisons, both_orders=True)
    decided = [row for row in both if row["response_tokens"] != row["opponent_tokens"]]
    alone = {row["query_id"]: row["score"] for row in one}
    assert all(row["score"] == alone[row["query_id"]] for row in decided)
    # With equal lengths this judge always says B: a draw over both orders.
    assert all(row["score"] == 0.5 for row in both if row not in decided)
